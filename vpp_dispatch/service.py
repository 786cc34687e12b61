"""The composition root: every part of one worker is made, started and stopped here, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from typing import Any

import structlog
import uvloop

from vpp_dispatch import preflight
from vpp_dispatch.dispatch.app import Worker
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.faults import fault_hook
from vpp_dispatch.fleet.freshness import Freshness, Limits
from vpp_dispatch.fleet.synchroniser import Synchroniser
from vpp_dispatch.goodwe.circuit import Circuit, State
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.link import Link, RefusedRecord
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.goodwe.realtime import RealTimeApi
from vpp_dispatch.observability.health import Health, HealthServer
from vpp_dispatch.observability.logging import configure
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.observability.tracing import tracing_to
from vpp_dispatch.operators.envelope import Origin, dead_letter
from vpp_dispatch.settings import Settings

STOP_S = 40.0
"""A stop that takes longer is cut off; the next owner reads again what was not saved."""


def policy_of(settings: Settings) -> Policy:
    """The settings that decide in the domain."""
    return Policy(
        result_timeout_s=settings.goodwe.result_timeout_s,
        retry_backoff_s=settings.dispatch.retry_backoff_s,
        release_retry_s=settings.dispatch.release_retry_s,
        consent_max_age_s=settings.fleet.consent_max_age_s,
        telemetry_max_age_s=settings.fleet.telemetry_max_age_s,
        telemetry=settings.fleet.telemetry_policy,
        defaults=tuple(settings.dispatch.defaults),
        default_max_age_s=settings.dispatch.default_max_age_s,
        soc_floor_percent=settings.fleet.soc_floor_percent,
        min_interval_s=settings.guard.min_interval_s,
        dead_band_w=settings.guard.dead_band_w,
        verify_share={"none": 0.0, "sample": settings.dispatch.verify_sample, "all": 1.0}[settings.dispatch.verify],
    )


def run(settings: Settings) -> int:
    """Runs one worker until SIGTERM or SIGINT; returns the exit code."""
    if unmet := settings.unmet():
        raise ConfigurationError("; ".join(unmet))
    uvloop.install()
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    logging_config = configure(settings.log.level, settings.log.format)
    log = structlog.get_logger("vpp_dispatch")
    metrics, health = Metrics(), Health(live_limit_s=settings.http.live_limit_s)
    server = HealthServer(settings.http.host, settings.http.port, metrics, health)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    log.info("service.starting", http_port=server.port, pid=os.getpid(), group=settings.kafka.group)
    try:
        worker = await _until(stop, _start(settings, metrics, health, log, logging_config))
        if worker is None:
            return 0
        return await worker.run(stop)
    finally:
        await server.stop()
        log.info("service.stopped")


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, _Running]) -> _Running | None:
    """The result of the work, or None if the stop came first."""
    task = asyncio.create_task(work)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


async def _start(
    settings: Settings, metrics: Metrics, health: Health, log: Any, logging_config: dict[str, Any]
) -> _Running:
    reasons: list[str] = []

    def waiting(sentences: list[str]) -> None:
        health.beat()
        if sentences != reasons:
            reasons[:] = sentences
            log.warning("service.waiting", reasons=sentences)

    health.ready = lambda: (False, reasons or ["The service is starting."])
    await preflight.prepare(settings, waiting=waiting)
    return _Running(settings, metrics, health, log, logging_config)


class _Running:
    """All parts of a started worker."""

    def __init__(
        self, settings: Settings, metrics: Metrics, health: Health, log: Any, logging_config: dict[str, Any]
    ) -> None:
        self.settings = settings
        self.log = log
        self.metrics = metrics
        profile = load_profile(settings.goodwe.profile)
        catalogue = Catalogue(profile)
        fault = fault_hook(settings.fault.point)
        self.tracing = tracing_to(
            settings.tracing.endpoint,
            sample_ratio=settings.tracing.sample_ratio,
            headers=settings.tracing.headers,
            ca_file=settings.tracing.ca_file,
            service=settings.kafka.group,
        )
        self.link = Link(
            profile=profile,
            codec=Codec(profile, catalogue),
            bootstrap_servers=settings.goodwe_bootstrap_servers,
            security=settings.goodwe_security.aiokafka(),
            client_id=f"{settings.kafka.group}-{socket.gethostname()}-{os.getpid()}",
            group_id=settings.goodwe_group,
            session_timeout_s=settings.kafka.session_timeout_s,
            linger_s=settings.goodwe.result_linger_s,
            request_timeout_s=settings.goodwe.request_timeout_s,
            fault=fault,
            log=log,
        )
        self.worker = Worker(
            settings=settings,
            catalogue=catalogue,
            policy=policy_of(settings),
            link=self.link,
            metrics=metrics,
            health=health,
            log=log,
            fault=fault,
            logging_config=logging_config,
            tracing=self.tracing,
        )
        realtime = settings.goodwe.realtime
        self.api = RealTimeApi(
            profile=profile,
            base_url=realtime.base_url,
            account=realtime.account,
            password_file=realtime.password_file,
            max_calls_per_s=realtime.max_calls_per_s,
            ca_file=realtime.ca_file,
            connect_timeout_s=realtime.connect_timeout_s,
            read_timeout_s=realtime.read_timeout_s,
            circuit=Circuit(changed=self._circuit),
            called=lambda interface, outcome: metrics.realtime_calls.add(interface=interface, outcome=outcome),
            log=log,
        )
        metrics.build_info.set(1, version=version("vpp-dispatch"))
        metrics.realtime_circuit.set_all({"closed": 1, "open": 0, "probing": 0})
        self.synchroniser = Synchroniser(
            api=self.api,
            limits=Limits.of(settings, page_size=profile.realtime.page_size, tells_modes=profile.realtime.modes.told),
            leads=lambda: self.worker.coordinates and self.worker.running,
            devices=self._devices,
            share=lambda: len(self.worker.shards.books) / SHARDS,
            consent=self.worker.consent,
            observe=self.worker.observe,
            telemetry_age=metrics.telemetry_age_seconds.set,
            possible=self._possible,
            log=log,
        )
        health.ready = self._ready

    def _ready(self) -> tuple[bool, list[str]]:
        """The worker's own readiness; and GoodWe's topics have to have been there once. That they go away later stops
        nothing else, and so does not count."""
        ready, reasons = self.worker.readiness()
        if not self.link.reconnects:
            detail = self.link.trouble or "the first connection is being made"
            return False, [*reasons, f"GoodWe's topics have not been reached yet: {detail}"]
        return ready, reasons

    def _circuit(self, state: State, why: str) -> None:
        """The circuit of the Real-Time Data API has changed."""
        self.metrics.realtime_circuit.set_all({state: 1})
        line = self.log.warning if state == "open" else self.log.info
        line(f"realtime.circuit_{state}", detail=why)

    def _possible(self, can: Freshness) -> None:
        self.metrics.consent_age_possible_seconds.set(can.consent_age_s)
        self.metrics.telemetry_age_possible_seconds.set(can.telemetry_age_s)

    def _devices(self) -> Sequence[tuple[str, bool]]:
        """The devices whose telemetry is read: registered and consenting, in this worker's shards."""
        if not self.worker.running or self.settings.fleet.telemetry_policy == "ignore":
            return []
        return self.worker.shards.readable()

    async def run(self, stop: asyncio.Event) -> int:
        """Starts everything, waits for the stop or for a part that fails, and stops everything."""
        await self.link.start(self.worker.deliver, self._refuse)
        app = self.worker.app
        names = ["app", "consent", "telemetry", "tick", "coordinator", "lease", "checkpoint", "tell", "publisher"]
        tasks = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in zip(
                names,
                [
                    self._app(),
                    self.synchroniser.consent_loop(),
                    self.synchroniser.telemetry_loop(),
                    *self.worker.loops(),
                ],
                strict=True,
            )
        ]
        waiting = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
        code = 0
        for task in done - {waiting}:
            code = 1
            self.log.error(
                "service.part_failed", part=task.get_name(), detail=repr(task.exception()), exc_info=task.exception()
            )
        try:
            async with asyncio.timeout(STOP_S):
                await app.stop()
        except TimeoutError:
            self.log.error("service.stop", detail=f"the app did not stop within {STOP_S:g} s")
            code = 1
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
        await self.link.stop()
        await self.api.aclose()
        await asyncio.to_thread(self.tracing.close)
        return code

    async def _app(self) -> None:
        """The Faust app; returns only if it stops by itself, which is a failure."""
        app = self.worker.app
        await app.start()
        await app.wait_until_stopped()
        if app.crash_reason is not None:
            raise app.crash_reason
        raise RuntimeError("the Faust app stopped by itself")

    async def _refuse(self, records: list[RefusedRecord]) -> None:
        """Results that cannot be read, or answer nothing of ours: dead letters (R8, R26)."""
        letters = [
            dead_letter(
                record.value,
                record.key,
                record.headers,
                origin=Origin(
                    topic=record.topic, partition=record.partition, offset=record.offset, timestamp=record.appended_at
                ),
                reason=record.reason,
                detail=record.detail,
                at=record.appended_at,
            )
            for record in records
        ]
        await self.worker.outlet.write(self.settings.topics.dead_letters, letters)
        for record in records:
            self.metrics.dead_letters.add(origin="results", reason=record.reason)

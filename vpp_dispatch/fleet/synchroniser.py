"""Facts from GoodWe's Real-Time Data API, within its rate: who consents, and how the devices are.

Consent is read by the coordinator's owner and goes to every shard as one complete list (R16). Telemetry is read by each
worker for its own shards, with its share of the rate, and is kept in memory only (R18).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from vpp_dispatch.domain.device import SHARDS, Authorization, Battery, Operation, shard_of
from vpp_dispatch.domain.inputs import Consent, Telemetry
from vpp_dispatch.errors import ExternalFault, RateLimited

TELEMETRY_BATCH = 100
"""Devices per call: the contract's page size."""


class RealTimeData(Protocol):
    """GoodWe's Real-Time Data API as this package sees it; raises ExternalFault."""

    async def authorized(self) -> list[Authorization]: ...
    async def operation(self, sns: Sequence[str]) -> list[Operation]: ...
    async def battery(self, sns: Sequence[str]) -> list[Battery]: ...


class Synchroniser:
    """Two loops beside the app; each ends only by cancellation."""

    def __init__(
        self,
        *,
        api: RealTimeData,
        consent_refresh_s: float,
        telemetry_refresh_s: float,
        max_calls_per_s: float,
        leads: Callable[[], bool],
        devices: Callable[[], Sequence[tuple[str, bool]]],
        share: Callable[[], float],
        consent: Callable[[Mapping[int, Consent]], Awaitable[None]],
        observe: Callable[[Mapping[int, Telemetry]], Awaitable[None]],
        telemetry_age: Callable[[float], None],
        called: Callable[[str, str], None],
        log: Any,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`leads`: whether this worker reads consent; `devices`: (SN, has a battery) of whom telemetry is read;
        `share`: this worker's part of the rate, 0..1; `called` is told the interface and the outcome of each reading,
        `ok` or the reason of the fault."""
        self.api = api
        self.consent_refresh_s = consent_refresh_s
        self.telemetry_refresh_s = telemetry_refresh_s
        self.max_calls_per_s = max_calls_per_s
        self.leads = leads
        self.devices = devices
        self.share = share
        self.consent = consent
        self.observe = observe
        self.telemetry_age = telemetry_age
        self.called = called
        self.log = log
        self.clock = clock
        self._next = 0  # device at which the round of telemetry stands

    async def consent_loop(self) -> None:
        """Reads the list of authorized SNs; a new leader reads at once."""
        read_at: float | None = None
        while True:
            if not self.leads():
                read_at = None
            elif read_at is None or time.monotonic() - read_at >= self.consent_refresh_s:
                read_at = time.monotonic()
                try:
                    await self.read_consent()
                except ExternalFault as fault:
                    self.log.warning("consent.not_read", reason=fault.reason, detail=str(fault))
                    pause = min(self.consent_refresh_s, 30.0)
                    if isinstance(fault, RateLimited) and fault.retry_after_s:
                        pause = fault.retry_after_s
                    read_at = time.monotonic() - self.consent_refresh_s + pause
            await asyncio.sleep(0.2)

    async def read_consent(self) -> None:
        """One complete reading, to every shard, also to those in which nobody consents.

        The reading counts from before it began: a consent that was withdrawn meanwhile may still be in it.
        """
        at = self.clock()
        listed = await self._told("authorized-sns", self.api.authorized())
        by_shard: dict[int, list[tuple[str, float | None]]] = {shard: [] for shard in range(SHARDS)}
        for authorization in listed:
            by_shard[shard_of(authorization.sn)].append((authorization.sn, authorization.expires_at))
        await self.consent({shard: Consent(at=at, authorized=tuple(rows)) for shard, rows in by_shard.items()})
        self.log.info("consent.read", devices=len(listed), seconds=round(self.clock() - at, 3))

    async def telemetry_loop(self) -> None:
        """Reads telemetry of this worker's devices round by round, at its share of the rate."""
        while True:
            devices = list(self.devices())
            if not devices:
                await asyncio.sleep(0.2)
                continue
            started = time.monotonic()
            try:
                await self.read_telemetry(devices)
            except ExternalFault as fault:
                self.log.warning("telemetry.not_read", reason=fault.reason, detail=str(fault))
                pause = fault.retry_after_s if isinstance(fault, RateLimited) and fault.retry_after_s else 5.0
                await asyncio.sleep(pause)
                continue
            took = time.monotonic() - started
            self.telemetry_age(max(took, self.telemetry_refresh_s))
            self.log.debug("telemetry.read", devices=len(devices), seconds=round(took, 3))
            await asyncio.sleep(max(self.telemetry_refresh_s - took, 0.0))

    async def read_telemetry(self, devices: Sequence[tuple[str, bool]]) -> None:
        """One round over some devices; after a fault the next round goes on where this one stopped."""
        while self._next < len(devices):
            batch = devices[self._next : self._next + TELEMETRY_BATCH]
            operations = await self._paced("operation", self.api.operation([sn for sn, _ in batch]))
            with_battery = [sn for sn, battery in batch if battery]
            batteries = await self._paced("bms", self.api.battery(with_battery)) if with_battery else []
            by_shard: dict[int, tuple[list[Operation], list[Battery]]] = {}
            for operation in operations:
                by_shard.setdefault(shard_of(operation.sn), ([], []))[0].append(operation)
            for battery in batteries:
                by_shard.setdefault(shard_of(battery.sn), ([], []))[1].append(battery)
            self._next += TELEMETRY_BATCH
            await self.observe(
                {s: Telemetry(operations=tuple(o), batteries=tuple(b)) for s, (o, b) in by_shard.items()}
            )
        self._next = 0

    async def _told(self, interface: str, call: Awaitable[Any]) -> Any:
        try:
            answer = await call
        except ExternalFault as fault:
            self.called(interface, fault.reason)
            raise
        self.called(interface, "ok")
        return answer

    async def _paced(self, interface: str, call: Awaitable[Any]) -> Any:
        started = time.monotonic()
        answer = await self._told(interface, call)
        # The client throttles to the whole rate; a worker takes only its part of it.
        part = max(self.share(), 1 / SHARDS)
        await asyncio.sleep(max(0.0, 1 / (self.max_calls_per_s * part) - (time.monotonic() - started)))
        return answer

"""Facts from GoodWe's Real-Time Data API, within its rate: who consents, and how the devices are.

Consent is read by the coordinator's owner and goes to every shard as one complete list (R16). Telemetry is read by each
worker for its own shards, with its part of the rate (`freshness.parts`), and is kept in memory only (R18).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from vpp_dispatch.domain.device import SHARDS, Authorization, Battery, Operation, shard_of
from vpp_dispatch.domain.inputs import Consent, Telemetry
from vpp_dispatch.errors import ExternalFault, RateLimited
from vpp_dispatch.fleet.freshness import Freshness, Limits, State, freshness, parts, verdicts

GROWTH: Final = 1.2
"""A fleet that has grown, or shrunk, so much is told of again."""

TICK_S: Final = 0.2
AFTER_FAULT_S: Final = 5.0
CONSENT_AFTER_FAULT_S: Final = 30.0


class RealTimeData(Protocol):
    """GoodWe's Real-Time Data API as this package sees it; raises ExternalFault."""

    def authorized(self) -> Coroutine[Any, Any, list[Authorization]]: ...
    async def operation(self, sns: Sequence[str]) -> list[Operation]: ...
    async def modes(self, operations: Sequence[Operation]) -> list[Operation]: ...
    async def battery(self, sns: Sequence[str]) -> list[Battery]: ...
    def pace(self, *, consent: float, telemetry: float) -> None: ...


class Synchroniser:
    """Two loops beside the app; each ends only by cancellation."""

    def __init__(
        self,
        *,
        api: RealTimeData,
        limits: Limits,
        leads: Callable[[], bool],
        devices: Callable[[], Sequence[tuple[str, bool]]],
        share: Callable[[], float],
        consent: Callable[[Mapping[int, Consent]], Awaitable[None]],
        observe: Callable[[Mapping[int, Telemetry]], Awaitable[None]],
        telemetry_age: Callable[[float], None],
        possible: Callable[[Freshness], None],
        log: Any,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`leads`: whether this worker reads consent; `devices`: (SN, has a battery) of whom telemetry is read;
        `share`: this worker's part of the shards, 0..1; `telemetry_age` is told the age of the oldest telemetry, s;
        `possible` what the rate allows for the whole fleet."""
        self.api = api
        self.limits = limits
        self.leads = leads
        self.devices = devices
        self.share = share
        self.consent = consent
        self.observe = observe
        self.telemetry_age = telemetry_age
        self.possible = possible
        self.log = log
        self.clock = clock
        self._reading = False  # the list of consents, now
        self._next = 0  # device at which the round of telemetry stands
        self._read_at: list[float] = []  # monotonic, by batch of the round: when it was read last, or first wanted
        self._told: tuple[int, list[State]] = (0, [])

    # ------------------------------------------------------------------ consent

    async def consent_loop(self) -> None:
        """Reads the list of authorized SNs; a new leader reads at once, and one that no longer leads stops reading."""
        read_at: float | None = None
        while True:
            if not self.leads():
                read_at = None
            elif read_at is None or time.monotonic() - read_at >= self.limits.consent_refresh_s:
                read_at = time.monotonic()
                try:
                    await self.read_consent()
                except ExternalFault as fault:
                    if fault.reason != "circuit_open":  # told once, where it opened
                        self.log.warning("consent.not_read", reason=fault.reason, detail=str(fault))
                    pause = _pause_s(fault, min(self.limits.consent_refresh_s, CONSENT_AFTER_FAULT_S))
                    read_at = time.monotonic() - self.limits.consent_refresh_s + pause
            await asyncio.sleep(TICK_S)

    async def _while_leading(self, reading: Coroutine[Any, Any, list[Authorization]]) -> list[Authorization] | None:
        """The list, read with the list's part of the rate; None if this worker stops leading before it is complete."""
        task = asyncio.create_task(reading)
        self._reading = True
        try:
            while not task.done() and self.leads():
                self._pace()
                await asyncio.wait({task}, timeout=TICK_S)
            return task.result() if task.done() else None
        finally:
            self._reading = False
            self._pace()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def read_consent(self) -> None:
        """One complete reading, to every shard, also to those in which nobody consents.

        The reading counts from before it began: a consent that was withdrawn meanwhile may still be in it.
        """
        at = self.clock()
        listed = await self._while_leading(self.api.authorized())
        if listed is None:
            return
        by_shard: dict[int, list[tuple[str, float | None]]] = {shard: [] for shard in range(SHARDS)}
        for authorization in listed:
            by_shard[shard_of(authorization.sn)].append((authorization.sn, authorization.expires_at))
        await self.consent({shard: Consent(at=at, authorized=tuple(rows)) for shard, rows in by_shard.items()})
        self.log.info("consent.read", devices=len(listed), seconds=round(self.clock() - at, 3))
        self._tell(len(listed))

    def _tell(self, devices: int) -> None:
        """One line on what the rate allows, by the leader: at its first reading, and when the fleet or the verdict
        changes by much. Telemetry is taken to be read of all that are listed."""
        can = freshness(devices, self.limits)
        self.possible(can)
        found = list(verdicts(can, self.limits))
        before, states = self._told
        told = [verdict.state for verdict in found]
        if told == states and before / GROWTH <= devices <= before * GROWTH:
            return
        self._told = (devices, told)
        line = self.log.error if "failed" in told else self.log.warning if "note" in told else self.log.info
        line(
            "fleet.freshness",
            devices=devices,
            consent_age_s=round(can.consent_age_s),
            telemetry_age_s=None if math.isinf(can.telemetry_age_s) else round(can.telemetry_age_s),
            detail=" ".join(verdict.says for verdict in found),
        )

    # ------------------------------------------------------------------ telemetry

    async def telemetry_loop(self) -> None:
        """Reads telemetry of this worker's devices round by round, at its part of the rate."""
        while True:
            devices = list(self.devices())
            self._pace()
            if not devices:
                self._read_at = []
                await asyncio.sleep(TICK_S)
                continue
            started = time.monotonic()
            try:
                await self.read_telemetry(devices)
            except ExternalFault as fault:
                if fault.reason != "circuit_open":
                    self.log.warning("telemetry.not_read", reason=fault.reason, detail=str(fault))
                await self._rest(_pause_s(fault, AFTER_FAULT_S))
                continue
            took = time.monotonic() - started
            self.log.debug("telemetry.read", devices=len(devices), seconds=round(took, 3))
            await self._rest(self.limits.telemetry_refresh_s - took)

    async def read_telemetry(self, devices: Sequence[tuple[str, bool]]) -> None:
        """One round over some devices; after a fault the next round goes on where this one stopped.

        A round ends early when this worker's shards change: the devices are not all its own any more.
        """
        size, share = self.limits.page_size, self.share()
        now = time.monotonic()
        batches = math.ceil(len(devices) / size)
        self._read_at = self._read_at[:batches] + [now] * (batches - len(self._read_at))
        if share > 0 and not self.leads():  # the leader knows the whole list
            self.possible(freshness(round(len(devices) / share), self.limits))
        while self._next < len(devices):
            if self.share() != share:
                break
            batch = devices[self._next : self._next + size]
            asked_at = time.monotonic()
            self._pace()
            operations = await self.api.modes(await self.api.operation([sn for sn, _ in batch]))
            await self._observe(operations, [])
            self._pace()
            if with_battery := [sn for sn, battery in batch if battery]:
                await self._observe([], await self.api.battery(with_battery))
            self._read_at[self._next // size] = asked_at
            self._tell_age()
            self._next += size
        self._next = 0

    async def _observe(self, operations: Sequence[Operation], batteries: Sequence[Battery]) -> None:
        by_shard: dict[int, tuple[list[Operation], list[Battery]]] = {}
        for operation in operations:
            by_shard.setdefault(shard_of(operation.sn), ([], []))[0].append(operation)
        for battery in batteries:
            by_shard.setdefault(shard_of(battery.sn), ([], []))[1].append(battery)
        await self.observe({s: Telemetry(operations=tuple(o), batteries=tuple(b)) for s, (o, b) in by_shard.items()})

    async def _rest(self, seconds: float) -> None:
        """Sleeps, and keeps the pace and the age told meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._pace()
            self._tell_age()
            await asyncio.sleep(min(left, AFTER_FAULT_S))

    def _tell_age(self) -> None:
        if self._read_at:
            self.telemetry_age(time.monotonic() - min(self._read_at))

    def _pace(self) -> None:
        # Half a shard's part is the least: a worker that has just lost its last shard finishes its call.
        share = max(self.share(), 0.5 / SHARDS)
        mine = parts(share=share, leads=self.leads(), reading=self._reading)
        self.api.pace(consent=mine.consent, telemetry=mine.telemetry)


def _pause_s(fault: ExternalFault, else_s: float) -> float:
    """How long to wait after a fault before the next reading, s."""
    if isinstance(fault, RateLimited) and fault.retry_after_s:
        return fault.retry_after_s
    # An open circuit costs nothing to ask, and does not stay open for long.
    return min(else_s, AFTER_FAULT_S) if fault.reason == "circuit_open" else else_s

"""When consent and telemetry are read, at what pace, and what is told of it."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from tests.unit.fleet.test_freshness import LIMITS
from tests.waiting import eventually
from vpp_dispatch.domain.device import SHARDS, Authorization, Battery, Operation, shard_of
from vpp_dispatch.domain.inputs import Consent, Telemetry
from vpp_dispatch.errors import ExternalFault, NotReachable, RateLimited
from vpp_dispatch.fleet import synchroniser
from vpp_dispatch.fleet.freshness import CONSENT_PART, Freshness
from vpp_dispatch.fleet.synchroniser import Synchroniser


def sns(n: int) -> list[str]:
    return [f"9010KETU000W{number:04d}" for number in range(n)]


class Api:
    """GoodWe's API: answers at once, or with the faults that are queued."""

    def __init__(self) -> None:
        self.listed = sns(3)
        self.faults: deque[ExternalFault] = deque()
        self.calls: list[tuple[str, list[str]]] = []
        self.paces: list[tuple[float, float]] = []
        self.reading: asyncio.Event | None = None

    def _call(self, name: str, asked: Iterable[str]) -> None:
        self.calls.append((name, list(asked)))
        if self.faults:
            raise self.faults.popleft()

    async def authorized(self) -> list[Authorization]:
        if self.reading is not None:
            self.reading.set()
            await asyncio.Event().wait()
        self._call("authorized", [])
        return [Authorization(sn=sn, authorized_at=0.0) for sn in self.listed]

    async def operation(self, sns: Sequence[str]) -> list[Operation]:
        self._call("operation", sns)
        return [Operation(sn=sn, at=1.0, online=True) for sn in sns]

    async def modes(self, operations: Sequence[Operation]) -> list[Operation]:
        self._call("modes", [operation.sn for operation in operations])
        return [replace(operation, faulted=True, off_grid=False) for operation in operations]

    async def battery(self, sns: Sequence[str]) -> list[Battery]:
        self._call("battery", sns)
        return [Battery(sn=sn, at=1.0, soc_percent=50) for sn in sns]

    def pace(self, *, consent: float, telemetry: float) -> None:
        self.paces.append((consent, telemetry))


class World:
    """A synchroniser, and what came out of it."""

    def __init__(self, **limits: Any) -> None:
        self.api = Api()
        self.leads = True
        self.share = 1.0
        self.devices: list[tuple[str, bool]] = []
        self.consents: list[Mapping[int, Consent]] = []
        self.seen: list[Telemetry] = []
        self.ages: list[float] = []
        self.possible: list[Freshness] = []
        self.log = CapturingLogger()
        self.sync = Synchroniser(
            api=self.api,
            limits=replace(LIMITS, **limits),
            leads=lambda: self.leads,
            devices=lambda: self.devices,
            share=lambda: self.share,
            consent=self._consent,
            observe=self._observe,
            telemetry_age=self.ages.append,
            possible=self.possible.append,
            log=self.log,
            clock=lambda: 1000.0,
        )

    async def _consent(self, readings: Mapping[int, Consent]) -> None:
        self.consents.append(readings)

    async def _observe(self, telemetry: Mapping[int, Telemetry]) -> None:
        for shard, part in telemetry.items():
            sns_in = [row.sn for row in part.operations] + [row.sn for row in part.batteries]
            assert {shard_of(sn) for sn in sns_in} == {shard}
            self.seen.append(part)

    def told(self, event: str) -> list[tuple[str, dict[str, Any]]]:
        return [(call.method_name, call.kwargs) for call in self.log.calls if call.args == (event,)]


@asynccontextmanager
async def running(*loops: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    yield
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchroniser, "TICK_S", 0.002)
    monkeypatch.setattr(synchroniser, "AFTER_FAULT_S", 0.01)
    monkeypatch.setattr(synchroniser, "CONSENT_AFTER_FAULT_S", 0.01)


class TestConsent:
    async def test_r16_one_complete_list_to_every_shard(self) -> None:
        world = World()
        await world.sync.read_consent()
        (readings,) = world.consents
        assert set(readings) == set(range(SHARDS)) and {reading.at for reading in readings.values()} == {1000.0}
        assert sorted(sn for reading in readings.values() for sn, _ in reading.authorized) == sns(3)

    async def test_only_the_leader_reads_and_a_new_one_at_once(self) -> None:
        world = World()
        world.leads = False
        async with running(world.sync.consent_loop()):
            await asyncio.sleep(0)
            world.leads = True
            await eventually(lambda: world.consents, 5, "the first reading")
        assert len(world.consents) == 1

    async def test_who_stops_leading_stops_reading(self) -> None:
        world = World()
        world.api.reading = asyncio.Event()
        async with running(world.sync.consent_loop()):
            await asyncio.wait_for(world.api.reading.wait(), 5)
            world.leads = False
            world.api.reading = None
            await eventually(lambda: world.api.paces[-1] == (0.0, 1 - CONSENT_PART), 5, "the list's part given up")
            assert world.consents == []
            world.leads = True
            await eventually(lambda: world.consents, 5, "a reading of the new term")

    async def test_a_rate_limit_is_waited_for_as_it_asks(self) -> None:
        world = World()
        world.api.faults.extend([RateLimited("later", retry_after_s=0.3), NotReachable("away")])
        started = asyncio.get_running_loop().time()
        async with running(world.sync.consent_loop()):
            await eventually(lambda: world.consents, 5, "a reading")
        assert asyncio.get_running_loop().time() - started >= 0.3
        assert [line["reason"] for _, line in world.told("consent.not_read")] == ["rate_limited", "not_reachable"]

    async def test_an_open_circuit_is_told_once_elsewhere(self) -> None:
        world = World()
        world.api.faults.extend([NotReachable("closed", reason="circuit_open")] * 3)
        async with running(world.sync.consent_loop()):
            await eventually(lambda: world.consents, 5, "a reading")
        assert world.told("consent.not_read") == []


class TestTelemetry:
    async def test_r18_a_batch_is_of_the_page_size_and_tells_all_facts(self) -> None:
        world = World(page_size=2)
        world.devices = [(sn, number % 2 == 0) for number, sn in enumerate(sns(3))]
        await world.sync.read_telemetry(world.devices)
        one, two, three = sns(3)
        assert world.api.calls == [
            ("operation", [one, two]), ("modes", [one, two]), ("battery", [one]),
            ("operation", [three]), ("modes", [three]), ("battery", [three]),
        ]  # fmt: skip
        operations = [row for part in world.seen for row in part.operations]
        assert [(row.sn, row.faulted, row.off_grid) for row in operations] == [(sn, True, False) for sn in sns(3)]
        assert [row.sn for part in world.seen for row in part.batteries] == [one, three]

    async def test_a_round_goes_on_where_a_fault_stopped_it(self) -> None:
        world = World(page_size=1)
        world.devices = [(sn, False) for sn in sns(3)]
        await world.sync.read_telemetry(world.devices[:1])
        world.api.calls.clear()
        world.api.faults.append(NotReachable("away"))
        async with running(world.sync.telemetry_loop()):
            await eventually(lambda: len(world.api.calls) == 7, 5, "a whole round after the fault")
        assert [asked[0] for name, asked in world.api.calls if name == "modes"] == sns(3)

    async def test_a_round_ends_when_the_shards_change(self) -> None:
        world = World(page_size=1)
        shares = itertools.chain([1.0] * 4, itertools.repeat(0.5))
        world.sync.share = lambda: next(shares)
        await world.sync.read_telemetry([(sn, False) for sn in sns(3)])
        assert [asked for name, asked in world.api.calls if name == "operation"] == [sns(1)]

    async def test_the_age_grows_while_nothing_can_be_read(self) -> None:
        world = World()
        world.devices = [(sn, True) for sn in sns(3)]
        async with running(world.sync.telemetry_loop()):
            await eventually(lambda: world.ages, 5, "a first age")
        world.ages.clear()
        world.api.faults.extend([NotReachable("away")] * 10_000)
        async with running(world.sync.telemetry_loop()):
            await eventually(lambda: len(world.ages) >= 5, 5, "ages")
        assert world.ages == sorted(world.ages) and world.ages[-1] > world.ages[0] > 0


class TestPace:
    async def test_the_list_has_its_part_while_it_is_read_and_telemetry_has_it_else(self) -> None:
        world = World()
        world.share = 0.25
        world.devices = [(sn, True) for sn in sns(3)]
        world.api.reading = asyncio.Event()
        async with running(world.sync.consent_loop(), world.sync.telemetry_loop()):
            await asyncio.wait_for(world.api.reading.wait(), 5)
            await eventually(lambda: world.api.paces[-1] == (0.5, 0.125), 5, "the pace of a reading")
            world.leads = False
            world.api.reading = None
            await eventually(lambda: world.api.paces[-1] == (0.0, 0.125), 5, "the pace of another worker")
        world.leads = True
        world.sync._pace()
        assert world.api.paces[-1] == (0.0, 0.625)


class TestFreshness:
    async def test_it_is_told_at_the_first_reading_and_when_the_fleet_changes_by_much(self) -> None:
        world = World(page_size=1, max_calls_per_s=1000.0)
        for count in (100, 110, 121, 119, 90, 200):
            world.api.listed = sns(count)
            await world.sync.read_consent()
        told = world.told("fleet.freshness")
        assert [line["devices"] for _, line in told] == [100, 121, 90, 200]
        assert {level for level, _ in told} == {"info"}
        assert [can.devices for can in world.possible] == [100, 110, 121, 119, 90, 200]

    @pytest.mark.parametrize(("policy", "level"), [("ignore", "info"), ("prefer", "warning"), ("require", "error")])
    async def test_it_says_what_to_change(self, policy: str, level: str) -> None:
        world = World(page_size=1, max_calls_per_s=1.0, telemetry_policy=policy)
        world.api.listed = sns(200)
        await world.sync.read_consent()
        ((said, line),) = world.told("fleet.freshness")
        assert said == level
        assert (line["consent_age_s"], line["telemetry_age_s"]) == (800, None if policy == "ignore" else 1200)
        assert ("MAX_CALLS_PER_S to 1.4" in line["detail"]) is (policy != "ignore")

    async def test_a_worker_that_does_not_lead_judges_by_its_own_shards(self) -> None:
        world = World()
        world.leads, world.share = False, 0.25
        await world.sync.read_telemetry([(sn, True) for sn in sns(50)])
        assert [can.devices for can in world.possible] == [200]

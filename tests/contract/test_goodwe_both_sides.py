"""The codec and the simulator's own reader of the same profile, held against each other: what one writes, the other
understands as it was meant, under every built-in profile."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.unit.goodwe.batches import Rec, commands
from vpp_dispatch.domain.command import NO_VALUE, ResultCode, Results
from vpp_dispatch.domain.device import shard_of
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import PROFILES, load_profile
from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.faults import Faults
from vpp_dispatch.simulator.fleet import Device
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.profile import (
    ACTIVE_LIMIT,
    EXPORT_ENABLED,
    EXPORT_LIMIT,
    MODE,
    MODE_CODES,
    POWER,
    POWER_FACTOR,
)
from vpp_dispatch.simulator.profile import load_profile as load_simulated

NAMES = sorted(file.stem for file in PROFILES.glob("*.toml"))
EMS, EXPORT, ACTIVE, REACTIVE = Actuator
HYBRID, OLD, FOREIGN = "9010KETU000W0001", "95000ESU001W0004", "9010KETU000W0009"
PERCENT = {"goodwe": "5017KDTT00BW0001", "variant": "95000DSN00BW0001"}
START = 1_795_305_600.0 + 43_200

Answers = list[tuple[int, bool, int, bool, int, int]]


class Both:
    """A codec and a cloud of one profile."""

    def __init__(self, name: str) -> None:
        profile = load_profile(name)
        self.profile = profile
        self.codec = Codec(profile, Catalogue(profile))
        self.percent = PERCENT[name]
        simulated = load_simulated(name)
        devices = [
            Device(sn=sn, site="s", groups=(), area="west", rated_w=rated)
            for sn, rated in ((HYBRID, 10_000), (self.percent, 17_000), (OLD, 5_000))
        ]
        consent = Consent()
        for device in devices:
            consent.add(device.sn, authorized_at=START)
        self.now = START
        self.cloud = Cloud(
            profile=simulated,
            inverters=Inverters(profile=simulated, devices=devices, seed=1, now=START),
            consent=consent,
            faults=Faults(seed=1, results_per_command=simulated.results_per_command),
            started_at=START,
        )
        self.cloud.faults.change({"latency_s": [2, 2]})
        self.generation = 0

    def ask(self, kind: int, sn: str, first: int = 0, second: int = 0, *, rated_w: int = 17_000) -> Answers:
        """What came back of one command: (actuator, single, code, accepted, first, second) each.

        Of results with an id the first two come from it, so that all profiles can be held to the same.
        """
        self.generation += 1
        shard = shard_of(sn)
        batch = commands([(kind, sn, first, second)], rated_w=rated_w, shard=shard, generation=self.generation)
        prepared = self.codec.prepare(batch)
        (role,), _, (value,) = self.codec.encode(prepared, now=self.now)
        before = list(self.cloud.ledger.unreadable)
        name = ("single", "multi", "query")[role]
        topic = self.codec.request_topics[role]
        assert topic == self.cloud.profile.request_topics[name]
        self.cloud.receive(
            role=name, value=value, topic=topic, partition=0, offset=0, arrival_at=self.now, now=self.now
        )
        assert self.cloud.ledger.unreadable == before
        records = []
        for _ in range(20):
            self.now += 0.25
            for out in self.cloud.run(self.now):
                body = json.dumps({**out.body, self.cloud.profile.fields["timestamp"]: 1}).encode()
                records.append(Rec(out.topic, body, key=out.sn.encode()))
        found, refused = self.codec.decode_results(records)
        assert not refused
        assert set(found) == {shard}
        results = found[shard]
        n = len(results)
        assert n == len(records)
        if isinstance(results, Results):
            assert (results.ids == prepared.ids[0]).all()
            actuators, singles = np.full(n, kind if kind >= QUERY_BIT else 0), np.full(n, role == 0)
        else:
            assert isinstance(results, SlotResults)
            assert results.sn == [sn] * n
            actuators, singles = results.actuator, results.single
        columns = (actuators, singles, results.code, results.accepted, results.first, results.second)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def latched(self, sn: str, *columns: int) -> list[int]:
        """Raw settings of a device."""
        inverters = self.cloud.inverters
        return [int(inverters.settings[column, inverters.row_of[sn]]) for column in columns]

    def set_answer(self, code: ResultCode, *, single: bool = False) -> Answers:
        """What a set command is answered with, if it is taken or refused at the device."""
        last = (0, single, int(code), False, NO_VALUE, NO_VALUE)
        if self.profile.results.per_command == 1:
            return [last]
        return [(0, single, int(ResultCode.SUCCESS), True, NO_VALUE, NO_VALUE), last]


@pytest.fixture(params=NAMES)
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


@pytest.mark.parametrize("mode", ["auto", "standby", "import_target", "export_target", "charge", "discharge"])
def test_a_mode_and_its_power_are_latched_and_read_back(both: Both, mode: str) -> None:
    wire = getattr(both.profile.ems_modes, mode)
    assert both.ask(EMS, HYBRID, wire, 4870) == both.set_answer(ResultCode.SUCCESS)
    raw = both.latched(HYBRID, MODE, POWER)
    assert both.cloud.profile.modes[raw[0]] == MODE_CODES[mode]
    assert raw[1] / both.cloud.profile.columns[POWER].scale == pytest.approx(4870)
    read = both.ask(EMS | QUERY_BIT, HYBRID)
    assert read == [(EMS | QUERY_BIT, False, ResultCode.SUCCESS, False, wire, 4870)]


@pytest.mark.parametrize("percent", [False, True])
@pytest.mark.parametrize("limit_w", [0, 1700, 4250, 17_000])
def test_an_export_limit_is_latched_and_read_back(both: Both, percent: bool, limit_w: int) -> None:
    sn = both.percent if percent else HYBRID
    assert both.ask(EXPORT, sn, 1, limit_w) == both.set_answer(ResultCode.SUCCESS)
    raw = both.latched(sn, EXPORT_ENABLED, EXPORT_LIMIT)
    told_w = raw[1] * 170 if percent else raw[1] / both.cloud.profile.columns[EXPORT_LIMIT].scale
    assert raw[0] == 1
    assert told_w == limit_w
    ((kind, _, code, accepted, first, second),) = both.ask(EXPORT | QUERY_BIT, sn)
    assert (kind, code, accepted, first) == (EXPORT | QUERY_BIT, ResultCode.SUCCESS, False, 1)
    assert second * both.codec.catalogue.step_w(EXPORT, sn, 17_000) == pytest.approx(limit_w)


def test_the_single_actuators_are_latched_and_read_back(both: Both) -> None:
    scale = both.cloud.profile.columns[ACTIVE_LIMIT].scale
    assert both.ask(ACTIVE, HYBRID, 600) == both.set_answer(ResultCode.SUCCESS, single=True)
    assert both.latched(HYBRID, ACTIVE_LIMIT) == [60 * scale]
    assert both.ask(ACTIVE | QUERY_BIT, HYBRID) == [(ACTIVE | QUERY_BIT, False, ResultCode.SUCCESS, False, 600, 0)]
    assert both.ask(REACTIVE, HYBRID, 95) == both.set_answer(ResultCode.SUCCESS, single=True)
    assert both.latched(HYBRID, POWER_FACTOR) == [95]
    assert both.ask(REACTIVE | QUERY_BIT, HYBRID) == [(REACTIVE | QUERY_BIT, False, ResultCode.SUCCESS, False, 95, 0)]


@pytest.mark.parametrize(
    ("sn", "online", "code", "by_cloud"),
    [
        (HYBRID, False, ResultCode.OFFLINE, False),
        (FOREIGN, True, ResultCode.UNAUTHORIZED, True),
        (OLD, True, ResultCode.UNSUPPORTED, False),
    ],
)
def test_refusals_are_understood(both: Both, sn: str, online: bool, code: ResultCode, by_cloud: bool) -> None:
    both.cloud.set_online([HYBRID], online, now=both.now)
    answers = both.ask(EMS, sn, both.profile.ems_modes.charge, 1000)
    assert answers == (both.set_answer(code)[-1:] if by_cloud else both.set_answer(code))
    (query,) = both.ask(EMS | QUERY_BIT, sn)
    assert query == (EMS | QUERY_BIT, False, code, False, NO_VALUE, NO_VALUE)


def test_r26_a_partial_result_is_no_success(both: Both) -> None:
    both.cloud.faults.change({"partial": 1})
    assert both.ask(EMS, HYBRID, both.profile.ems_modes.charge, 1000)[-1][2] == ResultCode.PARTIAL


def test_both_sides_read_the_same_ratings_and_families(both: Both) -> None:
    catalogue, simulated = both.codec.catalogue, both.cloud.profile
    for sn in (HYBRID, OLD, both.percent, "95048ESN00BW0001", "929K9ETT00CW0000", "9010KQQQ000W0001"):
        assert catalogue.rated_w(sn, 0) == (simulated.rating_of(sn) or 0)
        family = simulated.family_of(sn)
        for actuator in Actuator:
            assert catalogue.supports(sn, actuator) is (
                family is not None and actuator.name.lower() in family.actuators
            )

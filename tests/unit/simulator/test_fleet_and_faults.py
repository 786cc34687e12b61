"""Which devices exist, both keys, and how faults are described."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.simulator.world import HYBRID, PROFILE
from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.faults import FaultError, Faults, draw, parse_loss_of
from vpp_dispatch.simulator.fleet import FleetError, generate_fleet, read_fleet
from vpp_dispatch.simulator.profile import ProfileError, load_profile, parse_profile


def test_a_generated_fleet_is_the_same_for_a_seed_and_fits_the_catalogue() -> None:
    fleet = generate_fleet(profile=PROFILE, inverters=500, seed=7, feeders=3, sites=100)
    assert fleet == generate_fleet(profile=PROFILE, inverters=500, seed=7, feeders=3, sites=100)
    other = {device.sn for device in generate_fleet(profile=PROFILE, inverters=500, seed=8)}
    assert not other & {device.sn for device in fleet}
    assert len({device.sn for device in fleet}) == 500
    assert all(re.fullmatch("[0-9A-Z]{16}", device.sn) for device in fleet)
    families = [PROFILE.family_of(device.sn) for device in fleet]
    assert {family.name for family in families if family} >= {"hybrid", "pv_one_phase", "pv_three_phase"}
    assert None not in families
    assert all(device.rated_w == PROFILE.rating_of(device.sn) for device in fleet)
    feeder_of = {(device.site, device.groups) for device in fleet}
    assert len(feeder_of) == 100
    assert {device.site_share for device in fleet} == {0.2}


def test_chosen_series_only_and_impossible_fleets() -> None:
    fleet = generate_fleet(profile=PROFILE, inverters=50, seed=1, series=["ETU"])
    assert {device.sn[5:8] for device in fleet} == {"ETU"}
    with pytest.raises(FleetError):
        generate_fleet(profile=PROFILE, inverters=50, seed=1, series=["XXX"])


@pytest.mark.parametrize(
    ("sn", "rated_w"),
    [
        ("9010KETU000W0000", 10_000),
        ("929K9ETT00CW0000", 29_900),
        ("95048ESN000W0000", 5_000),
        ("9ABCDETU000W0000", None),
    ],
)
def test_ratings(sn: str, rated_w: int | None) -> None:
    assert PROFILE.rating_of(sn) == rated_w


def test_fleet_files(tmp_path: Path) -> None:
    table = tmp_path / "fleet.csv"
    table.write_text(f"sn,site,groups,area,rated_w,default_export_limit_w\n{HYBRID},s1,f1;f2,west,,6000\n")
    lines = tmp_path / "fleet.jsonl"
    lines.write_text(
        f'{{"sn":"{HYBRID}","site":"s1","groups":["f1","f2"],"area":"west","default":{{"export_limit_w":6000}}}}\n'
    )
    (device,) = read_fleet(table, profile=PROFILE)
    assert [device] == read_fleet(lines, profile=PROFILE)
    assert device.registry_record() == {
        "sn": HYBRID,
        "site": "s1",
        "groups": ["f1", "f2"],
        "area": "west",
        "rated_w": 10_000,
        "site_share": 1.0,
        "default": {"export_limit_w": 6000},
    }
    lines.write_text(lines.read_text() * 2)
    with pytest.raises(FleetError, match="twice"):
        read_fleet(lines, profile=PROFILE)


def test_profiles_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ProfileError):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError):
        parse_profile({"name": "x"})


def test_consent_over_time() -> None:
    consent = Consent()
    consent.add("a", authorized_at=100.0)
    consent.add("b", authorized_at=None)
    assert [sn for sn, _, _ in consent.authorized_sns(now=101)] == ["a"]
    consent.set_authorized("a", False, now=110)
    consent.set_authorized("a", False, now=111)
    assert consent.standing("a", now=112) == "withdrawn"
    assert consent.standing("b", now=112) == consent.standing("c", now=112) == "none"
    consent.set_authorized("a", True, now=120, expires_at=130)
    assert consent.standing("a", now=129.9) == "authorized"
    assert consent.standing("a", now=131) == "withdrawn"
    assert consent.key("a", now=131).intervals == [[100.0, 110], [120, 130]]


def test_draws_depend_on_seed_id_and_answer_only() -> None:
    assert draw(1, "a", 0) == draw(1, "a", 0)
    assert len({draw(1, "a", 0), draw(2, "a", 0), draw(1, "b", 0), draw(1, "a", 1)}) == 4


def test_loss_of_a_chosen_result() -> None:
    rule = parse_loss_of(f"{HYBRID}:release:2")

    def take(sn: str, kind: str) -> bool:
        return rule.take(sn=sn, role="multi", kind=kind, names=(), stage="applied")

    assert [take(HYBRID, "set"), take("X" * 16, "release")] == [False, False]
    assert [take(HYBRID, "release") for _ in range(3)] == [True, True, False]
    assert parse_loss_of("set").count == 1
    assert parse_loss_of("query:*").count is None
    with pytest.raises(FaultError):
        parse_loss_of("sets")


def test_a_rule_can_count_for_each_device() -> None:
    faults = Faults(seed=1)
    faults.change({"drop": [{"kind": "set", "per_sn": True}]})
    lost = [faults.rule("drop", sn=sn, role="multi", kind="set", names=()) is not None for sn in "abab"]
    assert lost == [True, True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"los": 0.1},
        {"loss": 2},
        {"latency_s": [2, 1]},
        {"refusals": {"1003": 0.9, "1004": 0.9}},
        {"out_of_step_s": {"triple": 1}},
        {"drop": [{"kind": "reset"}]},
        {"drop": [{"count": 0}]},
        {"refuse": [{"kind": "set"}]},
        {"realtime": {"error_rat": 1}},
        {"realtime": {"error_next": "many"}},
    ],
)
def test_faults_that_cannot_be_used_change_nothing(change: dict[str, Any]) -> None:
    faults = Faults(seed=1)
    before = faults.shown()
    with pytest.raises(FaultError):
        faults.change({"duplicates": 0.5, "drop": [{"kind": "set"}], **change})
    assert faults.shown() == before

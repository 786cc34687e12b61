"""The demo's sums: silent when everything adds up, and a sentence for each thing that does not."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from vpp_dispatch.demo.asked import Control, Played
from vpp_dispatch.demo.tally import account_of, fleet_faults

SET, SKIPPED, WITHDRAWN, PV = "A" * 16, "B" * 16, "C" * 16, "D" * 16
AUTO = {"EMS Power Mode": 1, "EMS Power Set": 0}
PLAYED = Played(
    event_id="chg-1",
    asked="charge",
    controls=(Control(kind="charge", each_w=2000),),
    targets=frozenset({SET, SKIPPED, WITHDRAWN}),
    asked_w=6000.0,
    from_at=40.0,
    over_at=100.0,
)
CODES = [(1, 1), (1, 2), (1, 8)]


def command(mode: int, power_w: int, *, cid: str, at: float = 50.0, kind: str = "set") -> dict[str, Any]:
    parameters = [{"name": "EMS Power Mode", "value": mode}, {"name": "EMS Power Set", "value": power_w}]
    return {
        "kind": kind,
        "parameters": parameters,
        "correlation_id": cid,
        "executed": True,
        "arrival_at": at,
        "conflict": False,
    }


def inverter(*commands: dict[str, Any], family: str = "hybrid", authorized: bool = True) -> dict[str, Any]:
    return {
        "family": family,
        "rated_w": 10_000,
        "settings": dict(AUTO),
        "default_settings": dict(AUTO),
        "authorized": [[0.0, None]] if authorized else [],
        "commands": list(commands),
    }


def row(state: str, reason: str | None = None, cid: str = "", setpoint_w: int = 2000) -> dict[str, Any]:
    return {"state": state, "reason": reason, "correlation_id": cid, "setpoint_w": setpoint_w}


def world() -> dict[str, Any]:
    """A run that adds up: one inverter set and released, one skipped, one whose owner withdrew."""
    return {
        "report": {
            "final": True,
            "devices": {"targeted": 3, "skipped": 1, "applied": 1, "rejected": 1, "pending": 0},
            "reasons": {"skipped.offline": 1, "rejected.consent_withdrawn": 1},
            "release": {"due": 2, "confirmed": 2, "pending": 0, "refused": 0},
        },
        "rows": {
            (SET, "charge"): row("applied", cid="s1"),
            (SKIPPED, "charge"): row("skipped", "offline"),
            (WITHDRAWN, "charge"): row("rejected", "consent_withdrawn", "w1"),
        },
        "codes": list(CODES),
        "dump": {
            "pending": 0,
            "unreadable": [],
            "unknown_sns": {},
            "devices": {
                SET: inverter(command(11, 2000, cid="s1"), command(1, 0, cid="s2", at=101, kind="release")),
                SKIPPED: inverter(),
                WITHDRAWN: inverter(command(11, 2000, cid="w1")),
            },
        },
        "percent_families": {"pv_three_phase"},
    }


def test_a_run_that_adds_up_has_no_faults() -> None:
    account = account_of(PLAYED, **world())
    assert account.faults == []
    assert (account.carried_out, account.given_up) == ({"charge": 2}, {"charge": 1})
    assert fleet_faults(world()["dump"]) == []


def lose_an_outcome(w: dict[str, Any]) -> None:
    del w["rows"][SKIPPED, "charge"]


def report_one_more_applied(w: dict[str, Any]) -> None:
    w["report"]["devices"] |= {"applied": 2, "skipped": 0}


def report_another_reason(w: dict[str, Any]) -> None:
    w["report"]["reasons"] = {"skipped.soc": 1, "rejected.consent_withdrawn": 1}


def report_fewer_targets(w: dict[str, Any]) -> None:
    w["report"]["devices"]["targeted"] = 2


def leave_a_release_open(w: dict[str, Any]) -> None:
    w["report"]["release"] = {"due": 2, "confirmed": 1, "pending": 1, "refused": 0}


def answer_twice(w: dict[str, Any]) -> None:
    w["codes"] = [(1, 1), (1, 2), (1, 2), (1, 8)]


def tell_applied_without_a_command(w: dict[str, Any]) -> None:
    w["dump"]["devices"][SET]["commands"][0]["executed"] = False


def set_one_that_is_reported_as_skipped(w: dict[str, Any]) -> None:
    w["dump"]["devices"][SKIPPED]["commands"] = [command(11, 2000, cid="b1")]


def tell_another_value(w: dict[str, Any]) -> None:
    w["rows"][SET, "charge"]["setpoint_w"] = 1500


def name_a_command_that_was_never_seen(w: dict[str, Any]) -> None:
    w["rows"][SET, "charge"]["correlation_id"] = "s9"


def set_after_the_window(w: dict[str, Any]) -> None:
    w["dump"]["devices"][SET]["commands"].append(command(11, 2000, cid="s3", at=101.5))


def set_more_than_asked(w: dict[str, Any]) -> None:
    w["dump"]["devices"][SET]["commands"][0] = command(11, 2001, cid="s1")
    w["rows"][SET, "charge"]["setpoint_w"] = 2001


def not_final(w: dict[str, Any]) -> None:
    w["report"]["final"] = False


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lose_an_outcome, "1 inverters have no outcome"),
        (report_one_more_applied, "outcomes say"),
        (report_another_reason, "skipped.soc"),
        (report_fewer_targets, "names 3 inverters, and the report says 2"),
        (leave_a_release_open, "2 releases were due and 1 are confirmed"),
        (answer_twice, "the responses are"),
        (tell_applied_without_a_command, "the simulator never set them"),
        (set_one_that_is_reported_as_skipped, "reported as {'skipped': 1}"),
        (tell_another_value, "another value"),
        (name_a_command_that_was_never_seen, "another value"),
        (set_after_the_window, "after its window"),
        (set_more_than_asked, "more than 2000 W"),
        (not_final, "not final"),
    ],
)
def test_what_does_not_add_up_is_told(plant: Any, sentence: str) -> None:
    planted = deepcopy(world())
    plant(planted)
    faults = account_of(PLAYED, **planted).faults
    assert any(sentence in fault for fault in faults), faults


def test_an_export_limit_in_percent_is_counted_in_watts() -> None:
    limit = command(0, 0, cid="p1")
    limit["parameters"] = [{"name": "Export Limit Enable", "value": 1}, {"name": "Export Power Limit", "value": 15}]
    planted = world()
    planted["dump"]["devices"] = {PV: inverter(limit, family="pv_three_phase")}
    planted["rows"] = {(PV, "export_limit"): row("applied", cid="p1", setpoint_w=1500)}
    planted["codes"] = [(1, 1), (1, 2), (1, 3)]
    planted["report"] |= {"devices": {"targeted": 1, "applied": 1}, "reasons": {}}
    export = (Control(kind="export_limit", each_w=1500),)
    played = replace(PLAYED, controls=export, targets=frozenset({PV}))
    assert account_of(played, **planted).faults == []


def test_an_inverter_that_is_still_set_is_told() -> None:
    dump = world()["dump"]
    dump["devices"][SET]["settings"]["EMS Power Mode"] = 11
    assert "1 inverters are not at their default" in fleet_faults(dump)[0]


def test_a_command_without_consent_is_told() -> None:
    dump = world()["dump"]
    dump["devices"][SKIPPED] = inverter(command(11, 2000, cid="b1"), authorized=False)
    assert "without their owner's consent" in fleet_faults(dump)[0]


def two_controls() -> tuple[Any, dict[str, Any]]:
    """One inverter with a generation limit and a power factor, one that can have only the limit."""
    controls = (Control(kind="generation_limit", each_percent=30), Control(kind="power_factor", cos_phi=0.95))
    limit, factor = command(0, 0, cid="g1"), command(0, 0, cid="f1")
    limit["parameters"] = [{"name": "Active Power Limit", "value": 300}]
    factor["parameters"] = [{"name": "Power Factor", "value": 95}]
    other = deepcopy(limit) | {"correlation_id": "g2"}
    planted = world()
    planted["dump"]["devices"] = {SET: inverter(limit, factor), PV: inverter(other)}
    set_limit = {"state": "applied", "reason": None, "setpoint_percent": 30}
    planted["rows"] = {
        (SET, "generation_limit"): set_limit | {"correlation_id": "g1"},
        (SET, "power_factor"): {"state": "verified", "reason": None, "correlation_id": "f1", "cos_phi": 0.95},
        (PV, "generation_limit"): set_limit | {"correlation_id": "g2"},
        (PV, "power_factor"): {"state": "rejected", "reason": "unsupported", "correlation_id": "x"},
    }
    planted["report"] |= {"devices": {"targeted": 2, "applied": 1, "rejected": 1}}
    planted["report"] |= {"reasons": {"rejected.unsupported": 1}}
    return replace(PLAYED, controls=controls, targets=frozenset({SET, PV})), planted


def test_of_several_controls_the_worst_counts_and_each_is_held_against_the_simulator() -> None:
    played, planted = two_controls()
    account = account_of(played, **planted)
    assert account.faults == []
    assert account.carried_out == {"generation_limit": 2, "power_factor": 1}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("Active Power Limit", 310, "another value"),
        ("Power Factor", 94, "another value"),
        ("Power Factor", 97, "more than 0.95"),
    ],
)
def test_a_wrong_percent_or_power_factor_is_told(name: str, value: int, sentence: str) -> None:
    played, planted = two_controls()
    for told in planted["dump"]["devices"][SET]["commands"]:
        if told["parameters"][0]["name"] == name:
            told["parameters"][0]["value"] = value
    assert any(sentence in fault for fault in account_of(played, **planted).faults)


def test_an_inverter_without_an_outcome_of_one_control_is_told() -> None:
    played, planted = two_controls()
    del planted["rows"][SET, "power_factor"]
    assert any("have no outcome" in fault for fault in account_of(played, **planted).faults)

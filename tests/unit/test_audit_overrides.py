"""The audit of what ends a hold before its time, or keeps it from beginning: release, abort, switches, the owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests import audit
from tests.audit import Limits, Rule
from tests.unit.audit_run import (
    AUTO,
    EMS,
    EXPORT,
    HYBRIDS,
    NO_LIMIT,
    T0,
    Run,
    event_is,
    of,
    rfc3339,
    sequence_is,
    told,
)  # fmt: skip

A, B, C, D = HYBRIDS
LIMITS = Limits(consent_refresh_s=10, result_timeout_s=30)
OWNERS = (8, 0)
Plant = Callable[[Run], Any]


def found(run: Run) -> list[str]:
    return [str(violation) for violation in audit.audit(run.evidence(), LIMITS)]


def charge(watts: int) -> list[dict[str, Any]]:
    return [{"kind": "charge", "each_w": watts}]


# ------------------------------------------------------------------------- release signals, aborts, switches


def overridden_run() -> Run:
    """`one` charges A and B, 100 to 300; `rel` releases A (and D, which nobody had set) at 150. `two` limits C, 100 to
    300, and is aborted at 200. Releases-only from 220 to 240, drain from 250 to 270, `new` is refused at 260."""
    run = Run()
    for sn in HYBRIDS:
        run.registered(sn)
    run.event("one", 100, 300, charge(1000), targets={"devices": [A, B]})
    run.event("two", 100, 300, [{"kind": "export_limit", "each_w": 2000}], targets={"devices": [C]})
    first, second = (run.command(sn, EMS, (11, 1000), 101) for sn in (A, B))
    limit = run.command(C, EXPORT, (1, 2000), 101)

    run.signal("rel", 1, 149, "release", targets={"devices": [A, D]})
    run.response("rel", 1, 1, 150)
    run.response("rel", 1, 2, 150)
    freed, asserted = (run.command(sn, EMS, AUTO, 151) for sn in (A, D))
    for sn in (A, D):
        run.read(sn, EMS, AUTO, 152.5)
    rel = [run.row("rel", sn, "release", "verified", of_, None) for sn, of_ in ((A, freed), (D, asserted))]
    run.close("rel", 155, rel, 3, 0)

    run.turn("abort", True, 200, event="gridco/two")
    run.release(C, EXPORT, NO_LIMIT, 200.5)
    run.close(
        "two", 205, [run.row("two", C, "export_limit", "rejected", limit, 2000, reason="released")], 10, 1, "aborted"
    )

    run.turn("releases_only", True, 220)
    run.turn("releases_only", False, 240)
    run.turn("drain", True, 250)
    run.signal("new", 1, 260, start_at=rfc3339(T0 + 280), end_at=rfc3339(T0 + 290), targets={"all": True})
    run.response("new", 1, 252, 260.2, ("draining",))
    run.turn("drain", False, 270)

    run.release(B, EMS, AUTO, 301)
    one = [
        run.row("one", A, "charge", "rejected", first, 1000, reason="released"),
        run.row("one", B, "charge", "applied", second, 1000, response_code=3),
    ]
    run.close("one", 310, one, 8, 2)
    return run


def test_an_overridden_run_audits_clean() -> None:
    verdict = audit.examine(overridden_run().evidence(), LIMITS)
    assert verdict.violations == []
    assert verdict.checked["release_signals.holds"] == 1
    assert verdict.checked["releases.of_signals"] == 1
    assert verdict.checked["aborts"] == 1
    assert verdict.checked["switches"] == 5


def _state(event: str, index: int, **change: Any) -> Plant:
    """A row and its report say something else."""

    def plant(run: Run) -> None:
        done = {"applied": 0, "verified": 0, "rejected": 0} | change.pop("devices")
        run.edit(
            "outcomes", lambda b: b["outcomes"][0]["event_id"] == event, lambda b: b["outcomes"][index].update(change)
        )
        run.edit("reports", event_is(event), lambda b: (b["devices"].update(done), b.update(reasons={})))
        run.edit("reports", event_is(event), lambda b: b["power_w"].update(acknowledged=2000))

    return plant


def _final(event: str, old: int, new: int, *reasons: str) -> Plant:
    def plant(run: Run) -> None:
        record = run.drop("responses", event_is(event, code=old))
        run.response(event, 1, new, record.at - T0, reasons)

    return plant


def _all(*plants: Plant) -> Plant:
    def plant(run: Run) -> None:
        for one in plants:
            one(run)

    return plant


def _accepted_while_draining(run: Run) -> None:
    run.drop("responses", event_is("new"))
    run.edit("signals", event_is("new"), lambda b: b.update(controls=charge(5)))
    run.response("new", 1, 1, 260.2)
    run.response("new", 1, 2, 280)
    rows = [run.row("new", sn, "charge", "unused") for sn in HYBRIDS]
    run.close("new", 320, rows, 10, 0, requested=20)


APPLIED = {"state": "applied", "reason": None, "response_code": 3}

SWITCH: dict[str, Plant] = {
    "a setpoint while releases only": lambda run: run.command(B, EMS, (11, 1000), 230, again=(1, 2)),
    "a setpoint still in flight long after": lambda run: run.command(B, EMS, (11, 1000), 225.1, again=(1, 2)),
    "a default read while releases only": lambda run: run.read(B, EXPORT, NO_LIMIT, 230),
    "a verification while releases only": lambda run: run.read(B, EMS, (11, 1000), 230),
    "a new event while draining": _accepted_while_draining,
    "refused as draining before it was on": lambda run: (
        run.signal("early", 1, 240, targets={"all": True}, controls=charge(1)),
        run.response("early", 1, 252, 241, ("draining",)),
    ),
    "refused as draining after it was off": lambda run: (
        run.signal("late", 1, 280, targets={"all": True}, controls=charge(1)),
        run.response("late", 1, 252, 281, ("draining",)),
    ),
    "a hold that a release signal did not drop": _all(
        _state("one", 0, **APPLIED, devices={"applied": 2}), _final("one", 8, 3)
    ),
    "set again after the release signal": lambda run: (
        run.command(A, EMS, (11, 1000), 160),
        run.release(A, EMS, AUTO, 170),
    ),
    "applied in an aborted event": _all(
        _state("two", 0, **APPLIED, devices={"applied": 1}), _final("two", 10, 3, "aborted")
    ),
    "an abort that the final response hides": _final("two", 10, 10),
    "started after its abort": lambda run: run.move("responses", event_is("two", code=2), 205.5),
}


@pytest.mark.parametrize("plant", [pytest.param(plant, id=name) for name, plant in SWITCH.items()])
def test_what_is_against_a_switch_or_a_signal_is_found(plant: Plant) -> None:
    run = overridden_run()
    plant(run)
    assert run.rules(LIMITS) == {Rule.SWITCH}, found(run)


def test_an_abort_and_a_release_that_nobody_asked_for() -> None:
    run = overridden_run()
    run.records["event_inbox"] = [r for r in run.records["event_inbox"] if r.key != b"abort"]
    assert run.rules(LIMITS) == {Rule.SWITCH, Rule.RELEASE} or run.rules(LIMITS) == {Rule.SWITCH}, found(run)
    assert any("nobody did" in text for text in found(run))
    assert any("nobody released it" in text for text in found(run))


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda run: run.devices[D].update(authorized=[]), id="without consent"),
        pytest.param(lambda run: run.add("registry", D, None, 100), id="not in the registry"),
    ],
)
def test_a_release_signal_asserts_nothing_on_a_device_without_both_keys(plant: Plant) -> None:
    run = overridden_run()
    plant(run)
    assert run.rules(LIMITS) == {Rule.PERMISSION}, found(run)


def test_nobody_is_released_out_of_the_blue() -> None:
    run = overridden_run()
    run.release(D, EXPORT, NO_LIMIT, 120)
    assert run.rules(LIMITS) == {Rule.PERMISSION}


def test_nothing_asserted_by_a_release_signal() -> None:
    run = overridden_run()
    run.drop("multi_request", told(A, *AUTO))
    run.devices[A]["commands"].pop()
    run.edit("outcomes", sequence_is(1), lambda b: b["outcomes"][0].update(correlation_id=None))
    assert Rule.SWITCH in run.rules(LIMITS)


HARMLESS: dict[str, Plant] = {
    "a setpoint before the switch was taken": lambda run: run.command(B, EMS, (11, 1000), 224, again=(1, 2)),
    "a setpoint once it is off again": lambda run: run.command(B, EMS, (11, 1000), 240.1, again=(1, 2)),
    "a read-back of a release while releases only": lambda run: run.read(A, EMS, AUTO, 230),
    "a release once more while releases only": lambda run: run.release(C, EXPORT, NO_LIMIT, 230),
    "a cancellation while draining": lambda run: (
        run.signal("gone", 1, 255, "cancel"),
        run.response("gone", 1, 1, 256),
        run.response("gone", 1, 6, 256),
    ),
    "an abort of what was over": lambda run: run.turn("abort", True, 305, event="gridco/one"),
    "an abort in the last moment": lambda run: run.turn("abort", True, 299, event="gridco/one"),
    "an abort of nothing": lambda run: run.turn("abort", True, 150, event="gridco/none"),
    "another record of the event inbox": lambda run: run.add("event_inbox", "x", b"progress\n\x80", 150),
}


@pytest.mark.parametrize("plant", [pytest.param(plant, id=name) for name, plant in HARMLESS.items()])
def test_what_a_switch_allows_is_not_found(plant: Plant) -> None:
    run = overridden_run()
    plant(run)
    assert found(run) == []


@pytest.mark.parametrize(("code", "rules"), [(3, {Rule.REPORT}), (8, set()), (10, {Rule.REPORT, Rule.ORDER})])
def test_a_release_that_reached_no_device_ends_with_8(code: int, rules: set[Rule]) -> None:
    run = Run()
    run.registered(A)
    run.signal("rel", 1, 149, "release", targets={"devices": [A]})
    run.response("rel", 1, 1, 150)
    run.response("rel", 1, 2, 150)
    run.close("rel", 155, [run.row("rel", A, "release", "skipped", reason="default_unknown")], code, 0)
    assert run.rules(LIMITS) == rules, found(run)


@pytest.mark.parametrize(("state", "code", "rules"), [("unused", 3, set()), ("unused", 10, {Rule.REPORT})])
def test_a_test_is_judged_and_sets_nothing(state: str, code: int, rules: set[Rule]) -> None:
    run = Run()
    run.registered(A)
    window = {"start_at": rfc3339(T0 + 100), "end_at": rfc3339(T0 + 200)}
    run.signal("try", 1, 10, targets={"all": True}, controls=charge(5), test=True, **window)
    run.response("try", 1, 1, 11)
    run.close("try", 12, [run.row("try", A, "charge", state)], code, 0, requested=5)
    assert run.rules(LIMITS) == rules, found(run)
    run.command(A, EMS, (11, 5), 101)
    run.release(A, EMS, AUTO, 110)
    assert Rule.PERMISSION in run.rules(LIMITS)


def test_an_event_that_was_aborted_before_its_start_has_no_2() -> None:
    run = Run()
    run.registered(A)
    window: dict[str, Any] = {"start_at": rfc3339(T0 + 100), "end_at": rfc3339(T0 + 200), "targets": {"all": True}}
    run.signal("off", 1, 10, controls=charge(1), **window)
    run.response("off", 1, 1, 11)
    run.turn("abort", True, 50, event="gridco/off")
    run.close("off", 52, [run.row("off", A, "charge", "unused")], 10, 0, "aborted")
    run.edit("reports", event_is("off"), lambda b: b["power_w"].update(requested=1, shortfall=1))
    assert found(run) == []
    run.command(A, EMS, (11, 1), 101)
    run.release(A, EMS, AUTO, 110)
    assert Rule.WINDOW in run.rules(LIMITS)


def test_without_msgpack_the_switches_are_not_judged_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = overridden_run().evidence()
    monkeypatch.setitem(__import__("sys").modules, "msgspec", None)
    assert any("switches and aborts were not read" in note for note in audit.examine(evidence, LIMITS).notes)


# ------------------------------------------------------------------------- verification


def verified_run() -> Run:
    """`v` charges A and B, 100 to 200. A is read back equal; B's owner chose standby, twice, and is left alone."""
    run = Run()
    run.registered(A)
    run.registered(B)
    run.event("v", 100, 200, charge(1000))
    first = run.command(A, EMS, (11, 1000), 101)
    run.read(A, EMS, (11, 1000), 102.5)
    run.command(B, EMS, (11, 1000), 101)
    run.read(B, EMS, OWNERS, 102.5)
    again = run.command(B, EMS, (11, 1000), 104)
    run.read(B, EMS, OWNERS, 105.5)
    changes = [{"at": T0 + 105.2, "name": name, "value": v} for name, v in zip(EMS, OWNERS, strict=True)]
    run.devices[B].update(owner_changes=changes)
    run.devices[B]["settings"].update(zip(EMS, OWNERS, strict=True))
    rows = [
        run.row("v", A, "charge", "verified", first, 1000),
        run.row("v", B, "charge", "rejected", again, 1000, reason="opted_out"),
    ]
    run.outcomes(rows, 107)
    run.release(A, EMS, AUTO, 201)
    run.close("v", 210, [{**rows[0], "response_code": 3}, rows[1]], 8, 1)
    return run


def test_a_verified_run_audits_clean() -> None:
    verdict = audit.examine(verified_run().evidence(), LIMITS)
    assert verdict.violations == []
    assert verdict.checked["verified"] == 2
    assert verdict.checked["opted_out"] == 1
    assert verdict.checked["drifts"] == 2


def _read_of(sn: str, number: int) -> Plant:
    def plant(run: Run) -> None:
        index = [i for i, r in enumerate(run.records["query_result"]) if r.key == sn.encode()][number]
        del run.records["query_result"][index]

    return plant


VERIFICATION: dict[str, tuple[Plant, Rule]] = {
    "verified and never read": (_read_of(A, 0), Rule.READ_BACK),
    "verified by a query before the result": (
        lambda run: run.move("query_request", of(A), 101.5), Rule.READ_BACK,
    ),
    "verified and read otherwise": (
        lambda run: run.edit("query_result", of(A), lambda b: b["parameters"][1].update(value=900)), Rule.READ_BACK,
    ),
    "opted out after one difference": (_read_of(B, 1), Rule.OWNER),
    "opted out without a difference": (_all(_read_of(B, 1), _read_of(B, 0)), Rule.OWNER),
    "set a third time": (lambda run: run.command(B, EMS, (11, 1000), 120), Rule.OWNER),
    "released in spite of the owner": (lambda run: run.command(B, EMS, AUTO, 201), Rule.OWNER),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "rule"), [pytest.param(*case, id=name) for name, case in VERIFICATION.items()])
def test_a_verification_that_is_none_is_found(plant: Plant, rule: Rule) -> None:
    run = verified_run()
    settings = dict(run.devices[B]["settings"])
    plant(run)
    run.devices[B]["settings"] = settings
    assert run.rules(LIMITS) == {rule}, found(run)


def test_who_opted_out_takes_part_in_the_next_event() -> None:
    run = verified_run()
    run.event("next", 130, 190, charge(700), targets={"devices": [B]})
    following = run.command(B, EMS, (11, 700), 131)
    run.release(B, EMS, OWNERS, 191)
    run.close("next", 220, [run.row("next", B, "charge", "applied", following, 700, response_code=3)], 3, 1)
    assert found(run) == []


def test_a_retry_after_one_difference_is_no_fight() -> None:
    run = verified_run()
    run.records["multi_request"].append(replace(run.records["multi_request"][2], at=T0 + 104.2, offset=900))
    assert found(run) == []


def test_facts_that_no_dump_tells_are_named() -> None:
    run = verified_run()
    run.edit("outcomes", sequence_is(2), lambda b: b["outcomes"][0].update(state="skipped", reason="off_grid"))
    assert any("off_grid" in note for note in audit.examine(run.evidence(), LIMITS).notes)

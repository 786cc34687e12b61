"""The audit finds each violation: a correct run is made by hand, audits clean, and one thing is planted at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests import audit
from tests.audit import Evidence, Limits, Record, Rule
from tests.unit.audit_run import (
    AUTO,
    DEVICES,
    EMS,
    EXPORT,
    NO_LIMIT,
    OUTSIDER,
    T0,
    Run,
    event_is,
    id_of,
    of,
    rfc3339,
    sequence_is,
    told,
)  # fmt: skip

LIMITS = Limits(consent_refresh_s=10, result_timeout_s=30, expect_events=3)


A, B, C, D, E = DEVICES


def correct_run() -> Run:
    """Five devices, three events, seconds after T0.

    `exp`, 100 to 200: export limit of 3 kW on a feeder (A, B whose default is a limit of 5 kW, C, and E in percent).
    `chg`, 100 to 300: charge with 2 kW on area west (A, B refuses, D is offline) and a device that nobody knows.
    `dis`, 150 to 250, cancelled at 180: discharge with 1 kW on A, over the charge, which then resumes.
    """
    run = Run()
    run.devices[B]["settings"].update(zip(EXPORT, (1, 5000), strict=True))
    run.devices[B]["default_settings"] = dict(run.devices[B]["settings"])
    run.devices[D]["online"] = False
    for sn, groups, area in (
        (A, ["f1"], "west"),
        (B, ["f1"], "west"),
        (C, ["f1"], "east"),
        (D, [], "west"),
        (E, ["f1"], "east"),
    ):
        default = {"default": {"export_limit_w": 5000}} if sn == B else {}
        run.add("registry", sn, {"sn": sn, "site": f"s-{sn[-1]}", "groups": groups, "area": area, **default}, -500)

    run.signal(
        "exp", 1, 10, start_at=rfc3339(T0 + 100), end_at=rfc3339(T0 + 200), targets={"groups": ["f1"]},
        controls=[{"kind": "export_limit", "each_w": 3000}],
    )  # fmt: skip
    run.signal(
        "chg", 1, 20, start_at=rfc3339(T0 + 100), end_at=rfc3339(T0 + 300), priority=100,
        targets={"areas": ["west"], "devices": [OUTSIDER]}, controls=[{"kind": "charge", "each_w": 2000}],
    )  # fmt: skip
    run.signal(
        "dis", 1, 30, start_at=rfc3339(T0 + 150), end_at=rfc3339(T0 + 250), priority=1, targets={"sites": ["s-1"]},
        controls=[{"kind": "discharge", "each_w": 1000}],
    )  # fmt: skip
    run.signal("dis", 2, 179, "cancel", reason="feeder fault cleared")
    for event, start in (("exp", 100), ("chg", 100), ("dis", 150)):
        run.response(event, 1, 1, 31)
        run.response(event, 1, 2, start)
    run.response("dis", 2, 1, 180)
    run.response("dis", 2, 6, 180)

    limits = {sn: run.command(sn, EXPORT, (1, 25) if sn == E else (1, 3000), 101) for sn in (A, B, C, E)}
    run.command(A, EMS, (11, 2000), 101)
    refused = run.command(B, EMS, (11, 2000), 101, code="1099")
    away = run.command(D, EMS, (11, 2000), 101, code="1001")
    told = [run.row("exp", sn, "export_limit", "applied", limits[sn], 3000) for sn in (A, B, C, E)]
    run.outcomes(told, 103)
    discharge = run.command(A, EMS, (12, 1000), 151)
    resumed = run.command(A, EMS, (11, 2000), 180.5)
    dis = [run.row("dis", A, "discharge", "applied", discharge, 1000, response_code=6)]
    run.outcomes(dis, 181)
    run.report("dis", 2, 1, 182, dis, final=True, due=0)

    for sn in (A, B, C, E):
        run.release(sn, EXPORT, {B: (1, 5000), E: (0, 100)}.get(sn, NO_LIMIT), 201)
    run.report("exp", 1, 1, 150, told, final=False, due=0)
    exp = [{**row, "response_code": 3} for row in told]
    run.outcomes(exp, 205)
    run.report("exp", 1, 2, 206, exp, final=True, due=4)
    run.response("exp", 1, 3, 207)

    run.release(A, EMS, AUTO, 301)
    chg = [
        run.row("chg", A, "charge", "applied", resumed, 2000, response_code=3),
        run.row("chg", B, "charge", "rejected", refused, 2000, reason="failed", response_code=8),
        run.row("chg", D, "charge", "skipped", away, 2000, reason="offline"),
        run.row("chg", OUTSIDER, "charge", "skipped", reason="unknown_target"),
    ]
    run.outcomes(chg, 305)
    run.report("chg", 1, 1, 306, chg, final=True, due=1, requested=8000)
    run.response("chg", 1, 8, 307)
    return run


def test_a_correct_run_audits_clean_and_says_how_much_was_looked_at() -> None:
    verdict = audit.examine(correct_run().evidence(), LIMITS)
    assert verdict.violations == []
    assert verdict.checked["events.closed"] == 3
    assert verdict.checked["commands.setpoint"] == 9
    assert verdict.checked["commands.release"] == 5
    assert verdict.checked["read_backs"] == 5
    assert verdict.checked["releases.required"] == 5
    assert verdict.checked["outcomes.required"] == 9
    assert verdict.checked["rows_against_simulator"] == 7
    assert verdict.checked["devices_at_default"] == 5
    assert verdict.checked["schema.outcomes"] == 4
    assert "no violation" in str(verdict)


def test_the_ids_of_the_contract_are_decoded() -> None:
    names = audit.decode_id("110004b3-1000-8000-8100-5ec228c3fc69")
    assert names is not None
    assert (names.shard, names.row, names.actuator, names.generation, names.attempt) == (0x11, 0x4B3, 1, 4, 1)
    assert names.digest == 0x1EC228C3FC69
    assert audit.decode_id("110004b3-1000-4000-8100-5ec228c3fc69") is None


Plant = Callable[[Run], Any]


def _second_outcome(run: Run, at: float, **more: Any) -> None:
    run.outcomes([run.row("exp", C, "export_limit", "unconfirmed", reason="no_answer", response_code=8, **more)], at)


def _duplicate_in_message(body: dict[str, Any]) -> None:
    body["outcomes"].append({**body["outcomes"][0], "attempt": 2})


def _skipped(run: Run, sn: str) -> dict[str, Any]:
    return run.row("exp", sn, "export_limit", "skipped", reason="offline")


def _extra_query(**id_more: Any) -> Plant:
    """One more query to C, whose id is wrong in what is given."""

    def plant(run: Run) -> None:
        parts = {"sn": C, "actuator": 10, "generation": 7, "attempt": 1, "parts": EXPORT, **id_more}
        run.add("query_request", C, {"requestId": id_of(**parts), "sn": C, "parameters": list(EXPORT)}, 150)

    return plant


def _extra_set(run: Run) -> None:
    """Another value for C under its first generation."""
    values = (1, 777)
    parameters = [{"name": name, "value": value} for name, value in zip(EXPORT, values, strict=True)]
    correlation_id = id_of(C, 2, 1, 2, [f"{p['name']}={p['value']}" for p in parameters])
    run.add("multi_request", C, {"requestId": correlation_id, "sn": C, "parameters": parameters}, 150)
    run.devices[C]["commands"].append(run.executed(C, correlation_id, "multi", parameters, "0"))


def _outcomes_again(run: Run) -> None:
    run.outcome_sequence = 0
    run.outcomes([run.row("exp", C, "export_limit", "pending", response_code=1)], 104)


def _falling_sequence(run: Run) -> None:
    run.drop("reports", event_is("exp", final=False))
    run.report("exp", 1, 7, 150, [], final=False, due=0)


OUTCOME: dict[str, Plant] = {
    "none for a targeted device": lambda run: (
        run.edit("outcomes", sequence_is(4), lambda b: b["outcomes"].pop()),
        run.edit("reports", event_is("chg"), lambda b: b["devices"].update(targeted=3, skipped=1)),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].pop("skipped.unknown_target")),
    ),
    "one for a device that was not targeted": lambda run: (
        run.edit("outcomes", sequence_is(3), lambda b: b["outcomes"].append(_skipped(run, D))),
        run.edit("reports", event_is("exp", final=True), lambda b: b["devices"].update(targeted=5, skipped=1)),
        run.edit("reports", event_is("exp", final=True), lambda b: b["reasons"].update({"skipped.offline": 1})),
        run.drop("responses", event_is("exp", code=3)),
        run.response("exp", 1, 8, 207),
    ),
    "a correction of a row that is another's": lambda run: (
        run.outcomes([run.row("chg", D, "charge", "skipped", None, reason="faulted", corrects=1)], 320),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].update({"skipped.faulted": 1})),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].pop("skipped.offline")),
    ),
    "two in one message": lambda run: (run.edit("outcomes", sequence_is(3), _duplicate_in_message),),
}

REPORT: dict[str, Plant] = {
    "states": lambda run: run.edit("reports", event_is("chg"), lambda b: b["devices"].update(applied=0, verified=1)),
    "targeted": lambda run: run.edit("reports", event_is("chg"), lambda b: b["devices"].update(targeted=5)),
    "reasons": lambda run: run.edit("reports", event_is("chg"), lambda b: b.update(reasons={"skipped.offline": 3})),
    "power": lambda run: run.edit("reports", event_is("chg"), lambda b: b["power_w"].update(acknowledged=2001)),
    "releases": lambda run: run.edit("reports", event_is("chg"), lambda b: b["release"].update(due=2)),
    "final response": lambda run: (
        run.drop("responses", event_is("chg", code=8)),
        run.response("chg", 1, 3, 307),
    ),
    "applied and not executed": lambda run: run.devices[C]["commands"][0].update(executed=False, code="1099"),
    "applied and GoodWe never got it": lambda run: run.devices[C]["commands"].pop(0),
    "applied with another setpoint": lambda run: run.devices[C]["commands"][0].update(
        parameters=[{"name": EXPORT[0], "value": 1}, {"name": EXPORT[1], "value": 2000}]
    ),
    "applied without a result": lambda run: run.drop("multi_result", told(C, 1, 3000)),
    "rejected and executed": lambda run: run.devices[B]["commands"][1].update(executed=False, code="0"),
    "rejected for another reason": lambda run: (
        run.edit("outcomes", sequence_is(4), lambda b: b["outcomes"][1].update(reason="busy")),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].pop("rejected.failed")),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].update({"rejected.busy": 1})),
    ),
    "a setpoint that nobody asked for": _extra_set,
    "a row that still says started at the close": lambda run: run.edit(
        "outcomes", sequence_is(3), lambda b: b["outcomes"][0].update(response_code=2)
    ),
    "a row of a cancelled event that says completed": lambda run: run.edit(
        "outcomes", sequence_is(2), lambda b: b["outcomes"][0].update(response_code=3)
    ),
}

PERMISSION: dict[str, Plant] = {
    "not in the registry": lambda run: run.add("registry", A, None, 160),
    "never registered": lambda run: run.command(OUTSIDER, EMS, (11, 2000), 110),
    "consent withdrawn": lambda run: run.devices[A].update(authorized=[[T0 - 1000, T0 + 160]]),
    "consent never given": lambda run: run.devices[A].update(authorized=[]),
    "not targeted": lambda run: (run.command(C, EMS, (11, 2000), 110), run.release(C, EMS, AUTO, 120)),
    "no event on this actuator": lambda run: (
        run.command(D, EXPORT, (1, 3000), 110),
        run.release(D, EXPORT, NO_LIMIT, 120),
    ),
}

WINDOW: dict[str, Plant] = {
    "after the end": lambda run: (
        run.move("multi_request", told(C, 1, 3000), 201.2),
        run.move("multi_request", told(C, 0, 10000), 201.3),
    ),
    "before the start": lambda run: run.move("multi_request", told(C, 1, 3000), 99.9),
    "after the cancellation": lambda run: run.move("multi_request", told(A, 12, 1000), 182.5),
}

RELEASE: dict[str, Plant] = {
    "left set": lambda run: run.devices[C]["settings"].update({EXPORT[0]: 1, EXPORT[1]: 3000}),
    "never read back": lambda run: run.drop("query_result", of(C)),
    "read back as still set": lambda run: run.edit("query_result", of(C), lambda b: b["parameters"][0].update(value=1)),
    "never released": lambda run: (run.drop("multi_request", told(C, 0, 10000)), run.devices[C]["commands"].pop()),
    "no release told as due": lambda run: run.edit(
        "reports", event_is("chg"), lambda b: b.update(release={"due": 0, "confirmed": 0, "pending": 0, "refused": 0})
    ),
    "left set by an owner's leave of one parameter": lambda run: (
        run.devices[C]["settings"].update({EXPORT[0]: 1, EXPORT[1]: 4000}),
        run.devices[C].update(owner_changes=[{"at": T0 + 400, "name": EXPORT[1], "value": 4000}]),
    ),
}

ORDER: dict[str, Plant] = {
    "2 before 1": lambda run: run.move("responses", event_is("exp", code=2), 25),
    "3 without 2": lambda run: run.drop("responses", event_is("exp", code=2)),
    "254 after 1": lambda run: run.response("exp", 1, 254, 208),
    "two final responses": lambda run: run.response("chg", 1, 10, 308),
    "a final response to what was cancelled": lambda run: run.response("dis", 1, 3, 183),
    "no 6 to a cancellation": lambda run: run.drop("responses", event_is("dis", code=6)),
    "no final response": lambda run: run.drop("responses", event_is("chg", code=8)),
    "an unanswered signal": lambda run: run.signal("lost", 1, 200),
    "an unreadable signal without dead letter": lambda run: run.add("signals", "x", b"\xff{", 200),
    "a response to nothing": lambda run: run.response("ghost", 1, 254, 200),
    "final response before final report": lambda run: run.move("responses", event_is("exp", code=3), 205.5),
    "first outcome after the final report": lambda run: run.move("outcomes", sequence_is(4), 306.5),
    "a report after the final one": lambda run: run.report("exp", 1, 3, 210, [], final=False, due=0),
}

IDENTITY: dict[str, Plant] = {
    "a response with two contents": lambda run: run.response("exp", 1, 3, 208),
    "a report with two contents": lambda run: run.report("exp", 1, 1, 151, [], final=False, due=0),
    "an outcomes message with two contents": _outcomes_again,
    "a report's sequence falls": _falling_sequence,
    "a correlation id with two contents": lambda run: run.add(
        "multi_request",
        C,
        {
            **json.loads(run.records["multi_request"][run.index("multi_request", told(C, 1, 3000))].value or b""),
            "supplier": "x",
        },
        102,
    ),
    "a digest of another content": _extra_query(parts=EMS),
    "an id of another actuator": _extra_query(actuator=9),
    "a place of two devices": _extra_query(row=4),
}


def _headers(role: str, **change: bytes | None) -> Plant:
    def plant(run: Run) -> None:
        record = run.records[role][0]
        headers = {**dict(record.headers), **{name.replace("__", "-"): value for name, value in change.items()}}
        run.records[role][0] = replace(record, headers=tuple(headers.items()))

    return plant


MESSAGE: dict[str, Plant] = {
    "no ce_type": _headers("responses", ce_type=None),
    "another version": _headers("reports", ce_type=b"vpp.dispatch.report.v2"),
    "another source": _headers("outcomes", ce_source=b"somebody"),
    "no content type": _headers("outcomes", content__type=None),
    "an id of another form": _headers("outcomes", ce_id=b"outcome-1"),
    "a wrong key": lambda run: run.records["reports"].append(replace(run.records["reports"].pop(), key=b"chg")),
    "against the schema": lambda run: run.edit("reports", event_is("chg"), lambda b: b.update(mood="good")),
    "a reason that is not in the vocabulary": lambda run: (
        run.edit("outcomes", sequence_is(4), lambda b: b["outcomes"][3].update(reason="because")),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].pop("skipped.unknown_target")),
        run.edit("reports", event_is("chg"), lambda b: b["reasons"].update({"skipped.because": 1})),
    ),
    "an outcome against the schema": lambda run: run.edit(
        "outcomes", sequence_is(4), lambda b: b["outcomes"][0].update(attempt=-1)
    ),
    "a command with a foreign key": lambda run: run.records["query_request"].append(
        replace(run.records["query_request"].pop(), key=b"9010KETU000W0003")
    ),
    "a command that cannot be read": lambda run: run.add("multi_request", C, b"{}", 150),
    "a dead letter without reason": lambda run: run.add("dead_letters", "x", b"x", 150, {"dl_topic": "signals"}),
}


def _overtaking(run: Run) -> None:
    """The read-back's query goes out before the release is answered; its answer is equal all the same."""
    run.move("query_request", of(C), 201.5)


def _lost_result(first: float, second: float) -> Plant:
    """The release of C is never answered; it is read back by two queries at these times instead."""

    def plant(run: Run) -> None:
        run.drop("multi_result", told(C, 0, 10000))
        run.drop("query_request", of(C))
        run.drop("query_result", of(C))
        for at in (first, second):
            run.read(C, EXPORT, NO_LIMIT, at)
        for role, match in (("reports", event_is("exp", final=True)), ("responses", event_is("exp", code=3))):
            run.move(role, match, 270 + (role == "responses"))

    return plant


READ_BACK: dict[str, Plant] = {
    "a query before the result of the set": _overtaking,
    "two queries before the result timeout": _lost_result(210, 220),
    "one of two before the result timeout": _lost_result(210, 240),
}

PLANTED = [
    pytest.param(rule, plant, id=f"{rule.value}: {name}")
    for rule, plants in (
        (Rule.OUTCOME, OUTCOME),
        (Rule.REPORT, REPORT),
        (Rule.PERMISSION, PERMISSION),
        (Rule.WINDOW, WINDOW),
        (Rule.RELEASE, RELEASE),
        (Rule.ORDER, ORDER),
        (Rule.IDENTITY, IDENTITY),
        (Rule.MESSAGE, MESSAGE),
        (Rule.READ_BACK, READ_BACK),
    )
    for name, plant in plants.items()
]


@pytest.mark.parametrize(("rule", "plant"), PLANTED)
def test_what_is_planted_is_found_and_nothing_else(rule: Rule, plant: Plant) -> None:
    run = correct_run()
    plant(run)
    violations = audit.audit(run.evidence(), LIMITS)
    assert {violation.rule for violation in violations} == {rule}, "\n".join(map(str, violations))


def test_a_second_outcome_after_the_close_has_to_correct_the_first() -> None:
    run = correct_run()
    _second_outcome(run, 320)
    # The report of the close no longer agrees either, since what changes later asks for a further final report.
    assert run.rules(LIMITS) == {Rule.OUTCOME, Rule.REPORT}
    run = correct_run()
    _second_outcome(run, 320, corrects=3)
    assert run.rules(LIMITS) == {Rule.REPORT}


def test_a_code_twice_under_two_ids() -> None:
    run = correct_run()
    run.response("exp", 1, 1, 32)
    record = run.records["responses"].pop()
    headers = {**dict(record.headers), "ce_id": b"gridco/exp/1/1/again"}
    run.records["responses"].append(replace(record, headers=tuple(headers.items())))
    assert run.rules(LIMITS) == {Rule.ORDER, Rule.MESSAGE}


# ------------------------------------------------------------------------- what must not be taken for a violation


def _same_bytes_again(run: Run) -> None:
    for role in ("responses", "reports", "outcomes", "multi_request", "query_request", "signals"):
        run.records[role].append(replace(run.records[role][0], offset=1000, at=run.records[role][0].at + 0.5))


def _offline_debt(run: Run) -> None:
    """C went away before its release: it is still set, and the report says that this is pending."""
    run.devices[C]["settings"].update({EXPORT[0]: 1, EXPORT[1]: 3000})
    run.devices[C]["online"] = False
    run.drop("query_result", of(C))
    account = {"due": 4, "confirmed": 3, "pending": 1, "refused": 0}
    run.edit("reports", event_is("exp", final=True), lambda b: b.update(release=account))


def _bad_signal(run: Run) -> None:
    run.add("signals", "x", b"\xff{", 200)
    offset = run.records["signals"][-1].offset
    headers = {"dl_topic": "signals", "dl_partition": "0", "dl_offset": str(offset)}
    headers |= {"dl_reason": "undecodable", "dl_detail": "no JSON", "dl_at": rfc3339(T0 + 200)}
    run.add("dead_letters", "x", b"\xff{", 200, headers)


HARMLESS: dict[str, Plant] = {
    "the same bytes again": _same_bytes_again,
    "a late setpoint within the second": lambda run: run.move("multi_request", told(C, 1, 3000), 200.9),
    "consent withdrawn within the refresh": lambda run: run.devices[C].update(authorized=[[T0 - 1000, T0 + 90]]),
    "a removal just before": lambda run: run.add("registry", C, None, 100.5),
    "a release without consent": lambda run: run.devices[C].update(authorized=[[T0 - 1000, T0 + 150]]),
    "a debt of a device that is away": _offline_debt,
    "an owner's own choice": lambda run: (
        run.devices[C]["settings"].update({EXPORT[0]: 1, EXPORT[1]: 4000}),
        run.devices[C].update(
            owner_changes=[
                {"at": T0 + 400, "name": EXPORT[0], "value": 1},
                {"at": T0 + 401, "name": EXPORT[1], "value": 4000},
            ]
        ),
    ),
    "a lost result, read back twice after the timeout": _lost_result(232, 240),
    "bad input in the dead letters": _bad_signal,
    "a duplicate identifier": lambda run: (
        run.signal("exp", 1, 50, priority=3),
        run.response("exp", 1, 253, 51, ("duplicate_identifier",)),
    ),
    "a stale revision": lambda run: (
        run.signal("old", 2, 40),
        run.response("old", 2, 254, 41),
        run.signal("old", 1, 42),
    ),
    "a cancellation before its event": lambda run: (
        run.signal("never", 2, 40, "cancel"),
        run.response("never", 2, 1, 41),
        run.response("never", 2, 6, 41),
        run.signal("never", 1, 42),
        run.response("never", 1, 253, 43, ("cancelled",)),
    ),
    "a retry under the next attempt": lambda run: run.records["multi_request"].append(
        _retried(run.records["multi_request"][run.index("multi_request", told(C, 1, 3000))])
    ),
}


def _retried(record: Record) -> Record:
    body = json.loads(record.value or b"")
    parts = [f"{p['name']}={p['value']}" for p in body["parameters"]]
    body["requestId"] = id_of(body["sn"], 2, 1, 2, parts)
    return replace(record, value=json.dumps(body).encode(), at=T0 + 140, offset=2000)


@pytest.mark.parametrize("plant", [pytest.param(plant, id=name) for name, plant in HARMLESS.items()])
def test_what_is_allowed_is_not_found(plant: Plant) -> None:
    run = correct_run()
    plant(run)
    assert audit.audit(run.evidence(), LIMITS) == []


# ------------------------------------------------------------------------- an audit of nothing


def test_an_audit_of_nothing_says_so() -> None:
    nothing = Evidence(records={})
    assert {v.rule for v in audit.audit(nothing, Limits(expect_events=1))} == {Rule.EVIDENCE}
    assert audit.examine(nothing, Limits()).checked["records.signals"] == 0


def test_producers_times_prove_nothing_about_windows() -> None:
    run = correct_run()
    run.records["multi_request"] = [replace(record, appended=False) for record in run.records["multi_request"]]
    assert run.rules(LIMITS) == {Rule.EVIDENCE}


def test_a_dump_of_another_run_is_noticed() -> None:
    run = correct_run()
    foreign = run.executed(C, id_of(C, 2, 9, 1, ["x"]), "multi", [], "0")
    run.devices[C]["commands"].append(foreign)
    assert run.rules(LIMITS) == {Rule.EVIDENCE}


def test_an_open_event_is_a_violation_unless_it_may_be_open() -> None:
    run = correct_run()
    run.signal(
        "open", 1, 400, start_at=rfc3339(T0 + 410), end_at=rfc3339(T0 + 420), targets={"groups": ["none"]},
        controls=[{"kind": "charge", "each_w": 1}],
    )  # fmt: skip
    run.response("open", 1, 1, 401)
    run.response("open", 1, 2, 410)
    assert run.rules(LIMITS) == {Rule.ORDER}
    assert run.rules(replace(LIMITS, open_events=True)) == set()

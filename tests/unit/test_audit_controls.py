"""The audit of what a control asks: values in each unit, tables, sums, primacy, ramps, and commands in flight."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from tests import audit
from tests.audit import Limits, Rule, Wire
from tests.unit.audit_run import (
    ACTIVE,
    AUTO,
    EMS,
    EXPORT,
    HYBRIDS,
    NO_LIMIT,
    REACTIVE,
    T0,
    Run,
    event_is,
    of,
    told,
)  # fmt: skip
from vpp_dispatch.goodwe import profile

A, B, C, D = HYBRIDS
LIMITS = Limits(consent_refresh_s=10, result_timeout_s=30)
TABLE = {"sites": {"s-1": 3333}, "devices": {B: 777}}
Plant = Callable[[Run], Any]


def found(run: Run, limits: Limits = LIMITS, wire: Wire | None = None) -> list[str]:
    return [str(violation) for violation in audit.audit(run.evidence(), limits, wire)]


# ------------------------------------------------------------------------- several controls in one signal


def mixed_run(discharge: int = 1666, permille: int = 667, factor: int = 5, percent: float = 66.65) -> Run:
    """`mix`, 100 to 200 for A, B and C: discharge by a table that C is not in, 66.65 %, cos phi 0.95 under-excited."""
    run = Run()
    run.registered(A, site_share=0.5)
    run.registered(B)
    run.registered(C)
    controls: list[dict[str, Any]] = [
        {"kind": "discharge", "by_target_w": TABLE},
        {"kind": "generation_limit", "each_percent": percent},
        {"kind": "power_factor", "cos_phi": 0.95, "excitation": "under"},
    ]
    run.event("mix", 100, 200, controls)
    rows = []
    for sn in (A, B, C):
        if sn == C:
            rows.append(run.row("mix", C, "discharge", "skipped", reason="not_in_table"))
        else:
            watts = discharge if sn == A else 777
            rows.append(run.row("mix", sn, "discharge", "applied", run.command(sn, EMS, (12, watts), 101), watts))
        limit = run.command(sn, ACTIVE, (permille,), 101)
        rows.append(run.row("mix", sn, "generation_limit", "applied", limit, setpoint_percent=permille / 10))
        reactive = run.command(sn, REACTIVE, (factor,), 101)
        told_cos = factor / 100 if factor > 20 else 1 - factor / 100
        rows.append(run.row("mix", sn, "power_factor", "applied", reactive, cos_phi=round(told_cos, 2)))
    for sn in (A, B, C):
        run.release(sn, ACTIVE, (1000,), 201)
        run.release(sn, REACTIVE, (100,), 201)
    for sn in (A, B):
        run.release(sn, EMS, AUTO, 201)
    run.close("mix", 210, rows, 3, 8)
    return run


def final(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    run.edit("reports", event_is("mix", final=True), change)


def test_several_controls_with_a_table_audit_clean() -> None:
    verdict = audit.examine(mixed_run().evidence(), LIMITS)
    assert verdict.violations == []
    assert verdict.checked["outcomes.required"] == 9
    assert verdict.checked["not_in_table"] == 1
    assert verdict.checked["power"] == 1


WRONG_VALUES = {
    "a site's part rounded up": mixed_run(discharge=1667),
    "a half rounded down": mixed_run(permille=666),
    "over-excited": mixed_run(factor=95),
    "another factor": mixed_run(factor=6),
    "a looser limit": mixed_run(permille=668),
}


@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in WRONG_VALUES.items()])
def test_a_value_that_was_not_asked_is_found(run: Run) -> None:
    violations = audit.audit(run.evidence(), LIMITS)
    assert Rule.VALUE in {violation.rule for violation in violations}, violations
    assert {violation.rule for violation in violations} <= {Rule.VALUE, Rule.REPORT}, violations


@pytest.mark.parametrize(("percent", "permille"), [(66.65, 667), (66.64, 666), (0.05, 1), (33.3, 333), (99.99, 1000)])
def test_a_percentage_is_rounded_half_up(percent: float, permille: int) -> None:
    assert found(mixed_run(permille=permille, percent=percent)) == []


def limited_in_watts(watts: int, permille: int) -> Run:
    run = Run()
    run.registered(A)
    run.event("gen", 100, 200, [{"kind": "generation_limit", "each_w": watts}])
    limit = run.command(A, ACTIVE, (permille,), 101)
    row = run.row("gen", A, "generation_limit", "applied", limit, setpoint_percent=permille / 10)
    run.release(A, ACTIVE, (1000,), 201)
    run.close("gen", 210, [row], 3, 1, watts=False)
    return run


def test_a_generation_limit_in_watts_is_per_mille_of_the_rating() -> None:
    assert found(limited_in_watts(6665, 667)) == []
    assert {v.rule for v in audit.audit(limited_in_watts(6665, 666).evidence(), LIMITS)} == {Rule.VALUE}


SUMS: dict[str, Plant] = {
    "requested": lambda run: final(run, lambda b: b["power_w"].update(requested=2444, shortfall=1)),
    "shortfall": lambda run: final(run, lambda b: b["power_w"].update(shortfall=5)),
    "null although a control has watts": lambda run: final(run, lambda b: b["power_w"].update(requested=None)),
    "a device counted by its best state": lambda run: final(run, lambda b: b["devices"].update(applied=2, skipped=1)),
    "a device counted once per kind": lambda run: final(run, lambda b: b["devices"].update(applied=8, targeted=9)),
}


@pytest.mark.parametrize("plant", [pytest.param(plant, id=name) for name, plant in SUMS.items()])
def test_a_sum_that_is_wrong_is_found(plant: Plant) -> None:
    run = mixed_run()
    plant(run)
    assert run.rules(LIMITS) == {Rule.REPORT}


def test_power_is_null_where_no_control_has_watts() -> None:
    def of_percent(**more: Any) -> Run:
        run = Run()
        run.registered(A)
        run.event("gen", 100, 200, [{"kind": "generation_limit", "each_percent": 50}])
        limit = run.command(A, ACTIVE, (500,), 101)
        row = run.row("gen", A, "generation_limit", "applied", limit, setpoint_percent=50.0)
        run.release(A, ACTIVE, (1000,), 201)
        run.close("gen", 210, [row], 3, 1, **more)
        return run

    assert found(of_percent(watts=False)) == []
    assert of_percent().rules(LIMITS) == {Rule.REPORT}
    measured = of_percent(watts=False)
    measured.edit("reports", event_is("gen"), lambda b: b["power_w"].update(measured=5))
    assert measured.rules(LIMITS) == {Rule.REPORT}


def test_not_in_table_is_no_way_out_for_a_device_that_is_in_it() -> None:
    run = mixed_run()
    run.edit("registry", of(C), lambda b: b.update(site="s-1"))
    assert Rule.VALUE in run.rules(LIMITS)


def test_superseded_needs_somebody_who_supersedes() -> None:
    run = mixed_run()
    run.drop("responses", event_is("mix", code=3))
    run.response("mix", 1, 7, 212)
    assert run.rules(LIMITS) == {Rule.REPORT}


@pytest.mark.parametrize(
    ("kind", "told_w", "band_w", "right"),
    [
        ("charge", 950, 0, False),
        ("charge", 950, 50, True),
        ("charge", 1050, 50, True),
        ("charge", 1051, 50, False),
        ("export_limit", 950, 50, True),
        ("export_limit", 1001, 50, False),  # looser than asked
    ],
)
def test_r21_a_value_within_the_dead_band_is_right_and_a_looser_limit_is_not(
    kind: str, told_w: int, band_w: int, right: bool
) -> None:
    run = Run()
    run.registered(A)
    run.event("e", 100, 200, [{"kind": kind, "each_w": 1000}])
    actuator, values, default = (EMS, (11, told_w), AUTO) if kind == "charge" else (EXPORT, (1, told_w), NO_LIMIT)
    row = run.row("e", A, kind, "applied", run.command(A, actuator, values, 101), told_w)
    run.release(A, actuator, default, 201)
    run.close("e", 210, [row], 3, 1)
    run.edit("reports", event_is("e"), lambda b: b["power_w"].update(requested=1000, allocated=1000))
    assert (found(run, replace(LIMITS, dead_band_w=band_w)) == []) == right


# ------------------------------------------------------------------------- primacy


def contested_run(kind: str, *plant: int) -> Run:
    """A strong and a weak event on A, 100 to 200; `plant`: what A is told at 150, while both last."""
    ems = kind == "charge"
    names, strong, weak = (EMS, (11, 3000), (11, 1000)) if ems else (EXPORT, (1, 1000), (1, 3000))
    run = Run()
    run.registered(A)
    run.event("strong", 100, 200, [{"kind": kind, "each_w": strong[1]}], priority=1)
    run.event("weak", 110, 220, [{"kind": kind, "each_w": weak[1]}], priority=9)
    first = run.command(A, names, strong, 101)
    if plant:
        run.command(A, names, plant, 150)
    second = run.command(A, names, weak, 200.5)
    run.release(A, names, AUTO if ems else NO_LIMIT, 221)
    run.close("strong", 205, [run.row("strong", A, kind, "applied", first, strong[1])], 3, 0)
    run.close("weak", 230, [run.row("weak", A, kind, "applied", second, weak[1])], 3, 1)
    return run


@pytest.mark.parametrize(
    ("kind", "plant", "rules"),
    [
        ("charge", (), set()),
        ("charge", (11, 3000), set()),
        ("charge", (11, 1000), {Rule.PRIMACY}),
        ("export_limit", (), set()),
        ("export_limit", (1, 1000), set()),
        ("export_limit", (1, 3000), {Rule.PRIMACY}),
    ],
)
def test_the_weaker_event_sets_nothing_while_the_stronger_holds(
    kind: str, plant: tuple[int, ...], rules: set[Rule]
) -> None:
    run = contested_run(kind, *plant)
    assert run.rules(LIMITS) == rules, found(run)


# ------------------------------------------------------------------------- ramps

MANY = tuple(f"9010KETU000W1{n:03d}" for n in range(40))


def ramp_run(
    start: Callable[[int], float] = lambda i: 100.2 + 2.5 * i, end: Callable[[int], float] = lambda i: 300.2 + i
) -> Run:
    """Forty devices, 100 to 300, staggered over 100 s up and 40 s down; each of its own offset."""
    run = Run()
    for sn in MANY:
        run.install(sn)
        run.registered(sn)
    run.event("ramp", 100, 300, [{"kind": "charge", "each_w": 500}], ramp_up_s=100, ramp_down_s=40)
    rows = [
        run.row("ramp", sn, "charge", "applied", run.command(sn, EMS, (11, 500), start(i)), 500)
        for i, sn in enumerate(MANY)
    ]
    for i, sn in enumerate(MANY):
        run.release(sn, EMS, AUTO, end(i))
    run.close("ramp", 400, rows, 3, len(MANY))
    return run


def test_a_staggered_event_audits_clean() -> None:
    verdict = audit.examine(ramp_run().evidence(), LIMITS)
    assert verdict.violations == []
    assert verdict.checked["ramps.starts"] == verdict.checked["ramps.releases"] == 1


RAMPS = {
    "all at once at the start": (ramp_run(start=lambda i: 100.5), {Rule.RAMP}),
    "all in the first tenth": (ramp_run(start=lambda i: 100.2 + i / 5), {Rule.RAMP}),
    "all released at the end": (ramp_run(end=lambda i: 300.5), {Rule.RAMP}),
    "one released before the end": (ramp_run(end=lambda i: 290.0 if i == 7 else 300.2 + i), {Rule.RELEASE}),
    "a setpoint after the end, within the ramp": (
        ramp_run(start=lambda i: 301.5 if i == 7 else 100.2 + 2.5 * i, end=lambda i: 303.0 + i), {Rule.WINDOW},
    ),
    "late, all together": (ramp_run(start=lambda i: 199.5), set()),
    "uneven by chance": (ramp_run(start=lambda i: 100.2 + 2.5 * (i % 30)), set()),
    "released late": (ramp_run(end=lambda i: 345.0), set()),
}  # fmt: skip


@pytest.mark.parametrize(("run", "rules"), [pytest.param(*case, id=name) for name, case in RAMPS.items()])
def test_a_ramp(run: Run, rules: set[Rule]) -> None:
    assert run.rules(LIMITS) == rules, found(run)


def test_a_ramp_over_another_event_is_judged_too_unless_both_ask_for_the_same() -> None:
    run = ramp_run(start=lambda i: 100.5)
    run.event("under", 90, 310, [{"kind": "charge", "each_w": 400}], priority=255)
    run.close("under", 410, [run.row("under", sn, "charge", "skipped", reason="superseded") for sn in MANY], 10, 0)
    assert Rule.RAMP in run.rules(LIMITS)
    run.edit("signals", event_is("under"), lambda b: b.update(controls=[{"kind": "charge", "each_w": 500}]))
    assert Rule.RAMP not in run.rules(LIMITS)


def test_a_ramp_of_few_devices_is_not_judged_and_said_so() -> None:
    run = contested_run("charge")
    run.edit("signals", event_is("weak"), lambda b: b.update(ramp_down_s=50))
    assert "too few to judge the ramp" in " ".join(audit.examine(run.evidence(), LIMITS).notes)


# ------------------------------------------------------------------------- flow


def test_no_more_in_flight_than_configured() -> None:
    run = mixed_run()  # eight commands at 101, answered at 102; eight releases at 201
    assert run.rules(replace(LIMITS, max_in_flight=8)) == set()
    assert run.rules(replace(LIMITS, max_in_flight=7)) == {Rule.FLOW}
    assert audit.examine(run.evidence(), replace(LIMITS, max_in_flight=8)).checked["in_flight.most"] == 8
    assert any("in flight" in note for note in audit.examine(run.evidence(), LIMITS).notes)


def test_a_timeout_frees_its_slot() -> None:
    run = mixed_run()
    run.read(D, EMS, AUTO, 50)  # never answered
    run.drop("query_result", of(D))
    assert run.rules(replace(LIMITS, max_in_flight=8)) == set()
    assert run.rules(replace(LIMITS, max_in_flight=8, result_timeout_s=90)) == {Rule.FLOW}


def test_what_is_published_once_more_under_its_id_takes_one_slot() -> None:
    run = mixed_run()
    run.records["multi_request"].append(replace(run.records["multi_request"][0], at=T0 + 101.4, offset=5000))
    assert run.rules(replace(LIMITS, max_in_flight=8)) == set()


# ------------------------------------------------------------------------- results without ids


def without_ids(run: Run) -> Run:
    for role in audit.ROLES:
        if role.endswith("_result"):
            for record in run.records[role]:
                body = json.loads(record.value or b"")
                del body["requestId"]
                index = run.records[role].index(record)
                run.records[role][index] = replace(record, value=json.dumps(body).encode())
    return run


NO_IDS = Wire(echoed=False)


def test_results_without_ids_are_joined_by_the_simulators_account() -> None:
    run = without_ids(mixed_run())
    # Two single-parameter setpoints at once to one device: nobody could tell whose answer is whose.
    assert run.rules(LIMITS, NO_IDS) == {Rule.FLOW}
    run = without_ids(contested_run("charge"))
    assert found(run, LIMITS, NO_IDS) == []
    assert audit.examine(run.evidence(), LIMITS, NO_IDS).checked["read_backs"] == 1
    run.drop("query_result", of(A))
    assert Rule.RELEASE in run.rules(LIMITS, NO_IDS)


def test_results_without_ids_and_dump_are_not_judged_and_said_so() -> None:
    run = without_ids(contested_run("charge"))
    evidence = replace(run.evidence(), dumps=())
    verdict = audit.examine(evidence, LIMITS, NO_IDS)
    assert verdict.violations == []
    assert any("no dump tells whose they are" in note for note in verdict.notes)


def test_a_setpoint_does_not_wait_forever_without_ids() -> None:
    run = contested_run("charge")
    run.drop("multi_result", told(A, 11, 3000))
    run.devices[A]["commands"][0]["results"] = []
    without_ids(run)
    assert Rule.FLOW not in run.rules(LIMITS, NO_IDS), "the first one had timed out long before the second"


# ------------------------------------------------------------------------- another profile


def test_the_variant_profile_is_read() -> None:
    wire = Wire.read(profile.PROFILES / "variant.toml")
    assert not wire.echoed
    assert wire.raw_of("ems", 4878) == 487 and wire.watts_of("ems", 487) == 4870
    assert wire.raw_of("export", 4878) == 48780
    assert wire.scales["active"] == Fraction(1)
    assert wire.takes_actuator("9010KESN000W0001", "active") and not wire.takes_actuator("9010KESN000W0001", "reactive")
    assert audit.Topics.of_profile(profile.PROFILES / "variant.toml", prefix="p.").requests[0] == "vpc.write-one"


def test_a_family_is_told_only_what_it_takes() -> None:
    run = contested_run("charge")
    takes = {"ETU": frozenset({"export"})}
    assert run.rules(LIMITS, Wire(takes=takes)) == {Rule.PERMISSION}
    assert run.rules(LIMITS, Wire(takes={"ETU": frozenset({"ems"})})) == set()

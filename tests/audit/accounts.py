"""What was told of devices: outcomes, reports and the simulator agree (R24, R34)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from .asked import asked_w, cos_phi
from .case import Case, in_force
from .evidence import INF, Record, Rule, Violation
from .model import BADNESS, BY_GOODWE, FINAL, STATES, Revision, Row
from .wire import ACTUATOR_OF, plain


def outcomes(case: Case) -> Iterator[Violation]:
    """Each targeted device of a closed event has one outcome, and only those have one (R24, R34)."""
    for revision in case.revisions.values():
        if not revision.finals:
            continue
        closed_at = revision.finals[0][0].at
        rows = revision.effective()
        for kind in revision.kinds:
            for sn in sorted(revision.required):
                case.checked["outcomes.required"] += 1
                if (sn, kind) not in rows:
                    yield Violation(Rule.OUTCOME, f"{sn} has no outcome for {kind}", revision.name)
        for (sn, kind), row in rows.items():
            if sn not in revision.allowed or kind not in revision.kinds:
                yield Violation(Rule.OUTCOME, f"{sn} has an outcome for {kind} and was not targeted", row.record.where)
        standing: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in revision.rows:
            earlier = standing[row.body["sn"], row.body["kind"]]
            if earlier and row.content != earlier[-1].content:
                corrects = row.body.get("corrects")
                if row.record is earlier[-1].record:
                    what = "has two outcomes in one message"
                elif corrects is None and row.record.at > closed_at:
                    what = "has a second, different outcome after the close that corrects none"
                elif corrects is not None and corrects not in {old.sequence for old in earlier}:
                    what = f"has an outcome that corrects {corrects}, which is none of its own"
                else:
                    what = ""
                if what:
                    yield Violation(Rule.OUTCOME, f"{row.body['sn']} {what}", f"{revision.name} {row.record.where}")
            earlier.append(row)


def reports(case: Case) -> Iterator[Violation]:
    """Final report, outcomes, final response and simulator tell the same (R34)."""
    for revision in case.revisions.values():
        for index, (record, report) in enumerate(revision.finals):
            last = index == len(revision.finals) - 1
            rows = revision.effective(INF if last else record.at)
            racing = any(record.at - 2 <= r.record.at <= record.at and r.body.get("corrects") for r in revision.rows)
            if last or not racing:
                case.checked["final_reports"] += 1
                yield from _report_and_rows(revision, record, report, rows)
                yield from _power(case, revision, record, report)
        if revision.finals:
            yield from _final_response(case, revision)
            yield from _tables(case, revision)
            yield from _codes_at_the_close(revision)
        if case.devices and revision.finals:
            yield from _rows_and_simulator(case, revision)
    yield from _unexplained(case)
    facts = Counter(
        row.body["reason"]
        for revision in case.revisions.values()
        for row in revision.effective().values()
        if row.body["reason"] in ("faulted", "off_grid", "soc", "telemetry_stale")
    )
    if facts:
        case.notes.append(f"not held against telemetry, which no dump tells: {dict(facts)}")


def _report_and_rows(
    revision: Revision, record: Record, report: dict[str, Any], rows: dict[tuple[str, str], Row]
) -> Iterator[Violation]:
    def differ(what: str, told: Any, counted: Any) -> Iterator[Violation]:
        if told != counted:
            text = f"the report tells {what} {told}, the outcomes {counted}"
            yield Violation(Rule.REPORT, text, f"{revision.name} {record.where}")

    worst: dict[str, dict[str, Any]] = {}
    power = 0
    for (sn, _), row in rows.items():
        body = row.body
        if sn not in worst or BADNESS[body["state"]] > BADNESS[worst[sn]["state"]]:
            worst[sn] = body
        if body["state"] in ("applied", "verified"):
            power += body.get("setpoint_w") or 0
    devices = report["devices"]
    counted = Counter(body["state"] for body in worst.values())
    for state in STATES:
        yield from differ(state, devices.get(state, 0), counted[state])
    yield from differ("targeted", devices["targeted"], len(worst))
    reasons = Counter(
        f"{body['state']}.{body['reason']}" for body in worst.values() if body["state"] in ("skipped", "rejected")
    )
    yield from differ("reasons", {word: n for word, n in report["reasons"].items() if n}, dict(reasons))
    acknowledged = report["power_w"]["acknowledged"]
    if acknowledged is not None:
        yield from differ("acknowledged power", acknowledged, power)
    release = report["release"]
    if release["due"] != release["confirmed"] + release["pending"] + release["refused"]:
        yield Violation(Rule.REPORT, f"the releases do not add up: {release}", f"{revision.name} {record.where}")


def _power(case: Case, revision: Revision, record: Record, report: dict[str, Any]) -> Iterator[Violation]:
    """Numbers only where a control has watts, and summed over those that have: asked, and what is short of it."""
    power, controls = report["power_w"], revision.controls
    if revision.action != "dispatch" or any(
        c["kind"] == "generation_limit" and "each_w" in c for c in controls.values()
    ):
        return  # whether the watts of a generation limit count is nowhere said
    watts = {c["kind"] for actuator, c in controls.items() if actuator in ("ems", "export") and c["kind"] != "standby"}
    where = f"{revision.name} {record.where}"
    for name in ("requested", "allocated", "acknowledged", "shortfall"):
        if (power[name] is None) != (not watts):
            yield Violation(Rule.REPORT, f"power_w.{name} is {power[name]} with controls {revision.kinds}", where)
            return
    if power["measured"] is not None and not (watts and report["final"]):
        yield Violation(Rule.REPORT, f"measured is {power['measured']} before the end, or without watts", where)
    if not watts:
        return
    case.checked["power"] += 1
    if power["shortfall"] != max(0, power["requested"] - power["allocated"]):
        yield Violation(Rule.REPORT, f"the shortfall is not what is missing: {power}", where)
    if revision.required != revision.allowed:
        return  # who was targeted is open: the registry changed at the start, or it never came
    requested = 0
    begins = max(revision.start, revision.codes[1].at)
    tolerance = case.limits.registry_s
    for control in (c for c in controls.values() if c["kind"] in watts):
        requested += control.get("total_w", 0)
        for sn in revision.required if "total_w" not in control else ():
            records = in_force(case.registry.get(sn, []), begins - tolerance, begins + tolerance)
            asked = {asked_w(control, sn, registered or {}) or 0 for registered in records}
            if len(asked) > 1:
                return
            requested += asked.pop()
    if power["requested"] != requested:
        yield Violation(Rule.REPORT, f"{power['requested']} W are told as requested, {requested} were", where)


def _tables(case: Case, revision: Revision) -> Iterator[Violation]:
    """`not_in_table` is what a table says of the device, not a way out."""
    for (sn, kind), row in revision.effective().items():
        if row.body["reason"] != "not_in_table":
            continue
        control = next((c for c in revision.controls.values() if c["kind"] == kind), {})
        records = in_force(case.registry.get(sn, []), revision.record.at - 2, revision.end + 2)
        case.checked["not_in_table"] += 1
        if "by_target_w" not in control or all(asked_w(control, sn, r or {}) is not None for r in records):
            yield Violation(Rule.VALUE, f"{sn} is told as not in the table, and it is", row.record.where)


def _final_response(case: Case, revision: Revision) -> Iterator[Violation]:
    devices = revision.finals[0][1]["devices"]
    done, targeted = devices["applied"] + devices["verified"], devices["targeted"]
    right = 10 if not done else 3 if done == targeted else 8
    if revision.action == "release":
        right = 3 if done and done == targeted else 8
    elif revision.test:
        right = 3 if targeted > devices["skipped"] else 10
    told = FINAL & revision.codes.keys()
    if told == {7} and revision.commands and not _rivals(case, revision):
        yield Violation(Rule.REPORT, "told as superseded, and no other event could", revision.codes[7].where)
    elif told and not told & ({right, 7} if revision.commands else {right}):
        what = f"final response {sorted(told)}, but {done} of {targeted} devices are applied or verified"
        yield Violation(Rule.REPORT, what, revision.codes[min(told)].where)


def _rivals(case: Case, revision: Revision) -> bool:
    """Whether another event could have held what this one asks for."""
    return any(
        r.key[:2] != revision.key[:2]
        and r.controls.keys() & revision.controls.keys()
        and r.start <= revision.end
        and r.released_by >= revision.start
        for sn in revision.allowed
        for r in case.targeting[sn]
    )


def _codes_at_the_close(revision: Revision) -> Iterator[Violation]:
    """Each row's own response code once the event is closed (the table of the contract)."""
    if revision.finals[-1][1]["shards"]["missing"]:
        return
    done = 6 if revision.cancelled else 7 if 7 in revision.codes else 3
    right = dict.fromkeys(STATES, 8) | {"skipped": 10, "unused": 10, "applied": done, "verified": done}
    for (sn, _), row in revision.effective().items():
        told, state = row.body["response_code"], row.body["state"]
        if told != right.get(state, told):
            what = f"{sn} is {state} with response code {told} at the close, not {right[state]}"
            yield Violation(Rule.REPORT, what, f"{revision.name} {row.record.where}")


def _rows_and_simulator(case: Case, revision: Revision) -> Iterator[Violation]:
    for (sn, _), row in revision.effective().items():
        body = row.body
        state, reason = body["state"], body["reason"]
        where = f"{revision.name} {row.record.where}"
        done, refused = state in ("applied", "verified"), state == "rejected" and reason in BY_GOODWE
        if not (done or refused) or revision.action not in ("dispatch", "release"):
            continue
        case.checked["rows_against_simulator"] += 1
        executed = [c for c in case.executed.get(plain(body["correlation_id"] or ""), []) if c["sn"] == sn]
        if not executed:
            yield Violation(Rule.REPORT, f"{sn} is {state} by {body['correlation_id']}, which GoodWe never got", where)
        elif done:
            good = [c for c in executed if c["executed"] and case.meaning(c["code"]) == "success"]
            answers = case.results.get(plain(body["correlation_id"]), [])
            if not good:
                yield Violation(Rule.REPORT, f"{sn} is {state}, but the inverter did not execute it", where)
            elif revision.commands and not _is_row_value(case, body, told_of(good[0])):
                yield Violation(Rule.REPORT, f"{sn} is {state} with another setpoint than it executed", where)
            elif revision.commands and not _fits(case, revision, body, told_of(good[0])):
                yield Violation(Rule.VALUE, f"{sn} is {state} with {told_of(good[0])}, which was not asked", where)
            elif state == "applied" and case.joined and not any(a.meaning == "success" for a in answers):
                yield Violation(Rule.REPORT, f"{sn} is applied, but no result said so", where)
        else:
            meanings = {case.meaning(c["code"]) for c in executed} - {"success"}
            if not meanings or (reason not in ("partial", "failed", "unknown_code") and reason not in meanings):
                yield Violation(
                    Rule.REPORT, f"{sn} is rejected, {reason}, but GoodWe said {meanings or 'success'}", where
                )


def told_of(command: dict[str, Any]) -> dict[str, Any]:
    """What a command of the simulator's account told the inverter, by name."""
    return {p["name"]: p["value"] for p in command["parameters"]}


def _fits(case: Case, revision: Revision, row: dict[str, Any], parameters: dict[str, Any]) -> bool:
    """Whether a device was told what the event asks of it; of a limit that, or a tighter one that holds too (R12)."""
    sn, actuator = row["sn"], ACTUATOR_OF[row["kind"]]
    values = tuple(parameters[name] for name in case.wire.parameters[actuator])
    if "total_w" in revision.controls[actuator] or case.asks(revision, sn, actuator, values):
        return True
    if actuator not in ("export", "active"):
        return False
    others = values in case.defaults(sn, actuator) or any(
        case.asks(r, sn, actuator, values) for r in case.targeting[sn] if r is not revision
    )
    return others and any(values[-1] <= most[-1] for most in case.asked(revision, sn, actuator))


def _is_row_value(case: Case, row: dict[str, Any], parameters: dict[str, Any]) -> bool:
    actuator = ACTUATOR_OF[row["kind"]]
    names = case.wire.parameters[actuator]
    if not all(name in parameters for name in names):
        return False
    values = [parameters[name] for name in names]
    setpoint = row.get("setpoint_w")
    match actuator:
        case "ems":
            told = case.wire.watts_of("ems", values[1])
            return bool(values[0] == case.wire.modes[row["kind"]] and told == (setpoint or 0))
        case "export":
            told = case.export_raw_w(row["sn"], values[1])
            return values[0] == 1 and setpoint is not None and abs(told - setpoint) <= 1
        case "active":
            percent = row.get("setpoint_percent")
            return percent is not None and abs(values[0] / float(case.wire.scales["active"]) - percent) < 0.05
        case _:
            return row.get("cos_phi") is not None and abs(cos_phi(values[0]) - row["cos_phi"]) < 0.005


def _unexplained(case: Case) -> Iterator[Violation]:
    """A setpoint that was executed stands behind an outcome, or an event that was active asked for this value."""
    told = {
        plain(row.body["correlation_id"])
        for revision in case.revisions.values()
        for row in revision.rows
        if row.body.get("correlation_id")
    }
    requested = {command.id for command in case.commands}
    for commands in case.executed.values():
        for c in commands:
            if c["executed"] and c["role"] != "query" and plain(c["correlation_id"]) not in requested:
                what = f"the simulator executed {c['correlation_id']}, which is on no request topic"
                yield Violation(Rule.EVIDENCE, what, c["sn"])
    for command in case.commands:
        if command.kind != "setpoint" or command.id in told:
            continue
        active = [
            r for r in case.targeting[command.sn] if case.may_hold(r, command.at) and command.actuator in r.controls
        ]
        inactive = [r for r in case.targeting[command.sn] if r not in active]
        anyone = any(case.asks(r, command.sn, command.actuator, command.values) for r in [*active, *inactive])
        if active and not anyone:  # without an active event it is a matter of permission or window
            what = f"{command.sn} was told {command.values}, which no event asks of it and no outcome tells"
            yield Violation(Rule.REPORT, what, command.record.where)

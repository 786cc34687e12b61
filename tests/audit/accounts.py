"""What was told of devices: outcomes, reports and the simulator agree (R24, R34)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from .case import BADNESS, BY_GOODWE, FINAL, STATES, Case, Revision, Row, cos_phi
from .evidence import INF, Record, Rule, Violation
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
        if revision.finals and revision.commands:
            yield from _final_response(revision)
        if case.devices and revision.finals:
            yield from _rows_and_simulator(case, revision)
    yield from _unexplained(case)


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


def _final_response(revision: Revision) -> Iterator[Violation]:
    devices = revision.finals[0][1]["devices"]
    done, targeted = devices["applied"] + devices["verified"], devices["targeted"]
    right = 10 if not done else 3 if done == targeted else 8
    told = FINAL & revision.codes.keys()
    if told and not told & {right, 7}:
        what = f"final response {sorted(told)}, but {done} of {targeted} devices are applied or verified"
        yield Violation(Rule.REPORT, what, revision.codes[min(told)].where)


def _rows_and_simulator(case: Case, revision: Revision) -> Iterator[Violation]:
    for (sn, _), row in revision.effective().items():
        body = row.body
        state, reason = body["state"], body["reason"]
        where = f"{revision.name} {row.record.where}"
        done, refused = state in ("applied", "verified"), state == "rejected" and reason in BY_GOODWE
        if not (done or refused) or revision.action != "dispatch":
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
            elif not _is_row_value(case, body, {p["name"]: p["value"] for p in good[0]["parameters"]}):
                yield Violation(Rule.REPORT, f"{sn} is {state} with another setpoint than it executed", where)
            elif state == "applied" and case.wire.echoed and not any(a.meaning == "success" for a in answers):
                yield Violation(Rule.REPORT, f"{sn} is applied, but no result said so", where)
        else:
            meanings = {case.meaning(c["code"]) for c in executed} - {"success"}
            if not meanings or (reason not in ("partial", "failed", "unknown_code") and reason not in meanings):
                yield Violation(
                    Rule.REPORT, f"{sn} is rejected, {reason}, but GoodWe said {meanings or 'success'}", where
                )


def _is_row_value(case: Case, row: dict[str, Any], parameters: dict[str, Any]) -> bool:
    actuator = ACTUATOR_OF[row["kind"]]
    names = case.wire.parameters[actuator]
    if not all(name in parameters for name in names):
        return False
    values = [parameters[name] for name in names]
    setpoint = row.get("setpoint_w")
    match actuator:
        case "ems":
            return bool(values[0] == case.wire.modes[row["kind"]] and values[1] == (setpoint or 0))
        case "export":
            return (
                values[0] == 1 and setpoint is not None and abs(case.export_raw_w(row["sn"], values[1]) - setpoint) <= 1
            )
        case "active":
            percent = row.get("setpoint_percent")
            return bool(percent is None or abs(values[0] - 10 * percent) <= 1)
        case _:
            return bool(row.get("cos_phi") is None or abs(cos_phi(values[0]) - row["cos_phi"]) < 0.006)


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

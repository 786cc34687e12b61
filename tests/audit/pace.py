"""How fast it went: staggered starts and releases (R14), commands in flight (R40), one at a time without ids (R26)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from math import sqrt

from .case import Case
from .evidence import INF, Rule, Violation
from .model import Pair, Revision

Slot = tuple[str, str, bool]  # SN, actuator, whether it is its query's
ANSWERED, TIMES_OUT, OPENS = 0, 1, 2  # at one moment in this order

SIGMAS = 5.0
"""So far above the mean a count of hashed offsets is no chance any more."""


def ramps(case: Case) -> Iterator[Violation]:
    """Starts and releases lie spread over their ramps. The offset of one device is the service's own choice; that a
    quarter of the ramp sees many more than a quarter of the devices is not. Late is not judged, early is."""
    for revision in case.revisions.values():
        if not revision.commands or revision.replaced or not revision.finals:
            continue
        if revision.ramp_up_s:
            yield from _spread(case, revision, "starts", revision.start, revision.ramp_up_s, *_starts(case, revision))
        if revision.ramp_down_s:
            given = _given_back(case, revision)
            yield from _spread(
                case, revision, "releases", revision.over_at, revision.ramp_down_s, list(given.values()), len(given)
            )


def _spread(
    case: Case, revision: Revision, what: str, start: float, ramp_s: int, found: list[float], devices: int
) -> Iterator[Violation]:
    """`found`: when each began, of so many `devices` whose offsets lie evenly in the ramp from `start` on."""
    judged = False
    for part in (0.1, 0.25, 0.5, 0.75):
        span = int(part * ramp_s)
        share = span / ramp_s
        most = devices * share + SIGMAS * sqrt(devices * share * (1 - share)) + 1
        judged = judged or (bool(span) and most < devices)
        early = sum(at < start + span for at in found)
        if span and early > most:
            told = f"{early} of {devices} {what} within the first {span} s of a ramp of {ramp_s} s"
            yield Violation(Rule.RAMP, told, revision.name)
            break
    if judged:
        case.checked[f"ramps.{what}"] += 1
    else:
        case.notes.append(f"{revision.name}: {devices} devices are too few to judge the ramp of its {what}")


def _starts(case: Case, revision: Revision) -> tuple[list[float], int]:
    """When devices were first told what only this event asks of them then, and how many devices could have been."""
    devices = {sn for (sn, _), row in revision.effective().items() if row.body["state"] != "skipped"}
    found = []
    for sn in devices:
        first = [
            command.at
            for actuator in revision.controls
            for command in case.sets.get((sn, actuator), [])
            if case.may_hold(revision, command.at)
            and case.asks(revision, sn, actuator, command.values)
            and not any(
                r is not revision and case.may_hold(r, command.at) and case.asks(r, sn, actuator, command.values)
                for r in case.targeting[sn]
            )
        ]
        found.extend(sorted(first)[:1])
    return found, len(devices)


def _given_back(case: Case, revision: Revision) -> dict[Pair, float]:
    """When each actuator was first released after the end, of those that only this event held, to its end."""
    found = {}
    last = revision.over_at + revision.ramp_down_s
    for (sn, kind), row in revision.effective().items():
        actuator = next((a for a, c in revision.controls.items() if c["kind"] == kind), "")
        just_before = revision.over_at - case.limits.late_s
        if row.body["state"] not in ("applied", "verified") or _others(case, revision, sn, just_before, last):
            continue
        if not _keys_throughout(case, sn, revision.start, last):
            continue
        for command in case.sets.get((sn, actuator), []):
            if command.kind == "release" and command.at >= revision.over_at:
                found[sn, actuator] = command.at
                break
    return found


def early_releases(case: Case) -> Iterator[Violation]:
    """A device that an event holds to its end is not released before it (R13, R28)."""
    for revision in case.revisions.values():
        if not revision.commands or revision.replaced or not revision.finals:
            continue
        for (sn, kind), row in revision.effective().items():
            actuator = next((a for a, c in revision.controls.items() if c["kind"] == kind), "")
            if row.body["state"] not in ("applied", "verified"):
                continue
            if _others(case, revision, sn, revision.start, revision.over_at):
                continue
            mine = [
                c
                for c in case.sets.get((sn, actuator), [])
                if case.may_hold(revision, c.at) and case.asks(revision, sn, actuator, c.values)
            ]
            case.checked["holds"] += bool(mine)
            for command in case.sets.get((sn, actuator), []) if mine else ():
                inside = mine[0].at < command.at < revision.over_at - 0.5
                if inside and command.kind == "release" and not case.asks(revision, sn, actuator, command.values):
                    if not _keys_throughout(case, sn, revision.start, command.at):
                        continue
                    what = f"{actuator} of {sn} is released {revision.over_at - command.at:.1f} s before the end"
                    yield Violation(Rule.RELEASE, f"{what} of {revision.name}", command.record.where)


def _others(case: Case, revision: Revision, sn: str, first: float, last: float) -> int:
    """How many other signals had a say on the device: events on an actuator of this one's, and release signals."""
    return sum(
        r is not revision
        and r.accepted
        and sn in r.allowed
        and (r.action == "release" or (r.commands and bool(r.controls.keys() & revision.controls.keys())))
        and r.start <= last
        and r.released_by + case.limits.late_s >= first
        for r in case.revisions.values()
    )


def _keys_throughout(case: Case, sn: str, first: float, last: float) -> bool:
    """Whether the device kept both keys all the while, as far as is known."""
    if any(record is None and first <= at <= last for at, record in case.registry.get(sn, [])):
        return False
    device = case.devices.get(sn)
    if device is None:
        return not case.devices
    return any(start <= first and (INF if end is None else end) >= last for start, end in device["authorized"])


def in_flight(case: Case) -> Iterator[Violation]:
    """Never more unanswered commands on the link than configured (R40).

    An actuator has one slot for its newest set and one for its newest query. A result frees it when it stands on the
    topic, so before the service can have read it; the result timeout frees it too. A command that was published once
    more under its id had not been known as published, so its slot begins with the last of these records.
    """
    most = case.limits.max_in_flight
    if not most:
        case.notes.append("the largest number in flight is not known: it was not judged")
        return
    last_of: dict[str, float] = {}
    for command in case.commands:
        last_of[command.id] = command.at
    generation = {command.id: command.names.generation for command in case.commands}
    moments: list[tuple[float, int, Slot, str]] = []
    for command in case.commands:
        slot = (command.sn, command.actuator, command.kind == "query")
        if command.at == last_of[command.id]:
            moments.append((command.at, OPENS, slot, command.id))
            moments.append((command.at + case.limits.result_timeout_s, TIMES_OUT, slot, command.id))
        moments.extend((at, ANSWERED, slot, command.id) for at in _answers(case, slot, command.id, command.at))
    open_: dict[Slot, str] = {}
    highest = most
    for at, what, slot, correlation_id in sorted(moments):
        if what == OPENS:
            open_[slot] = correlation_id
            case.checked["in_flight.most"] = max(case.checked["in_flight.most"], len(open_))
            if len(open_) > highest:
                highest = len(open_)
                yield Violation(Rule.FLOW, f"{highest} commands in flight, {most} are allowed", f"at {at:.3f}")
        elif slot in open_:
            same = open_[slot] == correlation_id
            if same or (what == ANSWERED and generation[open_[slot]] == generation[correlation_id]):
                del open_[slot]


def _answers(case: Case, slot: Slot, correlation_id: str, since: float) -> list[float]:
    if case.wire.echoed:
        return [result.at for result in case.results.get(correlation_id, [])]
    sn, actuator, query = slot
    role = "query" if query else _role(case, actuator)
    return [at for at in case.answered_at[sn, role] if at >= since][:1]


def _role(case: Case, actuator: str) -> str:
    return "single" if len(case.wire.parameters[actuator]) == 1 else "multi"


def one_at_a_time(case: Case) -> Iterator[Violation]:
    """Where no id is echoed, a setpoint waits for the answer to the one before it of its SN and topic (R26)."""
    if case.wire.echoed:
        return
    by_topic: dict[tuple[str, str], list[tuple[float, str, str]]] = defaultdict(list)
    for command in case.commands:
        if command.kind == "setpoint":
            by_topic[command.sn, _role(case, command.actuator)].append((command.at, command.id, command.record.where))
    for (sn, role), sets in by_topic.items():
        for (before, first, _), (at, second, where) in pairwise(sets):
            if first == second or at - before >= case.limits.result_timeout_s:
                continue
            case.checked["one_at_a_time"] += 1
            if not any(before <= answered <= at for answered in case.answered_at[sn, role]):
                what = f"a {role} setpoint to {sn} while another, {at - before:.1f} s older, is unanswered"
                yield Violation(Rule.FLOW, what, where)

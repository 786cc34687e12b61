"""What takes a hold away before its event ends, or keeps anything from going out: release signals, aborts, switches."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case
from .evidence import Rule, Violation
from .model import Command, Revision, body_of, epoch

HAD_TO_KNOW_S = 1.0
"""What stood on the wire for so long is known to whoever decides then."""


def switches(case: Case) -> Iterator[Violation]:
    """`releases_only`: nothing but releases and their read-backs goes out. `drain`: no new event is accepted (R36)."""
    for on, off in case.on_between("releases_only"):
        for command in case.commands:
            if on + case.limits.switch_s < command.at < off and command.kind != "release":
                case.checked["switches.commands"] += 1
                if command.kind == "setpoint" or not _reads_a_release(case, command):
                    what = f"a {command.kind} to {command.sn} {command.at - on:.1f} s after releases-only was turned on"
                    yield Violation(Rule.SWITCH, what, command.record.where)
    draining = case.on_between("drain")
    for revision in case.revisions.values():
        if revision.action != "dispatch":
            continue
        received = revision.record.at
        if revision.accepted and any(on + case.limits.switch_s < received < off for on, off in draining):
            case.checked["switches.signals"] += 1
            if not _goes_on(case, revision):
                what = "a new event is accepted although the service drains"
                yield Violation(Rule.SWITCH, what, revision.codes[1].where)
        for record in revision.codes.values():
            told = "draining" in (body_of(record) or {}).get("reasons", [])
            if told and not any(on <= record.at and received <= off for on, off in draining):
                yield Violation(Rule.SWITCH, "refused as draining, and the switch was off", record.where)


def _reads_a_release(case: Case, query: Command) -> bool:
    known = [c for c in case.sets.get((query.sn, query.actuator), []) if c.at <= query.at]
    return bool(known) and max(known, key=lambda c: c.newness).kind == "release"


def _goes_on(case: Case, revision: Revision) -> bool:
    """Whether the signal is a further revision of an event that was known: it begins no new one."""
    return any(r.key[:2] == revision.key[:2] and r.key[2] < revision.key[2] and r.accepted for r in _all(case))


def _all(case: Case) -> list[Revision]:
    return list(case.revisions.values())


def aborts(case: Case) -> Iterator[Violation]:
    """An abort ends the event at once: who held is rejected, who waited unused, and the final response says why."""
    for revision in case.revisions.values():
        final = [code for code in (3, 7, 8, 10) if code in revision.codes]
        told = [code for code in final if "aborted" in (body_of(revision.codes[code]) or {}).get("reasons", [])]
        at = revision.aborted_at
        if at is None:
            name = "/".join(revision.key[:2])
            if told and not any(turn.switch == "abort" and turn.event == name for turn in case.turns):
                yield Violation(Rule.SWITCH, "told as aborted, and nobody did", revision.codes[told[0]].where)
            continue
        natural = epoch(revision.body.get("end_at"))
        if natural is not None and natural - at < case.limits.switch_s:
            continue  # it may have been over before the abort was read
        case.checked["aborts"] += 1
        if final and not told:
            yield Violation(Rule.SWITCH, "aborted, and its final response does not say so", revision.name)
        if 2 in revision.codes and revision.codes[2].at > at + case.limits.switch_s:
            yield Violation(Rule.SWITCH, "started after its abort", revision.codes[2].where)
        if revision.finals:
            for (sn, _), row in revision.effective().items():
                if row.body["state"] not in ("rejected", "skipped", "unused"):
                    what = f"{sn} is {row.body['state']} in an event that was aborted"
                    yield Violation(Rule.SWITCH, what, row.record.where)


def release_signals(case: Case) -> Iterator[Violation]:
    """A release drops the source's active holds on its targets, and what is then desired is asserted (R15)."""
    signals = [r for r in case.revisions.values() if r.action == "release" and r.accepted]
    released: set[tuple[str, str, int, str]] = set()
    for signal in signals:
        told_at = epoch((body_of(signal.codes[1]) or {}).get("at")) or signal.codes[1].at
        last = told_at + signal.ramp_down_s + case.limits.cancel_s
        for revision in case.revisions.values():
            if not revision.commands or revision.key[0] != signal.key[0]:
                continue
            for sn in signal.allowed & revision.allowed:
                released.add((*revision.key, sn))
            if not revision.replaced and revision.over_at > last:
                for sn in sorted(signal.required & revision.allowed):
                    yield from _dropped(case, signal, revision, sn, told_at, last)
    for revision in case.revisions.values():
        for row in revision.rows:
            sn = row.body["sn"]
            nobody = revision.aborted_at is None and (*revision.key, sn) not in released
            if row.body["reason"] == "released" and nobody:
                what = f"the hold on {sn} is told as released, and nobody released it"
                yield Violation(Rule.SWITCH, what, row.record.where)


def _dropped(
    case: Case, signal: Revision, revision: Revision, sn: str, told_at: float, last: float
) -> Iterator[Violation]:
    """One device that an event held when a release signal came; `last`: when it had to be given up."""
    for actuator, control in revision.controls.items():
        sets = case.sets.get((sn, actuator), [])
        mine = [c for c in sets if case.may_hold(revision, c.at) and case.asks(revision, sn, actuator, c.values)]
        if not any(c.at < told_at - HAD_TO_KNOW_S for c in mine):
            continue  # it may not have held
        case.checked["release_signals.holds"] += 1
        row = revision.effective().get((sn, control["kind"]))
        if revision.finals and row is not None and row.body["state"] in ("applied", "verified"):
            what = f"{sn} is {row.body['state']} although {signal.name} dropped the hold"
            yield Violation(Rule.SWITCH, what, row.record.where)
        others = [
            r
            for r in case.targeting[sn]
            if r is not revision and actuator in r.controls and r.over_at > told_at and r.start < revision.over_at
        ]
        for command in mine:
            if command.at > last and command.kind == "setpoint" and not others:
                what = f"setpoint {command.values} to {sn} {command.at - told_at:.1f} s after {signal.name}"
                yield Violation(Rule.SWITCH, what, command.record.where)
        if signal.finals and not any(c.at >= told_at - HAD_TO_KNOW_S for c in sets):
            what = f"{actuator} of {sn} was set, and nothing was asserted by {signal.name}"
            yield Violation(Rule.SWITCH, what, signal.name)

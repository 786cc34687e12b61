"""What was published: both keys, a target, an open window and the right value for each setpoint."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case, in_force
from .evidence import INF, Rule, Violation
from .model import Command, Revision
from .wire import ACTUATOR_OF, plain

HAD_TO_KNOW_S = 2.0
"""What stood on the wire for so long is known to whoever decides then."""


def permissions_and_windows(case: Case) -> Iterator[Violation]:
    """Both keys (R16), a target and an open window (R28, R15) for each setpoint; releases are bound by nothing."""
    limits = case.limits
    for command in case.commands:
        if command.kind != "setpoint":
            continue
        sn, at, where = command.sn, command.at, command.record.where
        what = f"setpoint {command.values} to {sn}"
        targeting = [r for r in case.targeting[sn] if command.actuator in r.controls]
        if not any(in_force(case.registry.get(sn, []), at - limits.registry_s, at)):
            yield Violation(Rule.PERMISSION, f"{what}, which is not in the registry", where)
        elif case.devices and not _consented(case, sn, at):
            yield Violation(Rule.PERMISSION, f"{what}, whose owner did not consent then", where)
        elif not targeting:
            yield Violation(Rule.PERMISSION, f"{what}, which no event targets", where)
        elif not case.wire.takes_actuator(sn, command.actuator):
            yield Violation(Rule.PERMISSION, f"{what}, whose family does not take {command.actuator}", where)
        else:
            active = [r for r in targeting if case.may_hold(r, at)]
            asking = [r for r in targeting if case.asks(r, sn, command.actuator, command.values)]
            if not any(r in active for r in asking) and (asking or not active):
                nearest = (asking or targeting)[-1]
                if at < nearest.start:
                    told = f"{nearest.start - at:.3f} s before the start"
                else:
                    told = f"{at - nearest.end:.3f} s after {nearest.ended_by}"
                yield Violation(Rule.WINDOW, f"{what}, {told} of {nearest.name}", where)


def _consented(case: Case, sn: str, at: float) -> bool:
    tolerance = case.limits.consent_refresh_s + 5.0
    device = case.devices.get(sn)
    intervals = device["authorized"] if device else []
    return any(first <= at <= (INF if last is None else last + tolerance) for first, last in intervals)


def never_set(case: Case) -> Iterator[Violation]:
    """What no event ever targeted is given back only by a release signal, and only with both keys (R15, R16)."""
    signals = [r for r in case.revisions.values() if r.action == "release" and r.accepted]
    for pair, sets in case.sets.items():
        sn, actuator = pair
        for command in sets:
            targeted = any(actuator in r.controls and r.record.at <= command.at for r in case.targeting[sn])
            if command.kind != "release" or targeted:
                continue
            at, where = command.at, command.record.where
            case.checked["releases.of_signals"] += 1
            what = f"release of {actuator} of {sn}"
            registered = any(in_force(case.registry.get(sn, []), at - case.limits.registry_s, at))
            if not any(sn in r.allowed and r.record.at <= at for r in signals):
                yield Violation(Rule.PERMISSION, f"{what}, which nobody ever asked to be set or released", where)
            elif not registered or (case.devices and not _consented(case, sn, at)):
                yield Violation(Rule.PERMISSION, f"{what}, which was never set and has not both keys", where)


def primacy(case: Case) -> Iterator[Violation]:
    """While a stronger event holds an actuator, no weaker one sets it, and nobody a looser limit (R10-R12).

    An event certainly holds where it counts a device as applied, from the command that its row names to its end.
    """
    for sn, targeting in case.targeting.items():
        holds = [
            (revision, ACTUATOR_OF[kind], command)
            for revision in (targeting if len(targeting) > 1 else ())
            for kind in revision.kinds
            if (command := _certain(case, revision, sn, kind)) is not None
        ]
        for revision, actuator, first in holds:
            asked = case.asked(revision, sn, actuator)
            for command in case.sets.get((sn, actuator), []):
                later = command.names.generation > first.names.generation and command.at > first.at + HAD_TO_KNOW_S
                if not later or command.kind != "setpoint" or command.at >= revision.over_at - case.limits.late_s:
                    continue
                case.checked["primacy"] += 1
                if command.values in asked or not asked:
                    continue
                if actuator in ("export", "active"):
                    wrong = all(command.values[-1] > most[-1] for most in asked)
                else:
                    askers = [r for r in targeting if case.asks(r, sn, actuator, command.values)]
                    wrong = bool(askers) and all(r.primacy < revision.primacy for r in askers)
                if wrong:
                    what = f"setpoint {command.values} to {sn} while {revision.name} holds {first.values}"
                    yield Violation(Rule.PRIMACY, what, command.record.where)


def _certain(case: Case, revision: Revision, sn: str, kind: str) -> Command | None:
    """The command from which on the event certainly held the device until its end; None if there is none."""
    row = revision.effective().get((sn, kind))
    if row is None or revision.replaced or row.body["state"] not in ("applied", "verified"):
        return None
    if kind not in ACTUATOR_OF or "total_w" in revision.controls[ACTUATOR_OF[kind]]:
        return None
    command = case.of_id.get(plain(row.body["correlation_id"] or ""))
    return command if command is not None and case.may_hold(revision, command.at) else None

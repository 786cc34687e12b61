"""What was published: both keys, a target, an open window and the right value for each setpoint."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case, in_force
from .evidence import INF, Rule, Violation


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

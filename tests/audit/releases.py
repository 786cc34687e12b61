"""What was given back: nothing is left set, and what is told as confirmed was read back (R19, R27)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .case import Case
from .evidence import INF, Rule, Violation
from .model import Command, Pair


def releases(case: Case) -> Iterator[Violation]:
    """Nothing is left set (R19), and a release that is told as confirmed was read back after the set (R27)."""
    accounts = {id(r): r.finals[-1][1]["release"] for r in case.revisions.values() if r.finals}
    still_open = {
        sn
        for r in case.revisions.values()
        if r.commands and not r.finals and r.released_by >= case.evidence.at
        for sn in r.allowed
    }
    for sn, device in case.devices.items():
        if sn not in still_open:
            case.checked["devices_at_default"] += 1
            yield from _left_set(case, sn, device, accounts)
    if not case.joined:
        case.notes.append("results carry no id, and no dump tells whose they are: read-backs were not judged")
        return
    good, early = _read_backs(case)
    for revision in case.revisions.values():
        if not revision.finals or not revision.commands:
            continue
        record, report = revision.finals[-1]
        pairs = [(sn, actuator) for sn in revision.allowed for actuator in revision.controls]
        proven = sum(any(revision.start <= at <= record.at + 1 for at in good[pair]) for pair in pairs)
        case.checked["releases.confirmed"] += report["release"]["confirmed"]
        if report["release"]["confirmed"] > proven:
            doubtful = any(early[pair] and not good[pair] for pair in pairs)
            rule = Rule.READ_BACK if doubtful else Rule.RELEASE
            told = f"{report['release']['confirmed']} releases are told as confirmed, {proven} were validly read back"
            yield Violation(rule, told, f"{revision.name} {record.where}")
    left_alone = {
        (id(r), row.body["sn"]) for r in case.revisions.values() for row in r.rows if row.body["reason"] == "opted_out"
    }
    for pair, sets in case.sets.items():
        yield from _episodes(case, pair, sets, accounts, good[pair], early[pair], left_alone)


def _left_set(case: Case, sn: str, device: dict[str, Any], accounts: dict[int, dict[str, Any]]) -> Iterator[Violation]:
    owner = {change["name"]: change["value"] for change in device.get("owner_changes", [])}
    for actuator, names in case.wire.parameters.items():
        if not all(name in device["settings"] for name in names):
            continue
        values = tuple(device["settings"][name] for name in names)
        allowed = case.defaults(sn, actuator)
        if values in allowed:
            continue
        start = allowed[0] if allowed else ()
        if start and all(v in (d, owner.get(n, d)) for n, v, d in zip(names, values, start, strict=True)):
            continue
        owed = sum(
            accounts[id(r)]["pending"] + accounts[id(r)]["refused"] for r in case.targeting[sn] if id(r) in accounts
        )
        reachable = device["online"] and device.get("listed", True) and any(e is None for _, e in device["authorized"])
        if not reachable and owed:
            case.notes.append(f"{sn} is out of reach and still set, {actuator} {values}; its report says so")
        else:
            yield Violation(Rule.RELEASE, f"{actuator} is left at {values}, default {start}", sn)


def _read_backs(case: Case) -> tuple[dict[Pair, list[float]], dict[Pair, list[float]]]:
    """When each actuator was read back equal to its newest command, a release: validly, and too early to tell."""
    good: dict[Pair, list[float]] = defaultdict(list)
    early: dict[Pair, list[float]] = defaultdict(list)
    late: dict[tuple[Pair, str], list[float]] = defaultdict(list)
    for correlation_id, queries in case.queries.items():
        pair = (queries[0].sn, queries[0].actuator)
        sets = case.sets.get(pair)
        if not sets:
            continue
        names = case.wire.parameters[pair[1]]
        for result in case.results.get(correlation_id, []):
            known = [c for c in sets if c.at <= result.at]
            asked = max((q.at for q in queries if q.at <= result.at), default=None)
            if not known or asked is None or result.meaning != "success":
                continue
            newest = max(known, key=lambda c: c.newness)
            if newest.kind != "release" or tuple(result.values.get(name) for name in names) != newest.values:
                continue
            case.checked["read_backs"] += 1
            same = [c for c in known if c.names.generation == newest.names.generation]
            answered = min((a.at for c in same for a in case.results.get(c.id, [])), default=INF)
            if answered <= asked:
                good[pair].append(result.at)
            elif asked >= newest.at + case.limits.result_timeout_s - 0.5:
                agreeing = late[pair, newest.id]
                agreeing.append(result.at)
                if len(agreeing) > 1:
                    good[pair].append(max(agreeing))
            else:
                early[pair].append(result.at)
    return good, early


def _episodes(
    case: Case,
    pair: Pair,
    sets: list[Command],
    accounts: dict[int, dict[str, Any]],
    good: list[float],
    early: list[float],
    left_alone: set[tuple[int, str]],
) -> Iterator[Violation]:
    """Each time that an actuator was set, then released: if the events that held it tell no debt, it was read back."""
    sn, actuator = pair
    for index, command in enumerate(sets):
        following = sets[index + 1] if index + 1 < len(sets) else None
        if command.kind != "setpoint" or (following is not None and following.kind == "setpoint"):
            continue
        released_at = following.at if following else INF
        again_at = next((c.at for c in sets[index + 1 :] if c.kind == "setpoint"), INF)
        holders = [
            r
            for r in case.targeting[sn]
            if actuator in r.controls
            and not r.replaced
            and r.start <= released_at
            and r.end + case.limits.late_s >= command.at
        ]
        if not holders or not all(r.finals for r in holders):
            continue
        told = [accounts[id(r)] for r in holders]
        closed_at = max(r.finals[-1][0].at for r in holders)
        opted_out = any((id(holder), sn) in left_alone for holder in holders)
        missing = any(h.finals[-1][1]["shards"]["missing"] for h in holders)
        if any(t["pending"] + t["refused"] for t in told) or again_at <= closed_at or opted_out or missing:
            continue
        where = holders[-1].name
        executed = any(c["executed"] for c in case.executed.get(command.id, []))
        case.checked["releases.required"] += executed or not case.devices
        if following is None:
            if executed or not case.devices:
                yield Violation(
                    Rule.RELEASE, f"{actuator} of {sn} was set to {command.values} and never released", where
                )
        elif not sum(t["due"] for t in told):
            if executed:
                yield Violation(Rule.RELEASE, f"{actuator} of {sn} was set, and no report tells a release due", where)
        elif not any(command.at < at <= closed_at + 1 for at in good):
            overtook = any(command.at < at <= closed_at + 1 for at in early)
            if overtook:
                what = f"the read-back of {actuator} of {sn} was asked for before the newest set was answered"
                yield Violation(Rule.READ_BACK, what, where)
            elif executed or not case.devices:
                yield Violation(
                    Rule.RELEASE, f"{actuator} of {sn} is told as released and was not read back equal", where
                )

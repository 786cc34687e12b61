"""Adds a run up by plain counting: what the service reported, its outcome rows, and what the simulator says it did.

It is told nothing by the service but its messages, and believes none of them: the simulator's own dump is what counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vpp_dispatch.demo.asked import Control, Played

LATE_S: Final = 1.0
"""A setpoint may be appended this long after the end of its window (R28)."""

Rows = Mapping[tuple[str, str], Mapping[str, Any]]


_BY_BADNESS: Final = (
    "rejected", "unconfirmed", "pending", "published", "accepted", "applied", "verified", "skipped", "unused",
)  # fmt: skip
"""A device counts once in a report, by the worst of its controls; skipped counts least (R34)."""


@dataclass(slots=True, kw_only=True)
class Account:
    """What came out of one event.

    Attributes:
        codes: (revision, code) of its responses in order.
        carried_out: inverters that the simulator set for it, by kind. given_up: those of them that were let go early.
        faults: what does not add up, in sentences; empty if everything does.
    """

    played: Played
    report: Mapping[str, Any]
    codes: Sequence[tuple[int, int]]
    carried_out: dict[str, int] = field(default_factory=dict)
    given_up: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def account_of(
    played: Played,
    *,
    report: Mapping[str, Any],
    rows: Rows,
    codes: Sequence[tuple[int, int]],
    dump: Mapping[str, Any],
    percent_families: Collection[str],
) -> Account:
    """One event, added up.

    Args:
        report: the final one. rows: the newest outcome row per (SN, kind). codes: (revision, code) in order.
        dump: the simulator's, whole. percent_families: their export limit is in percent of the rating.
    """
    account = Account(played=played, report=report, codes=codes)
    fault = account.faults.append
    devices, targeted = report["devices"], len(played.targets)
    counted = _worst_of(rows)
    states = Counter(row["state"] for row in counted)
    reasons = Counter(f"{row['state']}.{row['reason']}" for row in counted if row["state"] in ("skipped", "rejected"))
    if not report["final"]:
        fault("its newest report is not final.")
    if devices["targeted"] != targeted:
        fault(f"it names {targeted} inverters, and the report says {devices['targeted']}.")
    due = {(sn, control.kind) for control in played.controls for sn in played.targets}
    if lost := {sn for sn, _ in due - rows.keys()}:
        fault(f"{len(lost)} inverters have no outcome, {min(lost)} among them.")
    if foreign := {sn for sn, _ in rows.keys() - due}:
        fault(f"{len(foreign)} inverters have an outcome that was not asked for, {min(foreign)} among them.")
    told = {state: number for state, number in devices.items() if number and state != "targeted"}
    if dict(states) != told:
        fault(f"outcomes say {dict(states)}, the report says {told}.")
    if dict(reasons) != {name: n for name, n in report["reasons"].items() if n}:
        fault(f"outcomes say {dict(reasons)}, the report says {report['reasons']}.")
    release = report["release"]
    if release["pending"] or release["refused"] or release["due"] != release["confirmed"]:
        fault(f"{release['due']} releases were due and {release['confirmed']} are confirmed.")
    if (expected := _codes(played, states)) != list(codes):
        fault(f"the responses are {list(codes)}, expected were {expected} (revision, code).")
    for control in played.controls:
        _against_simulator(account, control, rows, dump, percent_families)
    return account


def _worst_of(rows: Rows) -> list[Mapping[str, Any]]:
    """One row per inverter: that of its worst control."""
    worst: dict[str, Mapping[str, Any]] = {}
    for (sn, _), row in rows.items():
        there = worst.get(sn)
        if there is None or _BY_BADNESS.index(row["state"]) < _BY_BADNESS.index(there["state"]):
            worst[sn] = row
    return list(worst.values())


def _codes(played: Played, states: Mapping[str, int]) -> list[tuple[int, int]]:
    if played.cancelled:
        return [(1, 1), (1, 2), (2, 1), (2, 6)]
    done = states.get("applied", 0) + states.get("verified", 0)
    return [(1, 1), (1, 2), (1, 3 if done == len(played.targets) else 8 if done else 10)]


def _against_simulator(
    account: Account, control: Control, rows: Rows, dump: Mapping[str, Any], percent_families: Collection[str]
) -> None:
    played, fault = account.played, account.faults.append
    mine = {sn: row for (sn, kind), row in rows.items() if kind == control.kind}
    carried: dict[str, dict[str, float]] = {}
    late: set[str] = set()
    for sn, device in dump["devices"].items():
        percent_of_w = device["rated_w"] if device["family"] in percent_families else None
        for command in device["commands"]:
            value = _setpoint(command, control, percent_of_w)
            if value is None:
                continue
            if command["arrival_at"] > played.over_at + LATE_S:
                late.add(sn)
            if command["executed"]:
                carried.setdefault(sn, {})[command["correlation_id"]] = value
    applied = {sn: row for sn, row in mine.items() if row["state"] in ("applied", "verified")}
    given_up = {sn for sn, row in mine.items() if row["reason"] == "consent_withdrawn"}
    account.carried_out[control.kind], account.given_up[control.kind] = len(carried), len(given_up & carried.keys())
    if late:
        fault(f"{len(late)} inverters were sent a setpoint after its window, {min(late)} among them.")
    if only_told := applied.keys() - carried.keys():
        fault(f"{len(only_told)} inverters are reported as set, and the simulator never set them: {min(only_told)}.")
    if untold := carried.keys() - applied.keys() - given_up:
        states = Counter(mine[sn]["state"] if sn in mine else "absent" for sn in untold)
        fault(f"the simulator set {len(untold)} inverters that are reported as {dict(states)}: {min(untold)}.")
    wrong = [
        sn
        for sn, row in applied.items()
        if sn in carried and abs(carried[sn].get(row["correlation_id"], -9e9) - row[control.field]) >= control.unlike
    ]
    if wrong:
        fault(f"{len(wrong)} inverters were told another value than their outcome says, {min(wrong)} among them.")
    if above := [sn for sn, told in carried.items() if max(told.values()) > control.each + control.unlike / 2]:
        fault(f"{len(above)} inverters were told more than {control.value()}, {min(above)} among them.")


def _setpoint(command: Mapping[str, Any], control: Control, percent_of_w: int | None) -> float | None:
    """What a command sets for a control, in its unit; None if it is no setpoint of that kind."""
    if command["kind"] != "set":
        return None
    values = {parameter["name"]: parameter["value"] for parameter in command["parameters"]}
    return control.sight.standing(values, percent_of_w)


def fleet_faults(dump: Mapping[str, Any]) -> list[str]:
    """What the simulator's state at the end shows of all inverters together; empty if everything is as it was."""
    found = []
    devices = dump["devices"]
    if left := [sn for sn, device in devices.items() if device["settings"] != device["default_settings"]]:
        device = devices[min(left)]
        found.append(
            f"{len(left)} inverters are not at their default, {min(left)} among them: {device['settings']}, "
            f"at the start {device['default_settings']}."
        )
    never = [sn for sn, device in devices.items() if not device["authorized"]]
    if told := [sn for sn in never if any(command["kind"] == "set" for command in devices[sn]["commands"])]:
        found.append(f"{len(told)} inverters were commanded without their owner's consent, {min(told)} among them.")
    conflicts = sum(command["conflict"] for device in devices.values() for command in device["commands"])
    if conflicts:
        found.append(f"{conflicts} commands came under an id that had another content before.")
    if dump["unreadable"] or dump["unknown_sns"]:
        found.append(
            f"the simulator got {len(dump['unreadable'])} commands it could not read, and some for "
            f"{len(dump['unknown_sns'])} inverters it does not know."
        )
    if dump["pending"]:
        found.append(f"{dump['pending']} commands and results are still on their way in the simulator.")
    return found

"""Desired = the controls that hold the actuator, else the default (R10-R15).

One actuator of one shard at a time. Who stands behind a setpoint, who lingers after its window, who owes a release and
what a release signal asserts follow from the same look at the holders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.command import I32, U32, Flags
from vpp_dispatch.domain.membership import (
    HOLDING,
    LEFT,
    LINGERING,
    NO_RELEASE,
    RELEASE_CONFIRMED,
    RELEASE_DUE,
    RELEASE_REFUSED,
    WAITING,
    Membership,
    Part,
)
from vpp_dispatch.domain.roster import Rows
from vpp_dispatch.domain.setpoint import Setpoints, by_owner
from vpp_dispatch.domain.shard import Shard
from vpp_dispatch.domain.signal import Actuator, Kind

TIGHTEST = (Actuator.EXPORT, Actuator.ACTIVE)
"""Actuators of limits: of all that hold the tightest counts, the default included; else the highest priority (R12)."""


def compose(book: Shard, setpoints: Setpoints, now: float) -> None:
    """Desired = the controls that hold the actuator, else the default (R10-R13)."""
    actuator = setpoints.actuator
    holders = sorted(
        (
            (membership, part)
            for membership in book.memberships.values()
            if not membership.release and (not membership.ended or membership.lingers)
            for part in membership.parts
            if part.actuator is actuator
        ),
        key=lambda pair: pair[0].primacy,
    )
    if not holders and setpoints.idle and not _asserts(book, actuator):
        return
    _let_go(book, setpoints, holders, now)
    before = setpoints.columns["generation"].copy()
    wanted = _wanted(book, setpoints, holders)
    _stand_behind(book, setpoints, holders, wanted["owner"], now)
    released = setpoints.assign(**wanted, now=now)
    _owe(book, setpoints, released)
    _assert(book, setpoints, before)
    _settle(book, setpoints, wanted["held"])


def _wanted(book: Shard, setpoints: Setpoints, holders: Sequence[tuple[Membership, Part]]) -> dict[str, Any]:
    """What the holders want of each row, as `Setpoints.assign` takes it: of limits the tightest, else the strongest."""
    actuator = setpoints.actuator
    n = len(setpoints.columns)
    held = np.zeros(n, bool)
    first = np.zeros(n, np.int32)
    second = np.zeros(n, np.int32)
    owner = np.zeros(n, np.uint32)
    end_at = np.zeros(n)
    priority = np.zeros(n, np.uint8)
    for membership, part in holders:
        members = part.members[np.isin(part.members["phase"], (HOLDING, LINGERING))]
        rows = members["row"].astype(np.int64)
        one, two = pairs(book, part, members["asked"])
        wins = np.ones(len(rows), bool)  # the strongest, which comes last, or the tightest of all that hold (R12)
        if actuator is Actuator.EXPORT:
            wins = ~held[rows] | (two <= second[rows])
        elif actuator is Actuator.ACTIVE:
            wins = ~held[rows] | (one <= first[rows])
        held[rows] = True
        won = rows[wins]
        first[won], second[won], owner[won] = one[wins], two[wins], membership.slot
        end_at[won], priority[won] = membership.end_at, membership.selector.priority
    if actuator in TIGHTEST:
        known, default_first, default_second = setpoints.default()
        if actuator is Actuator.EXPORT:
            limited = held & known & (default_first == 1)
            second = np.where(limited, np.minimum(second, default_second), second)
        else:
            first = np.where(held & known, np.minimum(first, default_first), first)
    if actuator is Actuator.ACTIVE:
        first = book.roster.in_steps(actuator, np.arange(n), first)
    else:
        second = book.roster.in_steps(actuator, np.arange(n), second)
    first, second = _within_dead_band(book, setpoints, held, first, second)
    return {
        "held": held,
        "first": first,
        "second": second,
        "owner": owner,
        "end_at": end_at,
        "priority": priority,
    }


def _within_dead_band(book: Shard, setpoints: Setpoints, held: Flags, first: I32, second: I32) -> tuple[I32, I32]:
    """What is wanted; where the device has acknowledged a value within the dead band of it, that value (R21).

    It is compared with what the device was told, so that small steps add up. Of a limit only a tighter value is kept,
    so that none is ever exceeded. What drifted is sent again as it was, or its owner would be contradicted twice (R27).
    """
    band, actuator, c = book.policy.dead_band_w, setpoints.actuator, setpoints.columns
    if not band or actuator is Actuator.REACTIVE:  # a power factor has no watts
        return first, second
    if actuator is Actuator.ACTIVE:
        rated_w = book.roster.ability["rated_w"][: len(c)]
        change = (first - c["first"]) * (rated_w / 1000)
        alike = rated_w > 0  # else nobody knows how many watts a step is
    else:
        change = (second - c["second"]).astype(np.float64)
        alike = first == c["first"]
    told = (c["generation"] > 0) & ((c["acknowledged"] == c["generation"]) | (c["drifted"] > 0))
    stands = held & c["held"] & c["armed"] & told
    least = 0 if actuator in TIGHTEST else -band
    near = stands & alike & (change >= least) & (change <= band)
    return np.where(near, c["first"], first), np.where(near, c["second"], second)


def _stand_behind(
    book: Shard, setpoints: Setpoints, holders: Sequence[tuple[Membership, Part]], owner: U32, now: float
) -> None:
    """Which members stand behind their device's setpoint from now on: all of a limit, else the strongest."""
    actuator = setpoints.actuator
    for membership, part in holders:
        m = part.members
        mine = owner[m["row"]] == membership.slot
        gone = (m["phase"] == LINGERING) & ~mine  # somebody else holds it now
        if gone.any():
            membership.leave(part, np.flatnonzero(gone))
        holding = np.isin(m["phase"], (HOLDING, LINGERING))
        live = holding if actuator in TIGHTEST else holding & mine
        if (live != m["live"]).any():
            if (m["live"] & ~live).any():
                book.observe(membership, part, now, last=True)
            m["live"] = live
            setpoints.stirred = True
            membership.dirty = membership.news = True


def _owe(book: Shard, setpoints: Setpoints, released: Rows) -> None:
    """The last event that held owes the release (R34)."""
    actuator = setpoints.actuator
    for slot, rows in by_owner(setpoints.columns["owner"][released], released):
        heir = book.heir(book.at_slot(slot))
        if heir is not None:
            setpoints.columns["owner"][rows] = heir.slot
            for part in heir.parts:
                if part.actuator is actuator:
                    part.members["release"][np.isin(part.members["row"], rows)] = RELEASE_DUE
            heir.dirty = heir.news = True


def _settle(book: Shard, setpoints: Setpoints, held: Flags) -> None:
    """Releases that an event counts as due, and that somebody else owes or has paid by now (R34)."""
    actuator = setpoints.actuator
    for membership in book.memberships.values():
        for part in membership.parts:
            m = part.members
            if part.actuator is actuator and (m["release"] == RELEASE_DUE).any():
                taken = (m["release"] == RELEASE_DUE) & held[m["row"]]
                if taken.any():  # somebody else holds it now, and owes the release (R34)
                    m["release"][taken] = NO_RELEASE
                    membership.dirty = membership.news = True
                paid = (m["release"] == RELEASE_DUE) & ~setpoints.columns["armed"][m["row"]]
                if paid.any():  # by a release that the books of a worker that died had down to another event
                    refused = setpoints.columns["refused"][m["row"]]
                    m["release"][paid] = np.where(refused, RELEASE_REFUSED, RELEASE_CONFIRMED)[paid]
                    membership.dirty = membership.news = True


def _let_go(book: Shard, setpoints: Setpoints, holders: Sequence[tuple[Membership, Part]], now: float) -> None:
    """Lingering members whose turn has come leave, unless a successor that has begun will hold the device (R14).

    They stand only for what the device was told: after the window nothing is published for them any more (R28).
    """
    if not any(membership.ended for membership, _ in holders):
        return
    c = setpoints.columns
    expected = np.zeros(len(c), bool)
    for membership, part in holders:
        if membership.started and not membership.ended:
            expected[part.members["row"][part.members["phase"] == WAITING]] = True
    told = c["held"] & (c["published"] == c["generation"])
    for membership, part in holders:
        m = part.members
        rows = m["row"].astype(np.int64)
        registered, consenting = book.roster.allowed(rows, now)
        stays = ((m["leaves_at"] > now) | expected[rows]) & told[rows] & registered & consenting
        over = (m["phase"] == LINGERING) & ~stays
        if over.any():
            book.observe(membership, part, now, last=True)
            membership.leave(part, np.flatnonzero(over))


def pairs(book: Shard, part: Part, asked: I32) -> tuple[I32, I32]:
    """The pairs (see `domain.command`) that a control asks for."""
    control = part.control
    assert control is not None
    if control.actuator is Actuator.EXPORT:
        return np.ones_like(asked), asked
    if control.actuator is Actuator.EMS:
        watts = np.zeros_like(asked) if control.kind is Kind.STANDBY else asked
        return np.full_like(asked, book.catalogue.mode_of(control.kind)), watts
    return asked, np.zeros_like(asked)


def _asserts(book: Shard, actuator: Actuator) -> bool:
    """Whether a release signal is about to assert something on this actuator, or an event still counts a release
    as due."""
    return any(
        part.actuator is actuator
        and bool(
            (membership.release and (part.members["phase"] == HOLDING).any())
            or (part.members["release"] == RELEASE_DUE).any()
        )
        for membership in book.memberships.values()
        for part in membership.parts
    )


def _assert(book: Shard, setpoints: Setpoints, before: NDArray[np.uint32]) -> None:
    """What release signals drop is asserted, even where it is believed to be set (R15).

    `before`: the generations before the composition. Devices without both keys get back only what may be ours.
    """
    c = setpoints.columns
    known, _, _ = setpoints.default()
    for membership in book.memberships.values():
        for part in membership.parts if membership.release else ():
            m = part.members
            if part.actuator is not setpoints.actuator or not (m["phase"] == HOLDING).any():
                continue
            index = np.flatnonzero(m["phase"] == HOLDING)
            rows = m["row"][index].astype(np.int64)
            registered, consenting = book.roster.allowed(rows, book.now)
            ours = c["armed"][rows]
            free = ~ours & known[rows] & book.roster.ability["supports"][rows, part.actuator]
            asserted = ours | (free & registered & consenting)
            renew = rows[asserted & (c["generation"][rows] == before[rows])]
            owes = index[asserted & ~ours]
            c["owner"][m["row"][owes]] = membership.slot
            m["release"][owes] = RELEASE_DUE
            if len(renew):
                setpoints.reassert(renew)
            m["phase"][index] = LEFT
            m["live"][index[asserted]] = True
            setpoints.stirred = True
            idle = index[~asserted]
            m["state"][idle] = State.UNUSED
            why = np.where(registered & consenting, Reason.DEFAULT_UNKNOWN, Reason.CONSENT_MISSING)
            m["reason"][idle] = np.where(registered, why, Reason.NOT_REGISTERED)[~asserted]
            membership.dirty = membership.news = True
            if part is membership.parts[-1]:
                _nothing_to_release(membership)


def _nothing_to_release(membership: Membership) -> None:
    """Devices of which no actuator can be asserted are skipped, and say why; `unused` needs no reason."""
    done = np.all([part.members["phase"] == LEFT for part in membership.parts], axis=0)
    none = done & np.all([part.members["state"] == State.UNUSED for part in membership.parts], axis=0)
    why = np.max([part.members["reason"] for part in membership.parts], axis=0)
    for part in membership.parts:
        m = part.members
        m["state"][none] = State.SKIPPED
        m["reason"][none] = why[none]
        m["reason"][(m["state"] == State.UNUSED)] = 0

"""Answers joined to what was asked, and what they say of devices and events (R22, R25-R27)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.command import FORCED_ISLANDING, NO_VALUE, Flags, ResultCode, Results
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.membership import (
    HOLDING,
    LINGERING,
    NO_RELEASE,
    RELEASE_CONFIRMED,
    RELEASE_REFUSED,
)
from vpp_dispatch.domain.results import apply_queries, apply_sets
from vpp_dispatch.domain.roster import PAGE, Rows
from vpp_dispatch.domain.setpoint import QueryResults, Setpoints, SetResults, by_owner
from vpp_dispatch.domain.shard import Shard
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator


@dataclass(slots=True)
class Effects:
    """What a step tells its shell. `orphans`: offsets of inbox records with results that nobody asked for (R26)."""

    orphans: list[int] = field(default_factory=list)
    orphan_results: int = 0
    codes: np.ndarray = field(default_factory=lambda: np.zeros(len(ResultCode), np.int64))
    duplicates: int = 0
    late: int = 0
    suspects: int = 0
    took: list[np.ndarray] = field(default_factory=list)  # seconds from publish to result


def fold_results(book: Shard, offset: int, results: Results, now: float, effects: Effects) -> None:
    shard, row, kind, generation, attempt = correlation.unpack(results.ids)
    rows = row.astype(np.int64)
    actuators = kind & (QUERY_BIT - 1)
    known = (shard == book.shard) & (rows < len(book.roster)) & np.isin(actuators, tuple(Actuator)) & (generation > 0)
    if not known.all():
        effects.orphans.append(offset)
        effects.orphan_results += int((~known).sum())
    effects.codes += np.bincount(results.code, minlength=len(ResultCode))[: len(ResultCode)]
    if len(results):
        book.last_result_at = now
    digests = np.ascontiguousarray(results.ids[:, 8:]).view(">u8").astype(np.uint64).reshape(-1)
    digests &= np.uint64((1 << correlation.DIGEST_BITS) - 1)
    for actuator, setpoints in book.setpoints.items():
        mine = known & (actuators == actuator)
        saved = np.zeros(len(mine), bool)  # the page's saved row holds these already
        for page in np.unique(rows[mine] // PAGE).tolist():
            if book.folded_to.get((actuator, page), 0) > offset:
                saved |= mine & (rows // PAGE == page)
        sets = SetResults(
            row=rows,
            generation=generation,
            attempt=attempt,
            digest=digests,
            code=results.code,
            accepted=results.accepted,
            at=results.at,
        )
        queries = mine & ~saved & (kind >= QUERY_BIT)
        if (mine & (kind < QUERY_BIT)).any():
            fold_sets(book, setpoints, offset, sets.only(mine & ~saved & (kind < QUERY_BIT)), now, effects)
            if saved.any():  # but the events' rows may not
                _late_results(book, setpoints, offset, sets.only(saved & (kind < QUERY_BIT)), effects)
        if queries.any():
            index = np.flatnonzero(queries)
            first, second = results.first[index], results.second[index]
            if actuator is Actuator.EMS:  # as if it could not be read: nothing that a device may be returned to
                first = np.where(first == FORCED_ISLANDING, NO_VALUE, first).astype(np.int32)
            if actuator is Actuator.EXPORT:  # read in steps of the device (a percent of its rating, for some)
                second = book.roster.read_in_steps(rows[index], second)
            fold_queries(
                book,
                setpoints,
                QueryResults(
                    row=rows[index],
                    query=generation[index],
                    code=results.code[index],
                    first=first,
                    second=second,
                    at=results.at[index],
                ),
                now,
            )


def fold_slot_results(book: Shard, offset: int, results: SlotResults, now: float, effects: Effects) -> None:
    """Results without an id: each answers what was asked last of its device on its topics (R26).

    A release is published beside an unanswered setpoint, so no result can confirm it; queries do. While one is the
    newest, an older setpoint's answer is ignored with it: it is repeated with equal content.
    """
    rows = np.array([book.roster.row_of.get(sn, -1) for sn in results.sn], np.int64)
    n = len(rows)
    kind, generation = np.zeros(n, np.uint8), np.zeros(n, np.uint32)
    attempt, digests = np.zeros(n, np.uint8), np.zeros(n, np.uint64)
    ignored = np.zeros(n, bool)
    asked_at = np.full(n, -np.inf)
    for actuator, setpoints in book.setpoints.items() if len(book.roster) else ():
        c = setpoints.columns[rows]
        read = (results.actuator == (actuator | QUERY_BIT)) & (rows >= 0)
        kind[read], generation[read] = actuator | QUERY_BIT, c["query"][read]
        mine = (results.actuator == 0) & (results.single == book.catalogue.is_single(actuator)) & (rows >= 0)
        # Another actuator's setpoint on the topic may have timed out before this one was published.
        mine &= c["open"] & (c["published_at"] > asked_at)
        asked_at[mine] = c["published_at"][mine]
        release = mine & ~c["held"]
        ignored[mine] = release[mine]
        setpoints.columns["open"][rows[release & ~results.accepted]] = False  # its slot is free, whatever it says (R40)
        kind[release] = 0
        mine &= ~release
        kind[mine], generation[mine] = actuator, c["published"][mine]
        attempt[mine], digests[mine] = c["attempt"][mine], c["digest"][mine]
    spoken = ignored & (kind == 0) & (rows >= 0)
    book.roster.answered(rows[spoken], results.code[spoken], results.at[spoken])
    keep = ~spoken
    ids = correlation.pack(
        shard=np.full(n, book.shard, np.uint8),
        row=np.maximum(rows, 0).astype(np.uint32),
        actuator=kind,
        generation=generation,
        attempt=attempt,
        digests=digests.tolist(),
    )
    named = Results(
        ids=ids[keep],
        code=results.code[keep],
        accepted=results.accepted[keep],
        first=results.first[keep],
        second=results.second[keep],
        at=results.at[keep],
    )
    if len(named):
        fold_results(book, offset, named, now, effects)


def fold_queries(book: Shard, setpoints: Setpoints, results: QueryResults, now: float) -> None:
    book.roster.answered(results.row, results.code, results.at)
    confirmed, refused, opted_out = apply_queries(setpoints, results, now)
    _releases(book, setpoints, confirmed, RELEASE_CONFIRMED)
    _releases(book, setpoints, refused, RELEASE_REFUSED)
    if len(opted_out):
        for membership in book.memberships.values():
            for part in membership.parts:
                if part.actuator is setpoints.actuator and not membership.release:
                    m = part.members
                    mine = np.isin(m["row"], opted_out) & np.isin(m["phase"], (HOLDING, LINGERING))
                    if mine.any():
                        book.observe(membership, part, now)
                        membership.leave(part, np.flatnonzero(mine), State.REJECTED, Reason.OPTED_OUT)


def _recall(book: Shard, setpoints: Setpoints, results: SetResults) -> None:
    """A result proves its publish, also where the worker died before a checkpoint recorded it, if its id has the
    digest of what the book would send: what was told of the device is then not taken back."""
    index = setpoints.unrecorded(results)
    if book.digests is None or not len(index):
        return
    rows = results.row[index]
    expected = book.digests(book.setpoint_commands(setpoints.actuator, rows, query=False))
    for i in index[expected == results.digest[index]].tolist():
        one = np.array([i])
        setpoints.published(
            rows=results.row[one],
            generation=results.generation[one],
            attempt=results.attempt[one],
            digest=results.digest[one],
            now=float(results.at[i]),
        )


def _step_aside(book: Shard, setpoints: Setpoints, results: SetResults, now: float) -> None:
    """A result from the future (R26) tells of a setpoint that no checkpoint recorded, after the one that stands.

    What is known of that one is kept before the device becomes unknown; who still holds it stands behind the next.
    """
    ahead = np.unique(results.row[results.generation > setpoints.columns["generation"][results.row]])
    if not len(ahead):
        return
    for membership in book.memberships.values():
        for part in membership.parts:
            if not (membership.ended or membership.release) and part.actuator is setpoints.actuator:
                book.observe(membership, part, now)
                part.members["live"][np.isin(part.members["row"], ahead)] = False
                membership.dirty = True


def fold_sets(
    book: Shard, setpoints: Setpoints, offset: int, results: SetResults, now: float, effects: Effects
) -> None:
    columns = setpoints.columns
    book.roster.answered(results.row, results.code, results.at)
    _recall(book, setpoints, results)
    _step_aside(book, setpoints, results, now)
    sent_at = columns["published_at"][results.row]
    folded = apply_sets(setpoints, results, now)
    stale = folded.stale
    if len(stale):
        mask = np.zeros(len(results.row), bool)
        mask[stale] = True
        repeated = _late_results(book, setpoints, offset, results.only(mask), effects)
        suspects = results.row[stale][folded.overtaken & ~repeated]
        if len(suspects):
            setpoints.reassert(suspects)
            effects.suspects += len(np.unique(suspects))
    if len(folded.answered):  # also of those that stand behind it no longer
        mask = np.zeros(len(results.row), bool)
        mask[folded.answered] = True
        _late_results(book, setpoints, offset, results.only(mask), Effects())
    effects.duplicates += len(folded.duplicate)
    for slot, rows in by_owner(columns["owner"][results.row[folded.duplicate]], results.row[folded.duplicate]):
        membership = book.at_slot(slot)
        if membership and membership.folded_to <= offset:  # its saved row does not hold these yet
            membership.duplicates += len(rows)
            membership.dirty = membership.news = True
    answered = folded.answered
    held = answered[columns["held"][results.row[answered]]]
    took = np.maximum(results.at[held] - sent_at[held], 0.0)
    effects.took.append(took)
    for slot, seconds in by_owner(columns["owner"][results.row[held]], took):
        membership = book.at_slot(slot)
        if membership and membership.folded_to <= offset:
            membership.result_took(seconds)
            membership.dirty = membership.news = True
    refused = np.unique(results.row[answered][columns["refused"][results.row[answered]]])
    _releases(book, setpoints, refused, RELEASE_REFUSED)


def _late_results(book: Shard, setpoints: Setpoints, offset: int, results: SetResults, effects: Effects) -> Flags:
    """Tells the events of results of setpoints that no longer stand; returns which of them were known."""
    matched = np.zeros(len(results.row), bool)
    repeated = np.zeros(len(results.row), bool)
    for membership in book.memberships.values():
        hit, again = membership.late_results(setpoints.actuator, results, known=membership.folded_to > offset)
        matched |= hit
        repeated |= again
    effects.late += int((matched & ~repeated).sum())
    effects.duplicates += int(repeated.sum())
    return repeated


def _releases(book: Shard, setpoints: Setpoints, rows: Rows, outcome: int) -> None:
    """Writes what became of releases to the event that owes them."""
    for slot, owned in by_owner(setpoints.columns["owner"][rows], rows):
        membership = book.at_slot(slot)
        if membership is None:
            continue
        for part in membership.parts:
            if part.actuator is setpoints.actuator:
                m = part.members
                index = np.flatnonzero(np.isin(m["row"], owned) & (m["release"] != NO_RELEASE))
                m["release"][index] = outcome
        membership.dirty = membership.news = True

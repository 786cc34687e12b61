"""What results say of the setpoints of one actuator in one shard (R22, R25-R27).

Of setpoints and releases: applied, refused, to be tried again, or overtaken. Of queries: the default, verified,
released, drifted, or overruled by the owner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vpp_dispatch.domain.command import F64, I32, NO_VALUE, U8, Flags, ResultCode
from vpp_dispatch.domain.roster import Rows
from vpp_dispatch.domain.setpoint import (
    ABANDONED,
    FROM_FAMILY,
    FROM_QUERY,
    NO_CODE,
    READ_BACK,
    READ_DEFAULT,
    QueryResults,
    Setpoints,
    SetResults,
    one_more,
)

_ASKABLE = (ResultCode.SUCCESS, ResultCode.OFFLINE, ResultCode.BUSY)
"""Codes of a query that say nothing against asking again soon."""

_DEFINITE = np.array(
    [ResultCode.OFFLINE, ResultCode.UNAUTHORIZED, ResultCode.BUSY, ResultCode.VALUE, ResultCode.UNSUPPORTED]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What came of folding results; each column holds indices into the results or rows, as its name says.

    `stale` and `duplicate`: indices of results of older generations, and of those counted before; `overtaken`: which
    of the stale ones arrived after the newest setpoint's own answer (R22); `answered`: indices of the first answers
    to newest setpoints; `offline`: rows that GoodWe calls offline.
    """

    stale: Rows
    overtaken: Flags
    duplicate: Rows
    answered: Rows
    offline: Rows


def repeats(values: Rows, mask: Flags) -> Flags:
    """Which of the masked entries have a value that stood earlier in the mask."""
    found = np.zeros(len(values), bool)
    where = np.flatnonzero(mask)
    _, first = np.unique(values[where], return_index=True)
    found[np.delete(where, first)] = True
    return found


def apply_sets(setpoints: Setpoints, results: SetResults, now: float) -> Folded:
    """Applies results of setpoints and releases, in their order (R22, R25, R26)."""
    c = setpoints.columns
    row, generation = results.row, results.generation
    book = c["generation"][row]
    current = generation == book
    known = current & (c["published"][row] == generation)
    same = known & (c["digest"][row] == results.digest)
    ahead = generation > book
    behind = generation < book
    done = same & (c["acknowledged"][row] == generation)
    accepted = same & ~done & results.accepted & (results.code == ResultCode.SUCCESS)
    success = same & ~done & ~results.accepted & (results.code == ResultCode.SUCCESS)
    newest = same & ~done & (results.code != ResultCode.SUCCESS) & (results.attempt == c["attempt"][row])
    # One row may have several results in one fold: a success of any attempt counts, wherever it stands.
    ok = np.unique(row[success])
    refusals = newest & ~np.isin(row, ok) & (c["code"][row] == NO_CODE)
    first_refusal = refusals & ~repeats(row, refusals)
    first_success = success & ~repeats(row, success)
    failed = np.flatnonzero(first_refusal)
    repeated = np.flatnonzero(done | (newest & ~first_refusal) | (success & ~first_success))
    early = current & ~known & setpoints.in_hand[row]
    if early.any():
        setpoints.early_sets.append(results.only(early))

    c["open"][row[(generation == c["published"][row]) & ~results.accepted & ~early]] = False
    c["accepted"][row[accepted]] = generation[accepted]
    c["acknowledged"][row[first_success]] = generation[first_success]
    c["result_at"][row[first_success]] = results.at[first_success]
    c["code"][ok] = ResultCode.SUCCESS
    c["tries"][ok] = 0
    c["next_at"][ok] = np.inf
    c["query_next_at"][ok] = 0
    c["checked"][ok] = np.where(_sampled(setpoints, ok), c["checked"][ok], c["generation"][ok])
    # A query that was sent before the result may have overtaken the command: only a new one counts (R27).
    c["purpose"][ok] = np.where(c["purpose"][ok] == READ_BACK, ABANDONED, c["purpose"][ok])
    offline = _failed(setpoints, row[failed], results.code[failed], results.at[failed], now)

    # An answer of an older setpoint that arrived after the newer one's: the device may have gone back (R22).
    order = np.arange(len(row))
    where = np.full(len(c), -1)
    where[row[first_success]] = order[first_success]
    after = (results.at > c["result_at"][row]) | ((results.at == c["result_at"][row]) & (order > where[row]))
    executed = behind & (results.code == ResultCode.SUCCESS)
    lag = np.minimum(book.astype(np.int64) - generation - 1, 32) * executed
    bit = np.where(executed & (lag < 32), np.left_shift(1, lag), 0).astype(np.uint32)
    heard = (c["heard"][row] & bit) > 0
    overtaken = executed & ~heard & (c["acknowledged"][row] == book) & after
    final = executed & ~results.accepted
    np.bitwise_or.at(c["heard"], row[final], bit[final])
    foreign = known & ~same
    setpoints.touch(row[accepted | success | final])
    if ahead.any() or foreign.any():
        setpoints.reassert(row[ahead | foreign], generation[ahead | foreign])
    stale = np.flatnonzero(behind)
    answered = np.flatnonzero(first_success | first_refusal)
    return Folded(stale=stale, overtaken=overtaken[stale], duplicate=repeated, answered=answered, offline=offline)


def _sampled(setpoints: Setpoints, rows: Rows) -> Flags:
    """Which applied setpoints are read back: a stable choice, and whoever has drifted before (R27)."""
    c = setpoints.columns
    draw = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + c["generation"][rows].astype(np.uint64)
    draw = (draw ^ draw >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
    share = 1.0 if not setpoints.echoes else setpoints.policy.verify_share
    chosen: Flags = ((draw >> np.uint64(40)) < share * 2**24) | (c["drifted"][rows] > 0)
    return chosen


def _failed(setpoints: Setpoints, rows: Rows, codes: U8, at: F64, now: float) -> Rows:
    """Refusals of the newest attempt; returns the rows that are offline."""
    c, policy = setpoints.columns, setpoints.policy
    c["code"][rows] = codes
    c["result_at"][rows] = at
    tries = c["tries"][rows]
    c["tries"][rows] = one_more(tries)
    definite = rows[np.isin(codes, _DEFINITE)]
    c["exposed"][definite] = np.maximum(c["exposed"][definite].astype(np.int64) - 1, 0)
    pause = setpoints.pause(rows, (np.maximum(tries, 1) - 1) // 2)  # a try counts twice: when published, when refused
    transient = codes == ResultCode.BUSY
    away = codes == ResultCode.OFFLINE
    once = (codes == ResultCode.UNKNOWN_CODE) & (tries <= 1)
    held = c["held"][rows]
    next_at = np.full(len(rows), np.inf)
    next_at[transient | once] = now + pause[transient | once]
    next_at[away] = now + 10 * policy.retry_backoff_s
    # A release is owed until it is paid: its retries have a budget of their own and never end (R19).
    slow = np.where(transient | away | once, policy.release_retry_s, 10 * policy.release_retry_s)
    next_at = np.where(held, next_at, now + slow)
    c["next_at"][rows] = next_at
    c["refused"][rows[~held & ~(transient | away | once)]] = True
    setpoints.touch(rows)
    offline: Rows = rows[away]
    return offline


def apply_queries(setpoints: Setpoints, results: QueryResults, now: float) -> tuple[Rows, Rows, Rows]:
    """Applies results of queries (R27, R37).

    Returns rows: whose release is confirmed, whose release is refused, whose owner has overruled a setpoint.
    """
    c = setpoints.columns
    early = (results.query == c["query"][results.row] + np.uint32(1)) & setpoints.asking[results.row]
    if early.any():
        setpoints.early_queries.append(results.only(early))
    live = results.query == c["query"][results.row]
    unwanted = results.row[live & (c["purpose"][results.row] == ABANDONED)]
    c["purpose"][unwanted] = 0
    setpoints.touch(unwanted)
    live &= c["purpose"][results.row] > 0
    index = np.flatnonzero(live & ~repeats(results.row, live))
    rows, code = results.row[index], results.code[index]
    first, second = results.first[index], results.second[index]
    purpose = c["purpose"][rows]
    c["purpose"][rows] = 0
    setpoints.touch(rows)

    armed = c["armed"][rows]
    read = (code == ResultCode.SUCCESS) & (first != NO_VALUE) & (second != NO_VALUE)
    held = c["held"][rows]
    standing = (c["query_for"][rows] == c["generation"][rows]) & armed
    newest = standing & ~held
    asserted = standing & held & (c["acknowledged"][rows] == c["generation"][rows])
    c["query_next_at"][rows[~read]] = now + setpoints.policy.retry_backoff_s
    denied = ~read & ~np.isin(code, _ASKABLE)

    family = denied & (purpose == READ_DEFAULT) & ~armed & ("family" in setpoints.policy.defaults)
    told = read & (purpose == READ_DEFAULT) & ~armed
    c["before"][rows[told]] = FROM_QUERY
    c["before_at"][rows[told | family]] = now
    c["before_first"][rows[told]], c["before_second"][rows[told]] = first[told], second[told]
    c["before"][rows[family]] = FROM_FAMILY
    c["before_first"][rows[family]], c["before_second"][rows[family]] = setpoints.family_default
    setpoints.wanted[rows[told | family]] = False

    # A reachable device that will not be read: the release is owed, and it pages (R19).
    unread = rows[denied & (purpose == READ_BACK) & newest]
    c["query_next_at"][unread] = now + 10 * setpoints.policy.release_retry_s
    c["refused"][unread] = True
    # A setpoint that cannot be read back is applied by GoodWe's word, and no more can be known.
    mute = rows[denied & (purpose == READ_BACK) & asserted]
    c["checked"][mute] = c["generation"][mute]
    back = read & (purpose == READ_BACK) & newest
    confirmed, overruled = _read_back(setpoints, rows[back], first[back], second[back], now)
    back = read & (purpose == READ_BACK) & asserted
    opted_out = _verify(setpoints, rows[back], first[back], second[back], now)
    return confirmed, np.union1d(unread, overruled), opted_out


def _verify(setpoints: Setpoints, rows: Rows, first: I32, second: I32, now: float) -> Rows:
    """What devices show whose setpoint was applied; returns the rows whose owner chose otherwise, twice (R27)."""
    c = setpoints.columns
    equal = (first == c["first"][rows]) & (second == c["second"][rows])
    same = rows[equal]
    c["verified"][same] = c["checked"][same] = c["generation"][same]
    again = ~equal & (c["drifted"][rows] == 0)
    c["drifted"][rows[again]] = 1
    setpoints.renew(rows[again])
    chosen = ~equal & ~again
    out: Rows = rows[chosen]
    # Nobody fights a person over flash: it is the owner's from now on, and what the actuator returns to later.
    c["before"][out] = FROM_QUERY
    c["before_first"][out], c["before_second"][out] = first[chosen], second[chosen]
    c["before_at"][out] = now
    c["armed"][out] = False
    c["exposed"][out] = 0
    c["checked"][out] = c["generation"][out]
    setpoints.durable[out] = False
    return out


def _read_back(setpoints: Setpoints, rows: Rows, first: I32, second: I32, now: float) -> tuple[Rows, Rows]:
    """What devices show whose release is the newest setpoint; returns (confirmed, overruled by the owner) rows."""
    c = setpoints.columns
    equal = (first == c["first"][rows]) & (second == c["second"][rows])
    latched = (first == c["held_first"][rows]) & (second == c["held_second"][rows])
    again = ~equal & (latched | (c["drifted"][rows] == 0))
    overruled = rows[~equal & ~again]  # somebody else's value, twice: nobody fights a person (R27)

    unanswered = rows[equal & (c["acknowledged"][rows] != c["generation"][rows])]
    c["agreed"][unanswered] += 1
    c["query_next_at"][unanswered] = 0
    agreed = unanswered[c["agreed"][unanswered] >= 2]
    c["acknowledged"][agreed] = c["generation"][agreed]
    confirmed = rows[equal & (c["acknowledged"][rows] == c["generation"][rows])]

    drifted = rows[again]
    c["drifted"][drifted] = np.minimum(c["drifted"][drifted], 99) + 1
    setpoints.renew(drifted)
    still = drifted[c["drifted"][drifted] > 1]  # still latched: a debt, paid at the pace of releases
    c["next_at"][still] = now + setpoints.policy.release_retry_s

    c["verified"][confirmed] = c["generation"][confirmed]
    c["refused"][confirmed] = False
    c["refused"][overruled] = True
    # What the owner chose is what the actuator returns to from now on.
    chosen = ~equal & ~again
    c["before"][overruled] = FROM_QUERY
    c["before_first"][overruled], c["before_second"][overruled] = first[chosen], second[chosen]
    over = np.concatenate([confirmed, overruled])
    c["before_at"][over] = now  # read just now
    c["armed"][over] = False
    c["exposed"][over] = 0
    setpoints.durable[over] = False
    return confirmed, overruled

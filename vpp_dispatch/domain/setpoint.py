"""The setpoints of one actuator in one shard: desired, published, acknowledged, and what is owed.

One row per device, as columns. `armed` means that a setpoint of ours may stand on the device: it is saved before the
first setpoint is published and goes only when the release was read back (R19, R27), so that no crash can hide a device
that is set. In sync means desired = published = acknowledged (R21); everything else is work, which `domain.due`
finds; what results say of it is in `domain.results`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.command import F64, I32, U8, U32, Flags, ResultCode
from vpp_dispatch.domain.roster import PAGE, Policy, Rows
from vpp_dispatch.domain.signal import Actuator

NO_CODE = 255
"""No result of the newest attempt yet."""

NOT_KNOWN, FROM_QUERY, FROM_FAMILY, FROM_REGISTRY = 0, 1, 2, 3
"""Where a `before` came from."""

READ_DEFAULT, READ_BACK, ABANDONED = 1, 2, 3
"""What an outstanding query is for. Abandoned: for nothing any more, but it is in flight until it is answered (R40)."""

FIRST_QUERY_AFTER_TAKEOVER = 1 << 12
"""Query numbers jump by this at a takeover: an answer to a query that no checkpoint recorded must match nothing."""

SETPOINT = np.dtype(
    [
        ("generation", "<u4"),  # changes of the desired pair; 0 = never desired
        ("first", "<i4"),
        ("second", "<i4"),
        ("armed", "?"),
        ("exposed", "u1"),  # publishes since the arming that the device may have executed
        ("held", "?"),
        ("since", "<f8"),  # when the hold began, or when the release became due
        ("desired_at", "<f8"),  # when the desired pair last changed
        ("owner", "<u4"),  # slot of the event that holds it, or held it last
        ("end_at", "<f8"),  # of the window behind the setpoint (R28)
        ("priority", "u1"),
        ("published", "<u4"),  # generation last published, its attempt, time and content
        ("attempt", "u1"),
        ("published_at", "<f8"),
        ("digest", "<u8"),
        ("tries", "u1"),
        ("next_at", "<f8"),  # not published again before
        ("accepted", "<u4"),
        ("acknowledged", "<u4"),
        ("code", "u1"),
        ("result_at", "<f8"),
        ("refused", "?"),  # a release that a reachable device refused, or that its owner overruled
        ("before", "u1"),
        ("before_first", "<i4"),
        ("before_second", "<i4"),
        ("before_at", "<f8"),
        ("held_first", "<i4"),  # the last setpoint that was held: what a latched device would show
        ("held_second", "<i4"),
        ("query", "<u4"),  # number of the newest query; its purpose (0 = none outstanding), time and generation
        ("purpose", "u1"),
        ("query_at", "<f8"),
        ("query_for", "<u4"),
        ("query_next_at", "<f8"),
        ("agreed", "u1"),
        ("drifted", "u1"),
        ("heard", "<u4"),  # bit k: the answer to generation - 1 - k is known, so that a repetition says nothing (R22)
        ("open", "?"),  # the newest publish has no final answer yet, whatever is desired by now
        ("verified", "<u4"),  # generation that was read back equal
        ("checked", "<u4"),  # generation whose read-back is over, or was never wanted (R27)
    ]
)

REASON_OF_CODE = np.zeros(256, np.uint8)
for _code, _reason in {
    ResultCode.UNAUTHORIZED: Reason.UNAUTHORIZED,
    ResultCode.BUSY: Reason.BUSY,
    ResultCode.VALUE: Reason.VALUE,
    ResultCode.UNSUPPORTED: Reason.UNSUPPORTED,
    ResultCode.FAILED: Reason.FAILED,
    ResultCode.PARTIAL: Reason.PARTIAL,
    ResultCode.UNKNOWN_CODE: Reason.UNKNOWN_CODE,
}.items():
    REASON_OF_CODE[_code] = _reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResults:
    """Results of setpoints and releases, columns of length n (see `domain.command.Results`)."""

    row: Rows
    generation: U32
    attempt: U8
    digest: NDArray[np.uint64]
    code: U8
    accepted: Flags
    at: F64

    def only(self, mask: Flags) -> SetResults:
        """Those of the mask."""
        return SetResults(**{name: getattr(self, name)[mask] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResults:
    """Results of queries, columns of length n; `first`/`second` i4 are what was read."""

    row: Rows
    query: U32
    code: U8
    first: I32
    second: I32
    at: F64

    def only(self, mask: Flags) -> QueryResults:
        """Those of the mask."""
        return QueryResults(**{name: getattr(self, name)[mask] for name in self.__slots__})


def one_more(tries: U8) -> U8:
    """Counts to 250 and then stays there, odd and even by turns, since a release and its query take turns."""
    return np.where(tries >= 250, 249, tries + 1).astype(np.uint8)


def by_owner(owner: np.ndarray, values: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Values grouped by the slot beside them; slot 0 is nobody."""
    return [(int(slot), values[owner == slot]) for slot in np.unique(owner).tolist() if slot > 0]


class Setpoints:
    """All setpoints of one actuator in one shard. `columns` is saved; the rest is rebuilt."""

    def __init__(
        self, *, actuator: Actuator, policy: Policy, family_default: tuple[int, int], echoes: bool = True
    ) -> None:
        """`echoes`: results carry the id of their command; else a release is confirmed only by queries (R26)."""
        self.actuator = actuator
        self.policy = policy
        self.echoes = echoes
        self.family_default = family_default
        self.columns = np.zeros(0, SETPOINT)
        self.durable = np.zeros(0, bool)  # the row's arming is saved
        self.unsaved = np.zeros(0, bool)  # armed for a release alone, which has to wait for that to be saved as well
        self.registry = np.zeros(0, [("known", "?"), ("first", "<i4"), ("second", "<i4")])
        self.wanted = np.zeros(0, bool)  # an accepted event will need the default
        self.wanted_priority = np.full(0, 255, np.int64)
        self.wanted_by = np.zeros(0, np.uint32)  # slot of the strongest event that will need it
        self.dirty: set[int] = set()
        self.urgent = False
        self.stirred = False  # a setpoint has changed since the book last looked
        # Commands that were handed out and not acknowledged yet. GoodWe may answer before its broker's acknowledgement
        # is here; such answers are kept until `published` or `queried`.
        self.in_hand = np.zeros(0, bool)
        self.asking = np.zeros(0, bool)
        self.early_sets: list[SetResults] = []
        self.early_queries: list[QueryResults] = []

    def grow(self, n: int) -> None:
        """Makes room for n rows."""
        more = n - len(self.columns)
        if more > 0:
            more = max(more, 64)
            self.columns = np.concatenate([self.columns, np.zeros(more, SETPOINT)])
            self.columns["code"][-more:] = NO_CODE
            self.durable = np.concatenate([self.durable, np.zeros(more, bool)])
            self.unsaved = np.concatenate([self.unsaved, np.zeros(more, bool)])
            self.registry = np.concatenate([self.registry, np.zeros(more, self.registry.dtype)])
            self.wanted = np.concatenate([self.wanted, np.zeros(more, bool)])
            self.in_hand = np.concatenate([self.in_hand, np.zeros(more, bool)])
            self.asking = np.concatenate([self.asking, np.zeros(more, bool)])
            self.wanted_priority = np.concatenate([self.wanted_priority, np.full(more, 255)])
            self.wanted_by = np.concatenate([self.wanted_by, np.zeros(more, np.uint32)])

    @property
    def idle(self) -> bool:
        """Whether nothing is held, owed or to be read here."""
        return not (self.columns["armed"].any() or self.columns["held"].any() or self.wanted.any())

    def touch(self, rows: Rows) -> None:
        """The pages of these rows have to be saved."""
        if len(rows):
            self.dirty.update(np.unique(rows // PAGE).tolist())

    def taken_over(self, now: float, epoch: int) -> None:
        """After recovery: what was published and not saved is unknown, so each armed device may be set.

        The rows that said so are of a lower epoch, and a worker that was frozen may still write over them: no setpoint
        goes out before they are saved under our own. Releases wait for nothing.
        """
        c = self.columns
        self.durable[:] = False
        self.touch(np.flatnonzero(c["armed"]))
        self.urgent = bool(c["armed"].any())
        c["exposed"] += (c["armed"] & (c["exposed"] < 200)).astype(np.uint8)
        # The epoch rises at each takeover, saved or not, so two takeovers never use the same numbers.
        least = np.uint32((epoch * FIRST_QUERY_AFTER_TAKEOVER) % 2**32)
        c["query"] = np.maximum(c["query"] + np.uint32(FIRST_QUERY_AFTER_TAKEOVER), least)
        c["purpose"] = 0
        c["query_next_at"] = 0

    # ------------------------------------------------------------------ defaults (R37)

    def default(self) -> tuple[Flags, I32, I32]:
        """(known, first, second) of each row's default: the registry's, else what a query or the family said."""
        c, r = self.columns, self.registry
        from_registry = r["known"] & ("registry" in self.policy.defaults)
        known = from_registry | (c["before"] > 0)
        first = np.where(from_registry, r["first"], c["before_first"])
        second = np.where(from_registry, r["second"], c["before_second"])
        return known, first.astype(np.int32), second.astype(np.int32)

    def unread(self, now: float) -> Flags:
        """Rows whose default has to be read, or read again because the owner may have changed it since."""
        c = self.columns
        from_registry = self.registry["known"] & ("registry" in self.policy.defaults)
        old = (c["before"] != NOT_KNOWN) & (now - c["before_at"] > self.policy.default_max_age_s)
        asked: Flags = ~from_registry & ((c["before"] == NOT_KNOWN) | old)
        return asked

    # ------------------------------------------------------------------ composition

    def assign(
        self, *, held: Flags, first: I32, second: I32, owner: U32, end_at: F64, priority: U8, now: float
    ) -> Rows:
        """Takes the composed holds; returns the rows whose hold ended with a release due.

        All columns have one entry per row. Rows without a hold go to their default if they are armed.
        """
        c = self.columns
        known, default_first, default_second = self.default()
        ended = c["held"] & ~held
        armed_now = held & ~c["armed"]
        clean = ended & (c["exposed"] == 0)
        released = ended & ~clean & c["armed"]
        want = held | (c["armed"] & ~clean & known)
        want_first = np.where(held, first, default_first)
        want_second = np.where(held, second, default_second)
        differs = want & ((c["first"] != want_first) | (c["second"] != want_second) | (c["generation"] == 0))
        unanswered = released & (c["acknowledged"] != c["generation"])
        # A refusal answers the event that asked; another event that wants the same asks for itself (R25).
        asked_anew = (
            held & c["held"] & (c["owner"] != owner) & (c["acknowledged"] != c["generation"]) & (c["next_at"] == np.inf)
        )
        if not (differs | armed_now | ended | (held & ((c["owner"] != owner) | (c["end_at"] != end_at)))).any():
            return np.zeros(0, np.int64)  # as it is nearly always
        self.stirred = True
        changed = np.flatnonzero(differs | armed_now | unanswered | asked_anew)
        touched = np.flatnonzero(
            differs | armed_now | ended | (held & ((c["owner"] != owner) | (c["end_at"] != end_at)))
        )

        # The default is kept from before the first write, whatever the registry says later.
        keep = np.flatnonzero(armed_now & (c["before"] == NOT_KNOWN))
        c["before"][keep] = FROM_REGISTRY
        c["before_first"][keep] = default_first[keep]
        c["before_second"][keep] = default_second[keep]

        c["desired_at"][changed] = now
        c["drifted"][changed] = 0
        new = np.flatnonzero(armed_now)
        c["armed"][new] = True
        c["exposed"][new] = 0
        c["purpose"][new] = 0
        self.durable[new] = False
        self.urgent = self.urgent or len(new) > 0
        c["armed"][clean] = False
        self.renew(changed)
        c["first"][changed] = want_first[changed]
        c["second"][changed] = want_second[changed]
        holding = np.flatnonzero(held)
        c["held_first"][holding] = first[holding]
        c["held_second"][holding] = second[holding]
        c["since"][holding] = np.where(c["held"][holding], c["since"][holding], now)
        c["since"][np.flatnonzero(ended)] = now
        c["held"] = held
        c["owner"][holding] = owner[holding]
        c["end_at"][holding] = end_at[holding]
        c["priority"][holding] = priority[holding]
        rows = np.flatnonzero(released)
        c["refused"][rows] = False
        c["agreed"][rows] = c["drifted"][rows] = 0
        c["query_next_at"][rows] = 0
        self.touch(touched)
        return rows

    def renew(self, rows: Rows) -> None:
        """A new generation: nothing that was published or answered before counts any more."""
        if not len(rows):
            return
        self.stirred = True
        c = self.columns
        answered = c["acknowledged"][rows] == c["generation"][rows]
        c["heard"][rows] = c["heard"][rows] << np.uint32(1) | answered
        c["generation"][rows] += 1
        c["code"][rows] = NO_CODE
        c["tries"][rows] = 0
        c["next_at"][rows] = 0
        c["purpose"][rows] = np.where(c["purpose"][rows] == READ_BACK, ABANDONED, c["purpose"][rows])
        c["agreed"][rows] = 0
        self.touch(rows)

    def reassert(self, rows: Rows, at_least: U32 | None = None) -> None:
        """The newest value is asserted again under a new generation, above `at_least` where given (R22, R26)."""
        c = self.columns
        unique = np.unique(rows)
        if at_least is not None:
            before = c["generation"][unique]
            np.maximum.at(c["generation"], rows, at_least)
            jump = (c["generation"][unique] - before).astype(np.int64)
            c["heard"][unique] = np.where(jump < 32, c["heard"][unique] << np.minimum(jump, 31).astype(np.uint32), 0)
        rows = unique
        unset = rows[~c["armed"][rows]]
        known, first, second = self.default()
        c["armed"][unset] = self.unsaved[unset] = True
        self.durable[unset] = False
        self.urgent = self.urgent or len(unset) > 0
        keep = unset[known[unset] & (c["before"][unset] == NOT_KNOWN)]  # as in `assign`
        c["before"][keep] = FROM_REGISTRY
        c["before_first"][keep], c["before_second"][keep] = first[keep], second[keep]
        unread = unset[~known[unset]]  # cannot be read any more: a write of ours may stand on it
        c["before"][unread] = FROM_FAMILY
        c["before_first"][unread], c["before_second"][unread] = self.family_default
        c["first"][unset] = np.where(known[unset], first[unset], self.family_default[0])
        c["second"][unset] = np.where(known[unset], second[unset], self.family_default[1])
        c["exposed"][rows] = np.maximum(c["exposed"][rows], 1)
        self.renew(rows)

    # ------------------------------------------------------------------ states

    def states(self, rows: Rows, now: float, *, last: bool = False) -> tuple[U8, U8]:
        """(State, Reason) of the setpoint on each row, for the event that stands behind it (R24, R25).

        `last`: the event stands behind it no longer, so that what would have been tried again is a refusal.
        """
        c = self.columns[rows]
        generation = c["generation"]
        state = np.full(len(rows), State.PUBLISHED, np.uint8)
        reason = np.zeros(len(rows), np.uint8)
        overdue = now - c["published_at"] >= self.policy.result_timeout_s
        state[overdue] = State.UNCONFIRMED
        reason[overdue] = Reason.NO_ANSWER
        accepted = c["accepted"] == generation
        state[accepted] = State.ACCEPTED
        reason[accepted] = 0
        answered = c["code"] != NO_CODE
        why = REASON_OF_CODE[c["code"]]
        waits = answered & (c["code"] == ResultCode.BUSY) & (c["next_at"] < np.inf) & (not last)
        state[answered & (why > 0)] = State.REJECTED
        reason[answered & (why > 0)] = why[answered & (why > 0)]
        state[waits] = State.PUBLISHED
        reason[waits] = 0
        offline = answered & (c["code"] == ResultCode.OFFLINE)
        state[offline] = State.SKIPPED
        reason[offline] = Reason.OFFLINE
        unsent = c["published"] != generation
        state[unsent] = State.PENDING
        reason[unsent] = 0
        done = (c["acknowledged"] == generation) & (generation > 0)
        state[done] = State.APPLIED
        reason[done] = 0
        state[done & (c["verified"] == generation)] = State.VERIFIED
        return state, reason

    # ------------------------------------------------------------------ work

    def pause(self, rows: Rows, tries: U8) -> F64:
        """Backoff with jitter: doubles to ten times; the jitter is a stable hash, so that a replay draws the same."""
        noise = (
            (rows.astype(np.uint64) * np.uint64(2654435761) + tries.astype(np.uint64) * np.uint64(40503))
            >> np.uint64(7)
        ) & np.uint64(255)
        factor = np.minimum(2.0 ** np.minimum(tries, 8), 10.0)
        return self.policy.retry_backoff_s * factor * (0.75 + 0.5 * noise / 255.0)

    def unanswered(self, now: float) -> Flags:
        """Rows whose newest publish may still be answered."""
        c = self.columns
        waiting: Flags = c["open"] & (now - c["published_at"] < self.policy.result_timeout_s)
        return waiting

    def next_attempt(self, rows: Rows) -> U8:
        """The attempt that a publish of each row's newest generation now would be, 1..255."""
        c = self.columns[rows]
        return np.where(c["published"] == c["generation"], c["attempt"] + 1, 1).astype(np.uint8)

    def publishing(self, rows: Rows) -> None:
        """Before a batch goes out: from now on the devices may be set, whatever becomes of the batch.

        A release that was tried 255 times goes on under a new generation, since an attempt has 8 bits.
        """
        c = self.columns
        worn = rows[(c["published"][rows] == c["generation"][rows]) & (c["attempt"][rows] == 255)]
        if len(worn):
            self.renew(worn)
        c["exposed"][rows] = np.minimum(c["exposed"][rows].astype(np.int64) + 1, 200)
        self.in_hand[rows] = True

    def published(self, *, rows: Rows, generation: U32, attempt: U8, digest: NDArray[np.uint64], now: float) -> None:
        """A batch was acknowledged by the broker at `now`. What changed its generation meanwhile is not in it."""
        c = self.columns
        self.in_hand[rows] = False
        c["published"][rows] = generation
        c["attempt"][rows] = attempt
        c["published_at"][rows] = now
        c["digest"][rows] = digest
        c["open"][rows] = True
        same = rows[c["generation"][rows] == generation]
        c["code"][same] = NO_CODE
        c["agreed"][same] = 0
        c["purpose"][same] = np.where(c["purpose"][same] == READ_BACK, ABANDONED, c["purpose"][same])
        tries = c["tries"][same]
        held = c["held"][same]
        c["tries"][same] = one_more(tries)
        pause = np.where(held, self.pause(same, tries), 0.0)
        c["next_at"][same] = now + self.policy.result_timeout_s + pause
        c["query_next_at"][same] = np.where(held, c["query_next_at"][same], now + self.policy.result_timeout_s)
        self.touch(rows)

    def unrecorded(self, results: SetResults) -> Rows:
        """Indices of results of the current generation whose publish no checkpoint recorded: the worker died before.

        A publish that is in hand is not meant; its answer only came early.
        """
        c, row = self.columns, results.row
        current = (results.generation == c["generation"][row]) & (c["published"][row] != c["generation"][row])
        return np.flatnonzero(current & c["armed"][row] & ~self.in_hand[row])

    def asking_for(self, rows: Rows) -> None:
        """Before a batch of queries goes out."""
        self.asking[rows] = True

    def take_early(self) -> tuple[list[SetResults], list[QueryResults]]:
        """Answers that were here before the acknowledgement of what they answer; to be folded again."""
        found = self.early_sets, self.early_queries
        self.early_sets, self.early_queries = [], []
        return found

    def next_query(self, rows: Rows) -> U32:
        """The number that a query of each row sent now would have."""
        return self.columns["query"][rows] + np.uint32(1)

    def queried(self, *, rows: Rows, query: U32, now: float) -> None:
        """Queries are out: only their answers count from now on."""
        c = self.columns
        self.asking[rows] = False
        c["query"][rows] = query
        c["purpose"][rows] = np.where(c["armed"][rows], READ_BACK, READ_DEFAULT)
        c["query_at"][rows] = now
        c["query_for"][rows] = c["generation"][rows]
        c["query_next_at"][rows] = now + self.policy.result_timeout_s
        # A read-back in place of an answer: unless it agrees, the release goes out again after one more timeout.
        waiting = rows[c["armed"][rows] & (c["acknowledged"][rows] != c["generation"][rows])]
        c["tries"][waiting] = one_more(c["tries"][waiting])
        c["next_at"][waiting] = now + self.policy.result_timeout_s
        self.touch(rows)

    def back_online(self, rows: Rows, now: float) -> None:
        """Devices that were offline are back: what waits for them goes on at once (R18, R19)."""
        c = self.columns
        waiting = rows[c["code"][rows] == ResultCode.OFFLINE]
        c["next_at"][waiting] = now
        c["query_next_at"][rows] = np.minimum(c["query_next_at"][rows], now)

    def wake_at(self, now: float) -> float:
        """When something may become due or change its state by time alone; inf if nothing will."""
        if self.idle:
            return np.inf
        c = self.columns
        times = [np.inf]
        open_ = c["armed"] & (c["acknowledged"] != c["generation"])
        for mask, column in (
            (open_, c["next_at"]),
            (open_, c["published_at"] + self.policy.result_timeout_s),
            (open_ & c["held"], c["published_at"] + self.policy.min_interval_s),
            (
                (c["armed"] & (~c["held"] | (c["checked"] != c["generation"]))) | (self.wanted & ~c["armed"]),
                c["query_next_at"],
            ),
        ):
            later = column[mask & (column > now)]
            if len(later):
                times.append(float(later.min()))
        return min(times)

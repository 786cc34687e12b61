"""One revision of a dispatch event in one shard: its members, where each stands, and what was told of it.

A member holds its control's actuator, or is skipped for a reason, or has left. What it shows is the state of the
setpoint while it stands behind it, and what that was when it no longer does (R24).

    waiting --its start--> holding --window over--> lingering --its release is due, or somebody else holds--> left
       '--no key, not fit--> skipped --the fact changes--^
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vpp_dispatch.domain.account import LATENCY_BUCKETS_S, Counts, Latency, Reason, State
from vpp_dispatch.domain.command import F64, NO_VALUE, U8, U32, Flags, ResultCode
from vpp_dispatch.domain.inputs import Selector
from vpp_dispatch.domain.results import repeats
from vpp_dispatch.domain.roster import Roster, Rows
from vpp_dispatch.domain.setpoint import REASON_OF_CODE, Setpoints, SetResults
from vpp_dispatch.domain.signal import Actuator, Control, Kind

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)

WAITING, HOLDING, SKIPPED, LEFT, LINGERING = 0, 1, 2, 3, 4
"""Phases of a member. Lingering: the window is over, and the device waits, as it was set, for its turn (R14)."""

NO_RELEASE, RELEASE_DUE, RELEASE_CONFIRMED, RELEASE_REFUSED = 0, 1, 2, 3
"""What became of the release that this event owes; it is owed by the last event that held (R34)."""

MEMBER = np.dtype(
    [
        ("row", "<i4"),
        ("phase", "u1"),
        ("held", "?"),  # ever held: it got its share
        ("live", "?"),  # its event stands behind the setpoint now
        ("state", "u1"),
        ("reason", "u1"),
        ("generation", "<u4"),  # of the setpoint that stood last behind the state, and what is known of it
        ("attempt", "u1"),
        ("digest", "<u8"),
        ("first", "<i4"),
        ("second", "<i4"),
        ("published_at", "<f8"),
        ("result_at", "<f8"),
        ("release", "u1"),
        ("told_sequence", "<i8"),  # of the newest outcome row; 0 = none. Then what it said
        ("told_state", "u1"),
        ("told_reason", "u1"),
        ("told_code", "u1"),
        ("told_final", "?"),  # it was told as the outcome, at the close or after it
        ("asked", "<i4"),  # what the control asks of it, see `Roster.asked`
        ("draw", "<u2"),  # its place in a ramp, in 1/65536 of it
        ("leaves_at", "<f8"),  # when a lingering member is released
        ("told_generation", "<u4"),  # which setpoint the newest outcome row was of
    ]
)

STRANGER = np.dtype([("told_sequence", "<i8")])

SAMPLE = np.dtype([("at", "<f8"), ("watts", "<f8")])
"""Of telemetry, taken while the setpoint stood; `at` epoch seconds, 0 = none; watts in the control's direction."""

# A device counts once, by its worst state (R34).
_RANK = np.zeros(len(State), np.uint8)
for _rank, _state in enumerate(
    (
        State.UNUSED,
        State.SKIPPED,
        State.VERIFIED,
        State.APPLIED,
        State.ACCEPTED,
        State.PUBLISHED,
        State.PENDING,
        State.UNCONFIRMED,
        State.REJECTED,
    )
):
    _RANK[_state] = _rank

_OPEN = (State.PENDING, State.PUBLISHED, State.ACCEPTED)
_DONE = (State.APPLIED, State.VERIFIED)

MEASURED = {
    Kind.CHARGE: ("battery_w", 1),
    Kind.DISCHARGE: ("battery_w", -1),
    Kind.IMPORT_TARGET: ("grid_w", 1),
    Kind.EXPORT_TARGET: ("grid_w", -1),
    Kind.EXPORT_LIMIT: ("grid_w", -1),
}
"""The controls that are counted in W, and where each is measured: the column of the facts, and the sign that makes it
the control's direction. Percent, power factor and standby are not."""

NOT_APPLICABLE, STARTED, COMPLETED, RECEIVED, CANCELLED, SUPERSEDED, PARTIALLY = 10, 2, 3, 1, 6, 7, 8
"""Response codes of outcome rows."""


@dataclass(slots=True, kw_only=True)
class Part:
    """One control of the event and its members; `members` has dtype MEMBER, rows ascending.

    A release has no controls, and one part per actuator. `waits`: a member was accepted by GoodWe so lately that its
    answer may still come. `samples`: the newest of each member, dtype SAMPLE, not saved; empty until there is one.
    """

    actuator: Actuator
    control: Control | None
    members: np.ndarray
    waits: bool = False
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, SAMPLE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Outcome rows to tell: of `part`, the members at `index` (positions), or the strangers if `part` is None.

    `state`, `reason`, `code`, `generation`: what is told, columns as long as `index`.
    """

    part: Part | None
    index: Rows
    state: U8
    reason: U8
    code: U8
    generation: U32


class Membership:
    """A revision of an event in one shard."""

    def __init__(self, *, slot: int, selector: Selector) -> None:
        self.slot = slot
        self.selector = selector
        self.end_at = selector.end_at
        self.ramp_down_s = selector.ramp_down_s
        self.started = False
        self.ended = False
        self.cancelled = False
        self.replaced = False
        self.closed_at = 0.0
        self.superseded = False  # held nothing from some moment to its end because of others (R33, 7)
        self.published = self.retried = self.duplicates = self.late = 0
        self.held_at_end = self.won_at_end = 0
        self.measured_w = self.measured = self.unmeasured = 0  # at the end of the window
        self.publish_latency = np.zeros(len(LATENCY_BUCKETS_S) + 1, np.int64)
        self.result_latency = np.zeros(len(LATENCY_BUCKETS_S) + 1, np.int64)
        self.publish_max_s = self.result_max_s = 0.0
        self.parts: list[Part] = []
        self.strangers: list[str] = []
        self.told_strangers = np.zeros(0, STRANGER)
        self.dirty = True  # something that is saved has changed
        self.untold = True  # an outcome row may differ from what was told
        self._news = True  # an account may differ from what was told
        self.told: Counts | None = None
        self.folded_to = 0  # inbox offset that the saved row holds

    @property
    def news(self) -> bool:
        """Whether the account may differ from what was told. Setting it makes the outcome rows due too."""
        return self._news

    @news.setter
    def news(self, changed: bool) -> None:
        self._news = changed
        self.untold = self.untold or changed

    @property
    def primacy(self) -> tuple[int, float, str]:
        """Sorts the strongest last: lower number wins, then later created, then larger id (R10)."""
        s = self.selector
        return (-s.priority, s.created_at, s.event_id)

    @property
    def release(self) -> bool:
        """A release signal, not a dispatch (R15)."""
        return self.selector.release

    def resolve(self, roster: Roster, actuators: Sequence[Actuator]) -> None:
        """Sets the members; before the start this may be done again. `actuators`: those that a release acts on."""
        rows, strangers = roster.members(self.selector.targets)
        seed = hashlib.blake2b(self.selector.event.encode(), digest_size=8).digest()
        draw = (roster.ability["draw"][rows] ^ np.uint64(int.from_bytes(seed))) * np.uint64(_MIX[0])
        draw = (draw ^ draw >> np.uint64(32)) * np.uint64(_MIX[1])
        controls: list[tuple[Actuator, Control | None]] = [(c.actuator, c) for c in self.selector.controls]
        self.parts = []
        for actuator, control in [(a, None) for a in actuators] if self.release else controls:
            members = np.zeros(len(rows), MEMBER)
            members["row"] = rows
            members["state"] = State.PENDING
            members["draw"] = draw >> np.uint64(48)
            if control is not None:
                members["asked"] = roster.asked(rows, control)
            self.parts.append(Part(actuator=actuator, control=control, members=members))
        self.strangers = strangers
        self.told_strangers = np.zeros(len(strangers), STRANGER)
        self.dirty = self.news = True

    def replace(self, *, by: Selector, now: float) -> None:
        """A newer revision is known: this one holds until that has decided (R2, R13), and tells nothing any more."""
        # Only what it holds goes on: one that has not begun when its successor is accepted never does. (Not `now`, so
        # that a replay decides the same.)
        begun = self.selector.start_at <= by.accepted_at
        if not self.ended:
            self.end_at = min(self.end_at, max(by.start_at, now) if begun else by.accepted_at)
        self.replaced = self.dirty = True

    def starts_at(self, members: np.ndarray) -> F64:
        """When each member starts: staggered over the ramp, in whole seconds (R14). A release is staggered itself."""
        ramp_s = self.ramp_down_s if self.release else self.selector.ramp_up_s
        return np.asarray(self.selector.start_at + (members["draw"].astype(np.int64) * ramp_s >> 16), np.float64)

    def released_at(self, members: np.ndarray) -> F64:
        """When each member's hold is given up, staggered likewise."""
        return np.asarray(self.end_at + (members["draw"].astype(np.int64) * self.ramp_down_s >> 16), np.float64)

    @property
    def lingers(self) -> bool:
        """Whether a device still waits for its turn to be released."""
        return any((part.members["phase"] == LINGERING).any() for part in self.parts)

    # ------------------------------------------------------------------ what stands behind a member

    def observe(self, part: Part, setpoints: Setpoints, now: float, *, last: bool = False) -> None:
        """Copies the state of the setpoint to the members that stand behind it; `last`: from now on no longer."""
        index = np.flatnonzero(part.members["live"])
        if not len(index):
            return
        rows = part.members["row"][index].astype(np.int64)
        m, c = part.members, setpoints.columns
        state, reason = setpoints.states(rows, now, last=last)
        if self.release:
            over = ~c["armed"][rows] & c["refused"][rows] & (state == State.APPLIED)
            state[over], reason[over] = State.REJECTED, Reason.OPTED_OUT
        if (m["state"][index] != state).any() or (m["reason"][index] != reason).any():
            self.news = True
        m["state"][index] = state
        m["reason"][index] = reason
        sent = c["published"][rows] == c["generation"][rows]
        for mine, theirs in (("first", "first"), ("second", "second")):
            m[mine][index] = c[theirs][rows]
        for mine, theirs in (
            ("generation", "generation"),
            ("attempt", "attempt"),
            ("digest", "digest"),
            ("published_at", "published_at"),
        ):
            m[mine][index] = np.where(sent, c[theirs][rows], 0)
        answered = sent & ((c["acknowledged"][rows] == c["generation"][rows]) | (c["code"][rows] != 255))
        m["result_at"][index] = np.where(answered, c["result_at"][rows], 0.0)
        if self.release:
            self._follow(part, index, rows, state, setpoints)

    def _follow(self, part: Part, index: Rows, rows: Rows, state: U8, setpoints: Setpoints) -> None:
        """A release signal looks at a device until it is given back, or until what others hold is asserted."""
        m, c = part.members, setpoints.columns
        armed, done = c["armed"][rows], np.isin(state, (State.APPLIED, State.VERIFIED, State.REJECTED))
        checked = c["held"][rows] & (state != State.REJECTED) & (c["checked"][rows] == c["generation"][rows])
        m["live"][index[done & (~armed | checked)]] = False  # what is paid is no longer its business
        lost = index[~armed & ~done]  # the row that was armed for it was not saved: it is asserted again
        m["phase"][lost], m["live"][lost] = HOLDING, False

    def measure(self, roster: Roster) -> None:
        """Keeps the newest sample of each device that telemetry took while the setpoint stood (R34)."""
        if not self.started or self.ended:
            return
        for part in self.parts:
            if part.control is None or not has_watts(part.control):
                continue
            m = part.members
            index = np.flatnonzero(m["live"] & (m["phase"] == HOLDING) & np.isin(m["state"], _DONE))
            if len(part.samples) != len(m):
                part.samples = np.zeros(len(m), SAMPLE)
            column, sign = MEASURED[part.control.kind]
            rows, facts = m["row"][index], roster.facts
            at, watts = facts["at"][rows], facts[column][rows]
            new = facts["online"][rows] & (at >= m["result_at"][index]) & (at > part.samples["at"][index])
            new &= np.isfinite(watts)
            part.samples["at"][index[new]] = at[new]
            part.samples["watts"][index[new]] = sign * watts[new]

    def _measured(self, part: Part) -> tuple[float, int, int]:
        """(W, devices behind it, devices without a sample) of the applied and verified members of a part."""
        if part.control is None or not has_watts(part.control):
            return 0.0, 0, 0
        m = part.members
        done = np.isin(m["state"], _DONE)
        if len(part.samples) != len(m):
            return 0.0, 0, int(done.sum())
        sampled = done & (part.samples["at"] > 0) & (part.samples["at"] >= m["result_at"])
        return float(part.samples["watts"][sampled].sum()), int(sampled.sum()), int((done & ~sampled).sum())

    def late_results(self, actuator: Actuator, results: SetResults, *, known: bool) -> tuple[Flags, Flags]:
        """Results of setpoints that no longer stand: corrects what is known of them (R24).

        `known`: the saved row of this event holds them already. Returns (matched, repeated): which of the results
        belong to a member here, and which of those were known.
        """
        row, code = results.row, results.code
        matched = np.zeros(len(row), bool)
        repeated = np.zeros(len(row), bool)
        final = (code != ResultCode.SUCCESS) | ~results.accepted
        for part in self.parts:
            if part.actuator is not actuator or not len(part.members):
                continue
            m = part.members
            where = np.minimum(np.searchsorted(m["row"], row), len(m) - 1)
            x = m[where]
            hit = (
                (x["row"] == row)
                & (x["generation"] == results.generation)
                & (x["digest"] == results.digest)
                & ~x["live"]
            )
            matched |= hit
            if known:
                repeated |= hit
                continue
            open_ = hit & np.isin(x["state"], (State.PUBLISHED, State.ACCEPTED, State.UNCONFIRMED))
            taken = where[open_ & ~final & (x["state"] != State.ACCEPTED)]
            m["state"][taken], m["reason"][taken] = State.ACCEPTED, 0
            new = hit & final & (x["result_at"] == 0)
            new &= ~repeats(where, new)
            applied = where[new & open_ & (code == ResultCode.SUCCESS)]
            m["state"][applied], m["reason"][applied] = State.APPLIED, 0
            refused = new & open_ & (code != ResultCode.SUCCESS) & (results.attempt == x["attempt"])
            away = code == ResultCode.OFFLINE
            m["state"][where[refused]] = np.where(away, State.SKIPPED, State.REJECTED)[refused]
            m["reason"][where[refused]] = np.where(away, Reason.OFFLINE, REASON_OF_CODE[code])[refused]
            m["result_at"][where[new]] = results.at[new]
            again = hit & final & ~new
            repeated |= again
            if new.any() or again.any() or len(taken):
                self.late += int(new.sum())
                self.duplicates += int(again.sum())
                self.dirty = self.news = True
        return matched, repeated

    def timed_out(self, now: float, timeout_s: float) -> None:
        """What was published and never answered is unconfirmed, also once superseded or over (R25)."""
        for part in self.parts:
            m = part.members
            late = ~m["live"] & (m["state"] == State.PUBLISHED) & (now - m["published_at"] >= timeout_s)
            if late.any():
                m["state"][late] = State.UNCONFIRMED
                m["reason"][late] = Reason.NO_ANSWER
                self.dirty = self.news = True
            # Accepted is not applied: the answer may still come within the timeout, and is waited for.
            waiting = (m["state"] == State.ACCEPTED) & (now - m["published_at"] < timeout_s)
            if bool(waiting.any()) != part.waits:
                part.waits = bool(waiting.any())
                self.news = True

    def leave(self, part: Part, index: Rows, state: State | None = None, reason: Reason = Reason.NONE) -> None:
        """Members give up their hold; `state` None keeps the state that they had."""
        m = part.members
        m["phase"][index] = LEFT
        m["live"][index] = False
        if state is not None:
            m["state"][index] = state
            m["reason"][index] = reason
        self.dirty = self.news = True

    def end(self, behind: Sequence[Flags] = ()) -> None:
        """The window is over: who held and never stood behind a setpoint was superseded; the rest keeps its state.

        `behind`: by part, whose setpoint is still this event's, though the device is unknown just now (R26).
        """
        held = won = 0
        measured = np.array([self._measured(part) for part in self.parts]).reshape(-1, 3).sum(axis=0)
        self.measured_w, self.measured, self.unmeasured = np.rint(measured).astype(np.int64).tolist()
        for i, part in enumerate(self.parts if not self.release else ()):
            m = part.members
            holding = m["phase"] == HOLDING
            held += int(holding.sum())
            stands = m["live"] | behind[i] if behind else m["live"]
            won += int((holding & stands).sum())
            never = holding & ~stands & (m["state"] == State.PENDING)
            m["state"][never] = State.SKIPPED
            m["reason"][never] = Reason.SUPERSEDED
            # Never judged: not needed if the event was cancelled before; else the service was away, nothing was sent.
            idle = m["phase"] == WAITING
            m["state"][idle] = State.UNUSED if self.cancelled else State.PENDING
            m["reason"][idle] = 0
            m["phase"][holding | idle] = LEFT
            lingers = holding & m["live"]
            m["phase"][lingers] = LINGERING
            m["leaves_at"][lingers] = self.released_at(m)[lingers]
        self.held_at_end, self.won_at_end = held, won
        self.superseded = held > 0 and won == 0
        self.ended = self.dirty = self.news = True

    # ------------------------------------------------------------------ the account

    def shown(self, part: Part) -> tuple[U8, U8]:
        """(State, Reason) of the members of a part as they are told now."""
        m = part.members
        if self.release:
            return self._worst()
        beaten = (m["phase"] == HOLDING) & ~m["live"] & (m["state"] == State.PENDING)
        return np.where(beaten, State.SKIPPED, m["state"]).astype(np.uint8), np.where(
            beaten, Reason.SUPERSEDED, m["reason"]
        ).astype(np.uint8)

    def _worst(self) -> tuple[U8, U8]:
        """(State, Reason) of each device over the parts, by its worst state (R34)."""
        state, reason = self.parts[0].members["state"], self.parts[0].members["reason"]
        for part in self.parts[1:]:
            other, why = part.members["state"], part.members["reason"]
            worse = _RANK[other] > _RANK[state]
            state, reason = np.where(worse, other, state), np.where(worse, why, reason)
        return state.copy(), reason.copy()

    def code(self, state: U8) -> U8:
        """Response codes of outcome rows in these states, now (the table of the contract)."""
        done = RECEIVED
        if self.closed_at:
            done = CANCELLED if self.cancelled else SUPERSEDED if self.superseded else COMPLETED
        table = np.full(len(State), PARTIALLY if self.closed_at else RECEIVED, np.uint8)
        table[[State.SKIPPED, State.UNUSED]] = NOT_APPLICABLE
        table[[State.APPLIED, State.VERIFIED]] = done if self.closed_at else STARTED
        table[State.REJECTED] = PARTIALLY
        return table[state]

    def tellings(self) -> list[Telling]:
        """The outcome rows that differ from what was told: settled states while it runs, all of them once closed."""
        if self.replaced or not (self.started or self.closed_at):
            return []
        found = []
        for part in self.parts[:1] if self.release else self.parts:  # a release has one row for a device
            m = part.members
            state, reason = self.shown(part)
            code = self.code(state)
            differs = (
                (m["told_sequence"] == 0)
                | (m["told_state"] != state)
                | (m["told_reason"] != reason)
                | (m["told_code"] != code)
                | (m["told_generation"] != m["generation"])
            )
            if not self.closed_at:
                differs &= ~np.isin(state, _OPEN)
            index = np.flatnonzero(differs)
            if len(index):
                found.append(
                    Telling(
                        part=part,
                        index=index,
                        state=state[index],
                        reason=reason[index],
                        code=code[index],
                        generation=m["generation"][index],
                    )
                )
        index = np.flatnonzero(self.told_strangers["told_sequence"] == 0)
        if len(index):
            n = len(index)
            found.append(
                Telling(
                    part=None,
                    index=index,
                    state=np.full(n, State.SKIPPED, np.uint8),
                    reason=np.full(n, Reason.UNKNOWN_TARGET, np.uint8),
                    code=np.full(n, NOT_APPLICABLE, np.uint8),
                    generation=np.zeros(n, np.uint32),
                )
            )
        return found

    def tell(self, telling: Telling, sequence: int) -> None:
        """Outcome rows were delivered under `sequence`."""
        if telling.part is None:
            self.told_strangers["told_sequence"][telling.index] = sequence
        else:
            m = telling.part.members
            m["told_sequence"][telling.index] = sequence
            m["told_state"][telling.index] = telling.state
            m["told_reason"][telling.index] = telling.reason
            m["told_code"][telling.index] = telling.code
            m["told_generation"][telling.index] = telling.generation
            m["told_final"][telling.index] = bool(self.closed_at)
        self.dirty = True

    def settled(self) -> bool:
        """Nothing is open any more: the window is over, each state is final and each release answered for."""
        if not self.ended or self.lingers:
            return False
        for part in self.parts:
            m = part.members
            if part.waits or (m["state"] == State.PUBLISHED).any() or (m["release"] == RELEASE_DUE).any():
                return False
            if self.release and (np.isin(m["state"], _OPEN) | (m["state"] == State.UNCONFIRMED)).any():
                return False  # a debt of another event, which is tried until it is paid
        return True

    def power(self, roster: Roster) -> Iterator[tuple[Kind, tuple[float, float, float, float]]]:
        """Per control with watts, while its window is open: (requested, allocated, acknowledged, measured) in W, in the
        control's direction. Measured is what telemetry says of those that hold; a sample without a value adds 0."""
        if not self.started or self.ended or self.release:
            return
        for part in self.parts:
            if part.control is None or not has_watts(part.control):
                continue
            m = part.members
            asked = np.where(m["asked"] == NO_VALUE, 0, m["asked"]).astype(np.int64)
            holds = m["phase"] == HOLDING
            shown, _ = self.shown(part)
            done = holds & np.isin(shown, _DONE)
            column, sign = MEASURED[part.control.kind]
            flows = sign * roster.facts[column][m["row"][holds]]
            yield (
                part.control.kind,
                (
                    float(asked.sum()),
                    float(asked[holds].sum()),
                    float(m["second"][done].sum(dtype=np.int64)),
                    float(np.nansum(flows, dtype=np.float64)),
                ),
            )

    def counts(self) -> Counts:
        """The shard's account of this revision."""
        states = np.zeros(len(State), np.int64)
        reasons: dict[str, int] = {}
        requested = allocated = acknowledged = due = confirmed = refused = 0
        if self.parts:
            worst, why = self.shown(self.parts[0])
            for part in self.parts[1:]:
                state, reason = self.shown(part)
                worse = _RANK[state] > _RANK[worst]
                worst, why = np.where(worse, state, worst), np.where(worse, reason, why)
            states += np.bincount(worst, minlength=len(State))
            told = np.isin(worst, (State.SKIPPED, State.REJECTED)) & (why > 0)
            for (settled, cause), n in _tally(worst[told], why[told]).items():
                reasons[f"{State(settled).name.lower()}.{Reason(cause).word}"] = n
        for part in self.parts:
            m = part.members
            shown, _ = self.shown(part)
            if part.control is not None and has_watts(part.control):
                asked = np.where(m["asked"] == NO_VALUE, 0, m["asked"])
                own = part.control.devices_w
                requested += int(asked.sum(dtype=np.int64))
                requested += sum(own.get(sn, part.control.each_w or 0) for sn in self.strangers)
                allocated += int(asked[m["held"]].sum(dtype=np.int64))
                acknowledged += int(m["second"][np.isin(shown, _DONE)].sum(dtype=np.int64))
            due += int((m["release"] != NO_RELEASE).sum())
            confirmed += int((m["release"] == RELEASE_CONFIRMED).sum())
            refused += int((m["release"] == RELEASE_REFUSED).sum())
        if self.strangers:
            states[State.SKIPPED] += len(self.strangers)
            reasons["skipped.unknown_target"] = reasons.get("skipped.unknown_target", 0) + len(self.strangers)
        return Counts(
            states=tuple(states.tolist()),
            reasons=reasons,
            release_due=due,
            release_confirmed=confirmed,
            release_refused=refused,
            requested_w=requested,
            allocated_w=allocated,
            acknowledged_w=acknowledged,
            published=self.published,
            retried=self.retried,
            duplicate_results=self.duplicates,
            late_results=self.late,
            publish_latency=Latency(counts=tuple(self.publish_latency.tolist()), max_s=self.publish_max_s),
            result_latency=Latency(counts=tuple(self.result_latency.tolist()), max_s=self.result_max_s),
            held_at_end=self.held_at_end,
            won_at_end=self.won_at_end,
            measured_w=self.measured_w,
            measured=self.measured,
            unmeasured=self.unmeasured,
            settled=self.settled(),
            closed=bool(self.closed_at) and not self.tellings(),
        )

    def publish_took(self, seconds: F64) -> None:
        """Adds latencies from the start (or the acceptance) to the publish."""
        self.publish_latency += _buckets(seconds)
        self.publish_max_s = max(self.publish_max_s, float(seconds.max(initial=0.0)))

    def result_took(self, seconds: F64) -> None:
        """Adds latencies from the publish to the result."""
        self.result_latency += _buckets(seconds)
        self.result_max_s = max(self.result_max_s, float(seconds.max(initial=0.0)))


def has_watts(control: Control) -> bool:
    """Whether a control's setpoints are counted in W."""
    return control.kind in MEASURED


def _buckets(seconds: F64) -> np.ndarray:
    return np.bincount(np.searchsorted(LATENCY_BUCKETS_S, seconds), minlength=len(LATENCY_BUCKETS_S) + 1)


def _tally(states: U8, reasons: U8) -> dict[tuple[int, int], int]:
    pairs, counts = (
        np.unique(np.stack([states, reasons], axis=1), axis=0, return_counts=True) if len(states) else ((), ())
    )
    return {(int(s), int(r)): int(n) for (s, r), n in zip(pairs, counts, strict=True)}

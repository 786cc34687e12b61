"""The book of one shard: `book = fold(inbox)`, and what follows from it.

`step` folds inputs and reconciles: desired = compose(controls that hold the actuator, default). Start, end, cancel,
supersede, resume, release, retry, restart and coming back online are this one mechanism. Pure, synchronous, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.command import NO_VALUE, U8, Commands, Flags, ResultCode, Results
from vpp_dispatch.domain.composition import TIGHTEST, compose
from vpp_dispatch.domain.due import Due, find_due, in_flight
from vpp_dispatch.domain.inputs import (
    Cancel,
    Close,
    Consent,
    Progress,
    RegistryChange,
    Selector,
    ShardInput,
    SlotResults,
    Switches,
    Telemetry,
)
from vpp_dispatch.domain.joining import Effects, fold_queries, fold_results, fold_sets, fold_slot_results
from vpp_dispatch.domain.membership import (
    HOLDING,
    LEFT,
    LINGERING,
    SKIPPED,
    WAITING,
    Membership,
    Part,
)
from vpp_dispatch.domain.roster import LISTED, Catalogue, Policy, Rows
from vpp_dispatch.domain.setpoint import Setpoints, by_owner
from vpp_dispatch.domain.shard import Digests, Shard
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator

NEVER_SAVED = 1 << 62
"""The offset of what did not come through the inbox."""

COUNTED_FOR_S = 0.25
"""How long a count of commands in flight, and a look at what is due, may be old where nothing else has changed."""

_LAZY = (Results, SlotResults, Telemetry)

LAZY_S = 0.2
"""Results and telemetry are folded at once; what follows from them for events waits so long for more of them, since to
reconcile costs the same for one as for a thousand. What is due by them does not wait."""

KEEP_CLOSED_S = 3600.0
"""How long members of a closed event are kept for corrections."""

REMEMBER_S = 7 * 86400.0
"""How long a closed event is known, so that a repeated control starts nothing."""


class Book(Shard):
    """A shard that folds what its inbox brings, decides what should be, and hands out what is due."""

    def __init__(
        self, *, shard: int, epoch: int, catalogue: Catalogue, policy: Policy, digests: Digests | None = None
    ) -> None:
        """As a `Shard`."""
        super().__init__(shard=shard, epoch=epoch, catalogue=catalogue, policy=policy, digests=digests)
        self.progress_sequence = 0
        self.outcome_count = 0
        self.wake_at = 0.0
        self.due_at = 0.0
        self.published_news = False
        self._in_flight = (0, -1)
        self._counted_until = 0.0
        self._reconciled_at = 0.0
        self._found: list[tuple[Actuator, Due]] = []
        self._found_until = 0.0
        self._owes: bool | None = None
        self._sampled = False  # telemetry has come since the last reconciliation

    # ------------------------------------------------------------------ fold

    def step(self, inputs: Sequence[tuple[int, ShardInput]], now: float, *, reconcile: bool = True) -> Effects:
        """Folds inputs, each with its inbox offset (-1 for telemetry), then reconciles.

        `now` never goes backwards within a shard. Without `reconcile` (while the inbox is read up after a takeover)
        inputs are folded and nothing is decided, so that what is old decides nothing.
        """
        now = self.now = max(self.now, now)
        effects = Effects()
        for offset, message in inputs:
            match message:
                case Results():
                    fold_results(self, offset, message, now, effects)
                case SlotResults():
                    fold_slot_results(self, offset, message, now, effects)
                case Selector():
                    self._selector(message, now)
                case Switches():
                    if message.number > self.switches.number:
                        self.switches = message
                        self.head_dirty = True
                case Cancel():
                    self._cancel(message, now)
                case Close():
                    self._close(message, now)
                case Consent():
                    self.roster.consented(message, now)
                    self.grow()
                    self.head_dirty = True
                case RegistryChange():
                    changed = self.roster.register(message)
                    self.grow()
                    self.registry_defaults(changed)
                case Telemetry():
                    self._sampled = True
                    back = self.roster.observe(message.operations, message.batteries)
                    if back:
                        for setpoints in self.setpoints.values():
                            setpoints.back_online(np.array(back, np.int64), now)
        if inputs and all(isinstance(message, _LAZY) for _, message in inputs):
            self.wake_at = min(self.wake_at, self._reconciled_at + LAZY_S)
        elif inputs:
            self.wake_at = now
        if reconcile and now >= self.wake_at:
            self._reconcile(now)
        if inputs:
            self.look_again()
        return effects

    def look_again(self) -> None:
        """Something has changed: what is due and what is in flight has to be found anew."""
        self.due_at = self._counted_until = self._found_until = 0.0
        self._owes = None

    def _selector(self, selector: Selector, now: float) -> None:
        event = selector.event
        known = max([revision for key, revision in self.memberships if key == event], default=0)
        known = max(known, self.closed.get(event, (0, 0.0))[0])
        if selector.revision <= known:
            return
        for (key, _), older in self.memberships.items():
            if key == event:
                older.replace(by=selector, now=now)
        membership = Membership(slot=self._slot(event, selector.revision), selector=selector)
        membership.resolve(self.roster, tuple(self.setpoints))
        self.memberships[event, selector.revision] = membership
        if selector.test:
            self._judge(membership, now)

    def _slot(self, event: str, revision: int) -> int:
        """The number of a revision in the setpoints' `owner`: a hash, so that rows of different epochs, and a replay
        of what was saved in part, mean the same event by it."""
        slot = int.from_bytes(hashlib.blake2b(f"{event}\0{revision}".encode(), digest_size=4).digest()) or 1
        while self.at_slot(slot) is not None:
            slot = slot % 0xFFFFFFFF + 1
        return slot

    def _judge(self, membership: Membership, now: float) -> None:
        """A test is judged once, as if it ran now; it holds nothing (R6)."""
        for part in membership.parts:
            m = part.members
            reason = self._gate(part, m, now)
            m["state"] = np.where(reason > 0, State.SKIPPED, State.UNUSED)
            m["reason"] = reason
            m["phase"] = SKIPPED
        membership.started = True
        membership.end()

    def _cancel(self, cancel: Cancel, now: float) -> None:
        membership = self.memberships.get((cancel.event, cancel.revision))
        if membership is None or membership.cancelled or membership.closed_at:
            return
        for (event, revision), other in self.memberships.items():
            if event != cancel.event or revision > cancel.revision:
                continue
            if cancel.ramp_down_s is not None:
                other.ramp_down_s = cancel.ramp_down_s
            # An older revision held until its successor's start, which never comes.
            if revision == cancel.revision or other.end_at > cancel.at:
                other.end_at = min(other.end_at, cancel.at)
            for part in other.parts:
                m = part.members
                if cancel.aborted:
                    self._drop(other, part, np.isin(m["phase"], (WAITING, HOLDING, LINGERING)), now)
                elif other is not membership:
                    lingers = m["phase"] == LINGERING
                    m["leaves_at"][lingers] = np.minimum(m["leaves_at"], other.released_at(m))[lingers]
            other.dirty = other.news = True
        membership.cancelled = not cancel.aborted

    def _drop(self, membership: Membership, part: Part, mask: Flags, now: float) -> None:
        """Members whose hold is taken from their event before its end (R15, R36)."""
        m = part.members
        self.observe(membership, part, now, last=True)
        membership.leave(part, np.flatnonzero(mask & (m["phase"] == LINGERING)))
        membership.leave(part, np.flatnonzero(mask & (m["phase"] == HOLDING)), State.REJECTED, Reason.RELEASED)
        membership.leave(part, np.flatnonzero(mask & (m["phase"] == WAITING)), State.UNUSED)
        membership.leave(part, np.flatnonzero(mask & (m["phase"] == SKIPPED)))

    def _close(self, close: Close, now: float) -> None:
        membership = self.memberships.get((close.event, close.revision))
        if membership is None or membership.closed_at:
            return
        for part in membership.parts:
            self.observe(membership, part, now, last=True)
        if not membership.ended:
            membership.end_at = min(membership.end_at, now)
            membership.end(self._behind(membership))
        if membership.release:
            for part in membership.parts:
                part.members["live"] = False
        membership.closed_at = close.at
        membership.dirty = membership.news = True

    # ------------------------------------------------------------------ reconcile

    def _reconcile(self, now: float) -> None:
        for membership in self.memberships.values():
            for part in membership.parts:
                self.observe(membership, part, now, last=membership.ended and not membership.release)
        for membership in list(self.memberships.values()):
            self._advance(membership, now)
        for setpoints in self.setpoints.values():
            compose(self, setpoints, now)
        if any(setpoints.stirred for setpoints in self.setpoints.values()):
            for membership in self.memberships.values():
                for part in membership.parts:
                    self.observe(membership, part, now, last=membership.ended and not membership.release)
        for setpoints in self.setpoints.values():
            setpoints.stirred = False
        self._reconciled_at = now
        self._sampled = False
        self._want_defaults(now)
        self._forget(now)
        self.due_at = self._found_until = 0.0
        self._owes = None
        self.wake_at = self._next_wake(now)

    def _advance(self, membership: Membership, now: float) -> None:
        """Starts, gates and ends one event."""
        membership.timed_out(now, self.policy.result_timeout_s)
        if membership.ended:
            return
        selector = membership.selector
        if not membership.started and selector.start_at <= now:
            # A window that was missed altogether too: who was told of it by a worker that died is a member still.
            membership.resolve(self.roster, tuple(self.setpoints))
            membership.started = membership.release or now < membership.end_at
        if membership.release:
            self._release(membership, now)
            return
        if self._sampled or now >= membership.end_at:  # then too: a sample may have come before its setpoint's result
            membership.measure(self.roster)
        if now >= membership.end_at:
            for part in membership.parts:
                self.observe(membership, part, now, last=True)
            membership.end(self._behind(membership))
            heir = self.heir(membership)
            if heir is not None and heir is not membership and not heir.cancelled:
                self._wait_for(membership, heir)
            return
        if membership.started:
            for part in membership.parts:
                self._admit(membership, part, now)

    def _behind(self, membership: Membership) -> list[Flags]:
        """By part, the members whose setpoint is the event's by the last composition, those that stepped aside too."""
        found = []
        for part in membership.parts:
            c, rows = self.setpoints[part.actuator].columns, part.members["row"]
            mine = c["held"][rows]
            found.append(mine if part.actuator in TIGHTEST else mine & (c["owner"][rows] == membership.slot))
        return found

    def _wait_for(self, membership: Membership, heir: Membership) -> None:
        """What a replaced revision holds goes on until the new one has decided, device by device (R13, R14)."""
        for part in membership.parts:
            for successor in heir.parts:
                if successor.actuator is part.actuator and len(successor.members):
                    m, theirs = part.members, successor.members
                    at = np.minimum(np.searchsorted(theirs["row"], m["row"]), len(theirs) - 1)
                    both = (theirs["row"][at] == m["row"]) & (m["phase"] == LINGERING)
                    m["leaves_at"][both] = heir.starts_at(theirs)[at][both]

    def _release(self, membership: Membership, now: float) -> None:
        """A release signal: device by device the source's holds are given up; `_assert` does the rest (R15)."""
        for part in membership.parts:
            m = part.members
            turn = (m["phase"] == WAITING) & (membership.starts_at(m) <= now)
            if not turn.any():
                continue
            rows = m["row"][turn]
            for other in self.memberships.values():
                active = other.started and not other.closed_at and not other.release
                if active and other.selector.source == membership.selector.source:
                    for theirs in other.parts:
                        if theirs.actuator is part.actuator:
                            mask = np.isin(theirs.members["row"], rows) & (theirs.members["phase"] != LEFT)
                            if mask.any():
                                self._drop(other, theirs, mask, now)
            m["phase"][turn] = HOLDING  # until `_assert`
            membership.dirty = membership.news = True
        if membership.parts and not any((part.members["phase"] == WAITING).any() for part in membership.parts):
            membership.end()

    def _admit(self, membership: Membership, part: Part, now: float) -> None:
        """Takes members in, and lets those go who lost a key (R16, R18)."""
        m = part.members
        index = np.flatnonzero(m["phase"] == HOLDING)
        if len(index):
            registered, consenting = self.roster.allowed(m["row"][index].astype(np.int64), now)
            if not (registered & consenting).all():
                membership.leave(part, index[~registered], State.REJECTED, Reason.REMOVED)
                membership.leave(part, index[registered & ~consenting], State.REJECTED, Reason.CONSENT_WITHDRAWN)
        # A hold without a default cannot be: the setpoints' row is of another epoch than the event's. It enters anew.
        known, _, _ = self.setpoints[part.actuator].default()
        m["phase"][(m["phase"] == HOLDING) & ~known[m["row"]]] = WAITING
        candidates = ((m["phase"] == WAITING) | (m["phase"] == SKIPPED)) & (membership.starts_at(m) <= now)
        index = np.flatnonzero(candidates)
        if not len(index):
            return
        reason = self._gate(part, m[index], now)
        enters, stays = index[reason == 0], index[reason > 0]
        if len(enters):
            m["phase"][enters] = HOLDING
            m["held"][enters] = True
            m["state"][enters] = State.PENDING
            m["reason"][enters] = 0
        why = reason[reason > 0]
        if len(enters) or ((m["phase"][stays] != SKIPPED) | (m["reason"][stays] != why)).any():
            membership.dirty = membership.news = True
        m["phase"][stays] = SKIPPED
        m["state"][stays] = State.SKIPPED
        m["reason"][stays] = why

    def _gate(self, part: Part, members: np.ndarray, now: float) -> U8:
        control, rows = part.control, members["row"].astype(np.int64)
        assert control is not None
        reason = self.roster.gate(rows, control, members["asked"], now)
        known, _, _ = self.setpoints[control.actuator].default()
        reason[(reason == 0) & ~known[rows]] = Reason.DEFAULT_UNKNOWN
        return reason

    def _want_defaults(self, now: float) -> None:
        """Defaults are read when an event is accepted, before its start (R37)."""
        if "query" not in self.policy.defaults:
            return
        for setpoints in self.setpoints.values():
            setpoints.wanted[:] = False
            setpoints.wanted_priority[:] = 255
            setpoints.wanted_by[:] = 0
        for membership in sorted(self.memberships.values(), key=lambda m: m.primacy):
            if membership.ended or membership.selector.test or membership.release:
                continue
            for part in membership.parts:
                setpoints = self.setpoints[part.actuator]
                rows = part.members["row"]
                setpoints.wanted[rows] = True
                setpoints.wanted_priority[rows] = membership.selector.priority
                setpoints.wanted_by[rows] = membership.slot
        for setpoints in self.setpoints.values():
            if setpoints.wanted.any():
                setpoints.wanted &= setpoints.unread(now)

    def _forget(self, now: float) -> None:
        for key, membership in list(self.memberships.items()):
            over = membership.replaced and membership.ended and not membership.lingers
            if over or (membership.closed_at and now - membership.closed_at > KEEP_CLOSED_S):
                event, revision = key
                if not membership.replaced:
                    self.closed[event] = (revision, membership.end_at + REMEMBER_S)
                del self.memberships[key]
                self.dropped.add(key)
                self.head_dirty = True
        for event, (_, until) in list(self.closed.items()):
            if until < now:
                del self.closed[event]
                self.head_dirty = True

    def _next_wake(self, now: float) -> float:
        times = [np.inf]
        for membership in self.memberships.values():
            if not membership.ended:
                times.append(membership.end_at)
                if not membership.started:
                    times.append(membership.selector.start_at)
                elif any((part.members["phase"] == SKIPPED).any() for part in membership.parts):
                    times.append(now + 5.0)  # facts grow old without telling
            for part in membership.parts:
                m = part.members
                ramps = membership.starts_at(m)[m["phase"] == WAITING] if membership.started else np.zeros(0)
                for turns in (ramps, m["leaves_at"][m["phase"] == LINGERING]):
                    if (turns > now).any():
                        times.append(float(turns[turns > now].min()))
                open_ = m["published_at"][np.isin(m["state"], (State.PUBLISHED, State.ACCEPTED)) & ~m["live"]]
                late_at = open_ + self.policy.result_timeout_s
                if (late_at > now).any():
                    times.append(float(late_at[late_at > now].min()))
            if membership.closed_at:
                times.append(membership.closed_at + KEEP_CLOSED_S)
        c = self.roster.columns[: len(self.roster)]
        until = c["consent_until"][(c["consent"] == LISTED) & (c["consent_until"] > now)]
        if len(until):
            times.append(float(until.min()))
        times.extend(setpoints.wake_at(now) for setpoints in self.setpoints.values())
        return min(times)

    # ------------------------------------------------------------------ what goes out

    def due(self, now: float) -> list[tuple[Actuator, Due]]:
        """What may be published now, by actuator; cheap when nothing is."""
        now = max(self.now, now)
        if now < self.due_at:
            return []
        if now < self._found_until:
            return self._found
        n = len(self.roster.columns)
        registered, consenting = self.roster.allowed(np.arange(n), now)
        allowed = registered & consenting
        facts = self.roster.facts
        told = (facts["refused_offline_at"] > 0) & (now - facts["refused_offline_at"] <= self.policy.retry_backoff_s)
        fresh = (facts["at"] > 0) & (now - facts["at"] <= self.policy.telemetry_max_age_s)
        reachable = ~((fresh & ~facts["online"]) | told)
        found: list[tuple[Actuator, Due]] = []
        for actuator, setpoints in self.setpoints.items():
            reading = allowed & reachable & self.roster.ability["supports"][:, actuator]
            blocked = None if self.catalogue.echoes else self._blocked(actuator, now, found)
            due = find_due(setpoints, now=now, allowed=allowed, reading=reading, blocked=blocked)
            if len(due.row):
                found.append((actuator, due))
        self._found, self._found_until = found, now + COUNTED_FOR_S
        if not found:
            self.due_at = min(setpoints.wake_at(now) for setpoints in self.setpoints.values())
        return found

    def _blocked(self, actuator: Actuator, now: float, found: Sequence[tuple[Actuator, Due]]) -> Flags:
        """Rows where no setpoint may go: without an echoed id one has to be answered before the next on its topic, or
        nobody could tell whose answer it is (R26). `found`: what is to go before it."""
        blocked = np.zeros(len(self.roster.columns), bool)
        alike = self.catalogue.is_single(actuator)
        for other, setpoints in self.setpoints.items():
            if self.catalogue.is_single(other) == alike:
                blocked |= setpoints.unanswered(now)
        for other, due in found:
            if self.catalogue.is_single(other) == alike:
                blocked[due.row[~due.query]] = True
        return blocked

    def owes_release(self) -> bool:
        """Whether a device stands without a hold and unconfirmed (R19)."""
        if self._owes is None:
            self._owes = any((s.columns["armed"] & ~s.columns["held"]).any() for s in self.setpoints.values())
        return self._owes

    def commands(self, actuator: Actuator, rows: Rows, query: bool) -> Commands:
        """The commands of due rows. From here on the devices count as possibly set."""
        setpoints = self.setpoints[actuator]
        if query:
            setpoints.asking_for(rows)
        else:
            setpoints.publishing(rows)
        return self.setpoint_commands(actuator, rows, query)

    def published(self, commands: Commands, digests: np.ndarray, now: float) -> None:
        """Commands of one actuator and sort, acknowledged by GoodWe's broker; `digests` u8 as in their ids."""
        kind = int(commands.actuator[0])
        setpoints = self.setpoints[Actuator(kind & (QUERY_BIT - 1))]
        rows = commands.row.astype(np.int64)
        self.look_again()
        self.wake_at = min(self.wake_at, self._reconciled_at + LAZY_S)
        if kind >= QUERY_BIT:
            setpoints.queried(rows=rows, query=commands.generation, now=now)
            self._early(setpoints, now)
            return
        setpoints.published(
            rows=rows, generation=commands.generation, attempt=commands.attempt, digest=digests, now=now
        )
        self.published_news = True
        held = setpoints.columns["held"][rows] & np.isfinite(commands.deadline_at)
        for slot, index in by_owner(setpoints.columns["owner"][rows[held]], np.flatnonzero(held)):
            membership = self.at_slot(slot)
            if membership is None:
                continue
            first = commands.attempt[index] == 1
            membership.published += len(index)
            membership.retried += int((~first).sum())
            # From when the setpoint was desired, so that a late entry or a resumption is not counted from the start.
            desired_at = setpoints.columns["desired_at"][rows[index[first]]]
            begun = np.maximum(desired_at, max(membership.selector.start_at, membership.selector.accepted_at))
            membership.publish_took(np.maximum(now - begun, 0.0))
            membership.dirty = membership.news = True
        self._early(setpoints, now)

    def _early(self, setpoints: Setpoints, now: float) -> None:
        """Folds the answers that came before the acknowledgement of their commands; they were counted then."""
        early_sets, early_queries = setpoints.take_early()
        for sets in early_sets:
            fold_sets(self, setpoints, NEVER_SAVED, sets, now, Effects())
        for queries in early_queries:
            fold_queries(self, setpoints, queries, now)

    def refuse(self, ids: U8, now: float) -> None:
        """Commands that could not be said to GoodWe: refused for their value, here instead of there."""
        n = len(ids)
        nothing = np.full(n, NO_VALUE, np.int32)
        results = Results(
            ids=ids,
            code=np.full(n, ResultCode.VALUE, np.uint8),
            accepted=np.zeros(n, bool),
            first=nothing,
            second=nothing,
            at=np.full(n, now),
        )
        self.step([(NEVER_SAVED, results)], now)

    def in_flight(self, now: float) -> tuple[int, int]:
        """How many commands wait for an answer, and the highest rank of them (R40).

        Counted anew when something was folded or published, or timed out.
        """
        if now >= self._counted_until:
            counted = [in_flight(setpoints, now) for setpoints in self.setpoints.values()]
            self._in_flight = sum(n for n, _ in counted), max(weakest for _, weakest in counted)
            self._counted_until = now + COUNTED_FOR_S
        return self._in_flight

    # ------------------------------------------------------------------ what is told

    def progress(self, *, all_: bool = False) -> list[Progress]:
        """The accounts that changed since they were last told; all of them after a takeover."""
        told = []
        for (event, revision), membership in self.memberships.items():
            if membership.replaced or not (membership.news or all_):
                continue
            membership.news = False
            counts = membership.counts()
            if counts == membership.told and not all_:
                continue
            membership.told = counts
            self.progress_sequence += 1
            told.append(
                Progress(
                    shard=self.shard,
                    epoch=self.epoch,
                    sequence=self.progress_sequence,
                    event=event,
                    revision=revision,
                    counts=counts,
                )
            )
        return told

    def next_outcome_sequence(self) -> int:
        """Sequences rise over takeovers too, since the epoch does: no two messages share one."""
        self.outcome_count += 1
        return self.epoch << 24 | self.outcome_count

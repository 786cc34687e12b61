"""The life of a dispatch event: what each signal does to it, what time does to it, and what is owed to the operator.

    scheduled --start_at--> active --end_at--> ending --settled, or grace over--> (closing) --all closed--> closed
        |                      |                  ^ response 2 on the way to active, 3, 7, 8 or 10 to closed
        '------- cancel -------'------------------'   responses 1 and 6

    a test and a release begin in `ending`; a new revision begins in `scheduled` again, wherever the old one stood; an
    abort ends as a cancel does, but by us: 8 or 10, `aborted`

No I/O and no clock: `now` comes in, and what has to happen stands in the event until the coordinator has done it.
Times are epoch seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from vpp_dispatch.domain.account import Counts, State
from vpp_dispatch.domain.answer import EventState
from vpp_dispatch.domain.device import SHARDS, shard_of
from vpp_dispatch.domain.inputs import Progress, Selector
from vpp_dispatch.domain.membership import has_watts
from vpp_dispatch.domain.report import fold
from vpp_dispatch.domain.signal import Action, Form, Signal, Targets

KEEP_S = 7 * 86_400.0
"""How long an event is known after its end."""

CLOSE_WAIT_S = 30.0
"""How long a shard may take to close; then the event closes without it, and names it."""

REPORT_EVERY_S = 1.0

RECEIVED, STARTED, COMPLETED, CANCELLED, SUPERSEDED, PARTIALLY, NO_PARTICIPATION = 1, 2, 3, 6, 7, 8, 10
NOT_APPLICABLE, INVALID, EXPIRED = 252, 253, 254
FINAL = frozenset({COMPLETED, SUPERSEDED, PARTIALLY, NO_PARTICIPATION})
"""Codes that come after the final report."""


class Verdict(StrEnum):
    """What became of a signal."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    STALE = "stale_revision"
    REFUSED = "refused"


class GrantedTargets(Protocol):
    """The areas and groups that a source may target."""

    @property
    def areas(self) -> Sequence[str]: ...
    @property
    def groups(self) -> Sequence[str]: ...


class Grant(Protocol):
    """What a source may ask for (R9); `max_w` bounds each number of watts in a control."""

    @property
    def targets(self) -> Literal["all"] | GrantedTargets: ...
    @property
    def kinds(self) -> Sequence[str] | None: ...
    @property
    def min_priority(self) -> int: ...
    @property
    def max_w(self) -> int | None: ...


def objections(signal: Signal, grant: Grant | None) -> tuple[str, ...]:
    """Why the coordinator refuses a signal that is valid, as stable words (response 252); empty = it does not.

    `not_granted` (R9), and `not_supported` for what the contract has and this version does not do.
    """
    found = []
    if not _granted(signal, grant):
        found.append("not_granted")
    if not _built(signal):
        found.append("not_supported")
    return tuple(found)


def _granted(signal: Signal, grant: Grant | None) -> bool:
    if grant is None:
        return False
    targets = signal.targets
    if targets is not None and grant.targets != "all":
        if targets.all or targets.devices or targets.sites:  # whose these are, only the shards know
            return False
        if not (set(targets.areas) <= set(grant.targets.areas) and set(targets.groups) <= set(grant.targets.groups)):
            return False
    if signal.action is Action.DISPATCH and signal.priority < grant.min_priority:
        return False
    for control in signal.controls:
        if grant.kinds is not None and control.kind not in grant.kinds:
            return False
        watts = [control.each_w, control.total_w, *control.sites_w.values(), *control.devices_w.values()]
        if grant.max_w is not None and any(w is not None and w > grant.max_w for w in watts):
            return False
    return True


def _built(signal: Signal) -> bool:
    return all(control.form is not Form.TOTAL_W for control in signal.controls)


@dataclass(slots=True, kw_only=True)
class Reply:
    """One response of the operator's feed: its code, and its exact bytes once they are made (R1)."""

    code: int
    at: float
    reasons: tuple[str, ...] = ()
    wire: bytes = b""
    told: bool = False


@dataclass(slots=True, kw_only=True)
class Answer:
    """How one revision was answered. `digest` is of its content; empty where the content could not be read.

    `origin` names the record that brought it: the same record read again is no repetition by its sender.
    """

    revision: int
    digest: str
    accepted: bool
    traceparent: str | None = None
    origin: str = ""
    replies: list[Reply] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Run:
    """The dispatch revision that counts: its settled window, where it stands, and which shard messages are out.

    `expected` are the shards addressed. `watts`: a control has watts. `ramp_down_s`: the cancellation's once it has
    named one. `cancelled_at`: also of an abort, which `aborted` tells. `closing_at`: when the shards were asked to
    close; the `_sent` say that all of them have acknowledged the message.
    """

    revision: int
    accepted_at: float
    start_at: float
    end_at: float
    expected: tuple[int, ...]
    test: bool = False
    watts: bool = True
    state: EventState = "scheduled"
    sent: bool = False
    cancelled_at: float | None = None
    cancel_sent: bool = False
    closing_at: float | None = None
    close_sent: bool = False
    release: bool = False
    ramp_down_s: int = 0
    aborted: bool = False

    @property
    def over_at(self) -> float:
        """When it holds nothing any more and only waits for its devices."""
        if self.test:
            return self.accepted_at
        end_at = self.end_at if self.cancelled_at is None else min(self.end_at, self.cancelled_at)
        return end_at + (0 if self.aborted else self.ramp_down_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The newest counts of one shard, and by what they are the newest."""

    epoch: int
    sequence: int
    counts: Counts


@dataclass(slots=True, kw_only=True)
class Event:
    """All signals of one (source, event id), and what became of them.

    `cancellation` is the revision of the accepted cancellation, 0 = none. `sequence` is the newest report's;
    `reserved` is durable before a report with a sequence up to it is published. `dirty` has to be saved before anything
    goes out, `lazy` soon; `dirty_answers` are revisions, `dirty_counts` the shards' counts.
    """

    source: str
    event_id: str
    answers: dict[int, Answer] = field(default_factory=dict)
    run: Run | None = None
    cancellation: int = 0
    told: dict[int, Told] = field(default_factory=dict)
    sequence: int = 0
    reserved: int = 0
    report_due: bool = False
    reported_at: float = 0.0
    keep_until: float = 0.0
    untold: list[tuple[Answer, Reply]] = field(default_factory=list)
    dirty: bool = False
    lazy: bool = False
    dirty_answers: set[int] = field(default_factory=set)
    dirty_counts: bool = False

    @property
    def key(self) -> str:
        """The event's name everywhere inside: `source/event_id`."""
        return f"{self.source}/{self.event_id}"

    @property
    def revision(self) -> int:
        """The highest revision that was accepted; 0 = none."""
        return max(self.run.revision if self.run else 0, self.cancellation)

    @property
    def live(self) -> set[int]:
        """The revisions whose answers can still grow: they are saved with the event itself."""
        return {self.run.revision if self.run else 0, self.cancellation} - {0}

    @property
    def busy(self) -> bool:
        """Whether time or a delivery still has something to do here."""
        run = self.run
        return bool(
            (run is not None and run.state != "closed")
            or self.report_due
            or self.untold
            or self.dirty
            or self.lazy
            or self.dirty_answers
            or self.dirty_counts
        )

    # ------------------------------------------------------------------ signals

    def receive(
        self,
        signal: Signal,
        *,
        at: float,
        now: float,
        longest_s: float,
        objections: tuple[str, ...],
        traceparent: str | None = None,
        origin: str = "",
    ) -> Verdict:
        """Judges a signal (R1-R5, R15) and does to the event what it says.

        Args:
            signal: decoded; its source is its topic's.
            at: when the broker appended it to the event inbox: the moment of acceptance.
            now: when it is read; lateness is judged by it (R3, R4).
            longest_s: longest event in seconds (R5).
            objections: why it is refused although it is valid, see `objections`.
            traceparent: of the signal, for everything that answers it.
            origin: the record that brought it, as `topic/partition/offset`.
        """
        answer = self.answers.get(signal.revision)
        if answer is not None:
            return self._again(answer, signal.digest, at, origin)
        dispatch = signal.action is Action.DISPATCH
        start_at = at if signal.start_at is None else signal.start_at
        end_at = start_at + longest_s if signal.end_at is None else signal.end_at
        if signal.action is Action.RELEASE:
            start_at = end_at = at
        code, reasons = 0, objections
        if dispatch and self.cancellation:
            code, reasons = INVALID, ("cancelled",)  # also one that is older: the event must never start
        elif signal.revision < self.revision:
            return Verdict.STALE
        elif now > signal.expires_at:
            code, reasons = EXPIRED, ("expired",)
        elif dispatch and now >= end_at:
            code, reasons = EXPIRED, ("ended",)
        elif dispatch and end_at - start_at > longest_s:
            code, reasons = INVALID, ("longest_event",)
        elif dispatch and signal.ramp_up_s > end_at - start_at:
            code, reasons = INVALID, ("ramp_up",)  # some devices would never start
        elif objections:
            code = NOT_APPLICABLE
        elif signal.action is Action.CANCEL and self._finished(now):
            code, reasons = NOT_APPLICABLE, ("finished",)
        answer = Answer(
            revision=signal.revision, digest=signal.digest, accepted=not code, traceparent=traceparent, origin=origin
        )
        if code:
            # What was read too late says when it was read, else it would seem to be in time.
            self._refuse(answer, code, max(at, now) if code == EXPIRED else at, reasons)
            return Verdict.REFUSED
        self._accept(answer, at)
        if signal.action is Action.CANCEL:
            self._cancel(answer, signal, at)
        else:
            self._begin(signal, at, start_at, end_at)
        return Verdict.ACCEPTED

    def refuse_unread(
        self,
        revision: int,
        *,
        reason: str,
        at: float,
        digest: str = "",
        traceparent: str | None = None,
        origin: str = "",
    ) -> Verdict:
        """Answers a signal that cannot be used, of a sender that is known (R8): 253, once per revision."""
        answer = self.answers.get(revision)
        if answer is not None:
            return self._again(answer, digest, at, origin)
        answer = Answer(revision=revision, digest=digest, accepted=False, traceparent=traceparent, origin=origin)
        self._refuse(answer, INVALID, at, (reason,))
        return Verdict.REFUSED

    def _again(self, answer: Answer, digest: str, at: float, origin: str) -> Verdict:
        """A revision that was answered before: the same message again (R1), or a second content under its number."""
        if origin and origin == answer.origin and answer.revision in self.live:
            return Verdict.REPEATED  # by us, after a takeover or a fault; what is still untold goes out by itself
        if answer.accepted and answer.digest != digest:
            reply = next((r for r in answer.replies if r.code == INVALID), None)
            if reply is None:
                self._reply(answer, INVALID, at, ("duplicate_identifier",))
            else:
                self._retell(answer, [reply])
            return Verdict.REFUSED
        # A refused revision stays refused, whatever comes under its number: one answer for one revision.
        verdict = (RECEIVED, CANCELLED) if answer.accepted else (NOT_APPLICABLE, INVALID, EXPIRED)
        self._retell(answer, [reply for reply in answer.replies if reply.code in verdict])
        return Verdict.REPEATED

    def _retell(self, answer: Answer, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.told:
                reply.told = False
                self.untold.append((answer, reply))

    def _reply(self, answer: Answer, code: int, at: float, reasons: tuple[str, ...] = ()) -> None:
        reply = Reply(code=code, at=max([at, *(r.at for r in answer.replies)]), reasons=reasons)
        answer.replies.append(reply)
        self.untold.append((answer, reply))
        if answer.revision in self.live:
            self.dirty = True
        else:
            self.dirty_answers.add(answer.revision)

    def _refuse(self, answer: Answer, code: int, at: float, reasons: tuple[str, ...]) -> None:
        self.answers[answer.revision] = answer
        self.keep_until = max(self.keep_until, at + KEEP_S)
        self._reply(answer, code, at, reasons)

    def _accept(self, answer: Answer, at: float) -> None:
        self.answers[answer.revision] = answer
        self.keep_until = max(self.keep_until, at + KEEP_S)
        self.dirty = True

    def _finished(self, now: float) -> bool:
        run = self.run
        if run is None:
            return self.cancellation > 0
        return run.state in ("ending", "closed") or now >= run.end_at

    def _begin(self, signal: Signal, at: float, start_at: float, end_at: float) -> None:
        """A new revision: what was told of the old one does not count any more (R2)."""
        if self.run is not None:
            self.dirty_answers.add(self.run.revision)
        assert signal.targets is not None
        # The shards of the revision that is replaced have to know too, or they would hold it to its end.
        expected = {*addressed(signal.targets), *(self.run.expected if self.run is not None else ())}
        self.run = Run(
            revision=signal.revision,
            accepted_at=at,
            start_at=start_at,
            end_at=end_at,
            expected=tuple(sorted(expected)),
            test=signal.test,
            watts=any(has_watts(control) for control in signal.controls),
            state="ending" if signal.test or signal.action is Action.RELEASE else "scheduled",
            release=signal.action is Action.RELEASE,
            ramp_down_s=signal.ramp_down_s,
        )
        self.told.clear()
        self.dirty_counts = False
        self.report_due = False
        self.keep_until = max(self.keep_until, end_at + KEEP_S)
        self._reply(self.answers[signal.revision], RECEIVED, at)
        if self.run.release:
            self._reply(self.answers[signal.revision], STARTED, at)

    def abort(self, at: float) -> bool:
        """Ends the event from our side (R36); returns whether there was anything to end. `at` epoch seconds."""
        run = self.run
        if run is None or run.state not in ("scheduled", "active"):
            return False
        run.cancelled_at = at
        run.aborted = True
        run.state = "ending"
        self.report_due = self.dirty = True
        return True

    def _cancel(self, answer: Answer, signal: Signal, at: float) -> None:
        self.cancellation = answer.revision
        self._reply(answer, RECEIVED, at)
        self._reply(answer, CANCELLED, at)
        if self.run is not None:
            self.run.cancelled_at = at
            if signal.names_ramp_down:
                self.run.ramp_down_s = signal.ramp_down_s
            self.run.state = "ending"
            self.report_due = True

    # ------------------------------------------------------------------ shards and time

    def take(self, progress: Progress) -> bool:
        """Takes a shard's counts if they are its newest of the revision that counts; returns whether they were."""
        run = self.run
        if run is None or progress.revision != run.revision or progress.shard not in run.expected:
            return False
        known = self.told.get(progress.shard)
        if known is not None and (progress.epoch, progress.sequence) <= (known.epoch, known.sequence):
            return False
        self.told[progress.shard] = Told(epoch=progress.epoch, sequence=progress.sequence, counts=progress.counts)
        self.dirty_counts = True
        if known is None or known.counts != progress.counts:
            self.report_due = True
            if run.state == "closed":
                self.dirty = True  # a correction: the further final report must not be lost
        return True

    def advance(self, now: float, *, grace_s: float) -> list[str]:
        """Lets time pass; returns what happened: `started`, `ending`, `closing`, `closed`.

        Args:
            now: epoch seconds.
            grace_s: after the end the event closes in so many seconds, settled or not.
        """
        run = self.run
        happened: list[str] = []
        if run is None:
            return happened
        if run.state == "scheduled" and now >= run.start_at:
            run.state = "active"
            self._reply(self.answers[run.revision], STARTED, now)
            happened.append("started")
        if run.state == "active" and now >= run.end_at:
            run.state = "ending"
            happened.append("ending")
        if run.state == "ending" and run.closing_at is None and self._may_close(run, now, grace_s):
            run.closing_at = now
            happened.append("closing")
        if run.state == "ending" and self._is_closed(run, now) and now >= self.reported_at + REPORT_EVERY_S:
            run.state = "closed"
            if run.cancelled_at is None or run.aborted:
                code = outcome_code(fold(self.counts.values()), test=run.test, release=run.release)
                self._reply(self.answers[run.revision], code, now, ("aborted",) if run.aborted else ())
            happened.append("closed")
        if happened:
            self.dirty = True
            # That the shards are asked to close changes nothing in the account.
            self.report_due = self.report_due or happened != ["closing"]
        return happened

    @property
    def counts(self) -> dict[int, Counts]:
        """Newest counts by shard."""
        return {shard: told.counts for shard, told in self.told.items()}

    def _may_close(self, run: Run, now: float, grace_s: float) -> bool:
        if not run.sent or (run.cancelled_at is not None and not run.cancel_sent):
            return False
        settled = all(shard in self.told and self.told[shard].counts.settled for shard in run.expected)
        return settled or now >= run.over_at + grace_s

    def _is_closed(self, run: Run, now: float) -> bool:
        if run.closing_at is None or not run.close_sent:
            return False
        closed = all(shard in self.told and self.told[shard].counts.closed for shard in run.expected)
        return closed or now >= run.closing_at + CLOSE_WAIT_S


def outcome_code(total: Counts, *, test: bool = False, release: bool = False) -> int:
    """The final response of an event whose counts add up to `total` (R33): 3, 7, 8 or 10; of a release 3 or 8.

    A test completed if a device could have taken part.
    """
    targeted = total.targeted
    if test:
        return COMPLETED if targeted > total.states[State.SKIPPED] else NO_PARTICIPATION
    if total.held_at_end and not total.won_at_end:
        return SUPERSEDED
    done = total.states[State.APPLIED] + total.states[State.VERIFIED]
    if not done and not release:
        return NO_PARTICIPATION
    return COMPLETED if done == targeted and done else PARTIALLY


def addressed(targets: Targets) -> tuple[int, ...]:
    """The shards that have to know: those of the named devices, or all."""
    if targets.only_devices:
        return tuple(sorted({shard_of(sn) for sn in targets.devices}))
    return tuple(range(SHARDS))


def selectors(signal: Signal, run: Run) -> dict[int, Selector]:
    """The revision for each addressed shard, with only its own devices; shards without any share one selector."""
    assert signal.targets is not None
    named: dict[int, list[str]] = {}
    for sn in signal.targets.devices:
        named.setdefault(shard_of(sn), []).append(sn)
    targets = signal.targets
    shared = _selector(signal, run, targets, ())
    return {s: _selector(signal, run, targets, tuple(named[s])) if s in named else shared for s in run.expected}


def _selector(signal: Signal, run: Run, targets: Targets, devices: tuple[str, ...]) -> Selector:
    return Selector(
        event=signal.key,
        source=signal.source,
        event_id=signal.event_id,
        revision=signal.revision,
        priority=signal.priority,
        created_at=signal.created_at,
        accepted_at=run.accepted_at,
        start_at=run.start_at,
        end_at=run.end_at,
        targets=Targets(
            all=targets.all, devices=devices, sites=targets.sites, groups=targets.groups, areas=targets.areas
        ),
        controls=signal.controls,
        test=signal.test,
        ramp_up_s=signal.ramp_up_s,
        ramp_down_s=signal.ramp_down_s,
        release=run.release,
    )

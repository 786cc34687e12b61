"""A book among everything that can go wrong, from one seed; `oracle` checks what must hold, on the way and at the end.

The world is apart from the book: GoodWe executes a device's commands in the order of their topic and latches, its
queries may overtake them, its answers are late, lost, doubled, out of order or refusals; owners turn the knobs
themselves. The inbox is a log that is replayed from the last commit after each crash; a checkpoint's rows may be
delivered in part; the worker that died may come back for one batch and for rows of its lower epoch.

A seed also draws what kind of world it is: whether results carry an id, what part of the setpoints is verified, and
whether owners interfere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import NO_VALUE, Commands, ResultCode, Results
from vpp_dispatch.domain.device import Operation, Record
from vpp_dispatch.domain.inputs import (
    Cancel,
    Close,
    Consent,
    RegistryChange,
    Selector,
    ShardInput,
    SlotResults,
    Switches,
    Telemetry,
)
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator, Control, Form, Kind, Targets

from .oracle import Command, Device, Oracle, Pair
from .world import AUTO, FULL, NO_LIMIT, SHARD, UNITY, Catalogue, digests_of

POLICY = Policy(
    result_timeout_s=3.0,
    retry_backoff_s=1.0,
    release_retry_s=2.0,
    telemetry_max_age_s=20.0,
    consent_max_age_s=60.0,
    defaults=("registry", "query"),
)
STEP_S = 0.25
CODES = (
    ResultCode.OFFLINE,
    ResultCode.UNAUTHORIZED,
    ResultCode.BUSY,
    ResultCode.VALUE,
    ResultCode.UNSUPPORTED,
    ResultCode.FAILED,
    ResultCode.PARTIAL,
    ResultCode.UNKNOWN_CODE,
)
REST_S = 22.0
"""Longer than the longest pause between two tries of a release: who is silent for so long is at rest."""

INITIAL: dict[Actuator, tuple[Pair, ...]] = {
    Actuator.EMS: (AUTO, (6, 0)),
    Actuator.EXPORT: (NO_LIMIT, (1, 4000)),
    Actuator.ACTIVE: (FULL, (700, 0)),
    Actuator.REACTIVE: (UNITY, (97, 0)),
}
REGISTRY: dict[Actuator, Pair] = {
    Actuator.EMS: AUTO,
    Actuator.EXPORT: (1, 5000),
    Actuator.ACTIVE: (800, 0),
    Actuator.REACTIVE: UNITY,
}
OWNERS: dict[Actuator, tuple[Pair, ...]] = {
    Actuator.EMS: ((4, 500), (3, 0)),
    Actuator.EXPORT: ((1, 6543), (1, 321)),
    Actuator.ACTIVE: ((654, 0), (123, 0)),
    Actuator.REACTIVE: ((88, 0), (11, 0)),
}
"""What owners choose; no event asks for these."""


class NoEcho(Catalogue):
    """A GoodWe whose results name only the device and the topic."""

    echoes = False


@dataclass(slots=True, kw_only=True)
class Zombie:
    """A worker that was frozen and does not know that it is over."""

    book: Book
    kept: dict[pages.PageName, set[bytes]]
    read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One result on its way."""

    command: Command
    code: ResultCode
    accepted: bool
    read: Pair


@dataclass(slots=True)
class Pending:
    """What happens outside at `when`; `tie` keeps the order of what was scheduled first."""

    when: float
    tie: int
    what: Command | Answer = field(compare=False)


class Chaos:
    """One run from one seed. `quiet` ends the chaos: from then on everything answers."""

    def __init__(self, seed: int, *, devices: int = 5, echoes: bool | None = None, owners: bool | None = None) -> None:
        """`echoes` and `owners` None: the seed decides."""
        draw = self.draw = random.Random(seed)
        drawn = draw.random() < 0.7, draw.random() < 0.4
        self.echoes = drawn[0] if echoes is None else echoes
        self.owners = drawn[1] if owners is None else owners
        self.catalogue = Catalogue() if self.echoes else NoEcho()
        interval_s = (0.0, 0.0, 2.0)[seed % 3]
        self.policy = replace(
            POLICY,
            verify_share=draw.choice([0.0, 0.0, 0.5, 1.0]),
            min_interval_s=interval_s,
            dead_band_w=(0, 0, 0, 1000)[seed % 4],
        )
        self.now = 1000.0
        self.steps = 0
        self.quiet = False
        self.log: list[ShardInput] = []
        self.committed = 0
        self.rows: dict[bytes, bytes] = {}
        self.kept: dict[pages.PageName, set[bytes]] = {}
        self.read = 0
        self.book = self._book(1)
        self.zombies: list[Zombie] = []
        self.devices: dict[str, Device] = {}
        self.pending: list[Pending] = []
        self.ties = 0
        self.events: dict[str, int] = {}  # event -> newest revision
        self.selectors: dict[tuple[str, int], Selector] = {}
        self.consents: set[str] = set()
        self.records: dict[str, Record | None] = {}
        self.registry_offset = 0
        self.switches = Switches()
        self.oracle = Oracle(self)
        for i in range(devices):
            self._register(f"9010K{'DTU' if i == 4 else 'ETU'}000W{i:04d}")
        self.consents = set(self.devices)
        self._consent()

    def _book(self, epoch: int) -> Book:
        return Book(shard=SHARD, epoch=epoch, catalogue=self.catalogue, policy=self.policy, digests=digests_of)

    # ---- inputs

    def put(self, message: ShardInput) -> None:
        self.log.append(message)

    def _register(self, sn: str) -> None:
        draw = self.draw
        default: dict[int, Pair] = {a: REGISTRY[a] for a in Actuator if draw.random() < 0.35}
        if sn not in self.devices:
            initial = {a: draw.choice(INITIAL[a]) for a in Actuator}
            self.devices[sn] = Device(initial=initial, now=dict(initial), shown=set(initial.items()))
        self.devices[sn].defaults.update((Actuator(a), pair) for a, pair in default.items())
        record = Record(
            sn=sn,
            site="s1" if (int(sn[-4:]) + (draw.random() < 0.2)) % 2 else "s2",
            rated_w=10_000,
            site_share=draw.choice([1.0, 0.5, 0.333]),
            default=default,
        )
        self.records[sn] = record
        self.devices[sn].records.append(record)
        self._tell_registry(sn)

    def _tell_registry(self, sn: str) -> None:
        self.registry_offset += 1
        self.put(RegistryChange(partition=0, changes=((self.registry_offset, sn, self.records[sn]),)))

    def _consent(self) -> None:
        self.put(Consent(at=self.now, authorized=tuple((sn, None) for sn in sorted(self.consents))))

    def _targets(self) -> Targets:
        some = tuple(self.draw.sample(sorted(self.devices), self.draw.choice([1, 3])))
        return self.draw.choice(
            [Targets(all=True), Targets(sites=("s1",)), Targets(devices=some), Targets(devices=(*some, "0" * 16))]
        )

    def _control(self, actuator: Actuator) -> Control:
        draw = self.draw
        match actuator:
            case Actuator.ACTIVE:
                if draw.random() < 0.5:
                    return Control(
                        kind=Kind.GENERATION_LIMIT, form=Form.EACH_W, each_w=draw.choice([0, 2505, 6000, 20_000])
                    )
                return Control(
                    kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=draw.choice([12.35, 50.0, 100.0])
                )
            case Actuator.REACTIVE:
                cos_phi, excitation = draw.choice([(1.0, "over"), (0.9, "over"), (0.95, "under")])
                return Control(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=cos_phi, excitation=excitation)
        kind = Kind.EXPORT_LIMIT
        if actuator is Actuator.EMS:
            kind = draw.choice([Kind.CHARGE, Kind.DISCHARGE, Kind.STANDBY, Kind.IMPORT_TARGET, Kind.EXPORT_TARGET])
        if kind is Kind.STANDBY:
            return Control(kind=kind, form=Form.NONE)
        if draw.random() < 0.3:
            own = {sn: draw.choice([700, 1500, 20_000]) for sn in draw.sample(sorted(self.devices), 2)}
            return Control(kind=kind, form=Form.BY_TARGET_W, devices_w=own, sites_w={"s1": draw.choice([3001, 900])})
        return Control(kind=kind, form=Form.EACH_W, each_w=draw.choice([1000, 2000, 4500, 20_000]))

    def _event(self) -> None:
        draw = self.draw
        again = bool(self.events) and draw.random() < 0.3
        event = draw.choice(sorted(self.events)) if again else f"{draw.choice(['grid', 'other'])}/e{len(self.events)}"
        source, event_id = event.split("/")
        revision = self.events[event] = self.events.get(event, 0) + 1
        actuators = draw.sample(list(Actuator), draw.choice([1, 1, 2, 3]))
        start = self.now + draw.choice([0, 0, 1, 4])
        selector = Selector(
            event=event,
            source=source,
            event_id=event_id,
            revision=revision,
            priority=draw.choice([1, 100, 100, 200]),
            created_at=self.now,
            accepted_at=self.now,
            start_at=start,
            end_at=start + draw.choice([0.5, 3, 8, 15]),
            targets=self._targets(),
            controls=tuple(self._control(actuator) for actuator in actuators),
            test=draw.random() < 0.05,
            ramp_up_s=draw.choice([0, 0, 0, 2, 8]),
            ramp_down_s=draw.choice([0, 0, 0, 2, 8]),
        )
        self._put_selector(selector)

    def _put_selector(self, selector: Selector) -> None:
        self.selectors[selector.event, selector.revision] = selector
        self.put(selector)
        if self.draw.random() < 0.2:
            self.put(selector)  # sent twice
        self.oracle.told(selector)

    def _release(self) -> None:
        source = self.draw.choice(["grid", "other"])
        event_id = f"r{len(self.selectors)}"
        selector = Selector(
            event=f"{source}/{event_id}",
            source=source,
            event_id=event_id,
            revision=1,
            priority=255,
            created_at=self.now,
            accepted_at=self.now,
            start_at=self.now,
            end_at=self.now,
            targets=self._targets(),
            controls=(),
            ramp_down_s=self.draw.choice([0, 0, 4]),
            release=True,
        )
        self._put_selector(selector)

    def _cancel(self) -> None:
        event = self.draw.choice(sorted(self.events))
        aborted = self.draw.random() < 0.3
        ramp = 0 if aborted else self.draw.choice([None, None, 0, 5])
        revision = self.events[event]
        self.put(Cancel(event=event, revision=revision, at=self.now, ramp_down_s=ramp, aborted=aborted))
        self.oracle.cancelled(event)

    def _close(self) -> None:
        """The coordinator closes what is settled, or what has been over for long."""
        for (event, revision), membership in self.book.memberships.items():
            over = membership.ended and not membership.closed_at and not membership.replaced
            if over and (membership.settled() or self.draw.random() < 0.1):
                self.put(Close(event=event, revision=revision, at=self.now))

    def _switch(self) -> None:
        self.switches = Switches(
            number=self.switches.number + 1, releases_only=not self.quiet and self.draw.random() < 0.5
        )
        self.put(self.switches)

    def _owner(self) -> None:
        sn, actuator = self.draw.choice(sorted(self.devices)), self.draw.choice(list(Actuator))
        self.devices[sn].chosen(actuator, self.draw.choice(OWNERS[actuator]))

    # ---- a step of the world

    def step(self, step_s: float = STEP_S) -> None:
        """A quarter of a second: what happens outside, then what the worker does."""
        draw = self.draw
        if not self.quiet:
            self._signals()
            if draw.random() < 0.03:
                self.consents ^= {draw.choice(sorted(self.devices))}
                self._consent()
            if draw.random() < 0.03:
                sn = draw.choice(sorted(self.devices))
                if self.records[sn] is None or draw.random() < 0.5:
                    self._register(sn)
                else:
                    self.records[sn] = None
                    self._tell_registry(sn)
            if self.owners and draw.random() < 0.1:
                self._owner()
        self._outside()
        self._read()
        self.book.step([], self.now)
        self.oracle.check(accounts=self.steps % (16 if self.quiet else 4) == 0)
        self._publish(self.book)
        if not self.quiet and draw.random() < 0.04:
            self._crash()
        elif draw.random() < 0.5:
            self._save()
            self._publish(self.book)
        if not self.quiet and draw.random() < 0.05:
            self.online(draw.choice(sorted(self.devices)), draw.random() < 0.7)
        self.steps += 1
        self.now += step_s

    def _signals(self) -> None:
        draw = self.draw
        if draw.random() < 0.1:
            self._event()
        if self.events and draw.random() < 0.04:
            self._cancel()
        if draw.random() < 0.02:
            self._release()
        if draw.random() < 0.05:
            self._close()
        if draw.random() < (0.02 if not self.switches.releases_only else 0.2):
            self._switch()

    def online(self, sn: str, online: bool) -> None:
        facts = Telemetry(operations=(Operation(sn=sn, at=self.now, online=online),))
        self.book.step([(-1, facts)], self.now)

    def _outside(self) -> None:
        for _ in range(2):  # what is executed may be answered in the same step
            due = sorted((p for p in self.pending if p.when <= self.now), key=lambda p: (p.when, p.tie))
            self.pending = [p for p in self.pending if p.when > self.now]
            answers: list[Answer] = []
            for pending in due:
                if isinstance(pending.what, Command):
                    self._execute(pending.what)
                else:
                    answers.append(pending.what)
            for start in range(0, len(answers), 3):
                self._answer(answers[start : start + 3])

    def _answer(self, part: list[Answer]) -> None:
        n = len(part)
        code = np.array([a.code for a in part], np.uint8)
        accepted = np.array([a.accepted for a in part])
        first, second = (np.array([a.read[i] for a in part], np.int32) for i in (0, 1))
        at = np.full(n, self.now)
        if self.echoes:
            ids = np.frombuffer(b"".join(a.command.id for a in part), np.uint8).reshape(n, 16)
            self.put(Results(ids=ids, code=code, accepted=accepted, first=first, second=second, at=at))
        else:
            kind = [a.command.actuator | QUERY_BIT if a.command.query else 0 for a in part]
            self.put(
                SlotResults(
                    sn=[a.command.sn for a in part],
                    actuator=np.array(kind, np.uint8),
                    single=np.array([not a.command.query and a.command.single for a in part]),
                    code=code,
                    accepted=accepted,
                    first=first,
                    second=second,
                    at=at,
                )
            )
        for answer in part:
            self.oracle.answered(answer.command, answer.read, accepted=answer.accepted)

    def _later(self, after: float, what: Command | Answer) -> None:
        self.ties += 1
        self.pending.append(Pending(self.now + after, self.ties, what))

    def _execute(self, command: Command) -> None:
        draw, device = self.draw, self.devices[command.sn]
        code, accepted = ResultCode.SUCCESS, False
        fate = 1.0 if self.quiet else draw.random()
        if fate < 0.06:
            return  # lost before it got there
        if fate < 0.22:
            code = draw.choice(CODES)
        runs = code is ResultCode.SUCCESS or (
            code in (ResultCode.FAILED, ResultCode.PARTIAL, ResultCode.UNKNOWN_CODE) and draw.random() < 0.5
        )
        read: Pair = (NO_VALUE, NO_VALUE)
        if command.query:
            if code is ResultCode.SUCCESS:
                read = device.now[command.actuator]
        elif runs:
            device.executes(command)
        if 0.22 < fate < 0.30:
            return  # executed, the answer is lost
        # Where no id is echoed, what is later than the timeout would answer for its successor; the profile excludes it.
        longest = 6.0 if self.echoes else 1.0
        delay = 0.25 if self.quiet else min(draw.choice([0.0, 0.25, 0.25, 1.0, 2.5, 6.0]), longest)
        if code is ResultCode.SUCCESS and not command.query and 0.30 < fate < 0.40:
            self._later(delay, Answer(command=command, code=code, accepted=True, read=read))
            delay += draw.choice([0.0, 1.0]) if self.echoes else 0.25
        answer = Answer(command=command, code=code, accepted=accepted, read=read)
        self._later(delay, answer)
        if 0.40 < fate < 0.46:
            self._later(delay + (draw.choice([0.0, 0.5, 4.0]) if self.echoes else 0.0), answer)

    def _read(self) -> None:
        """Folds the log to its end, a few records at a time; nothing is decided before the end."""
        while self.read < len(self.log):
            upto = min(len(self.log), self.read + 4)
            inputs = [(i, self.log[i]) for i in range(self.read, upto)]
            self.read = upto
            self.book.step(inputs, self.now, reconcile=upto == len(self.log))

    # ---- the worker

    def _publish(self, book: Book, *, zombie: bool = False) -> None:
        batches: list[Commands] = []
        for actuator, due in book.due(self.now):
            for query in (False, True):
                may = (due.query == query) & (due.deadline_at > self.now)
                may &= (due.rank < 2) | (not book.switches.releases_only)
                rows = due.row[may]
                if len(rows):
                    batches.append(book.commands(actuator, rows, query))
        ready = []
        for commands in batches:
            digests = digests_of(commands)
            ids = correlation.ids_of(commands, digests.tolist())
            these = [
                Command(
                    sn=commands.sn[i],
                    actuator=Actuator(int(commands.actuator[i]) & (QUERY_BIT - 1)),
                    query=bool(commands.actuator[i] >= QUERY_BIT),
                    pair=(int(commands.first[i]), int(commands.second[i])),
                    generation=int(commands.generation[i]),
                    bounded=bool(np.isfinite(commands.deadline_at[i])),
                    epoch=book.epoch,
                    id=ids[i].tobytes(),
                )
                for i in range(len(commands))
            ]
            if not zombie:
                for command in these:
                    self.oracle.chosen(command)
            ready.append((commands, digests, these))
        for commands, digests, these in ready:
            fails = not self.quiet and self.draw.random() < 0.08
            for command in these:
                if fails and self.draw.random() < 0.5:
                    continue  # the broker never had it
                self._sent(command, zombie)
            if not self.quiet and not zombie and self.draw.random() < 0.3:  # before the acknowledgement is here
                if self.draw.random() < 0.2:
                    self._event()
                self._outside()
                self._read()
            if not fails and not zombie:
                book.published(commands, digests, self.now)
                for command in these:
                    self.oracle.acknowledged(command)
            elif fails:
                book.look_again()

    def _sent(self, command: Command, zombie: bool) -> None:
        self.oracle.sent(self.now, command, zombie)
        device = self.devices[command.sn]
        lag = 0.0 if self.quiet else self.draw.choice([0.0, 0.0, 0.25, 1.5])
        if not command.query:  # one topic, one key: in order
            topic = command.actuator if self.echoes else command.single
            at = max(device.busy_until.get(topic, 0.0), self.now + lag)
            device.busy_until[topic] = at
            lag = at - self.now
        self._later(lag, command)

    def _save(self) -> None:
        shot = pages.snapshot(self.book, self.kept, self.read)
        if not self.quiet and self.draw.random() < 0.05:
            pages.soil(self.book)  # refused by the broker
            return
        self.rows.update(shot.rows)
        self.committed = self.read
        pages.saved(self.book, shot)
        for key in shot.drops:
            self.rows.pop(key, None)
        self.oracle.saved()
        if self.draw.random() < 0.3:
            self._tell()

    def _tell(self) -> None:
        """Outcome rows are delivered."""
        for membership in self.book.memberships.values():
            for telling in membership.tellings():
                membership.tell(telling, self.book.next_outcome_sequence())

    def _crash(self) -> None:
        how = self.draw.random()
        if how < 0.5:  # in the middle of a checkpoint: a prefix of the rows is there, the commit is not
            shot = pages.snapshot(self.book, self.kept, self.read)
            self.rows.update(shot.rows[: self.draw.randint(0, len(shot.rows))])
        elif how < 0.8:  # frozen: it will be back
            self.zombies.append(Zombie(book=self.book, kept=self.kept, read=self.read))
        self.now += self.draw.choice([0.5, 2.0, 12.0])
        self._outside()
        names = pages.newest(self.rows, [SHARD])[SHARD]
        self.book = self._book(self.book.epoch + 1)
        self.kept = pages.load(self.book, names, self.rows, self.now)
        self.oracle.loaded()
        self.read = self.committed
        self._read()
        self.book.step([], self.now)
        if self.zombies and self.draw.random() < 0.7:
            zombie = self.zombies.pop()
            if self.draw.random() < 0.5:
                self._publish(zombie.book, zombie=True)
            for key, value in pages.snapshot(zombie.book, zombie.kept, zombie.read).rows:
                self.rows[key] = value

    # ---- the end

    def calm_down(self, seconds: float = 100.0) -> None:
        """The chaos ends: everybody is online again, and everything is executed and answered."""
        self.quiet = True
        if self.switches.releases_only:
            self._switch()
        for sn in sorted(self.devices):
            self.online(sn, True)
        end = self.now + seconds
        while self.now < end:
            self.step(STEP_S if end - self.now > seconds / 2 else 4 * STEP_S)

    def close_all(self) -> None:
        """The coordinator closes every event, and every outcome is told."""
        for (event, revision), membership in self.book.memberships.items():
            if not membership.closed_at and not membership.replaced:
                self.put(Close(event=event, revision=revision, at=self.now))
        self._read()
        self._tell()

    def trace(self) -> list[tuple[float, bytes]]:
        return [(at, c.id) for at, c in self.oracle.commands]

    def applied(self) -> set[Actuator]:
        """Actuators whose setpoints some event was told to be applied."""
        return {
            part.actuator
            for membership in self.book.memberships.values()
            for part in membership.parts
            if not membership.release and np.isin(part.members["state"], (State.APPLIED, State.VERIFIED)).any()
        }

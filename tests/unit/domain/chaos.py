"""A book among everything that can go wrong, from one seed; what must hold is checked on the way and at the end.

The world is apart from the book: GoodWe executes a device's commands of one actuator in their order and latches, its
queries may overtake them, its answers are late, lost, doubled, out of order or refusals. The inbox is a log that is
replayed from the last commit after each crash; a checkpoint's rows may be delivered in part; the worker that died may
come back for one batch and for rows of its lower epoch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import NO_VALUE, Commands, ResultCode, Results
from vpp_dispatch.domain.device import Operation, Record
from vpp_dispatch.domain.inputs import Cancel, Consent, RegistryChange, Selector, ShardInput, Telemetry
from vpp_dispatch.domain.roster import PAGE, Policy
from vpp_dispatch.domain.setpoint import SETPOINT
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator, Control, Form, Kind, Targets

from .world import AUTO, NO_LIMIT, SHARD, Catalogue, digests_of

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
Pair = tuple[int, int]


@dataclass(slots=True, kw_only=True)
class Command:
    """One command as GoodWe has it."""

    sn: str
    actuator: Actuator
    query: bool
    pair: Pair
    generation: int
    id: bytes


@dataclass(slots=True, kw_only=True)
class Device:
    """An inverter: what stands on it, when it has executed what it was sent, and what it ever executed."""

    initial: dict[Actuator, Pair]
    now: dict[Actuator, Pair]
    busy_until: dict[Actuator, float] = field(default_factory=dict)
    executed: set[tuple[Actuator, int, Pair]] = field(default_factory=set)


class Chaos:
    """One run from one seed. `quiet` ends the chaos: from then on everything answers."""

    def __init__(self, seed: int, *, devices: int = 6) -> None:
        self.draw = random.Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.quiet = False
        self.log: list[ShardInput] = []
        self.committed = 0
        self.rows: dict[bytes, bytes] = {}
        self.kept: dict[pages.PageName, set[bytes]] = {}
        self.read = 0
        self.book = Book(shard=SHARD, epoch=1, catalogue=Catalogue(), policy=POLICY, digests=digests_of)
        self.zombies: list[tuple[Book, dict[pages.PageName, set[bytes]], int]] = []
        self.devices: dict[str, Device] = {}
        self.pending: list[tuple[float, int, str, object]] = []  # (when, tie, "execute" | "result", what)
        self.ties = 0
        self.contents: dict[bytes, tuple[str, Actuator, bool, Pair]] = {}
        self.sent: list[tuple[float, Command]] = []
        self.windows: list[tuple[Actuator, float]] = []  # (actuator, end)
        self.events: dict[str, int] = {}
        self.consents: set[str] = set()
        self.records: dict[str, Record | None] = {}
        self.registry_offset = 0
        self.registry_defaults: dict[str, set[tuple[Actuator, Pair]]] = {}
        for i in range(devices):
            self._register(f"9010KETU000W{i:04d}")
        self.consents = set(self.devices)
        self._consent()

    # ---- inputs

    def put(self, message: ShardInput) -> None:
        self.log.append(message)

    def _register(self, sn: str) -> None:
        default: dict[int, Pair] = {}
        if self.draw.random() < 0.4:
            default[Actuator.EMS] = AUTO
        if self.draw.random() < 0.4:
            default[Actuator.EXPORT] = (1, 5000)
        if sn not in self.devices:
            initial = {
                Actuator.EMS: self.draw.choice([AUTO, (6, 0)]),
                Actuator.EXPORT: self.draw.choice([NO_LIMIT, (1, 4000)]),
            }
            self.devices[sn] = Device(initial=initial, now=dict(initial))
        self.registry_defaults.setdefault(sn, set()).update((Actuator(a), pair) for a, pair in default.items())
        self.records[sn] = Record(sn=sn, site=self.draw.choice(["s1", "s2"]), rated_w=10_000, default=default)
        self._tell_registry(sn)

    def _tell_registry(self, sn: str) -> None:
        self.registry_offset += 1
        self.put(RegistryChange(partition=0, changes=((self.registry_offset, sn, self.records[sn]),)))

    def _consent(self) -> None:
        self.put(Consent(at=self.now, authorized=tuple((sn, None) for sn in sorted(self.consents))))

    def _event(self) -> None:
        draw = self.draw
        again = bool(self.events) and draw.random() < 0.3
        name = draw.choice(sorted(self.events)) if again else f"e{len(self.events)}"
        revision = self.events[name] = self.events.get(name, 0) + 1
        controls: list[Control] = []
        for kind in draw.sample([Kind.CHARGE, Kind.DISCHARGE, Kind.STANDBY, Kind.EXPORT_LIMIT], draw.choice([1, 1, 2])):
            if all(c.actuator is not Control(kind=kind, form=Form.NONE).actuator for c in controls):
                watts = None if kind is Kind.STANDBY else draw.choice([1000, 2000, 4500, 20_000])
                controls.append(Control(kind=kind, form=Form.EACH_W if watts else Form.NONE, each_w=watts))
        start = self.now + draw.choice([0, 0, 1, 4])
        targets = draw.choice(
            [Targets(all=True), Targets(sites=("s1",)), Targets(devices=(*sorted(self.devices)[:3], "0" * 16))]
        )
        selector = Selector(
            event=f"grid/{name}",
            source="grid",
            event_id=name,
            revision=revision,
            priority=draw.choice([1, 100, 100, 200]),
            created_at=self.now,
            accepted_at=self.now,
            start_at=start,
            end_at=start + draw.choice([0.5, 3, 8, 15]),
            targets=targets,
            controls=tuple(controls),
            test=draw.random() < 0.05,
        )
        self.put(selector)
        if draw.random() < 0.2:
            self.put(selector)  # sent twice
        for control in controls:
            self.windows.append((control.actuator, selector.end_at))

    # ---- a step of the world

    def step(self) -> None:
        """A quarter of a second: what happens outside, then what the worker does."""
        draw = self.draw
        if not self.quiet:
            if draw.random() < 0.08:
                self._event()
            if self.events and draw.random() < 0.04:
                name = draw.choice(sorted(self.events))
                self.put(Cancel(event=f"grid/{name}", revision=self.events[name], at=self.now))
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
            if draw.random() < 0.05:
                sn = draw.choice(sorted(self.devices))
                facts = Telemetry(operations=(Operation(sn=sn, at=self.now, online=draw.random() < 0.7),))
                self.book.step([(-1, facts)], self.now)
        self._outside()
        self._read()
        self.book.step([], self.now)
        self._publish(self.book)
        if not self.quiet and draw.random() < 0.04:
            self._crash()
        elif draw.random() < 0.5:
            self._save()
            self._publish(self.book)
        self.steps += 1
        if self.steps % 4 == 0:
            self.check()
        self.now += STEP_S

    def _outside(self) -> None:
        for _ in range(2):  # what is executed may be answered in the same step
            due = sorted((p for p in self.pending if p[0] <= self.now), key=lambda p: p[:2])
            self.pending = [p for p in self.pending if p[0] > self.now]
            results: list[tuple[bytes, ResultCode, bool, Pair]] = []
            for when, _, what, thing in due:
                if what == "execute":
                    self._execute(when, thing)  # type: ignore[arg-type]
                else:
                    results.append(thing)  # type: ignore[arg-type]
            for start in range(0, len(results), 3):
                part = results[start : start + 3]
                self.put(
                    Results(
                        ids=np.frombuffer(b"".join(r[0] for r in part), np.uint8).reshape(-1, 16),
                        code=np.array([r[1] for r in part], np.uint8),
                        accepted=np.array([r[2] for r in part]),
                        first=np.array([r[3][0] for r in part], np.int32),
                        second=np.array([r[3][1] for r in part], np.int32),
                        at=np.full(len(part), self.now),
                    )
                )

    def _later(self, after: float, what: str, thing: object) -> None:
        self.ties += 1
        self.pending.append((self.now + after, self.ties, what, thing))

    def _execute(self, when: float, command: Command) -> None:
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
            device.now[command.actuator] = command.pair
            device.executed.add((command.actuator, command.generation, command.pair))
        if 0.22 < fate < 0.30:
            return  # executed, the answer is lost
        delay = 0.25 if self.quiet else draw.choice([0.0, 0.25, 0.25, 1.0, 2.5, 6.0])
        if code is ResultCode.SUCCESS and not command.query and 0.30 < fate < 0.40:
            self._later(delay, "result", (command.id, code, True, read))
            delay += draw.choice([0.0, 1.0])
        self._later(delay, "result", (command.id, code, accepted, read))
        if 0.40 < fate < 0.46:
            self._later(delay + draw.choice([0.0, 0.5, 4.0]), "result", (command.id, code, accepted, read))

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
                rows = due.row[(due.query == query) & (due.deadline_at > self.now)]
                if len(rows):
                    batches.append(book.commands(actuator, rows, query))
        for commands in batches:
            digests = [
                correlation.digest(f"{sn}\0{a}\0{b}".encode())
                for sn, a, b in zip(commands.sn, commands.first.tolist(), commands.second.tolist(), strict=True)
            ]
            ids = correlation.pack(
                shard=commands.shard,
                row=commands.row,
                actuator=commands.actuator,
                generation=commands.generation,
                attempt=commands.attempt,
                digests=digests,
            )
            fails = not self.quiet and self.draw.random() < 0.08
            for i in range(len(commands)):
                query = bool(commands.actuator[i] >= QUERY_BIT)
                command = Command(
                    sn=commands.sn[i],
                    actuator=Actuator(int(commands.actuator[i]) & (QUERY_BIT - 1)),
                    query=query,
                    pair=(int(commands.first[i]), int(commands.second[i])),
                    generation=int(commands.generation[i]),
                    id=ids[i].tobytes(),
                )
                if fails and self.draw.random() < 0.5:
                    continue  # the broker never had it
                self._sent(command, float(commands.deadline_at[i]), int(commands.row[i]), zombie)
            if not self.quiet and not zombie and self.draw.random() < 0.3:  # before the acknowledgement is here
                if self.draw.random() < 0.2:
                    self._event()
                self._outside()
                self._read()
            if not fails and not zombie:
                book.published(commands, np.array(digests, np.uint64), self.now)
            elif fails:
                book.due_at = 0.0

    def _sent(self, command: Command, deadline_at: float, row: int, zombie: bool) -> None:
        content = (command.sn, command.actuator, command.query, command.pair)
        assert self.contents.setdefault(command.id, content) == content, "one correlation id has two contents"
        if not command.query and np.isfinite(deadline_at) and not zombie:
            assert self.records[command.sn] is not None, "a setpoint without the registry"
            assert command.sn in self.consents, "a setpoint without consent"
            assert any(a is command.actuator and end >= self.now for a, end in self.windows), "outside every window"
            assert self._armed(command.actuator, row), "a setpoint before its arming is saved"
        self.sent.append((self.now, command))
        device = self.devices[command.sn]
        lag = 0.0 if self.quiet else self.draw.choice([0.0, 0.0, 0.25, 1.5])
        if not command.query:  # one topic, one key: in order
            at = max(device.busy_until.get(command.actuator, 0.0), self.now + lag)
            device.busy_until[command.actuator] = at
            lag = at - self.now
        self._later(lag, "execute", command)

    def _armed(self, actuator: Actuator, row: int) -> bool:
        best = [
            k for k in self.rows if k.split(b"|")[1:3] == [str(row // PAGE).encode(), actuator.name.lower().encode()]
        ]
        newest = max(best, key=lambda k: int(k.split(b"|")[3]), default=None)
        if newest is None:
            return False
        columns = np.frombuffer(self.rows[newest][pages._HEADER.size :], SETPOINT)
        return bool(columns["armed"][row % PAGE]) and bool(columns["before"][row % PAGE])

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

    def _crash(self) -> None:
        how = self.draw.random()
        if how < 0.5:  # in the middle of a checkpoint: a prefix of the rows is there, the commit is not
            shot = pages.snapshot(self.book, self.kept, self.read)
            self.rows.update(shot.rows[: self.draw.randint(0, len(shot.rows))])
        elif how < 0.8:  # frozen: it will be back
            self.zombies.append((self.book, self.kept, self.read))
        self.now += self.draw.choice([0.5, 2.0, 12.0])
        self._outside()
        names = pages.newest(self.rows, [SHARD])[SHARD]
        epoch = self.book.epoch + 1
        self.book = Book(shard=SHARD, epoch=epoch, catalogue=Catalogue(), policy=POLICY, digests=digests_of)
        self.kept = pages.load(self.book, names, self.rows, self.now)
        self.read = self.committed
        self._read()
        self.book.step([], self.now)
        if self.zombies and self.draw.random() < 0.7:
            book, kept, read = self.zombies.pop()
            if self.draw.random() < 0.5:
                self._publish(book, zombie=True)
            for key, value in pages.snapshot(book, kept, read).rows:
                self.rows[key] = value

    # ---- what must hold

    def check(self) -> None:
        for (event, _revision), membership in self.book.memberships.items():
            counts = membership.counts()
            told = counts.states[State.SKIPPED] + counts.states[State.REJECTED]
            assert sum(counts.reasons.values()) == told, (event, counts)
            members = len(membership.parts[0].members) + len(membership.strangers)
            assert counts.targeted == members
            assert counts.release_confirmed + counts.release_refused <= counts.release_due
            if not membership.replaced:
                membership.tellings()
            for part in membership.parts:
                m = part.members
                for i in np.flatnonzero((m["state"] == State.APPLIED) & (m["generation"] > 0)).tolist():
                    key = (part.actuator, int(m["generation"][i]), (int(m["first"][i]), int(m["second"][i])))
                    sn = self.book.roster.sns[int(m["row"][i])]
                    assert key in self.devices[sn].executed, f"{event} {sn}: applied was never executed: {key}"

    def calm_down(self, seconds: float = 120.0) -> None:
        """The chaos ends: everybody is online again, and everything is executed and answered."""
        self.quiet = True
        for sn in sorted(self.devices):
            self.book.step([(-1, Telemetry(operations=(Operation(sn=sn, at=self.now, online=True),)))], self.now)
        end = self.now + seconds
        while self.now < end:
            self.step()

    def check_end(self) -> None:
        """Everything is at a default, every release answered for, and nothing is sent any more."""
        late = [(at, c) for at, c in self.sent if at > self.now - 30]
        assert not late, f"it never comes to rest: {late[:3]}"
        for actuator, setpoints in self.book.setpoints.items():
            assert not setpoints.columns["armed"].any(), f"{actuator.name}: a debt is left"
        for sn, device in self.devices.items():
            for actuator, pair in device.now.items():
                defaults = {device.initial[actuator]} | {p for a, p in self.registry_defaults[sn] if a is actuator}
                assert pair in defaults, f"{sn} {actuator.name} was left at {pair}"
        for membership in self.book.memberships.values():
            counts = membership.counts()
            assert counts.release_due == counts.release_confirmed + counts.release_refused, counts
            assert counts.settled

    def trace(self) -> list[tuple[float, bytes]]:
        return [(at, c.id) for at, c in self.sent]

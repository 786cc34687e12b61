"""A shard's book with devices around it: what a publisher and GoodWe would do, in one process and by its own clock.

Each device executes what it is sent in order, and latches. A test decides what is lost, refused or late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.account import Counts
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import NO_VALUE, Commands, ResultCode, Results
from vpp_dispatch.domain.device import Operation, Record
from vpp_dispatch.domain.inputs import Cancel, Close, Consent, RegistryChange, Selector, ShardInput, Telemetry
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets

MODES = {Kind.CHARGE: 11, Kind.DISCHARGE: 12, Kind.STANDBY: 8, Kind.IMPORT_TARGET: 9, Kind.EXPORT_TARGET: 10}
AUTO = (1, 0)
NO_LIMIT = (0, 7000)
FULL, UNITY = (1000, 0), (100, 0)
DEFAULTS = {Actuator.EMS: AUTO, Actuator.EXPORT: NO_LIMIT, Actuator.ACTIVE: FULL, Actuator.REACTIVE: UNITY}
SHARD = 5


class Catalogue:
    """Every device can do everything, but the PV-only series DTU takes only an export limit."""

    def supports(self, sn: str, actuator: Actuator) -> bool:
        return actuator is Actuator.EXPORT or "DTU" not in sn

    def has_battery(self, sn: str) -> bool:
        return "DTU" not in sn

    def rated_w(self, sn: str, told_w: int) -> int:
        return told_w or 10_000

    def step_w(self, actuator: Actuator, sn: str, rated_w: int) -> float:
        return 1.0

    def family_default(self, actuator: Actuator) -> tuple[int, int]:
        return {Actuator.EMS: AUTO, Actuator.ACTIVE: FULL, Actuator.REACTIVE: UNITY}.get(actuator, (0, 0))

    def mode_of(self, kind: Kind) -> int:
        return MODES[kind]

    echoes = True

    def is_single(self, actuator: Actuator) -> bool:
        return actuator in (Actuator.ACTIVE, Actuator.REACTIVE)


def digests_of(commands: Commands) -> np.ndarray:
    """What the codec would put into the ids."""
    return np.array(
        [
            correlation.digest(f"{sn}\0{a}\0{b}".encode())
            for sn, a, b in zip(commands.sn, commands.first.tolist(), commands.second.tolist(), strict=True)
        ],
        np.uint64,
    )


@dataclass(slots=True)
class Sent:
    """One command that went out."""

    at: float
    sn: str
    actuator: Actuator
    query: bool
    pair: tuple[int, int]
    generation: int
    attempt: int
    id: bytes


Fate = Callable[[Sent], ResultCode | None]
"""What becomes of a command: a code, or None if it is executed and its result is lost."""


@dataclass
class World:
    """A book, its devices and a clock. Times are seconds; `now` starts at 1,000."""

    policy: Policy = field(
        default_factory=lambda: Policy(result_timeout_s=3.0, retry_backoff_s=1.0, release_retry_s=2.0)
    )
    now: float = 1000.0
    fate: Fate = lambda sent: ResultCode.SUCCESS
    unheard: Fate | None = None

    def __post_init__(self) -> None:
        self.book = Book(shard=SHARD, epoch=1, catalogue=Catalogue(), policy=self.policy, digests=digests_of)
        self.devices: dict[str, dict[Actuator, tuple[int, int]]] = {}
        self.sent: list[Sent] = []
        self.offset = 0
        self.rows: dict[bytes, bytes] = {}
        self.kept: dict[pages.PageName, set[bytes]] = {}
        self.late: list[tuple[float, Sent, ResultCode, tuple[int, int]]] = []

    # ---- what arrives

    def put(self, *messages: ShardInput) -> None:
        """Folds messages at the next offsets."""
        inputs = []
        for message in messages:
            inputs.append((self.offset, message))
            self.offset += 1
        self.book.step(inputs, self.now)

    def fleet(self, n: int, *, consent: bool = True, series: str = "ETU", **record: object) -> list[str]:
        """Registers n devices, and reads consent for all that are there."""
        have = len(self.devices)
        sns = [f"9010K{series}000W{have + i:04d}" for i in range(n)]
        for sn in sns:
            self.devices[sn] = dict(DEFAULTS)
        self.put(
            RegistryChange(
                partition=0,
                changes=tuple((have + i, sn, Record(sn=sn, **record)) for i, sn in enumerate(sns)),  # type: ignore[arg-type]
            )
        )
        if consent:
            self.consent(self.devices)
        return sns

    def consent(self, sns: Iterable[str]) -> None:
        """A complete reading: these consent, nobody else."""
        self.put(Consent(at=self.now, authorized=tuple((sn, None) for sn in sns)))

    def online(self, sn: str, online: bool) -> None:
        """Telemetry of one device."""
        telemetry = Telemetry(operations=(Operation(sn=sn, at=self.now, online=online),))
        self.book.step([(-1, telemetry)], self.now)

    def event(
        self,
        name: str,
        kind: Kind = Kind.CHARGE,
        watts: int | None = 3000,
        *,
        start: float = 0.0,
        end: float = 60.0,
        revision: int = 1,
        priority: int = 100,
        targets: Targets | None = None,
        test: bool = False,
        created: float | None = None,
        controls: tuple[Control, ...] = (),
        ramp_up_s: int = 0,
        ramp_down_s: int = 0,
        source: str = "grid",
    ) -> None:
        """A dispatch event; start and end count from now. `controls` instead of one of `kind` with `watts`."""
        self.put(
            Selector(
                event=f"{source}/{name}",
                source=source,
                event_id=name,
                revision=revision,
                priority=priority,
                created_at=self.now if created is None else created,
                accepted_at=self.now,
                start_at=self.now + start,
                end_at=self.now + end,
                targets=targets or Targets(all=True),
                controls=controls
                or (Control(kind=kind, form=Form.EACH_W if watts is not None else Form.NONE, each_w=watts),),
                test=test,
                ramp_up_s=ramp_up_s,
                ramp_down_s=ramp_down_s,
            )
        )

    def release(self, name: str, targets: Targets | None = None, *, source: str = "grid", ramp_down_s: int = 0) -> None:
        """A release signal."""
        self.put(
            Selector(
                event=f"{source}/{name}",
                source=source,
                event_id=name,
                revision=1,
                priority=255,
                created_at=self.now,
                accepted_at=self.now,
                start_at=self.now,
                end_at=self.now,
                targets=targets or Targets(all=True),
                controls=(),
                ramp_down_s=ramp_down_s,
                release=True,
            )
        )

    def cancel(self, name: str, revision: int = 1, *, ramp_down_s: int | None = None, aborted: bool = False) -> None:
        self.put(Cancel(event=f"grid/{name}", revision=revision, at=self.now, ramp_down_s=ramp_down_s, aborted=aborted))

    def close(self, name: str, revision: int = 1) -> None:
        self.put(Close(event=f"grid/{name}", revision=revision, at=self.now))

    # ---- what happens

    def reconcile(self) -> None:
        """A tick, a while later: what was folded lazily has its consequences."""
        self.book.wake_at = 0.0
        self.book.step([], self.now)

    def save(self) -> None:
        """A checkpoint."""
        shot = pages.snapshot(self.book, self.kept, self.offset)
        self.rows.update(shot.rows)
        for key in shot.drops:
            self.rows.pop(key, None)
        pages.saved(self.book, shot)

    def crash(self) -> None:
        """The worker dies; the next one has what was saved. (Inbox records after the save have to be put again.)"""
        names = pages.newest(self.rows, [SHARD])[SHARD]
        epoch = self.book.epoch + 1
        self.book = Book(shard=SHARD, epoch=epoch, catalogue=Catalogue(), policy=self.policy, digests=digests_of)
        self.kept = pages.load(self.book, names, self.rows, self.now)
        self.book.step([], self.now)

    def publish(self) -> list[Sent]:
        """Publishes what is due, once; results come back at once unless they are lost."""
        out = []
        for actuator, due in self.book.due(self.now):
            for query in (False, True):
                rows = due.row[(due.query == query) & (due.deadline_at > self.now)]
                if len(rows):
                    out += self._send(actuator, self.book.commands(actuator, rows, query), query)
        return out

    def _send(self, actuator: Actuator, commands: Commands, query: bool) -> list[Sent]:
        digests = digests_of(commands).tolist()
        ids = correlation.ids_of(commands, digests)
        self.book.published(commands, np.array(digests, np.uint64), self.now)
        sent = [
            Sent(
                at=self.now,
                sn=commands.sn[i],
                actuator=actuator,
                query=query,
                pair=(int(commands.first[i]), int(commands.second[i])),
                generation=int(commands.generation[i]),
                attempt=int(commands.attempt[i]),
                id=ids[i].tobytes(),
            )
            for i in range(len(commands))
        ]
        self.sent += sent
        heard = []
        for one in sent:
            code = self.fate(one)
            if not one.query and code in (ResultCode.SUCCESS, None):
                self.devices[one.sn][actuator] = one.pair
            if code is not None:
                read = (
                    self.devices[one.sn][actuator] if one.query and code is ResultCode.SUCCESS else (NO_VALUE, NO_VALUE)
                )
                heard.append((one, code, read))
        if heard:
            self.answer(heard)
        return sent

    def answer(self, heard: list[tuple[Sent, ResultCode, tuple[int, int]]], *, accepted: bool = False) -> None:
        """Results of some commands arrive."""
        n = len(heard)
        self.put(
            Results(
                ids=np.frombuffer(b"".join(one.id for one, _, _ in heard), np.uint8).reshape(n, 16),
                code=np.array([code for _, code, _ in heard], np.uint8),
                accepted=np.full(n, accepted),
                first=np.array([read[0] for _, _, read in heard], np.int32),
                second=np.array([read[1] for _, _, read in heard], np.int32),
                at=np.full(n, self.now),
            )
        )

    def run(self, seconds: float, *, step: float = 0.25) -> list[Sent]:
        """Lets time pass: tick, publish, save; returns what went out."""
        before = len(self.sent)
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.book.step([], self.now)
            self.publish()
            self.save()
            self.publish()
            self.now += step
        return self.sent[before:]

    # ---- what is seen

    def counts(self, name: str, revision: int = 1) -> Counts:
        return self.book.memberships[f"grid/{name}", revision].counts()

    def sets(self, sn: str | None = None) -> list[Sent]:
        """The setpoints and releases that went out."""
        return [s for s in self.sent if not s.query and (sn is None or s.sn == sn)]

    def at_default(self) -> bool:
        return all(d == DEFAULTS for d in self.devices.values())

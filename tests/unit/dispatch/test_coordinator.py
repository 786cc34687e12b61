"""The coordinator on fakes that keep what was acknowledged, by rule; then every place where it can die.

`World` is our Kafka, the shards and the clock: rows, topics and the event inbox survive the coordinator. A plan may
break any one call, before or after it took effect, as a fault or as a death.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import structlog
from structlog.testing import capture_logs

from vpp_dispatch.dispatch import event_rows, inbox
from vpp_dispatch.dispatch.coordinator import Coordinator
from vpp_dispatch.dispatch.inbox import Origin, ProgressReport, SignalReceived, SignalRefused, SwitchTurned
from vpp_dispatch.domain.account import Counts, State
from vpp_dispatch.domain.device import SHARDS, shard_of
from vpp_dispatch.domain.event import CLOSE_WAIT_S, KEEP_S
from vpp_dispatch.domain.inputs import Cancel, Close, Progress, Selector, Switches
from vpp_dispatch.errors import ExternalFault
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.operators.envelope import Message, rfc3339
from vpp_dispatch.operators.wire import epoch_seconds
from vpp_dispatch.settings import DispatchSettings, Grant, ReportsSettings, ResponsesSettings, Settings, SignalsSettings

T = 1_795_000_000.0
"""Second 0 of every test."""

GRACE = 20.0
SETTINGS = Settings(dispatch=DispatchSettings(settle_grace_s=GRACE))
RESPONSES, REPORTS = "dispatch.responses.v1", "dispatch.reports.v1"


def _devices() -> list[str]:
    """Three devices in two shards, so that an event has few messages."""
    found: dict[int, list[str]] = {}
    for n in range(10_000):
        sn = f"9010KETU000W{n:04d}"
        if shard_of(sn) in (7, 9):
            found.setdefault(shard_of(sn), []).append(sn)
        if len(found.get(7, ())) >= 2 and found.get(9):
            break
    return [*found[7][:2], found[9][0]]


DEVICES = _devices()


class Death(BaseException):
    """The process is gone; nobody catches it."""


@dataclass
class Plan:
    """Breaks the `at`-th call: before it took effect or after, as a fault of Kafka or as a death."""

    at: int = -1
    after: bool = False
    death: bool = False
    calls: int = 0

    def __enter__(self) -> None:
        self.calls += 1
        self._hit = self.calls == self.at
        if self._hit and not self.after:
            self._break()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self._hit and self.after:
            self._break()

    def _break(self) -> None:
        if self.death:
            raise Death
        raise ExternalFault("planned")


@dataclass
class Shard:
    """What one shard knows of one revision, and what it would tell."""

    selector: Selector
    devices: int
    cancelled_at: float | None = None
    closed: bool = False
    told: Counts | None = None

    def counts(self, now: float, *, settles: bool) -> Counts:
        s = self.selector
        end = s.end_at if self.cancelled_at is None else min(s.end_at, self.cancelled_at)
        state = State.PENDING if now < s.start_at else State.APPLIED
        if (s.test or end <= s.start_at) and not s.release:
            state = State.UNUSED
        settled = s.test or (now >= end and settles)
        states = [0] * len(State)
        states[State.VERIFIED if settled and state is State.APPLIED else state] = self.devices
        return Counts(states=tuple(states), settled=settled, closed=self.closed, requested_w=3000 * self.devices)


class World:
    """Everything that outlives a coordinator."""

    def __init__(
        self, settings: Settings | None = None, *, plan: Plan | None = None, metrics: Metrics | None = None
    ) -> None:
        self.settings = settings or SETTINGS
        self.plan = plan or Plan()
        self.rows: dict[bytes, bytes] = {}
        self.published: list[tuple[str, Message]] = []
        self.said: list[tuple[str, dict[str, Any]]] = []  # the same, decoded
        self.to_shard: list[tuple[int, Selector | Cancel | Close | Switches]] = []
        self.shards: dict[tuple[str, int, int], Shard] = {}
        self.switches: dict[int, Switches] = {}
        self.log: list[str] = []
        self.inbox: list[tuple[float, Any]] = []
        self.read = self.committed = self.handled = 0
        self.progress_sequence = 0
        self.now = T
        self.epoch = 1
        self.settles = True
        self.silent: set[int] = set()
        self.batch: int | None = None
        self.metrics = metrics or Metrics()
        self.start()

    # -- the ports of the coordinator

    async def put_now(self, key: bytes, value: bytes) -> None:
        with self.plan:
            self.rows[key] = value
            self.log.append(f"row {key.decode().split('|')[2]}")

    def put(self, key: bytes, value: bytes) -> Awaitable[None]:
        return self.put_now(key, value)

    async def drop_now(self, key: bytes) -> None:
        with self.plan:
            self.rows.pop(key, None)

    def drop(self, key: bytes) -> Awaitable[None]:
        return self.drop_now(key)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        with self.plan:
            for message in messages:
                content = json.loads(message.value or b"")
                self._relies_on_rows(message, content)
                self.published.append((topic, message))
                self.said.append((topic, content))
                self.log.append(f"response {content['code']}" if "code" in content else f"report {content['state']}")

    async def to_shards(self, messages: Mapping[int, bytes]) -> None:
        with self.plan:
            for shard, value in messages.items():
                message: Any = inbox.decode(value)
                self.to_shard.append((shard, message))
                self._fold(shard, message)
            self.log.append(f"to_shards {type(message).__name__.lower()}")

    def _relies_on_rows(self, message: Message, content: dict[str, Any]) -> None:
        """A response stands in a row byte for byte, and a report's sequence is reserved in one, before they go out."""
        if "code" in content:
            assert any((message.value or b"?") in row for row in self.rows.values()), f"{content} is in no row"
            return
        name = f"{content['source']}/{content['event_id']}"
        lives = [row for key, row in self.rows.items() if key.startswith(f"0|{name}|life|".encode())]
        saved = [event for event, _ in (event_rows.load_event({event_rows.LIFE: row}) for row in lives) if event]
        assert any(content["sequence"] <= event.reserved for event in saved)
        if content["final"]:
            assert any(event.run is not None and event.run.state == "closed" for event in saved)

    def _fold(self, shard: int, message: Any) -> None:
        if isinstance(message, Switches):
            self.switches[shard] = message
            return
        key = (message.event, message.revision, shard)
        if isinstance(message, Selector):
            devices = len(message.targets.devices) or 1
            known = self.shards.setdefault(key, Shard(selector=message, devices=devices))
            assert known.selector == message, "a selector that is sent again has equal content"
        elif isinstance(message, Cancel):
            assert key in self.shards, "a shard is told of the event before its cancellation"
            self.shards[key].cancelled_at = message.at
        else:
            assert key in self.shards
            self.shards[key].closed = True

    # -- time and the inbox

    def start(self) -> None:
        self.coordinator = Coordinator(
            settings=self.settings, outlet=self, rows=self, metrics=self.metrics, log=structlog.get_logger()
        )
        self.coordinator.recover(dict(self.rows), self.epoch, self.now)
        self.epoch += 1
        self.read = self.committed

    def send(self, message: Any) -> None:
        self.inbox.append((self.now, message))

    def tell(self) -> None:
        """Shards put what has changed into the inbox, as one worker does each second."""
        told = []
        newest = {event: max(r for e, r, _ in self.shards if e == event) for event, _, _ in self.shards}
        for (event, revision, shard), known in self.shards.items():
            counts = known.counts(self.now, settles=self.settles)
            if revision == newest[event] and counts != known.told and shard not in self.silent:
                known.told = counts
                self.progress_sequence += 1
                told.append(
                    Progress(
                        shard=shard,
                        epoch=1,
                        sequence=self.progress_sequence,
                        event=event,
                        revision=revision,
                        counts=counts,
                    )
                )
        if told:
            self.send(ProgressReport(progress=tuple(told)))

    async def handle(self) -> None:
        """Reads the inbox to its end; every second fetch is committed, so that a death always repeats something."""
        while self.read < len(self.inbox):
            end = len(self.inbox) if self.batch is None else min(len(self.inbox), self.read + self.batch)
            await self.coordinator.handle(self.inbox[self.read : end], self.now)
            self.read = end
            self.handled += 1
            if self.handled % 2 == 0:
                self.committed = self.read

    async def run(self, seconds: float) -> None:
        """Lets time pass in ticks of half a second; what breaks is tried again, and a death is followed by takeover."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            self.tell()
            for work in (self.handle, self.tick):
                await self.survive(work)

    async def tick(self) -> None:
        await self.coordinator.tick(self.now)

    async def survive(self, work: Callable[[], Awaitable[None]]) -> None:
        for _ in range(3):
            try:
                await work()
                return
            except ExternalFault:
                # The shell goes on ticking while it tries again.
                await self.tick()
            except Death:
                self.start()
                # A takeover may tick before the inbox is read again.
                await self.tick()
        raise AssertionError("a plan breaks one call only")

    # -- what can be seen

    def contents(self, topic: str) -> list[dict[str, Any]]:
        return [content for where, content in self.said if where == topic]

    def responses(self, event_id: str, topic: str = RESPONSES) -> list[tuple[int, int]]:
        """(revision, code), each once, in the order of their first appearance."""
        found = [(c["revision"], c["code"]) for c in self.contents(topic) if c["event_id"] == event_id]
        return list(dict.fromkeys(found))

    def reasons(self, event_id: str, revision: int) -> list[str]:
        found = [c for c in self.contents(RESPONSES) if (c["event_id"], c["revision"]) == (event_id, revision)]
        return list(found[-1]["reasons"])

    def reports(self, event_id: str) -> list[dict[str, Any]]:
        return [c for c in self.contents(REPORTS) if c["event_id"] == event_id]

    def count(self, kind: type, event: str) -> int:
        return sum(isinstance(m, kind) and getattr(m, "event", None) == event for _, m in self.to_shard)

    def check(self) -> None:
        """What has to hold in every run (R1, R33, R34)."""
        bytes_of: dict[str, Message] = {}
        for _, message in self.published:
            id_ = dict(message.headers)["ce_id"].decode()
            assert bytes_of.setdefault(id_, message) == message, f"{id_} has two contents"
        closed: set[str] = set()
        for _, content in self.said:
            event = content["event_id"]
            if content.get("final"):
                closed.add(event)
            if content.get("code") in (3, 7, 8, 10):
                assert event in closed, f"{event}: the final response came before the final report"
        for event in {content["event_id"] for _, content in self.said}:
            sequences = [report["sequence"] for report in self.reports(event)]
            assert sequences == sorted(set(sequences)), f"{event}: sequences {sequences}"


OFFSETS: Iterator[int] = iter(range(10**9))


def received(body: dict[str, Any], *, source: str | None = None, trace: str | None = None) -> SignalReceived:
    origin = Origin(topic="dispatch.signals.v1", partition=0, offset=next(OFFSETS), timestamp=T)
    raw = json.dumps(body).encode()
    return SignalReceived(origin=origin, source=source or body["source"], body=raw, traceparent=trace)


def refused(event_id: str, revision: int, reason: str = "unknown_field") -> SignalRefused:
    origin = Origin(topic="dispatch.signals.v1", partition=0, offset=next(OFFSETS), timestamp=T)
    return SignalRefused(origin=origin, source="west", event_id=event_id, revision=revision, reason=reason, detail="x")


def base(event_id: str, revision: int, action: str, **more: Any) -> dict[str, Any]:
    body = {"event_id": event_id, "source": "west", "revision": revision, "action": action}
    return body | {"created_at": rfc3339(T), "expires_at": rfc3339(T + 3000)} | more


TOTAL = [{"kind": "discharge", "total_w": 5}]


def dispatch(
    event_id: str, revision: int = 1, *, start: float | None = 2, end: float = 6, **more: Any
) -> dict[str, Any]:
    body = base(event_id, revision, "dispatch", end_at=rfc3339(T + end), targets={"devices": DEVICES})
    body |= {"controls": [{"kind": "charge", "each_w": 3000}]} | more
    return body if start is None else body | {"start_at": rfc3339(T + start)}


def cancel(event_id: str, revision: int = 2, **more: Any) -> dict[str, Any]:
    return base(event_id, revision, "cancel", **more)


async def play(world: World, *bodies: dict[str, Any], seconds: float = 12) -> World:
    for body in bodies:
        world.send(received(body))
    await world.run(seconds)
    world.check()
    return world


# ---------------------------------------------------------------------------------------------- by rule


async def test_r33_r34_a_whole_event() -> None:
    w = await play(World(), dispatch("a"))
    assert w.responses("a") == [(1, 1), (1, 2), (1, 3)]
    reports = w.reports("a")
    assert [r["state"] for r in reports][-1] == "closed" and reports[-1]["final"]
    assert list(dict.fromkeys(r["state"] for r in reports)) == ["scheduled", "active", "ending", "closed"]
    assert (reports[-1]["devices"]["targeted"], reports[-1]["devices"]["verified"]) == (3, 3)
    assert reports[-1]["shards"] == {"expected": 2, "reported": 2, "missing": []}
    assert reports[-1]["power_w"]["requested"] == 9000
    assert [w.count(kind, "west/a") for kind in (Selector, Cancel, Close)] == [2, 0, 2]


async def test_r33_responses_say_when_in_order() -> None:
    w = await play(World(), dispatch("a", start=None))
    times = [epoch_seconds(c["at"]) for c in w.contents(RESPONSES)]
    assert times == sorted(times)
    assert times[0] == T, "accepted when the broker appended it"


async def test_rows_are_delivered_before_what_relies_on_them() -> None:
    w = await play(World(), dispatch("a"))
    first = [w.log.index(what) for what in ("row signal-1", "row life", "response 1", "to_shards selector")]
    assert first == sorted(first)
    last = [w.log.index(what) for what in ("to_shards close", "report closed", "response 3")]
    assert last == sorted(last)
    assert w.log[last[1] - 1] == "row life", "closed is durable before it is reported"


async def test_reports_come_at_most_once_a_second_and_only_when_something_changed() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=30)
    assert len(w.reports("a")) <= 4, "scheduled, active and the shards' counts"
    times = [c["at"] for c in w.reports("a")]
    assert len(set(times)) == len(times)


async def test_r01_a_repeat_is_answered_with_the_same_bytes_and_nothing_is_sent_twice() -> None:
    w = World()
    body = dispatch("a")
    await play(w, body, seconds=4)
    sent = len(w.to_shard)
    spelled_otherwise = dict(reversed(list(body.items()))) | {"start_at": rfc3339(T + 2).replace("Z", "+00:00")}
    await play(w, body, spelled_otherwise, seconds=0.5)
    ones = [m for _, m in w.published if b'"code":1,' in (m.value or b"")]
    assert len(ones) == 3
    assert ones[0] == ones[1] == ones[2]
    assert len(w.to_shard) == sent


async def test_r01_another_content_is_refused_and_the_event_goes_on() -> None:
    w = World()
    await play(w, dispatch("a"), dispatch("a", end=7), refused_body := dispatch("a", priority=3))
    assert refused_body["priority"] == 3
    assert w.responses("a") == [(1, 1), (1, 253), (1, 2), (1, 3)]
    assert sum(c["code"] == 253 for c in w.contents(RESPONSES)) == 2


async def test_r02_a_stale_revision_is_dropped_and_counted() -> None:
    w = await play(World(), dispatch("a", 3), dispatch("a", 2))
    assert w.responses("a") == [(3, 1), (3, 2), (3, 3)]
    assert w.metrics.value("vpp_dispatch_signals_total", source="*", action="dispatch", verdict="stale_revision") == 1


async def test_r02_a_new_revision_replaces_a_running_one() -> None:
    w = World()
    await play(w, dispatch("a", start=1), seconds=4)
    await play(w, dispatch("a", 2, start=None, end=10), seconds=14)
    assert w.responses("a") == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert [r["revision"] for r in w.reports("a") if r["final"]] == [2]
    assert all(m.revision == 2 for _, m in w.to_shard if isinstance(m, Close))


async def test_r02_r15_a_cancellation_before_its_event() -> None:
    w = await play(World(), cancel("a"), dispatch("a"))
    assert w.responses("a") == [(2, 1), (2, 6), (1, 253)]
    assert w.reasons("a", 1) == ["cancelled"]
    assert w.to_shard == []
    assert w.reports("a") == []


async def test_r03_after_its_end_no_command() -> None:
    w = World()
    w.now = T + 7
    await play(w, dispatch("a"))
    assert w.responses("a") == [(1, 254)]
    assert w.to_shard == []


async def test_r04_a_signal_that_waited_too_long_is_not_executed() -> None:
    w = World()
    w.send(received(dispatch("a", expires_at=rfc3339(T + 1))))
    w.now = T + 3
    await w.run(1)
    assert w.responses("a") == [(1, 254)]
    assert w.to_shard == []


async def test_r05_no_event_without_an_end() -> None:
    body = dispatch("a", start=None, open_ended=True)
    del body["end_at"]
    w = await play(World(), body, seconds=1)
    selector = next(m for _, m in w.to_shard if isinstance(m, Selector))
    assert selector.end_at == selector.start_at + w.settings.dispatch.longest_event_s
    await play(w, dispatch("b", end=2.5 + w.settings.dispatch.longest_event_s), seconds=1)
    assert w.responses("b") == [(1, 253)]


async def test_r06_a_test_is_judged_once_reported_and_closed() -> None:
    w = await play(World(), dispatch("a", start=1000, end=1100, test=True), seconds=5)
    assert w.responses("a") == [(1, 1), (1, 3)]
    assert w.reports("a")[-1]["final"]
    assert w.reports("a")[-1]["devices"]["unused"] == 3
    assert all(m.test for _, m in w.to_shard if isinstance(m, Selector))


async def test_r08_what_intake_refused_is_answered_253_once() -> None:
    w = World()
    w.send(refused("a", 1))
    w.send(refused("a", 1, "invalid"))
    await play(w)
    assert w.responses("a") == [(1, 253)]
    assert w.reasons("a", 1) == ["unknown_field"]


async def test_r08_bytes_that_only_another_version_could_read_do_not_stop_the_inbox() -> None:
    w = World()
    w.send(replace(received(dispatch("a")), body=b"\x00 not JSON"))
    w.send(received(dispatch("b", bogus=1)))
    await play(w, dispatch("c"))
    assert w.responses("a") == []
    assert w.responses("b") == [(1, 253)]
    assert w.responses("c") == [(1, 1), (1, 2), (1, 3)]


async def test_r09_grants_and_topics_of_a_source() -> None:
    settings = Settings(
        grants={"west": Grant(max_w=2999), "east": Grant()},
        signals=SignalsSettings(topics={"w": "west", "e": "east"}),
        responses=ResponsesSettings(topics={"east": "responses.east"}),
        reports=ReportsSettings(topics={"east": "reports.east"}),
    )
    w = await play(World(settings), dispatch("a"), dispatch("b", source="east"), dispatch("c", source="north"))
    assert w.responses("a") == [(1, 252)]
    assert w.reasons("a", 1) == ["not_granted"]
    assert w.responses("c") == [(1, 252)]
    assert w.responses("b") == []
    assert w.responses("b", "responses.east") == [(1, 1), (1, 2), (1, 3)]
    assert w.reports("b") == []
    assert w.contents("reports.east")[-1]["final"]
    value = w.metrics.value("vpp_dispatch_signals_total", source="west", action="dispatch", verdict="not_granted")
    assert value == 1


async def test_r09_two_sources_whose_events_would_have_one_name_do_not_meet() -> None:
    w = await play(World(), dispatch("c", source="a/b"), cancel("b/c", source="a"), seconds=3)
    assert w.responses("c") == [(1, 1), (1, 2)]
    assert w.responses("b/c") == []
    assert w.count(Cancel, "a/b/c") == 0


async def test_r15_a_running_event_is_cancelled_at_once() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=4)
    await play(w, cancel("a"), seconds=0.5)
    assert w.responses("a") == [(1, 1), (1, 2), (2, 1), (2, 6)]
    told = [m for _, m in w.to_shard if isinstance(m, Cancel)]
    assert [(m.revision, m.at) for m in told] == [(1, T + 4)] * 2
    await play(w, seconds=5)
    assert w.responses("a") == [(1, 1), (1, 2), (2, 1), (2, 6)], "no final response"
    final = w.reports("a")[-1]
    assert (final["final"], final["revision"]) == (True, 2)


async def test_r15_a_scheduled_event_is_cancelled_and_its_shards_know() -> None:
    w = World()
    await play(w, dispatch("a", start=400, end=500), cancel("a"), seconds=5)
    assert w.responses("a") == [(1, 1), (2, 1), (2, 6)]
    assert w.count(Cancel, "west/a") == 2
    assert w.reports("a")[-1]["final"]
    assert w.reports("a")[-1]["devices"]["unused"] == 3


async def test_r15_a_finished_event_is_not_cancelled() -> None:
    w = World()
    await play(w, dispatch("a"))
    await play(w, cancel("a"), seconds=1)
    assert w.responses("a") == [(1, 1), (1, 2), (1, 3), (2, 252)]
    assert w.reasons("a", 2) == ["finished"]


async def test_r15_a_source_without_a_grant_may_still_cancel_what_runs() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=4)
    w.settings = Settings(grants={"east": Grant()})
    w.start()
    await play(w, cancel("a"), cancel("unknown"), seconds=1)
    assert (2, 6) in w.responses("a")
    assert w.responses("unknown") == [(2, 252)]


# ---------------------------------------------------------------------------------------------- releases, switches


def turn(
    w: World, switch: Literal["releases_only", "drain", "abort"], on: bool = True, event: str | None = None
) -> None:
    origin = Origin(topic="vpp-dispatch.event-inbox.v1", partition=0, offset=len(w.inbox), timestamp=w.now)
    w.send(SwitchTurned(switch=switch, on=on, at=w.now, by="me@here", reason="smoke", event=event, origin=origin))


async def test_r15_a_release_is_answered_1_2_3_and_has_a_report() -> None:
    w = await play(World(), base("r", 1, "release", targets={"devices": DEVICES}), seconds=5)
    assert w.responses("r") == [(1, 1), (1, 2), (1, 3)]
    assert w.reports("r")[-1]["final"] and w.reports("r")[-1]["power_w"]["requested"] is None
    selectors = [m for _, m in w.to_shard if isinstance(m, Selector)]
    assert len(selectors) == 2 and all(s.release and s.start_at == s.end_at for s in selectors)


async def test_r15_a_release_is_not_cancelled() -> None:
    w = await play(World(), base("r", 1, "release", targets={"devices": DEVICES}), cancel("r"), seconds=5)
    assert w.responses("r") == [(1, 1), (1, 2), (2, 252), (1, 3)]
    assert w.reasons("r", 2) == ["finished"]


async def test_r14_ramps_reach_the_shards_and_a_cancellation_s_own_wins() -> None:
    w = World()
    await play(
        w, dispatch("a", end=500, ramp_up_s=30, ramp_down_s=60), dispatch("b", end=500, ramp_down_s=60), seconds=3
    )
    told = {m.event: (m.ramp_up_s, m.ramp_down_s) for _, m in w.to_shard if isinstance(m, Selector)}
    assert told == {"west/a": (30, 60), "west/b": (0, 60)}
    await play(w, cancel("a"), cancel("b", ramp_down_s=0), seconds=1)
    assert {m.event: m.ramp_down_s for _, m in w.to_shard if isinstance(m, Cancel)} == {"west/a": 60, "west/b": 0}


async def test_r14_an_event_closes_after_its_end_and_ramp_down_and_grace() -> None:
    w = World()
    w.settles = False
    await play(w, dispatch("a", end=10, ramp_down_s=30), seconds=10 + 30 + GRACE - 5)
    assert not w.reports("a")[-1]["final"]
    await play(w, seconds=10)
    assert w.reports("a")[-1]["final"]


async def test_r14_a_ramp_longer_than_the_window_is_refused() -> None:
    w = await play(World(), dispatch("a", end=10, ramp_up_s=30))
    assert (w.responses("a"), w.reasons("a", 1)) == ([(1, 253)], ["ramp_up"])


@pytest.mark.parametrize("start", [1, 400])
async def test_r36_an_abort_ends_one_event_and_says_so(start: int) -> None:
    w = World()
    await play(w, dispatch("a", start=start, end=500, ramp_down_s=60), dispatch("b", end=500), seconds=4)
    turn(w, "abort", event="west/a")
    await play(w, seconds=5)
    told = [m for _, m in w.to_shard if isinstance(m, Cancel)]
    assert {(m.event, m.revision, m.ramp_down_s, m.aborted) for m in told} == {("west/a", 1, 0, True)}
    final = w.reports("a")[-1]
    assert (final["final"], final["revision"]) == (True, 1)
    code = w.responses("a")[-1][1]
    assert code in (3, 10) and w.reasons("a", 1) == ["aborted"], "the shards of this world count as they like"
    assert w.responses("b") == [(1, 1), (1, 2)]


async def test_r36_an_abort_of_what_does_not_run_changes_nothing() -> None:
    w = World()
    await play(w, dispatch("a"), seconds=20)
    before = (w.responses("a"), len(w.to_shard))
    with capture_logs() as logs:
        turn(w, "abort", event="west/a")
        turn(w, "abort", event="west/never")
        await play(w, seconds=3)
    assert (w.responses("a"), len(w.to_shard)) == before
    told = [line["target"] for line in logs if line["event"] == "switch.nothing_to_abort"]
    assert told == ["west/a", "west/never"]


async def test_r36_a_switch_reaches_all_shards_and_outlives_the_coordinator() -> None:
    w = World()
    turn(w, "releases_only")
    turn(w, "drain")
    await play(w, seconds=1)
    assert w.switches == dict.fromkeys(range(SHARDS), Switches(number=1, releases_only=True, drain=True))
    w.switches.clear()
    w.start()
    await play(w, seconds=1)
    assert w.switches == dict.fromkeys(range(SHARDS), Switches(number=1, releases_only=True, drain=True))
    turn(w, "releases_only", on=False)
    await play(w, seconds=1)
    assert w.switches[0] == Switches(number=2, releases_only=False, drain=True)
    assert [key for key in w.rows if b"switches" in key] == [b"0|switches|state|2"]


async def test_r36_while_draining_no_new_event_is_accepted_and_the_others_go_on() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=3)
    turn(w, "drain")
    more = base("r", 1, "release", targets={"devices": DEVICES})
    await play(w, dispatch("b"), dispatch("a", 2, end=400), more, seconds=3)
    assert (w.responses("b"), w.reasons("b", 1)) == ([(1, 252)], ["draining"])
    assert (2, 1) in w.responses("a") and (1, 2) in w.responses("r")
    await play(w, cancel("a", 3), seconds=1)
    assert (3, 6) in w.responses("a")
    turn(w, "drain", on=False)
    await play(w, dispatch("c", end=500), seconds=1)
    assert w.responses("c")[0] == (1, 1)


async def test_what_is_not_built_is_refused() -> None:
    w = await play(World(), dispatch("a", controls=TOTAL))
    assert w.responses("a") == [(1, 252)]
    assert w.reasons("a", 1) == ["not_supported"]
    assert w.to_shard == []


async def test_everyone_is_addressed_in_one_batch_and_named_devices_in_their_shards() -> None:
    w = await play(World(), dispatch("all", targets={"all": True}), dispatch("few"), seconds=1)
    by_event: dict[str, list[int]] = {}
    for shard, message in w.to_shard:
        assert isinstance(message, Selector)
        by_event.setdefault(message.event, []).append(shard)
    assert sorted(by_event["west/all"]) == list(range(SHARDS))
    assert sorted(by_event["west/few"]) == [7, 9]
    assert w.log.count("to_shards selector") == 2


async def test_r35_shards_that_stay_silent_are_named_and_the_event_closes_anyway() -> None:
    w = World()
    w.silent = {9}
    await play(w, dispatch("a"), seconds=6 + GRACE + CLOSE_WAIT_S - 1)
    assert not w.reports("a")[-1]["final"]
    await play(w, seconds=3)
    final = w.reports("a")[-1]
    assert final["final"]
    assert final["shards"] == {"expected": 2, "reported": 1, "missing": [9]}
    assert w.responses("a")[-1] == (1, 3)
    w.silent = set()
    await play(w, seconds=3)
    corrected = w.reports("a")[-1]
    assert corrected["final"] and corrected["sequence"] > final["sequence"]
    assert corrected["shards"]["missing"] == []


async def test_r35_an_outage_delays_and_repeats_nothing_with_other_bytes() -> None:
    w = World()
    w.send(received(dispatch("a")))
    working, w.publish = w.publish, _refuses  # type: ignore[method-assign]
    with pytest.raises(ExternalFault):
        await w.handle()
    for _ in range(5):
        w.now += 1
        with pytest.raises(ExternalFault):
            await w.tick()
    assert w.published == [] and w.to_shard == [], "without a lease nothing goes out, to the shards neither"
    w.publish = working  # type: ignore[method-assign]
    await play(w, seconds=12)
    assert w.responses("a") == [(1, 1), (1, 2), (1, 3)]


async def _refuses(topic: str, messages: Sequence[Message]) -> None:
    raise ExternalFault("no fresh lease", reason="no_lease")


async def test_a_row_that_kafka_refuses_is_a_fault_like_any_other() -> None:
    w = World()
    w.send(received(dispatch("a")))

    async def put(key: bytes, value: bytes) -> None:
        raise RuntimeError("KafkaError")

    w.put_now = put  # type: ignore[method-assign]
    with pytest.raises(ExternalFault, match="KafkaError"):
        await w.handle()


async def test_one_row_for_each_event_that_a_fetch_of_progress_touches() -> None:
    w = World()
    await play(w, dispatch("a", end=500), dispatch("b", end=500), seconds=4)
    w.log.clear()
    for n in range(5):
        told = tuple(
            Progress(shard=shard, epoch=2, sequence=n, event=event, revision=1, counts=Counts(published=n))
            for shard in (7, 9)
            for event in ("west/a", "west/b", "west/unknown")
        )
        w.send(ProgressReport(progress=told))
    await w.handle()
    assert w.log == ["row counts", "row counts"]


async def test_a_large_signal_is_written_once() -> None:
    many = [f"9010KETU001W{n:04d}" for n in range(2000)]
    w = await play(World(), dispatch("a", end=60, targets={"devices": many}), seconds=50)
    assert w.log.count("row signal-1") == 1
    small = [len(value) for key, value in w.rows.items() if b"|life|" in key]
    assert max(small) < 3000


async def test_rows_of_a_closed_event_are_few_and_go_after_a_week() -> None:
    w = await play(World(), dispatch("a"))
    assert sorted(key.decode() for key in w.rows) == ["0|west/a|counts|1", "0|west/a|life|1"]
    w.now += KEEP_S + 7
    await w.run(0.5)
    await w.run(61)
    assert w.rows == {}
    await play(w, cancel("a", 9, expires_at=rfc3339(w.now + 60)), seconds=2)
    assert w.responses("a")[-2:] == [(9, 1), (9, 6)], "it is forgotten"
    assert list(w.rows) == [b"0|west/a|life|1"]


async def test_a_takeover_writes_under_its_own_epoch_and_drops_the_older_rows() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=4)
    w.epoch = 1  # Kafka's generation began again
    w.start()
    await w.run(1)
    assert {key for key in w.rows if b"|life|" in key} == {b"0|west/a|life|2"}
    sequences = [r["sequence"] for r in w.reports("a")]
    assert sequences == sorted(set(sequences))
    w.check()


async def test_a_takeover_in_quiet_sends_nothing_again() -> None:
    w = World()
    await play(w, dispatch("open", start=None, end=500), dispatch("over"), dispatch("cut", end=500))
    await play(w, cancel("cut"), seconds=1)
    await play(w, seconds=5)
    w.committed = w.read
    published, sent = len(w.published), len(w.to_shard)
    w.start()
    await play(w, seconds=5)
    assert len(w.to_shard) == sent
    again = [content for _, content in w.said[published:]]
    assert [(c["event_id"], c["state"]) for c in again if "state" in c] == [("open", "active")], "it may have been lost"
    assert [c for c in again if "code" in c] == []


async def test_r01_a_replaced_revision_is_still_answered_after_a_takeover() -> None:
    w = World()
    body = dispatch("a", end=500)
    await play(w, body, dispatch("a", 2, end=600), seconds=4)
    w.start()
    before = len(w.said)
    await play(w, body, seconds=0.5)
    assert [(c["revision"], c["code"]) for _, c in w.said[before:] if "code" in c] == [(1, 1)]


async def test_r02_counts_of_a_replaced_revision_do_not_come_back_with_a_takeover() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=4)
    assert w.reports("a")[-1]["shards"]["reported"] == 2
    w.silent = {7, 9}
    await play(w, dispatch("a", 2, start=None, end=600), seconds=1)
    w.start()
    await play(w, seconds=2)
    assert w.reports("a")[-1]["revision"] == 2
    assert w.reports("a")[-1]["shards"]["reported"] == 0


async def test_what_an_event_owes_goes_out_before_a_new_revision_of_it_is_judged() -> None:
    w = World()
    working = w.publish

    async def dies_at_the_final_report(topic: str, messages: Sequence[Message]) -> None:
        if b'"final":true' in (messages[0].value or b""):
            raise Death
        await working(topic, messages)

    w.publish = dies_at_the_final_report  # type: ignore[method-assign]
    w.send(received(dispatch("a")))

    async def until_death() -> None:
        while w.now < T + 20:
            w.now += 0.5
            w.tell()
            await w.handle()
            await w.tick()

    with pytest.raises(Death):
        await until_death()
    w.publish = working  # type: ignore[method-assign]
    w.start()
    w.send(received(dispatch("a", 2, start=None, end=500)))
    await w.handle()
    w.check()
    assert w.reports("a")[-1]["final"]
    assert w.responses("a") == [(1, 1), (1, 2), (1, 3), (2, 1)]


async def test_a_fetch_that_is_tried_again_answers_only_what_was_not_answered() -> None:
    w = World()
    w.send(received(dispatch("a")))
    w.send(received(dispatch("b")))
    w.plan.at = 2 * 4  # each: two rows, the response, the selectors; so the selectors of b
    with pytest.raises(ExternalFault):
        await w.handle()
    await w.handle()
    assert [c["event_id"] for c in w.contents(RESPONSES)].count("a") == 1
    assert w.responses("b") == [(1, 1)]


async def test_a_takeover_writes_what_is_open_even_if_nothing_happens_to_it() -> None:
    w = World()
    w.silent = {7, 9}
    await play(w, dispatch("a", start=400, end=500), seconds=1)
    w.committed = w.read
    w.start()
    await w.run(1)
    assert {key for key in w.rows if b"|life|" in key} == {b"0|west/a|life|2"}


async def test_late_rows_of_a_frozen_worker_change_nothing() -> None:
    w = World()
    await play(w, dispatch("a", start=1, end=500), seconds=0.5)
    frozen = {key: value for key, value in w.rows.items() if b"|life|" in key}
    w.start()
    await play(w, cancel("a"), seconds=8)
    assert w.reports("a")[-1]["final"]
    w.rows |= frozen
    w.start()
    await play(w, seconds=3)
    assert w.responses("a") == [(1, 1), (2, 1), (2, 6)], "the event that was cancelled does not start"
    await w.run(1)
    assert not set(frozen) & set(w.rows)


async def test_what_was_lost_is_forgotten() -> None:
    w = World()
    await play(w, dispatch("a"), seconds=3)
    assert w.metrics.value("vpp_dispatch_events", state="active") == 1
    w.coordinator.forget()
    assert w.metrics.value("vpp_dispatch_events", state="active") == 0, "another worker counts it now"
    w.published.clear()
    await w.coordinator.tick(T + 500)
    assert w.published == []


async def test_rows_that_cannot_be_read_are_told_and_kept() -> None:
    w = World()
    await play(w, dispatch("a", end=500), seconds=3)
    w.rows[b"0|west/x|life|1"] = b"\xc1"
    with capture_logs() as lines:
        w.start()
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["event.unreadable"]
    await play(w, seconds=2)
    assert b"0|west/x|life|1" in w.rows
    assert w.metrics.value("vpp_dispatch_events", state="active") == 1


async def test_each_unit_of_work_has_one_line() -> None:
    w = World()
    with capture_logs() as lines:
        await play(w, dispatch("a"), dispatch("b", controls=TOTAL))
    names = [line["event"] for line in lines]
    for name in ("signal.accepted", "signal.refused", "event.started", "event.ending", "event.closing", "event.closed"):
        assert names.count(name) == 1, name
    closed = next(line for line in lines if line["event"] == "event.closed")
    assert (closed["code"], closed["missing"], closed["event_id"]) == (3, [], "a")


async def test_the_trace_of_a_signal_is_in_what_answers_it() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    w = World()
    w.send(received(dispatch("a"), trace=trace))
    await w.run(12)
    assert {dict(m.headers).get("traceparent") for _, m in w.published} == {trace.encode()}


# ---------------------------------------------------------------------------------------------- every death

Kind = Literal["life", "replaced", "refusals"]

SCRIPTS: dict[Kind, list[tuple[float, Callable[[], Any]]]] = {
    # A whole life beside one that is cancelled while it runs, and a test.
    "life": [
        (0, lambda: received(dispatch("a"))),
        (0, lambda: received(dispatch("b", start=None, end=900))),
        (3, lambda: received(cancel("b"))),
        (4, lambda: received(dispatch("t", start=500, end=600, test=True))),
    ],
    # Replaced before its start, while it runs, and after it has closed.
    "replaced": [
        (0, lambda: received(dispatch("a", 1))),
        (1, lambda: received(dispatch("a", 2, start=2, end=600))),
        (4, lambda: received(dispatch("a", 3, start=None, end=6))),
        (12, lambda: received(dispatch("a", 4, start=13, end=14))),
    ],
    # Everything that stands alone, repeats among them.
    "refusals": [
        (0, lambda: received(cancel("a", 2))),
        (0, lambda: received(dispatch("a", 1))),
        (1, lambda: received(dispatch("b", 1, controls=TOTAL))),
        (1, lambda: received(dispatch("c", 1, end=30))),
        (2, lambda: received(dispatch("c", 1, end=31))),
        (2, lambda: refused("c", 2)),
        (2, lambda: received(dispatch("c", 3, expires_at=rfc3339(T + 1)))),
        (3, lambda: received(cancel("c", 4))),
        (3, lambda: received(dispatch("c", 5))),
        (9, lambda: received(cancel("c", 6))),
        (9, lambda: received(dispatch("c", 1, end=30))),
    ],
}
SECONDS: dict[Kind, float] = {"life": 13, "replaced": 20, "refusals": 12}
EVENTS: dict[Kind, dict[str, list[tuple[int, int]]]] = {
    "life": {
        "a": [(1, 1), (1, 2), (1, 3)],
        "b": [(1, 1), (1, 2), (2, 1), (2, 6)],
        "t": [(1, 1), (1, 3)],
    },
    "replaced": {"a": [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3)]},
    "refusals": {
        "a": [(2, 1), (2, 6), (1, 253)],
        "b": [(1, 252)],
        "c": [(1, 1), (1, 2), (1, 253), (2, 253), (3, 254), (4, 1), (4, 6), (5, 253), (6, 252)],
    },
}


METRICS = Metrics()


async def perform(kind: Kind, plan: Plan, batch: int | None) -> None:
    w = World(plan=plan, metrics=METRICS)
    w.batch = batch
    script = list(SCRIPTS[kind])
    while w.now < T + SECONDS[kind]:
        while script and script[0][0] <= w.now - T:
            w.send(script.pop(0)[1]())
        await w.run(0.5)
    w.check()
    for event, wanted in EVENTS[kind].items():
        assert w.responses(event) == wanted, event
    for event in {event for event, _, _ in w.shards}:
        finals = [r for r in w.reports(event.split("/")[1]) if r["final"]]
        assert finals, f"{event}: the final report is missing"
        assert finals[-1]["devices"]["targeted"] == 3
        assert finals[-1]["shards"]["missing"] == []
    assert not any(b"|signal-" in key for key in w.rows), "signals go at the close"


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", list(SCRIPTS))
@pytest.mark.parametrize(
    ("death", "after", "batch"),
    [(False, False, None), (False, True, None), (True, False, None), (True, True, None), (True, True, 1)],
)
async def test_r01_r33_whatever_call_breaks_nothing_is_missing_twice_or_out_of_order(
    kind: Kind, batch: int | None, death: bool, after: bool
) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        whole = Plan()
        await perform(kind, whole, batch)
        assert whole.calls > 20
        for at in range(1, whole.calls + 1):
            try:
                await perform(kind, Plan(at=at, after=after, death=death), batch)
            except AssertionError as failure:
                failure.add_note(f"call {at} of {whole.calls} broke")
                raise
    finally:
        structlog.reset_defaults()

"""The only way out: what may go, when, and how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import structlog

from tests.unit.domain.world import AUTO, Catalogue
from vpp_dispatch.dispatch import pages
from vpp_dispatch.dispatch.lease import Lease
from vpp_dispatch.dispatch.publisher import PROBE, Publisher
from vpp_dispatch.dispatch.shards import Shards
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import NO_VALUE, U8, Commands, ResultCode, Results
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.inputs import Consent, RegistryChange, Selector, Switches
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator, Control, Form, Kind, Targets
from vpp_dispatch.errors import NotReachable
from vpp_dispatch.observability.metrics import Metrics

POLICY = Policy(result_timeout_s=10.0, retry_backoff_s=1.0, release_retry_s=2.0)


@dataclass(slots=True, kw_only=True)
class Ready:
    ids: U8
    digests: np.ndarray
    refused: tuple[tuple[int, str], ...] = ()


@dataclass
class Link:
    """GoodWe's broker: takes batches, or fails after taking them."""

    reachable: bool = True
    lag: int = 0
    fails: bool = False
    batches: list[Commands] = field(default_factory=list)
    gave_up_after_s: list[float] = field(default_factory=list)
    unsayable: Callable[[Commands], tuple[tuple[int, str], ...]] = lambda commands: ()
    before_publish: Callable[[], None] = lambda: None

    def prepare(self, commands: Commands) -> Ready:
        self._last = commands
        digests = np.arange(len(commands), dtype=np.uint64)
        ids = correlation.ids_of(commands, digests.tolist())
        return Ready(ids=ids, digests=digests, refused=self.unsayable(commands))

    async def publish(self, prepared: Ready, *, now: float, give_up_after_s: float) -> None:
        self.before_publish()
        self.batches.append(self._last)
        self.gave_up_after_s.append(give_up_after_s)
        if self.fails:
            raise NotReachable("the broker does not answer")


class Table:
    def put(self, key: bytes, value: bytes) -> asyncio.Future[None]:
        raise AssertionError("a publisher writes no state")

    drop = put


class Rig:
    """A publisher with books, a clock and a lease of its own. Each book has devices with a known default."""

    def __init__(self, *, max_in_flight: int = 20_000, max_per_s: float = 0.0, policy: Policy = POLICY) -> None:
        self.now = 1000.0
        self.policy = policy
        self.metrics = Metrics()
        self.lease = Lease(session_timeout_s=15, clock=lambda: self.now)
        self.lease.renew(self.now)
        self.link = Link()
        log = structlog.get_logger()
        self.shards = Shards(
            catalogue=Catalogue(),
            policy=policy,
            table=Table(),  # type: ignore[arg-type]
            outlet=None,  # type: ignore[arg-type]
            lease=self.lease,
            outcomes_topic="outcomes",
            dead_letters_topic="dead",
            inbox_topic="inbox",
            metrics=self.metrics,
            log=log,
            fault=lambda name: None,
        )
        self.publisher = Publisher(
            shards=self.shards,
            link=self.link,
            lease=self.lease,
            max_in_flight=max_in_flight,
            max_per_s=max_per_s,
            result_timeout_s=policy.result_timeout_s,
            retry_interval_s=policy.retry_backoff_s,
            request_timeout_s=5.0,
            metrics=self.metrics,
            log=log,
            fault=lambda name: None,
            clock=lambda: self.now,
        )
        self.publisher.open = True
        self.offset = 0

    def book(self, shard: int, devices: int) -> Book:
        book = self.shards.books[shard] = Book(shard=shard, epoch=1, catalogue=Catalogue(), policy=self.policy)
        self.shards.positioned(shard, 0)
        sns = [f"9010KETU{shard:02d}W{i:05d}" for i in range(devices)]
        records = tuple((i, sn, Record(sn=sn, default={1: AUTO, 2: (0, 0)})) for i, sn in enumerate(sns))
        self.put(book, RegistryChange(partition=0, changes=records))
        self.put(book, Consent(at=self.now, authorized=tuple((sn, None) for sn in sns)))
        return book

    def put(self, book: Book, message: object) -> None:
        book.step([(self.offset, message)], self.now)  # type: ignore[list-item]
        self.offset += 1

    def event(
        self,
        book: Book,
        name: str = "a",
        *,
        priority: int = 100,
        end: float = 60.0,
        kind: Kind = Kind.CHARGE,
        rows: int | None = None,
        targets: Targets | None = None,
    ) -> None:
        targets = targets or Targets(all=True) if rows is None else Targets(devices=tuple(book.roster.sns[:rows]))
        control = Control(kind=kind, form=Form.EACH_W, each_w=3000)
        self.put(
            book,
            Selector(
                event=f"grid/{name}",
                source="grid",
                event_id=name,
                revision=1,
                priority=priority,
                created_at=self.now,
                accepted_at=self.now,
                start_at=self.now,
                end_at=self.now + end,
                targets=targets,
                controls=(control,),
            ),
        )
        self.save(book)

    def save(self, book: Book) -> None:
        pages.saved(book, pages.snapshot(book, {}, 0))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.lease.renew(self.now)
        for book in self.shards.books.values():
            book.step([], self.now)

    async def drain(self) -> list[Commands]:
        """Publishes until nothing may go; returns the batches."""
        before = len(self.link.batches)
        for _ in range(50):
            if not await self.publisher.publish_some():
                return self.link.batches[before:]
        raise AssertionError("it never comes to rest")

    def answer(self, commands: Commands, code: ResultCode = ResultCode.SUCCESS) -> None:
        ids = self.link.prepare(commands).ids
        for shard in np.unique(commands.shard).tolist():
            mine = commands.shard == shard
            n = int(mine.sum())
            nothing = np.full(n, NO_VALUE, np.int32)
            results = Results(
                ids=ids[mine],
                code=np.full(n, code, np.uint8),
                accepted=np.zeros(n, bool),
                first=nothing,
                second=nothing,
                at=np.full(n, self.now),
            )
            self.put(self.shards.books[shard], results)


def kinds(commands: Commands) -> list[str]:
    query = commands.actuator >= QUERY_BIT
    return [
        "query" if query[i] else "release" if np.isinf(commands.deadline_at[i]) else "set" for i in range(len(commands))
    ]


async def test_r39_nothing_is_published_without_a_fresh_lease() -> None:
    rig = Rig()
    rig.event(rig.book(3, 4))
    rig.lease.drop()
    assert await rig.drain() == []
    rig.lease.renew(rig.now - 5.1)
    assert await rig.drain() == []
    rig.lease.renew(rig.now)
    assert [len(b) for b in await rig.drain()] == [4]


async def test_nothing_is_published_while_the_shell_or_the_link_says_no() -> None:
    rig = Rig()
    rig.event(rig.book(3, 4))
    rig.publisher.open = False
    assert await rig.drain() == []
    rig.publisher.open, rig.link.reachable = True, False
    assert await rig.drain() == []


async def test_r19_a_takeover_lets_only_releases_out_until_all_shards_are_read_up() -> None:
    rig = Rig()
    owing, other = rig.book(3, 2), rig.book(4, 2)
    rig.event(owing, end=5)
    rig.answer((await rig.drain())[0])
    rig.tick(6)
    rig.event(other)
    rig.shards._read_to[7] = 10  # a third shard is not read up yet
    rig.shards.books[7] = Book(shard=7, epoch=1, catalogue=Catalogue(), policy=POLICY)
    rig.shards._taken_at = float("inf")  # just now
    assert [kinds(b) for b in await rig.drain()] == [["release"] * 2]
    rig.shards._next[7] = 10
    assert [kinds(b) for b in await rig.drain()] == [["set"] * 2]


async def test_r07_a_clock_that_is_off_lets_only_releases_out() -> None:
    rig = Rig()
    book = rig.book(3, 2)
    rig.event(book, end=5)
    rig.answer((await rig.drain())[0])
    rig.tick(6)
    rig.event(rig.book(4, 2))
    rig.publisher.skew_s = 6.0
    assert [kinds(b) for b in await rig.drain()] == [["release"] * 2]


async def test_r28_a_setpoint_whose_window_is_about_to_end_is_not_begun() -> None:
    rig = Rig()
    book = rig.book(3, 2)
    rig.event(book, end=5)
    rig.now += 4.8
    rig.lease.renew(rig.now)
    assert await rig.drain() == []


async def test_r28_the_link_gives_up_when_the_first_window_ends() -> None:
    rig = Rig()
    rig.event(rig.book(3, 2), end=3)
    await rig.drain()
    assert rig.link.gave_up_after_s == [3.0]


async def test_r40_releases_first_then_priority_then_the_nearer_end() -> None:
    rig = Rig(max_per_s=64.0)  # one command a pull: the order shows
    release = rig.book(0, 1)
    rig.event(release, end=5)
    rig.answer((await rig.drain())[0])
    rig.tick(6)
    weak, strong, soon = rig.book(1, 1), rig.book(2, 1), rig.book(3, 1)
    rig.event(weak, priority=200)
    rig.event(strong, priority=1)
    rig.event(soon, priority=200, end=30)
    seen = []
    for _ in range(4):
        rig.tick(1)
        assert await rig.publisher.publish_some()
        seen.append((kinds(rig.link.batches[-1])[0], int(rig.link.batches[-1].shard[0])))
    assert seen == [("release", 0), ("set", 2), ("set", 3), ("set", 1)]


async def test_r40_a_tenth_of_the_window_is_kept_for_releases() -> None:
    rig = Rig(max_in_flight=64 * 20)
    book = rig.book(3, 30)
    rig.event(book, rows=5, end=5)
    rig.answer((await rig.drain())[0])
    rig.event(book, "export", kind=Kind.EXPORT_LIMIT)
    assert sum(len(b) for b in await rig.drain()) == 18, "nine tenths of 20"
    rig.tick(5.5)
    batches = await rig.drain()
    assert [kinds(b) for b in batches] == [["release"] * 2]


def part_of(commands: Commands, part: slice) -> Commands:
    return Commands(**{name: getattr(commands, name)[part] for name in Commands.__slots__})


def shares(batches: list[Commands], book: Book) -> dict[str, int]:
    """How many setpoints of each event went out."""
    names = {m.slot: m.selector.event_id for m in book.memberships.values()}
    told: dict[str, int] = {}
    for commands in batches:
        for row in commands.row.tolist():
            name = names[int(book.setpoints[Actuator.EMS].columns["owner"][row])]
            told[name] = told.get(name, 0) + 1
    return told


async def test_r40_within_a_priority_events_take_turns() -> None:
    rig = Rig(max_in_flight=64 * 50)  # the book's share is 50, nine tenths of it 45
    book = rig.book(3, 500)
    sns = book.roster.sns
    rig.event(book, "large", targets=Targets(devices=tuple(sns[:400])))
    for i in range(20):
        rig.event(book, f"one-{i}", targets=Targets(devices=(sns[400 + i],)))
    told = shares(await rig.drain(), book)
    assert told.pop("large") == 25 and len(told) == 20, "each of the small ones at its first turn"


async def test_r40_a_full_window_has_a_part_for_what_is_more_urgent() -> None:
    rig = Rig(max_in_flight=64 * 100)
    book = rig.book(3, 300)
    sns = book.roster.sns
    rig.event(book, "large", targets=Targets(devices=tuple(sns[:200])))
    assert shares(await rig.drain(), book) == {"large": 90}
    rig.event(book, "equal", targets=Targets(devices=tuple(sns[200:210])))
    assert await rig.drain() == [], "it waits for a slot, and then has the first turn"
    rig.event(book, "urgent", priority=1, targets=Targets(devices=tuple(sns[210:230])))
    assert shares(await rig.drain(), book) == {"urgent": 5}
    rig.tick(1)
    first = rig.link.batches[0]
    rig.answer(part_of(first, slice(0, 20)))
    assert shares(await rig.drain(), book) == {"urgent": 15}
    rig.answer(part_of(first, slice(20, 40)))
    assert shares(await rig.drain(), book) == {"equal": 10, "large": 10}


async def test_r36_releases_only_lets_nothing_else_out_and_forgets_nothing() -> None:
    rig = Rig()
    book = rig.book(3, 2)
    rig.event(book, "a", rows=1, end=5)
    rig.answer((await rig.drain())[0])
    rig.put(book, Switches(number=4, releases_only=True))
    rig.event(book, "b", kind=Kind.EXPORT_LIMIT)
    rig.tick(6)
    assert [kinds(b) for b in await rig.drain()] == [["release"]]
    rig.put(book, Switches(number=3))
    assert await rig.drain() == [], "an older record changes nothing"
    rig.put(book, Switches(number=5))
    assert [kinds(b) for b in await rig.drain()] == [["set", "set"]]


async def test_r40_a_small_window_still_lets_one_command_out() -> None:
    rig = Rig(max_in_flight=10)
    rig.event(rig.book(3, 3))
    batches = await rig.drain()
    assert [len(b) for b in batches] == [1]
    rig.answer(batches[0])
    assert [len(b) for b in await rig.drain()] == [1]


async def test_r40_the_pace_is_kept() -> None:
    rig = Rig(max_per_s=64 * 8.0)
    rig.event(rig.book(3, 30))
    for _ in range(40):
        await rig.publisher.publish_some()
        rig.now += 0.05
        rig.lease.renew(rig.now)
    assert 14 <= sum(len(b) for b in rig.link.batches) <= 18, "8 a second for 2 seconds"


async def test_a_batch_is_never_larger_than_a_thousand() -> None:
    rig = Rig(max_in_flight=64 * 5000)
    rig.event(rig.book(3, 1200))
    assert [len(b) for b in await rig.drain()] == [1000, 200]


async def test_r41_in_silence_no_retries_but_one_probe_of_ten() -> None:
    rig = Rig()
    book = rig.book(3, 40)
    rig.event(book, end=300)
    assert [len(b) for b in await rig.drain()] == [40]
    rig.tick(14)  # the result timeout and the pause after it
    batches = await rig.drain()
    assert [len(b) for b in batches] == [PROBE]
    rig.tick(0.5)
    assert await rig.drain() == [], "once per retry interval"
    rig.tick(0.6)
    batches += await rig.drain()
    assert [len(b) for b in batches] == [PROBE, PROBE]
    rig.answer(batches[-1])
    assert [len(b) for b in await rig.drain()] == [20], "something came back: the rest is tried again"


async def test_r41_in_silence_read_backs_in_place_of_a_release_s_answer_are_probes_too() -> None:
    rig = Rig()
    book = rig.book(3, 40)
    rig.event(book, end=5)
    rig.answer((await rig.drain())[0])
    rig.tick(6)
    assert [len(b) for b in await rig.drain()] == [40]
    sent = []
    for _ in range(200):  # 50 s of silence
        rig.tick(0.25)
        sent += [len(b) for b in await rig.drain()]
    assert sent and max(sent) <= PROBE


async def test_r41_first_tries_go_out_in_silence_as_ever() -> None:
    rig = Rig()
    rig.event(rig.book(3, 20))
    await rig.drain()
    rig.tick(10.5)
    rig.event(rig.book(4, 20))
    assert 20 in [int((b.shard == 4).sum()) for b in await rig.drain()]


async def test_a_batch_that_failed_goes_out_again_under_the_same_ids() -> None:
    rig = Rig()
    rig.event(rig.book(3, 2))
    rig.link.fails = True
    assert await rig.publisher.publish_some()
    rig.link.fails = False
    await rig.drain()
    first, second = rig.link.batches
    assert (rig.link.prepare(first).ids == rig.link.prepare(second).ids).all()


async def test_what_cannot_be_said_is_refused_for_its_value() -> None:
    rig = Rig()
    book = rig.book(3, 2)
    rig.event(book)
    rig.link.unsayable = lambda commands: ((1, "no such value"),)
    await rig.publisher.publish_some()
    rig.tick(1)
    assert book.memberships["grid/a", 1].counts().reasons == {"rejected.value": 1}


async def test_r39_a_lease_that_lapses_while_a_batch_is_made_stops_it() -> None:
    rig = Rig()
    rig.event(rig.book(3, 2))
    prepare = rig.link.prepare

    def slow(commands: Commands) -> Ready:
        rig.now += 6
        return prepare(commands)

    rig.link.prepare = slow  # type: ignore[method-assign]
    await rig.publisher.publish_some()
    assert rig.link.batches == []


async def test_stopping_waits_for_the_batch_in_hand() -> None:
    rig = Rig()
    rig.event(rig.book(3, 2))
    release = asyncio.Event()
    publish = rig.link.publish

    async def slow(prepared: Ready, *, now: float, give_up_after_s: float) -> None:
        await release.wait()
        await publish(prepared, now=now, give_up_after_s=give_up_after_s)

    rig.link.publish = slow  # type: ignore[method-assign]
    task = asyncio.create_task(rig.publisher.publish_some())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(rig.publisher.stop_publishing(5.0))
    await asyncio.sleep(0)
    assert not stopping.done()
    release.set()
    await stopping
    assert await task
    assert not await rig.publisher.publish_some()


@pytest.mark.parametrize("answered", [True, False])
async def test_a_result_that_is_here_before_the_broker_s_acknowledgement_counts(answered: bool) -> None:
    rig = Rig()
    book = rig.book(3, 2)
    rig.event(book)
    if answered:
        rig.link.before_publish = lambda: rig.answer(rig.link._last)
    await rig.publisher.publish_some()
    assert book.in_flight(rig.now)[0] == (0 if answered else 2)

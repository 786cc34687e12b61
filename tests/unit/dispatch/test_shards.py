"""Books, saved rows and offsets of one worker: what is written before what, and what a refusal leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from tests.unit.domain.world import AUTO, Catalogue
from vpp_dispatch.dispatch import inbox, pages
from vpp_dispatch.dispatch.lease import Lease
from vpp_dispatch.dispatch.shards import Shards
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.inputs import Close, Consent, Progress, RegistryChange, Selector, ShardInput
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Control, Form, Kind, Targets
from vpp_dispatch.errors import ExternalFault
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.operators.envelope import Message

SN = "9010KETU000W0000"


class Table:
    """The changelog: what was delivered, and what was asked of it in which order."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.journal: list[str] = []
        self.refuses = False

    async def _put(self, key: bytes, value: bytes) -> None:
        if self.refuses:
            raise ExternalFault("not delivered", reason="our_kafka")
        self.rows[key] = value
        self.journal.append("row")

    def put(self, key: bytes, value: bytes) -> Awaitable[Any]:
        return asyncio.ensure_future(self._put(key, value))

    async def _drop(self, key: bytes) -> None:
        self.rows.pop(key, None)
        self.journal.append("drop")

    def drop(self, key: bytes) -> Awaitable[Any]:
        return asyncio.ensure_future(self._drop(key))


class Outlet:
    """Our Kafka: what was told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.told: list[Progress] = []
        self.refuses = False

    async def publish(self, topic: str, messages: Sequence[Message], *, partition: int | None = None) -> None:
        if self.refuses:
            raise ExternalFault("not acknowledged", reason="our_kafka")
        self.messages.extend((topic, message) for message in messages)

    async def progress(self, progress: Sequence[Progress]) -> None:
        if self.refuses:
            raise ExternalFault("not acknowledged", reason="our_kafka")
        self.told.extend(progress)


class Worker:
    """A worker's shards between fakes of everything around them."""

    def __init__(self, table: Table | None = None, *, generation: int = 1, end: int = 0, now: float = 1000.0) -> None:
        self.now = now
        self.monotonic = 50.0
        self.table = table or Table()
        self.outlet = Outlet()
        self.lease = Lease(session_timeout_s=15, clock=lambda: self.monotonic)
        self.committed: list[dict[int, int]] = []
        self.accepts = True
        self.shards = Shards(
            catalogue=Catalogue(),
            policy=Policy(result_timeout_s=3, retry_backoff_s=1, release_retry_s=2),
            table=self.table,
            outlet=self.outlet,
            lease=self.lease,
            outcomes_topic="outcomes",
            dead_letters_topic="dead",
            inbox_topic="inbox",
            metrics=Metrics(),
            log=structlog.get_logger(),
            fault=lambda name: None,
        )
        self.shards.take_over([3], self.table.rows, generation=generation, ends={3: end}, now=self.now)
        self.shards.positioned(3, 0)
        self.lease.renew(self.monotonic)
        self.offset = 0

    def fold(self, *messages: ShardInput | bytes) -> None:
        run = []
        for message in messages:
            value = message if isinstance(message, bytes) else inbox.encode(message)
            run.append(SimpleNamespace(offset=self.offset, value=value, key=None, headers=(), partition=3, timestamp=0))
            self.offset += 1
        self.shards.fold(3, run, self.now)

    def devices(self) -> None:
        self.fold(
            RegistryChange(partition=0, changes=((0, SN, Record(sn=SN, default={1: AUTO})),)),
            Consent(at=self.now, authorized=((SN, None),)),
        )

    def event(self, name: str = "a", *, revision: int = 1, start: float = 0.0) -> None:
        self.fold(
            Selector(
                event=f"grid/{name}",
                source="grid",
                event_id=name,
                revision=revision,
                priority=100,
                created_at=self.now,
                accepted_at=self.now,
                start_at=self.now + start,
                end_at=self.now + start + 60,
                targets=Targets(all=True),
                controls=(Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=3000),),
            )
        )

    async def _commit(self, offsets: Mapping[int, int]) -> bool:
        self.table.journal.append("commit")
        self.committed.append(dict(offsets))
        return self.accepts

    async def renew(self) -> None:
        await self.shards.renew(self._commit)

    async def checkpoint(self) -> None:
        await self.shards.checkpoint(self._commit, everything=True)


async def test_rows_are_delivered_before_the_offset_is_committed_and_older_rows_go_last() -> None:
    first = Worker()
    first.devices()
    await first.checkpoint()
    assert first.table.journal == ["row"] * (len(first.table.journal) - 1) + ["commit"]
    assert first.committed == [{3: 2}]
    second = Worker(first.table, generation=2)
    second.offset = 2
    second.event()
    first.table.journal.clear()
    await second.checkpoint()
    assert "drop" not in first.table.journal[: first.table.journal.index("commit")]
    assert {pages.split(key)[3] for key in first.table.rows if b"|head|" in key} == {1}, "not saved again, not dropped"


async def test_a_refused_checkpoint_is_made_again_and_arms_nothing() -> None:
    w = Worker()
    w.devices()
    w.event()
    w.table.refuses = True
    with pytest.raises(ExternalFault):
        await w.checkpoint()
    book = w.shards.books[3]
    assert w.committed == [] and book.due(w.now) == []
    w.table.refuses = False
    await w.checkpoint()
    assert w.committed == [{3: 3}] and len(book.due(w.now)) == 1


async def test_rows_that_have_to_go_are_remembered_over_a_refused_checkpoint() -> None:
    w = Worker()
    w.devices()
    w.event()
    await w.checkpoint()
    gone = f"3|{pages.page_of_event('grid/a', 1)}|event|1".encode()
    assert gone in w.table.rows
    w.event(revision=2)  # the first revision is replaced, and forgotten
    w.table.refuses = True
    with pytest.raises(ExternalFault):
        await w.checkpoint()
    w.table.refuses = False
    await w.checkpoint()
    assert gone not in w.table.rows


async def test_r39_after_a_lapse_nothing_is_written_before_the_broker_was_asked() -> None:
    w = Worker()
    w.devices()
    w.monotonic += 60
    await w.checkpoint()
    assert w.table.journal == [], "the lease has lapsed"
    await w.renew()
    await w.checkpoint()
    assert w.table.journal[0] == "commit" and "row" in w.table.journal
    assert w.lease.fresh()


async def test_r39_a_commit_that_is_not_accepted_renews_nothing() -> None:
    w = Worker()
    w.accepts = False
    w.monotonic += 60
    await w.renew()
    await w.renew()
    assert not w.lease.fresh()
    assert w.shards.metrics.value("vpp_dispatch_lease_lapses_total") == 1, "however often it is tried again"


def test_the_epoch_is_above_whatever_was_saved() -> None:
    table = Table()
    table.rows[b"3|0|head|41"] = b""
    assert Worker(table).shards.books[3].epoch == 1, "a deleted row is none"
    first = Worker(Table(), generation=7)
    assert first.shards.books[3].epoch == 7


async def test_the_epoch_rises_when_the_group_s_generation_starts_again() -> None:
    first = Worker(generation=9)
    first.devices()
    await first.checkpoint()
    assert Worker(first.table, generation=1).shards.books[3].epoch == 10


def test_a_record_that_was_folded_changes_nothing() -> None:
    w = Worker()
    w.devices()
    w.event()
    before = w.shards.books[3].counts()
    w.offset = 0
    w.devices()
    assert list(w.shards.books[3].counts()) == list(before)


async def test_r08_an_inbox_record_that_cannot_be_read_is_a_dead_letter_with_its_bytes() -> None:
    w = Worker()
    w.fold(b"nonsense")
    w.devices()
    await w.checkpoint()
    ((topic, letter),) = w.outlet.messages
    assert topic == "dead" and letter.value == b"nonsense"
    assert len(w.shards.books[3].roster) == 1, "the stream goes on"


def test_nothing_is_decided_before_the_inbox_is_read_up() -> None:
    w = Worker(end=3)
    w.devices()
    w.shards.tick(w.now)
    assert not w.shards.all_read_up()
    w.event()
    assert w.shards.all_read_up()
    assert w.shards.books[3].memberships["grid/a", 1].started


async def test_counts_are_repeated_after_a_takeover_even_if_the_reading_up_ends_in_the_middle_of_a_telling() -> None:
    first = Worker()
    first.devices()
    first.event()
    await first.checkpoint()
    w = Worker(first.table, generation=2, end=4)
    w.offset = 3
    await w.shards.tell(w.now)
    assert w.outlet.told == []
    w.fold(Consent(at=w.now, authorized=((SN, None),)))
    for membership in w.shards.books[3].memberships.values():
        membership.news = False
    await w.shards.tell(w.now)
    assert [p.event for p in w.outlet.told] == ["grid/a"]


async def test_counts_are_repeated_if_a_telling_was_refused() -> None:
    w = Worker()
    w.devices()
    w.event()
    w.outlet.refuses = True
    with pytest.raises(ExternalFault):
        await w.shards.tell(w.now)
    w.outlet.refuses = False
    await w.shards.tell(w.now)
    assert [p.event for p in w.outlet.told] == ["grid/a"]


async def test_an_outcome_that_changes_while_others_are_told_is_told_next() -> None:
    w = Worker()
    w.devices()
    w.fold(Consent(at=w.now, authorized=()))
    w.event()
    publish = w.outlet.publish
    interrupted: list[bool] = []

    async def slow(topic: str, messages: Sequence[Message], *, partition: int | None = None) -> None:
        await publish(topic, messages, partition=partition)
        if not interrupted:  # its owner consents, and withdraws, while the row is on its way
            interrupted.append(True)
            w.fold(Consent(at=w.now, authorized=((SN, None),)))
            w.fold(Consent(at=w.now, authorized=()))

    w.outlet.publish = slow  # type: ignore[method-assign]
    await w.shards.tell(w.now)
    membership = w.shards.books[3].memberships["grid/a", 1]
    pending = membership.tellings()
    assert len(pending) == 1, "it was taken in and has left again"
    before = len(w.outlet.messages)
    await w.shards.tell(w.now)
    assert len(w.outlet.messages) - before == len(pending)


async def test_r39_nothing_is_told_without_the_lease() -> None:
    w = Worker()
    w.devices()
    w.event()
    w.monotonic += 6
    await w.shards.tell(w.now)
    assert w.outlet.told == [] and w.outlet.messages == []


async def test_outcomes_are_told_before_the_counts_that_close_the_event() -> None:
    w = Worker()
    w.devices()
    w.event(start=5)
    w.fold(Close(event="grid/a", revision=1, at=w.now))
    await w.shards.tell(w.now)
    assert len(w.outlet.messages) == 1
    assert [p.counts.closed for p in w.outlet.told] == [True]

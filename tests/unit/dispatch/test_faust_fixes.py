"""Each overridden internal: stock misbehaves, ours does not. No broker; `tests/faults/test_shell.py` has one."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import aiokafka
import faust
import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import CommitFailedError, KafkaTimeoutError
from aiokafka.structs import ConsumerRecord, TopicPartition
from faust.exceptions import ProducerSendError
from faust.stores import memory
from faust.tables.base import Collection
from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.transport import consumer as stock_consumer
from faust.transport import producer as stock_producer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import FutureMessage, PendingMessage
from mode import Service
from mode.threads import QueueServiceThread, ServiceThread
from mode.utils.queues import FlowControlEvent

from vpp_dispatch.dispatch import faust_fixes as fixes
from vpp_dispatch.errors import ConfigurationError, ExternalFault, InvariantBroken

BULK, PLAIN = "inbox", "signals"


@pytest.fixture(autouse=True)
def thread_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the event loops of consumer threads: they have one from the start, and these never start."""
    loops: list[asyncio.AbstractEventLoop] = []
    construct = ServiceThread.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        loops.append(self.thread_loop)

    monkeypatch.setattr(ServiceThread, "__init__", init)
    yield
    for loop in loops:
        loop.close()


def make_app(*, fixed: bool = True, **settings: Any) -> Any:
    """An app that never connects; `fixed=False` gives stock Faust."""
    defaults: dict[str, Any] = {"store": "memory://", "consumer_auto_offset_reset": "earliest"}
    app = faust.App("shell", broker="kafka://127.0.0.1:1", **{**defaults, **settings})
    if fixed:
        fixes.install(app, bulk_topics=[BULK], bulk_max=3)
    app.topics._acking_topics.update({BULK, PLAIN})
    return app


def record(tp: TP, offset: int, value: bytes | None = b"v", key: bytes | None = b"k") -> ConsumerRecord:
    """A record as aiokafka hands it out, stamped 1.5 s after the epoch."""
    return ConsumerRecord(tp.topic, tp.partition, offset, 1500, 0, key, value, None, 1, 1, (("h", b"1"),))


# ---------------------------------------------------------------------------------------------------------- recovery


class FakeConsumer:
    """A consumer whose seek lets a record be fetched, if the flow is not stopped, as a broker's backlog would."""

    def __init__(self, queue: asyncio.Queue[str]) -> None:
        self.flow_active, self.queue, self.backlog = True, queue, ["record"]
        self.calls: list[str] = []
        self.rebalance = 0
        self.on_seek: Callable[[], Awaitable[None]] | None = None

    def assignment(self) -> set[TP]:
        return {TP(PLAIN, 0)}

    def stop_flow(self) -> None:
        self.flow_active = False

    def resume_flow(self) -> None:
        self.flow_active = True
        self._fetch()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        self.calls.append(f"resume {sorted(tps)}")

    async def wait_for_stopped_flow(self) -> None:
        self.calls.append("stopped")

    async def perform_seek(self) -> None:
        self._fetch()
        if self.on_seek is not None:
            await self.on_seek()

    async def seek_wait(self, offsets: object) -> None:
        self.calls.append("seek")

    def _fetch(self) -> None:
        while self.flow_active and self.backlog:
            self.queue.put_nowait(self.backlog.pop())


def make_recovery(*, fixed: bool, on_recover: Callable[[], Awaitable[None]] | None = None) -> tuple[Any, FakeConsumer]:
    app = make_app(fixed=fixed)
    if on_recover is not None:
        app.Table("rows", key_type=bytes, value_type=bytes, partitions=1, on_recover=on_recover)
    consumer = FakeConsumer(app.FlowControlQueue(maxsize=9, clear_on_resume=True))
    app.consumer, app.consumer_generation_id = consumer, 7
    app.on_rebalance_start()
    consumer.rebalance = app.rebalancing_count
    app._fetcher = Mock(maybe_start=AsyncMock())
    app.flow_control.resume()  # as it is while the changelogs are read
    return app.tables.recovery, consumer


@pytest.mark.parametrize("fixed", [False, True])
async def test_recovery_keeps_what_is_fetched_after_the_seek(fixed: bool) -> None:
    recovery, consumer = make_recovery(fixed=fixed)
    await recovery.on_recovery_completed(7)
    assert consumer.queue.qsize() == (1 if fixed else 0)
    assert consumer.flow_active and not consumer.backlog
    assert recovery.completed.is_set()


async def test_recovery_waits_for_the_fetch_in_flight_before_it_resumes_partitions() -> None:
    recovery, consumer = make_recovery(fixed=True)
    await recovery.on_recovery_completed(7)
    assert consumer.calls == ["stopped", f"resume [{TP(PLAIN, 0)!r}]"]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("when", ["on_recover", "seek"])
async def test_a_rebalance_that_begins_meanwhile_is_not_declared_over(fixed: bool, when: str) -> None:
    async def begin() -> None:
        recovery.app.on_rebalance_start()
        consumer.stop_flow()

    async def nothing() -> None:
        pass

    recovery, consumer = make_recovery(fixed=fixed, on_recover=begin if when == "on_recover" else nothing)
    if when == "seek":
        consumer.on_seek = begin
    await recovery.on_recovery_completed(7)
    assert recovery.app.rebalancing is fixed
    assert consumer.flow_active is not fixed
    assert recovery.completed.is_set() is not fixed


async def test_recovery_of_an_older_generation_resumes_nothing() -> None:
    recovery, consumer = make_recovery(fixed=True)
    await recovery.on_recovery_completed(6)
    assert not consumer.flow_active
    assert not recovery.completed.is_set()


@pytest.mark.parametrize("fixed", [False, True])
async def test_a_failing_on_recover_is_not_swallowed(fixed: bool) -> None:
    async def rebuild() -> None:
        raise InvariantBroken("a row that cannot be read")

    recovery, _ = make_recovery(fixed=fixed, on_recover=rebuild)
    if fixed:
        with pytest.raises(InvariantBroken):
            await recovery.on_recovery_completed(7)
        assert not recovery.completed.is_set()
    else:
        await recovery.on_recovery_completed(7)
        assert recovery.completed.is_set()


@pytest.mark.parametrize("fixed", [False, True])
async def test_changelogs_are_seeked_only_when_no_fetch_is_in_flight(fixed: bool) -> None:
    recovery, consumer = make_recovery(fixed=fixed)
    await recovery._seek_offsets(consumer, {TP("rows", 0)}, {TP("rows", 0): -1}, "active")
    assert consumer.calls == (["stopped", "seek"] if fixed else ["seek"])


@pytest.mark.parametrize("fixed", [False, True])
async def test_a_broker_away_for_longer_than_the_timeout_does_not_end_the_recovery(fixed: bool) -> None:
    recovery, _ = make_recovery(fixed=fixed)
    broker_is_back = asyncio.Event()
    waiting = asyncio.ensure_future(recovery._wait(broker_is_back.wait(), timeout=0.05))
    if not fixed:
        with pytest.raises(ServiceStopped):
            await waiting
        return
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    broker_is_back.set()
    await waiting


async def test_a_rebalance_still_interrupts_a_wait_of_the_recovery() -> None:
    recovery, _ = make_recovery(fixed=True)
    recovery.signal_recovery_start.set()
    with pytest.raises(RebalanceAgain):
        await recovery._wait(asyncio.Event().wait())


# ---------------------------------------------------------------------------------------------------------- consumer


def make_consumer(app: Any, *, committed: dict[TP, int | None] | None = None) -> Any:
    consumer = app.consumer
    consumer._thread = Mock(
        seek_to_committed=AsyncMock(return_value={TopicPartition(*tp): at for tp, at in (committed or {}).items()}),
        seek_to_beginning=AsyncMock(return_value=True),
        highwater=Mock(return_value=100),
    )
    return consumer


@pytest.mark.parametrize("fixed", [False, True])
async def test_perform_seek_believes_the_broker(fixed: bool) -> None:
    failed, plain = TP(PLAIN, 0), TP(PLAIN, 1)
    app = make_app(fixed=fixed)
    consumer = make_consumer(app, committed={failed: None, plain: 9})
    consumer._committed_offset[failed] = 3  # left behind by a commit that failed
    await consumer.perform_seek()
    assert consumer._committed_offset[failed] == (None if fixed else 3)
    assert consumer._read_offset[plain] == consumer._committed_offset[plain] == 9
    asked_for = [call.args for call in consumer._thread.seek_to_beginning.call_args_list]
    assert asked_for == ([(TopicPartition(*failed),)] if fixed else [])
    if fixed:
        assert fixes.committed_position(app, failed) == 0
        assert fixes.committed_position(app, plain) == 9
        assert fixes.committed_position(app, TP(PLAIN, 2)) is None


async def test_perform_seek_leaves_changelogs_alone() -> None:
    app = make_app()
    table = app.Table("rows", key_type=bytes, value_type=bytes, partitions=1)
    changelog = TP(table.changelog_topic_name, 0)
    consumer = make_consumer(app, committed={changelog: None})
    await consumer.perform_seek()
    consumer._thread.seek_to_beginning.assert_not_called()
    assert fixes.committed_position(app, changelog) is None


async def test_positions_are_unknown_from_the_revoke_to_the_next_seek() -> None:
    tp = TP(PLAIN, 0)
    app = make_app()
    consumer = make_consumer(app, committed={tp: 9})
    seen: list[int | None] = []

    async def hook(*_: object) -> None:
        seen.append(fixes.committed_position(app, tp))

    consumer._on_partitions_revoked = consumer._on_partitions_assigned = hook
    await consumer.perform_seek()
    assert fixes.committed_position(app, tp) == 9
    await consumer.on_partitions_revoked({tp})
    await consumer.on_partitions_assigned({tp}, 8)
    assert seen == [None, None]
    assert fixes.committed_position(app, tp) is None
    await consumer.perform_seek()
    assert fixes.committed_position(app, tp) == 9


async def test_a_seek_that_a_rebalance_overtakes_sets_no_position() -> None:
    tp = TP(PLAIN, 0)
    app = make_app()
    consumer = make_consumer(app)
    consumer._on_partitions_revoked = AsyncMock()

    async def revoked_meanwhile() -> dict[TopicPartition, int]:
        app.on_rebalance_start()
        await consumer.on_partitions_revoked({tp})
        return {TopicPartition(*tp): 9}

    consumer._thread.seek_to_committed = revoked_meanwhile
    await consumer.perform_seek()
    assert fixes.committed_position(app, tp) is None
    assert consumer._committed_offset[tp] is None


@pytest.mark.parametrize("fixed", [False, True])
async def test_the_fetch_in_flight_is_waited_for_and_has_its_own_set_of_partitions(fixed: bool) -> None:
    consumer = make_consumer(make_app(fixed=fixed))
    consumer._set_active_tps({TP(PLAIN, 0)})
    fetching, answer, asked = asyncio.Event(), asyncio.Event(), []

    async def getmany(active_partitions: set[TP], timeout: float) -> dict[TP, Any]:
        asked.append(active_partitions)
        fetching.set()
        await answer.wait()
        return {}

    consumer._getmany = getmany
    fetch = asyncio.ensure_future(consumer._wait_next_records(1.0))
    await fetching.wait()
    consumer._get_active_partitions().clear()  # a rebalance
    assert asked == [{TP(PLAIN, 0)} if fixed else set()]  # aiokafka takes the empty set for "all partitions"
    consumer.stop_flow()
    stopped = asyncio.ensure_future(consumer.wait_for_stopped_flow())
    await asyncio.sleep(0)
    assert stopped.done() is not fixed
    answer.set()
    await asyncio.wait_for(stopped, 1)
    await fetch


async def drain(consumer: Any, *fetches: dict[TP, list[ConsumerRecord]], ack: bool = True) -> list[Any]:
    """Run Faust's own drain loop over some fetches; return the messages delivered, acked in order."""
    delivered: list[Any] = []
    left = list(fetches)

    async def getmany(active_partitions: object, timeout: float) -> dict[TP, list[ConsumerRecord]]:
        return left.pop(0)

    async def callback(message: Any) -> None:
        delivered.append(message)
        if ack:
            consumer.ack(message)

    consumer._getmany, consumer.callback = getmany, callback
    consumer._set_active_tps({tp for fetch in fetches for tp in fetch})
    await consumer._drain_messages(Mock(_stopped=Mock(is_set=lambda: not left)))
    return delivered


@pytest.mark.parametrize("fixed", [False, True])
async def test_offset_0_alone_and_then_a_gap_does_not_end_the_commits(fixed: bool) -> None:
    tp = TP(PLAIN, 0)
    consumer = make_consumer(make_app(fixed=fixed))
    await drain(consumer, {tp: [record(tp, 0)]})
    assert consumer._filter_committable_offsets([tp]) == {tp: 1}
    consumer._committed_offset[tp] = 1
    await drain(consumer, {tp: [record(tp, 5)]})  # 1 to 4 were compacted away
    assert consumer._filter_committable_offsets([tp]) == ({tp: 6} if fixed else {})


async def test_bulk_topics_come_in_runs_of_one_partition_and_their_last_ack_commits_the_run() -> None:
    bulk, plain = TP(BULK, 3), TP(PLAIN, 0)
    consumer = make_consumer(make_app())
    records = [record(bulk, offset) for offset in range(7)]
    first = await drain(consumer, {bulk: records[:1]})
    assert consumer._filter_committable_offsets([bulk]) == {bulk: 1}
    consumer._committed_offset[bulk] = 1
    rest = await drain(consumer, {bulk: records[1:], plain: [record(plain, 4), record(plain, 5)]})
    runs = [message for message in first + rest if message.topic == BULK]
    assert [[each.offset for each in run.value] for run in runs] == [[0], [1, 2, 3], [4, 5, 6]]
    assert [(run.partition, run.offset, run.timestamp) for run in runs] == [(3, 0, 1.5), (3, 3, 1.5), (3, 6, 1.5)]
    assert runs[-1].value[-1] is records[-1]
    assert [message.offset for message in rest if message.topic == PLAIN] == [4, 5]
    assert consumer._filter_committable_offsets([bulk]) == {bulk: 7}


async def test_the_lag_is_what_lies_between_what_was_given_out_and_the_end_of_the_last_fetch() -> None:
    bulk, plain, gone = TP(BULK, 3), TP(PLAIN, 0), TP(PLAIN, 1)
    consumer = make_consumer(make_app())
    consumer.positions = {bulk: 0, plain: 4}  # as a seek leaves them; `gone` is another worker's by now
    consumer.reached = {bulk: 0, plain: 4, gone: 1}
    ends: dict[TP, int | None] = {bulk: 10, plain: None, gone: 50}
    consumer.highwater = ends.__getitem__
    consumer.app.consumer = consumer
    assert fixes.lag(consumer.app, (BULK, PLAIN)) == {BULK: 10, PLAIN: 0}
    await drain(consumer, {bulk: [record(bulk, offset) for offset in range(7)]})
    ends[plain] = 6
    assert fixes.lag(consumer.app, (BULK, PLAIN)) == {BULK: 3, PLAIN: 2}

    def taken(tp: TP) -> int:
        raise AssertionError("Partition is not assigned")

    consumer.highwater = taken
    assert fixes.lag(consumer.app, (BULK,)) == {BULK: 0}


async def test_nothing_of_a_fetch_is_delivered_after_the_flow_stopped_or_a_rebalance() -> None:
    tp = TP(BULK, 0)
    for interrupt in ("stop_flow", "on_rebalance_start"):
        app = make_app()
        consumer = make_consumer(app)
        consumer._set_active_tps({tp})
        consumer._getmany = AsyncMock(return_value={tp: [record(tp, offset) for offset in range(9)]})
        offsets = []
        async for _, message in consumer.getmany(1.0):
            offsets.append(message.offset)
            getattr(app if interrupt == "on_rebalance_start" else consumer, interrupt)()
        assert offsets == [2]


async def test_what_is_fetched_after_the_flow_resumed_in_another_assignment_is_delivered() -> None:
    tp = TP(PLAIN, 0)
    consumer = make_consumer(make_app())
    consumer._getmany = AsyncMock(return_value={tp: [record(tp, 0)]})
    consumer._on_partitions_assigned = AsyncMock()
    consumer.stop_flow()
    fetch = asyncio.ensure_future(anext(consumer.getmany(1.0)))
    await asyncio.sleep(0)  # it waits for the flow
    consumer.app.on_rebalance_start()
    await consumer.on_partitions_assigned({tp}, 8)
    consumer.resume_flow()
    assert (await asyncio.wait_for(fetch, 1))[1].offset == 0


async def test_a_stopped_flow_drops_the_fetch_without_a_seek_of_its_own() -> None:
    tp = TP(PLAIN, 0)
    consumer = make_consumer(make_app())
    consumer._set_active_tps({tp})

    async def getmany(active_partitions: object, timeout: float) -> dict[TP, list[ConsumerRecord]]:
        consumer.stop_flow()
        return {tp: [record(tp, 0)]}

    consumer._getmany = getmany
    assert [message async for _, message in consumer.getmany(1.0)] == []
    consumer._thread.seek_to_committed.assert_not_called()


@pytest.mark.parametrize("fixed", [False, True])
async def test_the_broker_holds_an_empty_fetch_for_the_time_configured(fixed: bool) -> None:
    app = make_app(fixed=fixed)
    consumer = app.consumer._thread._create_worker_consumer(app.transport)
    assert consumer._fetch_max_wait_ms == (100 if fixed else 1500)
    assert consumer._enable_auto_commit is False
    await consumer.stop()


# ---------------------------------------------------------------------------------------------------------- producer


class Gate:
    """A channel that publishes once it is open."""

    def __init__(self, error: Exception | None = None) -> None:
        self.opened, self.reached, self.sent, self.error = asyncio.Event(), asyncio.Event(), 0, error

    async def publish_message(self, fut: FutureMessage, wait: bool = False) -> None:
        self.reached.set()
        await self.opened.wait()
        if self.error is not None:
            raise self.error
        self.sent += 1

    def message(self) -> FutureMessage:
        return FutureMessage(cast(PendingMessage, SimpleNamespace(channel=self)))


@pytest.mark.parametrize("fixed", [False, True])
async def test_flush_waits_until_everything_is_sent(fixed: bool) -> None:
    buffer, gate = make_app(fixed=fixed).producer.buffer, Gate()
    async with buffer:
        for _ in range(5):
            buffer.put(gate.message())
        flush = asyncio.ensure_future(buffer.flush())
        await asyncio.wait([flush], timeout=0.3)
        assert flush.done() is not fixed
        assert gate.sent == 0
        gate.opened.set()
        await flush
        assert gate.sent == (5 if fixed else 0)
        await buffer.flush()  # stock refuses to stop with messages queued


@pytest.mark.parametrize("fixed", [False, True])
async def test_flush_counts_the_message_in_flight(fixed: bool) -> None:
    buffer, gate = make_app(fixed=fixed).producer.buffer, Gate()
    async with buffer:
        buffer.put(gate.message())
        await gate.reached.wait()
        assert buffer.size == 0  # the queue is empty, the message is not sent
        flush = asyncio.ensure_future(buffer.flush())
        await asyncio.wait([flush], timeout=0.05)
        assert flush.done() is not fixed
        gate.opened.set()
        await flush


async def test_flush_raises_in_the_end_so_that_nothing_is_committed() -> None:
    buffer, gate = make_app(producer_request_timeout=0.05).producer.buffer, Gate()
    async with buffer:
        buffer.put(gate.message())
        with pytest.raises(ProducerSendError):
            await buffer.flush()
        gate.opened.set()
        await buffer.flush()


async def test_flush_raises_when_the_buffer_cannot_send_any_more() -> None:
    buffer = make_app().producer.buffer
    buffer.put(Gate().message())
    with pytest.raises(ProducerSendError):
        await buffer.flush()


@pytest.mark.parametrize("fixed", [False, True])
async def test_who_awaits_a_delivery_hears_of_a_send_that_raised(fixed: bool) -> None:
    buffer = make_app(fixed=fixed).producer.buffer
    failing, good = Gate(ProducerSendError("too large")), Gate()
    failing.opened.set()
    good.opened.set()
    message = failing.message()
    buffer.put(message)
    buffer.put(good.message())
    if not fixed:
        with pytest.raises(ProducerSendError):
            await buffer._handle_pending(buffer)
        assert not message.done() and good.sent == 0
        return
    async with buffer:
        with pytest.raises(ProducerSendError):
            await message
        await buffer.flush()
        assert good.sent == 1


@pytest.mark.parametrize("fixed", [False, True])
async def test_the_producer_is_idempotent(fixed: bool) -> None:
    producer = make_app(fixed=fixed).producer
    assert producer._settings_extra() == ({"acks": "all", "enable_idempotence": True} if fixed else {})


# ------------------------------------------------------------------------------------------------- schema and table


@pytest.mark.parametrize("value", [b"\xff not json", None, [record(TP(BULK, 0), 0)]])
async def test_raw_schema_passes_everything_untouched(value: Any) -> None:
    app = make_app()
    message = app.consumer._to_message(TP(BULK, 0), record(TP(BULK, 0), 0))
    message.value = value
    event = await app.topic(BULK, schema=fixes.RawSchema()).decode(message)
    assert (event.key, event.value) == (b"k", value)
    assert event.value is value
    assert event.headers == {"h": b"1"}


async def test_stock_schema_swallows_what_it_cannot_decode() -> None:
    app = make_app(fixed=False)
    message = app.consumer._to_message(TP(BULK, 0), record(TP(BULK, 0), 0, value=b"\xff not json"))
    assert await app.topic(BULK, value_type=int, key_serializer="raw").decode(message) is None


async def test_raw_schema_sends_bytes_and_headers_as_they_are() -> None:
    app, headers = make_app(), [("traceparent", b"00-1")]
    topic = app.topic(BULK, schema=fixes.RawSchema())
    future = topic.as_future_message(key=b"\xff", value=b"\x00", partition=3, headers=headers)
    sent = future.message
    assert (sent.key, sent.value, sent.partition) == (b"\xff", b"\x00", 3)
    assert ("traceparent", b"00-1") in list(sent.headers)


def make_table(app: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    table = app.Table("rows", key_type=bytes, value_type=bytes, partitions=64)
    sent: list[tuple[Any, ...]] = []
    app.producer.buffer.put = lambda fut: sent.append((fut.message.partition, fut.message.key, fut.message.value, fut))
    return table, sent


async def test_rows_can_be_written_where_there_is_no_current_event() -> None:
    stock = make_app(fixed=False).Table("rows", key_type=bytes, value_type=bytes, partitions=64)
    with pytest.raises(TypeError):
        stock[b"17|0"] = b"v"
    table, sent = make_table(make_app())
    delivery = table.put(b"17|0|i|4", b"v")
    assert dict(table.data) == {b"17|0|i|4": b"v"}
    assert sent == [(17, b"17|0|i|4", b"v", delivery)]
    dropped = table.drop(b"17|0|i|4")
    assert dict(table.data) == {}
    assert sent[1] == (17, b"17|0|i|4", None, dropped)
    assert not delivery.done() and not dropped.done()


@pytest.mark.parametrize("key", [b"", b"17", b"|x", b"-1|x", b"a|x"])
async def test_a_key_without_its_partition_is_refused_before_anything_changes(key: bytes) -> None:
    table, sent = make_table(make_app())
    with pytest.raises(InvariantBroken):
        table.put(key, b"v")
    with pytest.raises(InvariantBroken):
        table.drop(key)
    with pytest.raises(InvariantBroken):
        table[key] = b"v"
    assert not sent and not table.data


async def test_an_empty_value_is_refused() -> None:
    table, sent = make_table(make_app())
    with pytest.raises(InvariantBroken):
        table.put(b"1|x", b"")
    assert not sent and not table.data


@pytest.mark.parametrize("fixed", [False, True])
async def test_rows_of_a_partition_lost_and_given_back_do_not_outlive_their_deletion(fixed: bool) -> None:
    app = make_app(fixed=fixed)
    table = app.Table("rows", key_type=bytes, value_type=bytes, partitions=64)
    for key in (b"1|kept", b"2|lost", b"3|new"):
        table.data[key] = b"v"
    tps = {number: TP(table.changelog_topic_name, number) for number in (1, 2, 3)}
    await table.on_rebalance({tps[1], tps[3]}, {tps[2], TP("other", 1)}, {tps[3]}, 5)
    assert set(table.data) == ({b"1|kept"} if fixed else {b"1|kept", b"2|lost", b"3|new"})


# -------------------------------------------------------------------------------------------- install, commit, ends


async def test_install_puts_in_every_part() -> None:
    app = make_app()
    assert type(app.tables.recovery) is fixes.SafeRecovery
    assert type(app.consumer) is fixes.SafeConsumer
    assert type(app.consumer._thread) is fixes.SafeConsumerThread
    assert type(app.producer) is fixes.SafeProducer
    assert type(app.producer.buffer) is fixes.SafeBuffer
    assert type(app.Table("rows", partitions=1)) is fixes.PartitionedTable


async def test_install_refuses_what_it_does_not_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(**settings: Any) -> None:
        fixes.install(make_app(fixed=False, **settings), bulk_topics=[])

    for settings in ({"consumer_auto_offset_reset": "latest"}, {"processing_guarantee": "exactly_once"}):
        with pytest.raises(ConfigurationError):
            install(**settings)
    late = make_app(fixed=False)
    late.Table("rows", partitions=1)
    with pytest.raises(ConfigurationError, match="first table"):
        fixes.install(late, bulk_topics=[])
    install()
    monkeypatch.setattr(fixes, "PINNED", {"aiokafka": "0.13.0"})
    with pytest.raises(ConfigurationError, match=r"0\.13\.0"):
        install()


class FakeBroker:
    """Stands for the consumer thread and its aiokafka consumer."""

    def __init__(self, app: Any, assigned: Iterable[TP], error: Exception | None = None) -> None:
        self._coordinator = SimpleNamespace(generation=7)
        self.assigned, self.error = {TopicPartition(*tp) for tp in assigned}, error
        self.commits: list[dict[TopicPartition, int]] = []
        app.consumer._thread = self

    def _ensure_consumer(self) -> FakeBroker:
        return self

    def assignment(self) -> set[TopicPartition]:
        return self.assigned

    async def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.commits.append({tp: meta.offset for tp, meta in offsets.items()})

    async def call_thread(self, function: Callable[[], Awaitable[Any]]) -> Any:
        return await function()

    async def highwaters(self, *tps: TP) -> dict[TopicPartition, int]:
        if self.error is not None:
            raise self.error
        return {TopicPartition(*tp): 12 for tp in tps}


async def test_commit_offsets_commits_what_is_assigned() -> None:
    app = make_app()
    broker = FakeBroker(app, [TP(BULK, 1), TP(BULK, 2)])
    assert await fixes.commit_offsets(app, {TP(BULK, 1): 5, TP(BULK, 3): 9}, generation=7) is True
    assert broker.commits == [{TopicPartition(BULK, 1): 5}]
    assert await fixes.commit_offsets(app, {TP(BULK, 3): 9}) is False
    assert await fixes.commit_offsets(app, {}) is False
    assert len(broker.commits) == 1


@pytest.mark.parametrize(
    ("error", "generation"), [(CommitFailedError("rebalanced"), 7), (KafkaTimeoutError(), 7), (None, 6)]
)
async def test_a_refused_commit_is_a_retriable_fault(error: Exception | None, generation: int) -> None:
    app = make_app()
    broker = FakeBroker(app, [TP(BULK, 1)], error)
    with pytest.raises(ExternalFault) as fault:
        await fixes.commit_offsets(app, {TP(BULK, 1): 5}, generation=generation)
    assert fault.value.retriable and fault.value.reason == "commit_refused"
    assert not broker.commits


async def test_before_the_consumer_started_nothing_is_committed() -> None:
    app = make_app()
    app.consumer._thread.call_thread = lambda function: function()
    assert await fixes.commit_offsets(app, {TP(BULK, 1): 5}) is False


async def test_highwaters() -> None:
    app = make_app()
    broker = FakeBroker(app, [])
    assert await fixes.highwaters(app, []) == {}
    assert await fixes.highwaters(app, [TP(BULK, 1)]) == {TP(BULK, 1): 12}
    broker.error = KafkaTimeoutError()
    with pytest.raises(ExternalFault):
        await fixes.highwaters(app, [TP(BULK, 1)])


# ------------------------------------------------------------------------------------------------------ pinned source

RELIED_ON: dict[str, Any] = {
    "SafeRecovery": [
        Recovery.on_recovery_completed,
        Recovery._seek_offsets,
        Recovery._wait,
        Recovery._restart_recovery,
        Recovery.on_rebalance,
        Service.wait_first,
        FlowControlEvent.resume,
    ],
    "SafeTableManager": [cast(property, TableManager.recovery).fget],
    "SafeConsumerThread": [
        driver.AIOKafkaConsumerThread._create_worker_consumer,
        driver.AIOKafkaConsumerThread._fetch_records,
        aiokafka.AIOKafkaConsumer.start,
    ],
    "SafeConsumer": [
        stock_consumer.Consumer._wait_next_records,
        stock_consumer.Consumer.getmany,
        stock_consumer.Consumer.perform_seek,
        stock_consumer.Consumer.on_partitions_revoked,
        stock_consumer.Consumer.on_partitions_assigned,
        stock_consumer.Consumer._drain_messages,
        stock_consumer.Consumer._add_gap,
        stock_consumer.Consumer._new_offset,
        stock_consumer.Consumer.wait_for_stopped_flow,
        faust.App._on_partitions_revoked,
        faust.App._on_partitions_assigned,
        faust.App.on_rebalance_start,
        driver.ConsumerRebalanceListener.on_partitions_revoked,
        aiokafka.AIOKafkaConsumer.seek_to_committed,
        aiokafka.AIOKafkaConsumer.seek_to_beginning,
        Fetcher.fetched_records,
    ],
    "SafeBuffer": [
        stock_producer.ProducerBuffer.put,
        stock_producer.ProducerBuffer.flush,
        stock_producer.ProducerBuffer._send_pending,
        stock_producer.ProducerBuffer._handle_pending,
    ],
    "SafeProducer": [
        stock_producer.Producer.__init__,
        driver.Producer._settings_extra,
        driver.Producer.flush,
        faust.App._new_producer,
    ],
    "RawSchema": [faust.Schema.compile, faust.Schema.dumps_key, faust.Schema.dumps_value],
    "PartitionedTable": [
        Collection.partition_for_key,
        Collection.send_changelog,
        Collection.on_rebalance,
        memory.Store.apply_changelog_batch,
        memory.Store.on_recovery_completed,
    ],
    "commit_offsets": [
        QueueServiceThread.call_thread,
        aiokafka.AIOKafkaConsumer.commit,
        GroupCoordinator.commit_offsets,
    ],
}

SOURCES = {
    "faust.app.base.App.on_rebalance_start": "5c1e23de3067",
    "faust.transport.drivers.aiokafka.ConsumerRebalanceListener.on_partitions_revoked": "348c3aec879f",
    "faust.tables.recovery.Recovery.on_recovery_completed": "6ef567acf072",
    "faust.tables.recovery.Recovery._seek_offsets": "19598ca63d94",
    "faust.tables.recovery.Recovery._wait": "ec7429b70176",
    "faust.tables.recovery.Recovery._restart_recovery": "6bd8a8558a2d",
    "faust.tables.recovery.Recovery.on_rebalance": "aa4d997a1795",
    "mode.services.Service.wait_first": "feade6a31f8a",
    "mode.utils.queues.FlowControlEvent.resume": "4dcdc1253fd0",
    "faust.tables.manager.TableManager.recovery": "f0bf5de78b4c",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._create_worker_consumer": "c2701bfc3e6f",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._fetch_records": "39a2c6c79fc1",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.start": "2f1ba7044332",
    "faust.transport.consumer.Consumer._wait_next_records": "6218e1969a63",
    "faust.transport.consumer.Consumer.getmany": "4b168d84882a",
    "faust.transport.consumer.Consumer.perform_seek": "0e8c130ff4b0",
    "faust.transport.consumer.Consumer.on_partitions_revoked": "d04b7ae72c6f",
    "faust.transport.consumer.Consumer.on_partitions_assigned": "29ce96596f05",
    "faust.transport.consumer.Consumer._drain_messages": "44a2500309e8",
    "faust.transport.consumer.Consumer._add_gap": "4df2573ded7c",
    "faust.transport.consumer.Consumer._new_offset": "1d2c7ea89a7a",
    "faust.transport.consumer.Consumer.wait_for_stopped_flow": "9a686a7f90a4",
    "faust.app.base.App._on_partitions_revoked": "d5c895bbe57d",
    "faust.app.base.App._on_partitions_assigned": "de932b7927db",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.seek_to_committed": "f6cd85c8b70a",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.seek_to_beginning": "231229deedd7",
    "aiokafka.consumer.fetcher.Fetcher.fetched_records": "be4348896b9b",
    "faust.transport.producer.ProducerBuffer.put": "bf26dfbc01d9",
    "faust.transport.producer.ProducerBuffer.flush": "26fbebb124ad",
    "faust.transport.producer.ProducerBuffer._send_pending": "4a9d5f932b56",
    "faust.transport.producer.ProducerBuffer._handle_pending": "78d648030fd2",
    "faust.transport.producer.Producer.__init__": "5c53a4b47aa1",
    "faust.transport.drivers.aiokafka.Producer._settings_extra": "a4c7bc41b638",
    "faust.transport.drivers.aiokafka.Producer.flush": "36d0cb3615f6",
    "faust.app.base.App._new_producer": "e7e1814e715d",
    "faust.serializers.schemas.Schema.compile": "d46eec5ce319",
    "faust.serializers.schemas.Schema.dumps_key": "9111344cec6f",
    "faust.serializers.schemas.Schema.dumps_value": "ed76836c509a",
    "faust.tables.base.Collection.partition_for_key": "3b2291811b8d",
    "faust.tables.base.Collection.send_changelog": "3dd3884e1b5f",
    "faust.tables.base.Collection.on_rebalance": "0812ad692171",
    "faust.stores.memory.Store.apply_changelog_batch": "71863e3cd727",
    "faust.stores.memory.Store.on_recovery_completed": "a00bef343e13",
    "mode.threads.QueueServiceThread.call_thread": "479edda75b54",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.commit": "79b057d88220",
    "aiokafka.consumer.group_coordinator.GroupCoordinator.commit_offsets": "5cbe31af28d6",
}


def source_of(function: Any) -> tuple[str, str]:
    function = getattr(function, "fun", function)  # mode's Service.task
    name = f"{function.__module__}.{function.__qualname__}"
    return name, hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("ours", "function"),
    [(ours, function) for ours, functions in RELIED_ON.items() for function in functions],
    ids=lambda value: value if isinstance(value, str) else source_of(value)[0],
)
async def test_the_source_that_the_fixes_rely_on_is_unchanged(ours: str, function: Any) -> None:
    name, found = source_of(function)
    assert SOURCES.get(name) == found, (
        f"{name} is not the source that faust_fixes.{ours} was written against. Read it, mend {ours} where it needs "
        f"mending, run tests/faults/test_shell.py, then set SOURCES[{name!r}] to {found!r} and PINNED to the version."
    )

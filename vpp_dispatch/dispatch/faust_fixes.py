"""What Faust gets wrong for us, put right: recovery, consumer, producer, table.

Written against exactly faust-streaming 0.15.3, aiokafka 0.14.0 and mode-streaming 0.7.1 (`PINNED`): each class says
which internal it replaces and why, and a unit test pins the source of everything that is overridden or relied on. The
evidence is in `docs/decisions/0001-faust-internals.md`.

Rules for what is built on this:

* Call `install(app, ...)` before the first `app.Table(...)`; one writer per partition, agents with `concurrency=1`.
* Await what `PartitionedTable.put` and `drop` return: a delivery that failed is known only there.
* Delivery is at least once. After a rebalance the same records may come again from the committed offset.
* A topic with `acks=False` is neither tracked nor committed by Faust: commit it with `commit_offsets`, and only
  positions that are known (`committed_position` is not None, or a record was read since).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, TypeAlias, cast

import aiokafka
import faust
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata
from faust.exceptions import ConsumerNotStarted, ProducerSendError
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from faust.types import TP, ConsumerMessage, RecordMetadata
from faust.types.enums import ProcessingGuarantee
from faust.types.events import EventT
from faust.types.tuples import FutureMessage, Message

from vpp_dispatch.errors import ConfigurationError, ExternalFault, InvariantBroken

PINNED: Mapping[str, str] = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0", "mode-streaming": "0.7.1"}
"""The only versions these overrides were read, written and tested against."""

FETCH_WAIT_S = 0.25
"""Longest time one fetch waits for records (stock: 1 s). Every rebalance waits for the fetch in flight."""

BulkRun: TypeAlias = list[ConsumerRecord]
"""`event.value` on a bulk topic: 1 to `bulk_max` records of one partition in rising offsets, keys and values as
bytes."""


class SafeRecovery(Recovery):
    """Replaces `on_recovery_completed`, `_seek_offsets` and `_wait` (faust 0.15.3, `tables/recovery.py`).

    Stock resumes the stream partitions, seeks them one by one and then calls `flow_control.resume()`, which clears
    every queue: what was fetched after its own seek is gone, the position is past it, and the next record turns the
    hole into a gap that is committed. Here nothing is fetched from before the seek until after the clearing. It also
    let a failing `on_recover` callback pass in silence; here that crashes the worker, since a state that was not
    rebuilt must not work on. And where the next rebalance has begun meanwhile, stock resumes the flow of the partitions
    being revoked and declares the rebalance over; here it leaves both to the next recovery.
    """

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Seek the stream partitions to the committed offsets, then let records flow.

        Args:
            generation_id: the consumer group's generation this recovery was started for.
        """
        app = cast(Any, self.app)
        consumer = app.consumer
        consumer.stop_flow()
        app.flow_control.suspend()
        await consumer.wait_for_stopped_flow()
        self.log.info("Restore complete!")
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        await asyncio.gather(
            *(
                table.on_recovery_completed(self.actives_for_table[table], self.standbys_for_table[table])
                for table in self.tables.values()
            )
        )
        if self._overtaken(generation_id):
            return
        assignment = consumer.assignment()
        consumer.resume_partitions({tp for tp in assignment if not self._is_changelog_tp(tp)})
        if assignment:
            self.log.info("Seek stream partitions to committed offsets.")
            await self._wait(consumer.perform_seek())
            if self._overtaken(generation_id):
                return
        self.completed.set()
        app.flow_control.resume()  # clears every queue: nothing that was fetched after the seek may be in one
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        if not app.assignor.assigned_standbys():
            self.tables.on_standbys_ready()
        if not self._overtaken(generation_id):
            app.on_rebalance_end()
            self.log.info("Worker ready")

    def _overtaken(self, generation_id: int) -> bool:
        app = cast(Any, self.app)
        overtaken: bool = app.consumer_generation_id != generation_id or app.rebalancing_count != app.consumer.rebalance
        if overtaken:
            self.log.info("Recovery of generation %s: the next rebalance has begun", generation_id)
        return overtaken

    async def _seek_offsets(self, consumer: Any, tps: set[TP], offsets: Any, title: str) -> None:
        # A fetch still in flight would take changelog records after this seek and drop them (the flow is stopped): a
        # hole in the table.
        await consumer.wait_for_stopped_flow()
        await super()._seek_offsets(consumer, tps, offsets, title)

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        # Stock takes its own timeout for a stop: a broker away for longer ended the recovery for good, without a
        # word. Here it waits until the broker is back, the next rebalance or the stop; what aiokafka raises crashes
        # the worker.
        await super()._wait(coro)


class SafeTableManager(TableManager):
    """Replaces the property `recovery` (faust 0.15.3, `tables/manager.py`), the only place that names the Recovery
    class."""

    _recovery: Recovery | None

    @property
    def recovery(self) -> Recovery:
        """The recovery service of this worker's tables."""
        if self._recovery is None:
            self._recovery = SafeRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class SafeConsumerThread(driver.AIOKafkaConsumerThread):
    """Replaces `_create_worker_consumer` (faust 0.15.3, `transport/drivers/aiokafka.py`).

    The driver fixes `fetch_max_wait_ms=1500`; every ListOffsets waits behind that poll, 0.5 to 1.5 s at each rebalance.
    """

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # aiokafka 0.14.0 reads the attribute when the consumer starts, which is after this.
        consumer._fetch_max_wait_ms = transport.fetch_max_wait_ms
        return consumer


class SafeConsumer(driver.Consumer):
    """Bulk delivery and truthful positions. Replaces, of faust 0.15.3 (`transport/consumer.py`):

    * `_wait_next_records`: stock sets `not_waiting_next_records` where it has to clear it, so `wait_for_stopped_flow`
      never waited; and it hands aiokafka the live set of partitions, which, once emptied by a rebalance, means "all
      partitions".
    * `getmany`: one message per partition and fetch on bulk topics; adds the gap after a lone offset 0, which the
      stock drain loop forgets (`gap > 1 and r_offset`) so that commits of the partition stop; records of a stopped
      flow are dropped without the stock seek, as the recovery that follows seeks once no fetch is in flight.
    * `perform_seek`: believes the broker only. Stock keeps the offset of a commit that failed and leaves a partition
      without a commit where it is: after a broker freeze a partition then stood still.
    * `on_partitions_revoked`, `on_partitions_assigned`: forget the positions, remember the rebalance.
    """

    positions: dict[TP, int]
    """Where `perform_seek` put each stream partition in this assignment; empty from revoke (its hook included) to
    seek."""

    reached: dict[TP, int]
    """The next offset of each stream partition that has not been given to its agent."""

    rebalance = 0
    """`app.rebalancing_count` at the last assignment; the consumer's thread raises it as soon as a rebalance begins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.positions = {}
        self.reached = {}
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> SafeConsumerThread:
        return SafeConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget the positions, then go on as stock."""
        self.positions = {}
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Remember which rebalance this is, then go on as stock."""
        self.positions = {}
        self.rebalance = self.app.rebalancing_count
        await super().on_partitions_assigned(assigned, generation_id)

    async def _wait_next_records(self, timeout: float) -> tuple[Any, set[TP] | None]:
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))
        self.not_waiting_next_records.clear()
        try:
            if self.app.client_only:
                return await self._getmany(active_partitions=None, timeout=timeout), None
            active = self._get_active_partitions()
            if active:
                records = await self._getmany(active_partitions=set(active), timeout=min(timeout, FETCH_WAIT_S))
            else:
                records = {}
                await self.sleep(FETCH_WAIT_S)
            return records, active
        finally:
            self.not_waiting_next_records.set()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """Yield what the next fetch brings: one message per run of a bulk topic, else one per record."""
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))
        rebalances = self.app.rebalancing_count  # only now: the flow stops in one assignment and resumes in the next
        records, active = await self._wait_next_records(timeout)
        if records is None or self.should_stop:
            return
        transport = cast("SafeTransport", self.transport)
        runs = {tp: found for tp, found in records.items() if tp.topic in transport.bulk_topics}
        single = {tp: found for tp, found in records.items() if tp not in runs}
        for tp, message in self._messages(runs, single, transport.bulk_max):
            if not self.flow_active or self.app.rebalancing_count != rebalances:
                return  # dropped: the recovery that follows seeks back to before them
            if not (active is None or tp in active or tp in self._buffered_partitions):
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            if self._read_offset[tp] == 0 and message.offset > 1 and self.app.topics.acks_enabled_for(tp.topic):
                await self._add_gap(tp, 1, message.offset - 1)
            yield tp, message
            self.reached[tp] = message.offset + 1

    def _messages(
        self, runs: Mapping[TP, BulkRun], single: Mapping[TP, list[ConsumerRecord]], bulk_max: int
    ) -> Iterable[tuple[TP, Message]]:
        for tp, found in runs.items():
            for start in range(0, len(found), bulk_max):
                yield tp, self._bulk_message(tp, found[start : start + bulk_max])
        for tp, record in self.scheduler.iterate(single):
            yield tp, self._to_message(tp, record)

    def _bulk_message(self, tp: TP, run: BulkRun) -> Message:
        last = run[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,  # its ack covers the run: what lies before it is a gap to Faust
            last.timestamp / 1000.0,
            last.timestamp_type,
            None,  # each record has its own headers and key
            None,
            cast(bytes, run),
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def perform_seek(self) -> None:
        """Seek every stream partition to the broker's committed offset, or to its beginning where there is none.

        Raises:
            aiokafka.errors.IllegalStateError: a rebalance took a partition away meanwhile (the recovery starts again).
        """
        rebalances = self.app.rebalancing_count
        committed = {ensure_TP(tp): offset for tp, offset in (await self.seek_to_committed()).items()}
        stream = {tp: offset or 0 for tp, offset in committed.items() if not self._is_changelog_tp(tp)}
        uncommitted = [driver.ensure_aiokafka_TP(tp) for tp, offset in stream.items() if not offset]
        if uncommitted:
            await self._thread.seek_to_beginning(*uncommitted)
        if self.app.rebalancing_count != rebalances:
            return  # these offsets are another assignment's
        for tp, offset in committed.items():
            self._read_offset[tp] = self._committed_offset[tp] = offset or None
        self.positions = stream
        self.reached = dict(stream)


class SafeBuffer(ProducerBuffer):
    """Replaces `flush` and `_send_pending` (faust 0.15.3, `transport/producer.py`).

    Stock `flush` gives up after 0.1 s without progress, and does not count the message in flight; the commit of the
    offsets those messages stand for follows it. Stock lets a send that raises crash the worker while whoever awaits
    it waits forever.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._accepted = 0
        self._handed_over = 0

    def put(self, fut: FutureMessage) -> None:
        """Queue a message for the producer."""
        self._accepted += 1
        super().put(fut)

    async def _send_pending(self, fut: FutureMessage) -> None:
        try:
            await super()._send_pending(fut)
        except ProducerSendError as exc:
            self.log.error("A message could not be handed to the producer: %r", exc)
            if not fut.done():
                fut.set_exception(exc)
        finally:
            self._handed_over += 1

    async def flush(self) -> None:
        """Wait until all that was put so far is with the aiokafka producer.

        Raises:
            ProducerSendError: not within `producer_request_timeout`, or the buffer is not running. Nothing may then
            be committed.
        """
        target = self._accepted
        timeout_s = cast(Any, self.app).conf.producer_request_timeout
        try:
            async with asyncio.timeout(timeout_s):
                while self._handed_over < target:
                    if self.state != "running":
                        raise ProducerSendError("flush: the producer is not running and messages are queued")
                    self.message_sent.clear()
                    await self.message_sent.wait()
        except TimeoutError as exc:
            waiting = target - self._handed_over
            raise ProducerSendError(
                f"flush: {waiting} messages still queued after {timeout_s} s, not committing"
            ) from exc


class SafeProducer(driver.Producer):
    """Uses `SafeBuffer`, and replaces `_settings_extra` (faust 0.15.3, `transport/drivers/aiokafka.py`).

    Stock is idempotent only under `exactly_once`, whose transactions do not cover the topics we write.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer = SafeBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class SafeTransport(driver.Transport):
    """The transport with the classes above; `app.transport` gives both consumer and producer
    (`app.producer_transport` is unused)."""

    Consumer = SafeConsumer
    Producer = SafeProducer

    def __init__(
        self,
        url: Any,
        app: faust.App,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        bulk_topics: Iterable[str] = (),
        bulk_max: int = 2000,
        fetch_max_wait_ms: int = 100,
    ) -> None:
        super().__init__(url, app, loop)
        self.bulk_topics = frozenset(bulk_topics)
        self.bulk_max = bulk_max
        self.fetch_max_wait_ms = fetch_max_wait_ms


class RawSchema(faust.Schema[Any, Any]):
    """Bytes, and a bulk topic's runs, pass untouched in both directions; decoding never raises.

    Stock decoding errors ack the message and throw into the agent: the message is skipped. Here the agent gets the
    bytes (None for a tombstone) and decides (R8).
    """

    def compile(self, app: Any, **kwargs: Any) -> Callable[..., Awaitable[EventT[Any]]]:
        """Return the function that makes an event of a message."""
        create_event = app.create_event

        async def decode(message: Message, *, propagate: bool = False) -> EventT[Any]:
            return cast(EventT[Any], create_event(message.key, message.value, message.headers, message))

        return decode

    def dumps_key(self, app: Any, key: Any, *, serializer: Any = None, headers: Any) -> tuple[Any, Any]:
        """Return key and headers as they are."""
        return key, headers

    def dumps_value(self, app: Any, value: Any, *, serializer: Any = None, headers: Any) -> tuple[Any, Any]:
        """Return value and headers as they are."""
        return value, headers


class PartitionedTable(faust.Table[bytes, bytes]):
    """A table of bytes whose keys name their partition: `b"17|..."` lies in partition 17 of the changelog.

    Replaces `partition_for_key` (stock: the current event's partition, so that timers and tasks could not write) and
    `on_rebalance` (the memory store keeps rows of partitions this worker lost; given back later, rows deleted
    meanwhile would be alive again). Memory store only; the rows are `table.data`, bytes to bytes. Between losing a
    partition and the next assignment its rows are still there: whoever iterates filters by the partitions owned.
    """

    def partition_for_key(self, key: bytes) -> int:
        """Partition of the changelog a key lies in.

        Raises:
            InvariantBroken: the key does not start with a number and `|`.
        """
        number, bar, _ = key.partition(b"|")
        if not bar or not number.isdigit():
            raise InvariantBroken(f"table {self.name}: the key {key!r} does not start with its partition")
        return int(number)

    def put(self, key: bytes, value: bytes) -> Awaitable[RecordMetadata]:
        """Set a row now and send it to the changelog.

        Args:
            key: `b"PARTITION|..."`.
            value: not empty; an empty one would be taken for a deletion by the memory store at recovery.

        Returns:
            The delivery. Await it before the offset that the row stands for is committed; it raises what the producer
            raised.

        Raises:
            InvariantBroken: a key without partition, or an empty value.
        """
        if not value:
            raise InvariantBroken(f"table {self.name}: empty value for {key!r}")
        partition = self.partition_for_key(key)
        self.data[key] = value
        return cast(Awaitable[RecordMetadata], self.send_changelog(partition, key, value))

    def drop(self, key: bytes) -> Awaitable[RecordMetadata]:
        """Delete a row now (nothing if absent) and send its tombstone; returns the delivery, as `put`.

        Raises:
            InvariantBroken: a key without partition.
        """
        partition = self.partition_for_key(key)
        self.data.pop(key, None)
        return cast(Awaitable[RecordMetadata], self.send_changelog(partition, key, None, value_serializer="raw"))

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Drop the rows of partitions that were not kept: recovery reads those from the beginning."""
        changed = {tp.partition for tp in revoked | newly_assigned if tp.topic == self.changelog_topic_name}
        for key in [key for key in self.data if self.partition_for_key(key) in changed]:
            del self.data[key]
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)


def install(app: faust.App, *, bulk_topics: Iterable[str], bulk_max: int = 2000, fetch_max_wait_ms: int = 100) -> None:
    """Put the fixes into an app. Call it right after `faust.App(...)`, before any table or topic is made.

    Args:
        app: a worker's app.
        bulk_topics: topics whose events carry a `BulkRun`; their `schema` has to be a `RawSchema`.
        bulk_max: most records in one run.
        fetch_max_wait_ms: longest time the broker holds an empty fetch, in milliseconds.

    Raises:
        ConfigurationError: other versions than `PINNED`, a table exists already, or a setting that the fixes do not
        cover.
    """
    for package, wanted in PINNED.items():
        if (found := version(package)) != wanted:
            raise ConfigurationError(
                f"{package} is {found}, but the fixes of its internals are written for {wanted} exactly"
            )
    if "tables" in vars(app):
        raise ConfigurationError("install() has to come before the app's first table")
    conf = cast(Any, app.conf)
    if conf.consumer_auto_offset_reset != "earliest":
        raise ConfigurationError(
            "consumer_auto_offset_reset must be earliest: latest skips what came before the first commit"
        )
    if conf.producer_threaded or conf.processing_guarantee != ProcessingGuarantee.AT_LEAST_ONCE:
        raise ConfigurationError("producer_threaded and exactly_once are not supported")
    conf.TableManager = SafeTableManager
    conf.Table = PartitionedTable
    app.transport = SafeTransport(
        conf.broker_consumer, app, bulk_topics=bulk_topics, bulk_max=bulk_max, fetch_max_wait_ms=fetch_max_wait_ms
    )


async def commit_offsets(app: faust.App, offsets: Mapping[TP, int], *, generation: int | None = None) -> bool:
    """Commit under the group's current generation, without Faust's own bookkeeping.

    It may take as long as the broker is away: run it where nothing else waits for it.

    Args:
        app: a worker's app.
        offsets: next offset to read per partition; partitions not assigned to this worker are left out.
        generation: the group generation the offsets were read under; another one by now is a refusal.

    Returns:
        True when the broker has taken it; False when none of the partitions is assigned, and nothing was sent.

    Raises:
        ExternalFault: the broker refused (expelled, generation over) or failed; retriable, after the next assignment.
    """
    thread = cast(SafeConsumer, app.consumer)._thread

    async def commit() -> bool:
        consumer = thread._ensure_consumer()
        assigned = consumer.assignment()
        wanted = {driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        wanted = {tp: offset for tp, offset in wanted.items() if tp in assigned}
        if not wanted:
            return False
        current = consumer._coordinator.generation
        if generation is not None and current != generation:
            raise ExternalFault(f"commit of generation {generation} in generation {current}", reason="commit_refused")
        await consumer.commit(wanted)
        return True

    try:
        return bool(await thread.call_thread(commit))
    except ConsumerNotStarted:
        return False
    except (KafkaError, IllegalStateError) as exc:
        raise ExternalFault(f"commit refused: {exc!r}", reason="commit_refused") from exc


def committed_position(app: faust.App, tp: TP) -> int | None:
    """The offset `perform_seek` put a partition at in this assignment: the broker's commit, 0 where it has none.

    None from the revoke (its hook included) until the seek, and for what is not assigned: never commit a guess.
    """
    return cast(SafeConsumer, app.consumer).positions.get(tp)


def lag(app: faust.App, topics: Iterable[str]) -> dict[str, int]:
    """Records of each topic that wait in this worker's partitions, by what the last fetches said of their ends."""
    consumer = cast(SafeConsumer, app.consumer)
    found = dict.fromkeys(topics, 0)
    for tp, reached in consumer.reached.items():
        if tp.topic in found and tp in consumer.positions:
            try:
                end = consumer.highwater(tp)
            except AssertionError:  # aiokafka's way to say that a rebalance has taken it just now
                continue
            found[tp.topic] += max((end or 0) - reached, 0)
    return found


async def highwaters(app: faust.App, tps: Iterable[TP]) -> dict[TP, int]:
    """The offsets after the last record of each partition, asked from the broker.

    Raises:
        ExternalFault: no answer.
    """
    wanted = list(tps)
    if not wanted:
        return {}
    try:
        found = await app.consumer.highwaters(*wanted)
    except KafkaError as exc:
        raise ExternalFault(f"no end offsets: {exc!r}", reason="no_end_offsets") from exc
    return {ensure_TP(tp): offset for tp, offset in found.items()}

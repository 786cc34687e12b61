"""The link to GoodWe's Kafka cluster, which may be another one than ours, with its own security.

Out: batches, all acknowledged or none of them sure. What fails, or is still in hand when its time is up, may have
arrived and may not; the producer is then torn down at once, so that nothing of it can arrive later (R28). The producer
is not idempotent: aiokafka never lets an idempotent batch expire, and what is idempotent here are the ids.

In: results are regrouped by shard for a moment, handed over, and only then are GoodWe's offsets committed: at least
once.

The cluster may be absent at start and at any later time; the link says so (`reachable`) and comes back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, UnknownTopicOrPartitionError
from aiokafka.producer.sender import Sender
from aiokafka.protocol.admin import ApiVersionRequest
from numpy.typing import NDArray

from vpp_dispatch.domain.command import U32, Commands, Results
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.errors import NotReachable
from vpp_dispatch.goodwe.codec import Codec, Prepared, RefusedRecord
from vpp_dispatch.goodwe.profile import Profile

__all__ = ["Link", "Prepared", "RefusedRecord"]

MAX_BATCH_BYTES: Final = 1 << 20
MAX_RESULTS: Final = 20_000
"""Results that are handed over at once, at most."""

PROBE_AFTER_S: Final = 0.25
"""A broker that has not answered for so long is asked before a batch is entrusted to it: a frozen one takes bytes into
its socket, and would act on them when it thaws."""

CONNECT_S: Final = 15.0
STOP_S: Final = 5.0
CANCEL_AGAIN_S: Final = 1.5

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Deliver = Callable[[Mapping[int, Results | SlotResults]], Awaitable[None]]
Refuse = Callable[[list[RefusedRecord]], Awaitable[None]]


def _no_fault(name: str) -> None:
    """The hook of production."""


class Link:
    """Publishes commands and hands over results.

    Attributes:
        published, publish_failures: commands that were acknowledged, and batches that were not.
        results, refused_records, deliveries, delivery_failures: what came back, and what became of it.
        reconnects: connections of the producer that were made.
        lag: results that wait in this worker's partitions, as of the last fetch.
        trouble: why the cluster could not be used last, for people.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        codec: Codec,
        bootstrap_servers: str,
        security: Mapping[str, Any] | None = None,
        client_id: str,
        group_id: str,
        session_timeout_s: float,
        linger_s: float = 1.0,
        request_timeout_s: float = 5.0,
        fault: Callable[[str], None] = _no_fault,
        log: Any = None,
    ) -> None:
        """Args:
        security: the security arguments of an aiokafka client (`security_protocol`, `ssl_context`, `sasl_...`).
        linger_s: results are gathered for so long, in seconds, before they are handed over.
        request_timeout_s: a broker that has not answered by then has failed.
        fault: called at named points (`inbox-delivered`), for kill tests.
        """
        self.codec = codec
        self.profile = profile
        self.fault = fault
        self.log = log or structlog.get_logger("vpp_dispatch.link")
        self.linger_s = linger_s
        self.request_timeout_s = request_timeout_s
        self.session_timeout_s = session_timeout_s
        self.group_id = group_id
        self._client: dict[str, Any] = {
            "bootstrap_servers": bootstrap_servers,
            "client_id": client_id,
            "retry_backoff_ms": 100,
            **(security or {}),
        }
        self._producer: _Producer | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._failures = 0
        self._answered_at = -1e9
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.published = 0
        self.publish_failures = 0
        self.results = 0
        self.refused_records = 0
        self.deliveries = 0
        self.delivery_failures = 0
        self.reconnects = 0
        self.lag = 0
        self.trouble = ""

    @property
    def reachable(self) -> bool:
        """Whether GoodWe's cluster answered last. False from a failure until every leader has answered a probe."""
        return self._up.is_set()

    async def wait_reachable(self) -> None:
        """Returns once the cluster is reachable; waits for ever otherwise."""
        await self._up.wait()

    async def start(self, deliver: Deliver, refuse: Refuse) -> None:
        """Begins to connect and to consume, in the background; returns at once, whether or not the cluster is there.

        `deliver` is given results by shard and returns once they are safe; `refuse` the same for records that cannot be
        used. If one raises, nothing is committed and it is called again with the same.
        """
        self._tasks = [
            asyncio.create_task(self._again("producer", self._keep_connected), name="link-producer"),
            asyncio.create_task(self._again("consumer", lambda: self._consume(deliver, refuse)), name="link-consumer"),
        ]

    async def stop(self) -> None:
        """Stops consuming (what is being handed over is finished, for at most 5 s) and closes both clients."""
        self._stopping.set()
        if not self._tasks:
            return
        producing, consuming = self._tasks
        producing.cancel()
        self._down.set()
        await asyncio.wait({consuming}, timeout=STOP_S)
        await _end([producing, consuming])
        if self._producer is not None:
            self._tear_down(self._producer)
        if self._closing:
            await asyncio.wait(self._closing, timeout=3 * STOP_S)
        self._tasks = []

    async def _again(self, part: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a part until the stop, whatever befalls it: GoodWe's side must never take the service down."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await work()
            except (KafkaError, OSError, TimeoutError) as error:
                if part == "producer":
                    self.trouble = _sentence(error)
                self.log.warning("link.unreachable", part=part, detail=_sentence(error))
            except Exception:
                self.log.exception("link.failed", part=part)
            failures = 0 if time.monotonic() - started > 10 else failures + 1
            await self._pause(min(2.0, 0.1 * 2**failures))

    async def _pause(self, seconds: float) -> None:
        """Waits with jitter, or until the stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds * random.uniform(0.5, 1.0))

    # ------------------------------------------------------------------ out

    def prepare(self, commands: Commands) -> Prepared:
        """The commands' ids and messages; see `Codec.prepare`."""
        return self.codec.prepare(commands)

    async def publish(self, prepared: Prepared, *, now: float, give_up_after_s: float) -> None:
        """Publishes a batch; returns once every command of it is acknowledged.

        `now` is epoch seconds; `give_up_after_s` how long it may take. Commands that `prepared.refused` names are left
        out.

        Raises:
            NotReachable: not acknowledged, or not in time. What of it arrived is not known; nothing of it can be sent
                later.
        """
        producer = self._producer
        if producer is None:
            raise NotReachable("GoodWe's cluster is not reachable: nothing was sent.")
        if give_up_after_s <= 0:
            raise NotReachable("No time is left for this batch: nothing was sent.")
        if prepared.refused:
            self.log.error("batch.refused_commands", count=len(prepared.refused), detail=prepared.refused[0][1])
        roles, keys, values = self.codec.encode(prepared, now=now)
        if not keys:
            return
        try:
            async with asyncio.timeout(give_up_after_s):
                await self._send(producer, roles, keys, values, int(now * 1000))
        except (KafkaError, OSError, TimeoutError) as error:
            self._tear_down(producer)
            self._failures += 1
            self.publish_failures += 1
            raise NotReachable(f"GoodWe's cluster did not take a batch of {len(keys)}: {_sentence(error)}") from error
        except BaseException:
            self._tear_down(producer)
            raise
        self._failures = 0
        self.published += len(keys)

    async def _send(
        self, producer: _Producer, roles: list[int], keys: list[bytes], values: list[bytes], timestamp_ms: int
    ) -> None:
        """One batch for each partition, all awaited; raises the first error."""
        hashes = murmur2(keys)
        role_of = np.array(roles)
        groups: list[tuple[TopicPartition, list[int]]] = []
        for role in np.unique(role_of).tolist():
            topic = self.codec.request_topics[role]
            partitions = sorted(await producer.partitions_for(topic))
            rows = np.flatnonzero(role_of == role)
            where = hashes[rows] % np.uint32(len(partitions))
            for n in np.unique(where).tolist():
                groups.append((TopicPartition(topic, partitions[n]), rows[where == n].tolist()))
        if time.monotonic() - self._answered_at > PROBE_AFTER_S:
            await producer.probe([tp for tp, _ in groups])
        waiting = []
        for (topic, partition), index in groups:
            builder = producer.create_batch()
            for i in index:
                if builder.append(timestamp=timestamp_ms, key=keys[i], value=values[i]) is None:
                    waiting.append(await producer.send_batch(builder, topic, partition=partition))
                    builder = producer.create_batch()
                    builder.append(timestamp=timestamp_ms, key=keys[i], value=values[i])
            builder.close()  # else it lingers
            waiting.append(await producer.send_batch(builder, topic, partition=partition))
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self._answered_at = time.monotonic()

    def _tear_down(self, producer: _Producer) -> None:
        """Nothing that was given to this producer leaves from here on; a new one is made in the background."""
        producer.abort()
        if self._producer is producer:
            self._producer = None
            self._up.clear()
            self._down.set()
        closing = asyncio.create_task(producer.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _keep_connected(self) -> None:
        """Makes a producer whenever there is none."""
        while not self._stopping.is_set():
            await self._down.wait()
            if self._stopping.is_set():
                return
            if self._failures:
                await self._pause(min(2.0, 0.1 * 2**self._failures))
            producer = _Producer(
                acks="all",
                enable_idempotence=False,
                linger_ms=0,
                max_batch_size=MAX_BATCH_BYTES,
                max_request_size=MAX_BATCH_BYTES,
                request_timeout_ms=int(self.request_timeout_s * 1000),
                **self._client,
            )
            try:
                async with asyncio.timeout(CONNECT_S):
                    await producer.start()
                    leaders = []
                    for topic in self.codec.request_topics:
                        try:
                            partitions = await producer.partitions_for(topic)
                        except UnknownTopicOrPartitionError:
                            raise UnknownTopicOrPartitionError(
                                f"the topic {topic} does not exist, or this client may not see it"
                            ) from None
                        leaders += [TopicPartition(topic, n) for n in partitions]
                    await producer.probe(leaders)
            except BaseException:
                producer.abort()
                await producer.aclose()
                self._failures += 1
                raise
            self._producer = producer
            self._answered_at = time.monotonic()
            self.reconnects += 1
            self._down.clear()
            self._up.set()
            self.log.info("link.reachable")

    # ------------------------------------------------------------------ in

    async def _consume(self, deliver: Deliver, refuse: Refuse) -> None:
        consumer = AIOKafkaConsumer(
            *self.codec.result_topics,
            group_id=self.group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self.session_timeout_s * 1000),
            heartbeat_interval_ms=int(self.session_timeout_s * 200),
            rebalance_timeout_ms=30_000,
            request_timeout_ms=int(max(self.session_timeout_s, 30) * 1000) + 10_000,
            **self._client,
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                await consumer.start()
            while not self._stopping.is_set():
                records, offsets = await self._gather(consumer)
                self.lag = self._behind(consumer, offsets)
                if records and await self._hand_over(records, deliver, refuse):
                    self.fault("inbox-delivered")
                    await self._commit(consumer, offsets)
        finally:
            with contextlib.suppress(TimeoutError, KafkaError, OSError):
                async with asyncio.timeout(STOP_S):
                    await consumer.stop()

    @staticmethod
    def _behind(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> int:
        """Records that wait behind the next offsets; what a rebalance took meanwhile is not counted. Nothing is asked
        of the broker: results do not wait for a metric."""
        mine = consumer.assignment()
        return sum(max((consumer.highwater(tp) or 0) - offset, 0) for tp, offset in offsets.items() if tp in mine)

    async def _gather(self, consumer: AIOKafkaConsumer) -> tuple[list[Any], dict[TopicPartition, int]]:
        """Records of up to `linger_s` from the first one on, and the offsets to commit once they are safe."""
        records: list[Any] = []
        offsets: dict[TopicPartition, int] = {}
        until = float("inf")
        wait_s = 0.5
        while wait_s > 0 and len(records) < MAX_RESULTS and not self._stopping.is_set():
            found = await consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=MAX_RESULTS - len(records))
            for tp, batch in found.items():
                records += batch
                offsets[tp] = batch[-1].offset + 1
            now = time.monotonic()
            if not records:
                break
            until = min(until, now + self.linger_s)
            left = until - now
            if sum(map(len, found.values())) < 1000 and left > 0:  # a trickle: not one round for each record
                await self._pause(min(left, 0.1))
                left = until - time.monotonic()
            wait_s = left
        return records, offsets

    async def _hand_over(self, records: list[Any], deliver: Deliver, refuse: Refuse) -> bool:
        """True once everything is safe; tries again until then. False if the stop came first: not to be committed."""
        by_shard, refused = self.codec.decode_results(records)
        failures = 0
        while True:
            try:
                if by_shard:
                    await deliver(by_shard)
                    by_shard = {}
                if refused:
                    await refuse(refused)
            except Exception as error:  # noqa: BLE001 - whatever it is, the results are kept and handed over again
                self.delivery_failures += 1
                self.log.warning("results.not_delivered", results=len(records), detail=_sentence(error))
                if self._stopping.is_set():
                    return False
                failures += 1
                await self._pause(min(5.0, 0.1 * 2**failures))
                continue
            self.deliveries += 1
            self.results += len(records) - len(refused)
            self.refused_records += len(refused)
            return True

    async def _commit(self, consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        """Commits what is still ours. A commit that fails is no loss: results that come again count once (R26)."""
        ours = {tp: offset for tp, offset in offsets.items() if tp in consumer.assignment()}
        if not ours:
            return
        try:
            await consumer.commit(ours)
        except (CommitFailedError, IllegalStateError) as error:
            self.log.info("results.not_committed", detail=_sentence(error))


class _Sender(Sender):
    """Keeps its produce requests in sight, so that they can be cancelled."""

    produce_tasks: set[asyncio.Task[None]]

    async def _send_produce_req(self, node_id: int, batches: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.produce_tasks.add(task)
        try:
            await super()._send_produce_req(node_id, batches)
        finally:
            self.produce_tasks.discard(task)


class _Producer(AIOKafkaProducer):
    """A producer that can be torn down at once.

    aiokafka's own `stop` flushes, and its connections close gracefully: after a timeout the system would still deliver
    what is in its buffers, minutes later if the network is cut. Here every connection is reset when it closes.
    """

    def __init__(self, *, request_timeout_ms: int, **options: Any) -> None:
        super().__init__(request_timeout_ms=request_timeout_ms, **options)
        sender = self._sender
        sender.__class__ = _Sender
        sender.produce_tasks = set()
        self._timeout_ms = request_timeout_ms
        self._transports: dict[int, Any] = {}
        self._connect, self._forget = self.client._get_conn, self.client._on_connection_closed
        self.client._get_conn = self._get_conn
        self.client._on_connection_closed = self._on_connection_closed

    async def _get_conn(self, node_id: Any, **options: Any) -> Any:
        conn = await self._connect(node_id, **options)
        if conn is not None and conn._writer is not None and id(conn) not in self._transports:
            if self._closed:
                conn._writer.transport.abort()
                return None
            sock = conn._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._timeout_ms)
            self._transports[id(conn)] = conn._writer.transport
        return conn

    def _on_connection_closed(self, conn: Any, reason: Any) -> None:
        transport = self._transports.pop(id(conn), None)
        if transport is not None:
            transport.abort()
        if not self._closed:
            self._forget(conn, reason)

    async def probe(self, partitions: Sequence[TopicPartition]) -> None:
        """Returns once the leader of each partition has answered.

        Raises:
            KafkaError: one has not, or there is none.
        """
        nodes = {self._metadata.leader_for_partition(tp) for tp in partitions}
        if None in nodes or -1 in nodes:
            self.client.force_metadata_update()
            raise KafkaError("a partition has no leader")
        await asyncio.gather(*(self.client.send(node, ApiVersionRequest()) for node in nodes))

    def abort(self) -> None:
        """From here on nothing leaves this producer."""
        self._closed = True
        for task in (self._sender.sender_task, *self._sender.produce_tasks):
            if task is not None:
                task.cancel()
        for transport in list(self._transports.values()):
            transport.abort()
        self._transports.clear()

    async def aclose(self) -> None:
        """After `abort`: lets its tasks end."""
        await _end(task for task in (self._sender.sender_task, *self._sender.produce_tasks) if task is not None)
        closing = asyncio.create_task(self.client.close())
        await asyncio.wait({closing}, timeout=STOP_S)
        await _end([closing])


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks until they end, for at most `STOP_S`.

    Once is not always enough: parts of aiokafka take a cancellation for the end of something that they wait for, and
    then wait for the next thing; a sender waits, when it is cancelled, for requests that nobody cancels.
    """
    every = list(tasks)
    pending = {task for task in every if not task.done()}
    for _ in range(round(STOP_S / CANCEL_AGAIN_S)):
        if not pending:
            break
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in every:
        if task.done() and not task.cancelled():
            task.exception()  # it was asked to end: how it did is nobody's concern


def murmur2(keys: Sequence[bytes]) -> U32:
    """Kafka's hash of each key without its sign bit, dtype u4, so that partition = hash % partitions as in the default
    partitioner. The keys have one length, a multiple of 4.
    """
    n = len(keys)
    size = len(keys[0])
    words: NDArray[np.uint32] = np.frombuffer(b"".join(keys), "<u4").reshape(n, size // 4)
    m = np.uint32(0x5BD1E995)
    h = np.full(n, 0x9747B28C ^ size, np.uint32)
    for i in range(size // 4):
        k = words[:, i] * m
        k ^= k >> np.uint32(24)
        h = h * m ^ k * m
    h ^= h >> np.uint32(13)
    h *= m
    h ^= h >> np.uint32(15)
    return h & np.uint32(0x7FFFFFFF)


def _sentence(error: BaseException) -> str:
    """What an error says; its type where it says nothing."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

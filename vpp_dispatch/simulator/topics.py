"""The cloud on Kafka: reads the three request topics, publishes on the three result topics.

Partitions are assigned by hand under a group of their own: no rebalance can take a request away, and a restarted
simulator goes on where the last one committed. A request that was read stays in memory until it is answered; an
outage of the broker delays results and loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from vpp_dispatch.simulator.cloud import Cloud, Outgoing
from vpp_dispatch.simulator.security import IN_THE_CLEAR

log = logging.getLogger("vpp_dispatch.simulator")
_AGAIN_S: Final = 0.5
_TICK_S: Final = 1.0
_READ_AT_ONCE: Final = 2_000


async def create_topics(
    *,
    bootstrap_servers: str,
    topics: Mapping[str, Mapping[str, str]],
    partitions: int,
    replication: int = 1,
    security: Mapping[str, Any] = IN_THE_CLEAR,
) -> None:
    """Create topics (name -> configuration) that are missing, and wait until each partition has a leader.

    `security`: arguments of an aiokafka client, as everywhere here; see `vpp_dispatch.simulator.security`.

    Raises:
        KafkaError: the broker refuses, or cannot be reached.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, **security)
    try:
        await admin.start()
        wanted = [
            NewTopic(name, partitions, replication, topic_configs=dict(config)) for name, config in topics.items()
        ]
        answer = await admin.create_topics(wanted)
        for name, code, *_ in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"topic {name}")
        while True:
            described = await admin.describe_topics(list(topics))
            if all(
                not topic["error_code"] and topic["partitions"] and all(p["leader"] >= 0 for p in topic["partitions"])
                for topic in described
            ):
                return
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


class Publisher:
    """Publishes records by key in order, in batches, and again until the broker has acknowledged each of them."""

    def __init__(self, *, bootstrap_servers: str, security: Mapping[str, Any] = IN_THE_CLEAR) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._security = security
        self._producer: AIOKafkaProducer | None = None
        self._partition_of: dict[tuple[str, str], int] = {}

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            # Idempotent: aiokafka then never gives a batch up, which is what GoodWe does with a result.
            producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap_servers,
                enable_idempotence=True,
                max_batch_size=1 << 20,
                max_request_size=4 << 20,
                **self._security,
            )
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        return self._producer

    async def stop(self) -> None:
        """Close the connection; what is in flight may be lost."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(producer.stop(), 2)

    async def publish(self, records: Sequence[tuple[str, str, bytes | None]]) -> None:
        """Publish (topic, key, value); returns when all are acknowledged, however long the broker is away."""
        left = list(records)
        while left:
            done: set[int] = set()
            try:
                producer = await self._started()
                await self._publish_once(producer, left, done)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("results.publish_failed left=%d error=%r", len(left) - len(done), error)
                await self.stop()
                await asyncio.sleep(_AGAIN_S)
            left = [record for index, record in enumerate(left) if index not in done]

    async def _publish_once(
        self, producer: AIOKafkaProducer, records: Sequence[tuple[str, str, bytes | None]], done: set[int]
    ) -> None:
        by_partition: dict[tuple[str, int], list[int]] = {}
        counts = {topic: len(await producer.partitions_for(topic)) for topic in {record[0] for record in records}}
        for index, (topic, key, _) in enumerate(records):
            if (partition := self._partition_of.get((topic, key))) is None:
                partition = self._partition_of[topic, key] = (murmur2(key.encode()) & 0x7FFFFFFF) % counts[topic]
            by_partition.setdefault((topic, partition), []).append(index)

        async def in_order(topic: str, partition: int, indices: Iterable[int]) -> None:
            batch, held = producer.create_batch(), list[int]()

            async def send() -> None:
                batch.close()
                await (await producer.send_batch(batch, topic, partition=partition))
                done.update(held)

            for index in indices:
                _, key, value = records[index]
                if batch.append(key=key.encode(), value=value, timestamp=None) is None:
                    await send()
                    batch, held = producer.create_batch(), []
                    batch.append(key=key.encode(), value=value, timestamp=None)
                held.append(index)
            if held:
                await send()

        answers = await asyncio.gather(
            *(in_order(topic, partition, indices) for (topic, partition), indices in by_partition.items()),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer


class Topics:
    """Runs a `Cloud` on its six topics."""

    def __init__(
        self, *, cloud: Cloud, bootstrap_servers: str, group: str, security: Mapping[str, Any] = IN_THE_CLEAR
    ) -> None:
        self._cloud = cloud
        self._bootstrap_servers = bootstrap_servers
        self._security = security
        self._group = group
        self._roles = {topic: role for role, topic in cloud.profile.request_topics.items()}
        self._publisher = Publisher(bootstrap_servers=bootstrap_servers, security=security)
        self._woken = asyncio.Event()
        self._outbox: list[Outgoing] = []
        self._filled = asyncio.Event()
        self._consumer: AIOKafkaConsumer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def unpublished(self) -> int:
        """Results that are due and not acknowledged."""
        return len(self._outbox)

    def failure(self) -> BaseException | None:
        """What ended one of the tasks, which only a fault of the simulator can."""
        return next((task.exception() for task in self._tasks if task.done() and not task.cancelled()), None)

    async def start(self) -> None:
        """Connect, which is tried until it works, and begin to answer."""
        self._consumer = await self._connected()
        self._tasks = [
            asyncio.create_task(work) for work in (self._read(self._consumer), self._work(), self._publish())
        ]

    async def _connected(self) -> AIOKafkaConsumer:
        while True:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._bootstrap_servers,
                group_id=self._group,
                auto_offset_reset="earliest",
                enable_auto_commit=True,
                auto_commit_interval_ms=1000,
                fetch_max_wait_ms=100,
                max_partition_fetch_bytes=4 << 20,
                **self._security,
            )
            try:
                partitions = await self._partitions()
                await consumer.start()
                consumer.assign(partitions)
                return consumer
            except (KafkaError, OSError) as error:
                log.warning("topics.not_reachable error=%r", error)
            await consumer.stop()
            await asyncio.sleep(_AGAIN_S)

    async def _partitions(self) -> list[TopicPartition]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap_servers, **self._security)
        try:
            await admin.start()
            described = await admin.describe_topics(list(self._roles))
        finally:
            await admin.close()
        for topic in described:
            if topic["error_code"]:
                raise for_code(topic["error_code"])(f"topic {topic['topic']}")
        return [
            TopicPartition(topic["topic"], each["partition"]) for topic in described for each in topic["partitions"]
        ]

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                records = await consumer.getmany(timeout_ms=200, max_records=_READ_AT_ONCE)
            except KafkaError as error:
                log.warning("requests.read_failed error=%r", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            now = time.time()
            for partition, messages in records.items():
                role = self._roles[partition.topic]
                for message in messages:
                    self._cloud.receive(
                        role=role,
                        value=message.value,
                        topic=partition.topic,
                        partition=partition.partition,
                        offset=message.offset,
                        arrival_at=message.timestamp / 1000,
                        now=now,
                    )
            if records:
                self._woken.set()
                await asyncio.sleep(0)

    async def _work(self) -> None:
        """Effects and results at their time; the physics once a second."""
        cloud = self._cloud
        while True:
            self._woken.clear()
            now = time.time()
            if due := cloud.run(now):
                self._outbox.extend(due)
                self._filled.set()
            if now - cloud.inverters.updated_at >= _TICK_S:
                cloud.inverters.advance(now)
            next_due = cloud.next_due()
            wait_s = _TICK_S if next_due is None else min(_TICK_S, max(0.0, next_due - time.time()))
            if wait_s == 0:
                await asyncio.sleep(0)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), wait_s)

    async def _publish(self) -> None:
        encode = msgspec.json.Encoder().encode
        stamp = self._cloud.profile.fields["timestamp"]
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                chunk = self._outbox[:5_000]
                at_ms = int(time.time() * 1000)
                await self._publisher.publish(
                    [(each.topic, each.sn, encode({**each.body, stamp: at_ms})) for each in chunk]
                )
                at = time.time()
                for each in chunk:
                    each.answer.published_at = at
                self._cloud.ledger.totals["results.published"] += len(chunk)
                del self._outbox[: len(chunk)]

    async def stop(self) -> None:
        """Stop reading and answering. Commands that are pending are lost, as when GoodWe's cloud goes down."""
        for task in self._tasks:
            task.cancel()
        results: list[Any] = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.error("topics.failed error=%r", result)
        await self._publisher.stop()
        if self._consumer is not None:
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(self._consumer.stop(), 2)

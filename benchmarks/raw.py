"""The same bytes through aiokafka alone: what nobody who uses it can be below."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.case import Message
from vpp_dispatch.simulator.topics import create_topics

BATCH = 1000
"""As many at a time as the service's publisher takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Wall and CPU seconds to publish `messages` messages by `send_batch`, and to read theirs back by `getmany`."""

    messages: int
    publish_s: float
    publish_cpu_s: float
    read: int
    read_s: float
    read_cpu_s: float


async def measure(servers: str, sent: Sequence[Message], returned: Sequence[Message], partitions: int = 6) -> Raw:
    """Publishes the commands of an event again, to a topic of their own, and reads its results from another.

    Both in order and to their own partitions; one batch of 1,000 at a time, acknowledged before the next, as the
    service does it.
    """
    names = [f"raw-{uuid.uuid4().hex[:8]}-{what}" for what in ("commands", "results")]
    stamp = {"message.timestamp.type": "LogAppendTime"}
    await create_topics(bootstrap_servers=servers, topics=dict.fromkeys(names, stamp), partitions=partitions)
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", max_batch_size=1 << 20)
    await producer.start()
    try:
        for name in names:  # connections and leaders are known before the clock runs
            for partition in await producer.partitions_for(name):
                await producer.send_and_wait(name, b"", partition=partition)
        wall, cpu = time.monotonic(), time.process_time()
        await _publish(producer, names[0], sent)
        publish_s, publish_cpu_s = time.monotonic() - wall, time.process_time() - cpu
        await _publish(producer, names[1], returned)
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(
        names[1], bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        wall, cpu, seen = time.monotonic(), time.process_time(), 0
        while seen < len(returned) + partitions:  # those that came first, too
            seen += sum(map(len, (await consumer.getmany(timeout_ms=500, max_records=20_000)).values()))
        read_s, read_cpu_s = time.monotonic() - wall, time.process_time() - cpu
    finally:
        await consumer.stop()
    return Raw(
        messages=len(sent),
        publish_s=publish_s,
        publish_cpu_s=publish_cpu_s,
        read=seen,
        read_s=read_s,
        read_cpu_s=read_cpu_s,
    )


async def _publish(producer: AIOKafkaProducer, topic: str, messages: Sequence[Message]) -> None:
    for start in range(0, len(messages), BATCH):
        by_partition: dict[int, list[Message]] = {}
        for message in messages[start : start + BATCH]:
            by_partition.setdefault(message.partition, []).append(message)
        waiting = []
        for partition, part in by_partition.items():
            batch = producer.create_batch()
            for message in part:
                if batch.append(key=message.key, value=message.value, timestamp=None) is None:
                    waiting.append(await producer.send_batch(batch, topic, partition=partition))
                    batch = producer.create_batch()
                    batch.append(key=message.key, value=message.value, timestamp=None)
            waiting.append(await producer.send_batch(batch, topic, partition=partition))
        for delivery in waiting:
            await delivery

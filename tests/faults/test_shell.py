"""The fixes on real Kafka: rebalances, kills, frozen workers and a frozen broker.

Assertions read notes, topics and commits, not logs. The workers are processes of `shell_app.py`, with sessions of 6 s;
the broker is the embedded one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from tests.waiting import eventually
from vpp_dispatch.demo.broker import Broker

HERE = Path(__file__).parent
PARTITIONS = 8
FROZEN_S = 8
STOCK = os.environ.get("SHELL_STOCK", "0")  # 1: stock Faust, to see the loss test fail; see docs/decisions/0001


class Worker:
    """One process of the shell app and what it noted."""

    def __init__(self, servers: str, app: str, name: str, folder: Path, env: dict[str, str]) -> None:
        self.name, self.out = name, folder / f"{name}.jsonl"
        self.out.touch()
        settings = {"BOOTSTRAP": servers, "APP": app, "WORKER": name, "OUT": str(self.out), "STOCK": STOCK, **env}
        with (folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "shell_app.py")],
                env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), **settings},
                stdout=log,
                stderr=log,
                cwd=folder,
            )

    def notes(self, event: str) -> list[dict[str, Any]]:
        lines = self.out.read_text().split("\n")[:-1]  # the last one may be half written
        return [note for note in map(json.loads, lines) if note["event"] == event]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """Send a signal that ends the process, and wait for it."""
        self.send(number)
        self.process.wait(timeout=20)


class Shell:
    """The topics of one test, its workers, and what the broker knows of them."""

    def __init__(self, servers: str, app: str, folder: Path) -> None:
        self.servers, self.app, self.folder = servers, app, folder
        self.workers: list[Worker] = []

    async def create_topics(self) -> None:
        topics = [NewTopic(f"{self.app}-{name}", PARTITIONS, 1) for name in ("plain", "acked", "book")]
        compact = {"cleanup.policy": "compact"}
        topics.append(NewTopic(f"{self.app}-rows-changelog", PARTITIONS, 1, topic_configs=compact))
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            await admin.create_topics(topics)
        finally:
            await admin.close()

    def start(self, name: str, **env: str) -> Worker:
        worker = Worker(self.servers, self.app, name, self.folder, env)
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGCONT)
                worker.end(signal.SIGKILL)

    def notes(self, event: str) -> list[dict[str, Any]]:
        return [note for worker in self.workers for note in worker.notes(event)]

    async def ready(self, *workers: Worker) -> None:
        await eventually(lambda: all(worker.notes("ready") for worker in workers), timeout_s=30)

    async def produce(self, name: str, values: Iterable[int]) -> None:
        """Number n goes to partition n mod 8; returns when all are acknowledged."""
        producer = AIOKafkaProducer(bootstrap_servers=self.servers, linger_ms=5)
        await producer.start()
        try:
            topic = f"{self.app}-{name}"
            for sent in [await producer.send(topic, b"%d" % n, partition=n % PARTITIONS) for n in values]:
                await sent
        finally:
            await producer.stop()

    async def committed(self, name: str) -> dict[int, int]:
        """The group's committed offset of each partition that has one."""
        while True:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
            await admin.start()
            try:
                found = await admin.list_consumer_group_offsets(self.app)
                break
            except KafkaError:  # the first answers of a broker that comes back name no broker, not even itself
                await asyncio.sleep(0.2)
            finally:
                await admin.close()
        return {
            tp.partition: at.offset for tp, at in found.items() if tp.topic == f"{self.app}-{name}" if at.offset >= 0
        }

    async def books(self) -> dict[int, list[int]]:
        """Count, sum and next offset of each partition, from the changelog row of its highest epoch."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        rows: dict[bytes, bytes | None] = {}
        try:
            tps = [TopicPartition(f"{self.app}-rows-changelog", number) for number in range(PARTITIONS)]
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    rows.update((record.key, record.value) for record in records)
        finally:
            await consumer.stop()
        newest: dict[int, tuple[int, list[int]]] = {}
        for key, value in rows.items():
            number, kind, *epoch = key.split(b"|")
            if kind == b"book" and value is not None:
                newest[int(number)] = max(newest.get(int(number), (0, [])), (int(epoch[0]), json.loads(value)))
        return {number: row for number, (_, row) in newest.items()}

    async def drained(self, name: str, count: int, timeout_s: float = 40) -> None:
        """Wait until the group has committed all of `count` records."""
        ends = dict.fromkeys(range(PARTITIONS), count // PARTITIONS)

        async def reached() -> bool:
            return await self.committed(name) == ends

        await eventually(reached, timeout_s=timeout_s)

    async def assert_counted_once(self, count: int) -> None:
        """Every number below `count` is in the rows, once."""
        each = count // PARTITIONS
        want = {p: [each, sum(range(p, count, PARTITIONS)), each] for p in range(PARTITIONS)}
        assert await self.books() == want


@pytest_asyncio.fixture
async def shell(broker: Broker, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Shell]:
    """A shell with its topics; whatever still runs at the end is killed by its process id."""
    shell = Shell(broker.bootstrap_servers, topic_prefix.rstrip("-"), tmp_path)
    await shell.create_topics()
    yield shell
    shell.stop()


def partitions(worker: Worker) -> set[int]:
    """The plain topic's partitions a worker had when it last got ready."""
    return set(worker.notes("ready")[-1]["plain"])


async def takes_over(host: Worker, guest: Worker, ending: signal.Signals) -> None:
    """Let the guest work, end it, and wait until the host has all partitions and works on."""
    await eventually(lambda: len(guest.notes("plain")) > 50, timeout_s=30)
    assert partitions(guest)
    before = len(host.notes("ready"))
    guest.end(ending)
    await eventually(lambda: len(host.notes("ready")) > before and len(partitions(host)) == PARTITIONS, timeout_s=30)
    done = len(host.notes("plain"))
    await eventually(lambda: len(host.notes("plain")) > done + 50, timeout_s=30)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
async def test_no_record_is_lost_at_rebalances_under_backlog(shell: Shell, ending: signal.Signals) -> None:
    count = 4000
    await shell.produce("plain", range(count))
    first = shell.start("first", DELAY_S="0.01")
    await shell.ready(first)
    for name in ("second", "third"):  # comes, works, goes
        await takes_over(first, shell.start(name, DELAY_S="0.01"), ending)
    first.end(ending)
    last = shell.start("last")
    await shell.drained("plain", count)
    processed = [note["n"] for note in shell.notes("plain")]
    lost = sorted(set(range(count)) - set(processed))
    print(f"{ending.name}: lost {len(lost)} of {count}, twice {len(processed) - len(set(processed))}")
    assert not lost
    assert len(last.notes("plain")) > 0


@pytest.mark.parametrize("point", ["queued", "delivered"])
async def test_a_kill_between_rows_and_commit_loses_nothing_and_counts_nothing_twice(shell: Shell, point: str) -> None:
    first, second = shell.start("first"), shell.start("second", TRAP=f"{point}:3:SIGKILL")
    await shell.ready(first, second)
    count = 0
    while second.process.poll() is None:
        await shell.produce("book", range(count, count + 800))
        count += 800
    assert second.notes("trap") and second.notes("run")
    await shell.produce("book", range(count, count + 800))
    await shell.drained("book", count + 800)
    assert max(len(range(run["first"], run["last"] + 1)) for run in shell.notes("run")) > 1
    await shell.assert_counted_once(count + 800)


async def test_offset_0_alone_and_then_a_run_is_committed_to_its_end(shell: Shell) -> None:
    worker = shell.start("only")
    await shell.ready(worker)
    for numbers, end in (([0], 1), (range(8, 8 * 501, 8), 501)):  # all of partition 0
        await shell.produce("acked", numbers)

        async def reached(end: int = end) -> bool:
            return await shell.committed("acked") == {0: end}

        await eventually(reached, timeout_s=15)
    runs = [note["offsets"] for note in worker.notes("acked")]
    assert runs[0] == [0]
    assert len(runs) < 100
    assert [offset for run in runs for offset in run] == list(range(501))


async def test_a_frozen_worker_is_refused_and_then_healed(shell: Shell) -> None:
    first, second = shell.start("first"), shell.start("second", TRAP="queued:2:SIGSTOP")
    await shell.ready(first, second)
    count = 0
    while not second.notes("trap"):  # it froze with rows in its producer, which go out when it thaws
        await shell.produce("book", range(count, count + 800))
        count += 800
    theirs = partitions(second)
    await eventually(lambda: len(first.notes("rebuilt")[-1]["owned"]) == PARTITIONS, timeout_s=30)
    await shell.produce("book", range(count, count + 800))
    count += 800
    await shell.drained("book", count)
    assert theirs and not second.notes("refused")
    before = len(second.notes("ready"))
    second.send(signal.SIGCONT)
    await eventually(lambda: second.notes("refused"), timeout_s=40)
    await eventually(lambda: len(second.notes("ready")) > before and partitions(second), timeout_s=30)
    thawed = len(second.notes("run"))
    await shell.produce("book", range(count, count + 800))
    count += 800
    await shell.drained("book", count)
    assert len(second.notes("run")) > thawed
    await shell.assert_counted_once(count)


async def test_after_a_frozen_broker_thaws_nothing_stands_still(shell: Shell, broker: Broker) -> None:
    first, second = shell.start("first", DELAY_S="0.005"), shell.start("second", DELAY_S="0.005")
    await shell.ready(first, second)
    await shell.produce("plain", range(1600))
    await shell.produce("book", range(1600))
    await eventually(lambda: first.notes("plain") and second.notes("plain"), timeout_s=40)
    broker.freeze()
    try:
        await asyncio.sleep(FROZEN_S)  # the fault itself: longer than a session
    finally:
        broker.thaw()
    await shell.produce("plain", range(1600, 2400))
    await shell.produce("book", range(1600, 2400))
    await shell.drained("plain", 2400)
    await shell.drained("book", 2400)
    assert {note["n"] for note in shell.notes("plain")} == set(range(2400))
    await shell.assert_counted_once(2400)
    assert first.process.poll() is None and second.process.poll() is None


async def test_sigterm_calls_on_stop_and_its_last_commit_stands(shell: Shell) -> None:
    worker = shell.start("old")
    await shell.ready(worker)
    await shell.produce("book", range(800))
    await eventually(lambda: sum(run["last"] - run["first"] + 1 for run in worker.notes("run")) == 800, timeout_s=40)
    worker.end(signal.SIGTERM)
    assert worker.process.returncode == 0
    assert [note["committed"] for note in worker.notes("on_stop")] == [True]
    assert await shell.committed("book") == dict.fromkeys(range(PARTITIONS), 100)
    heir = shell.start("new")
    await shell.ready(heir)
    await shell.produce("book", range(800, 1600))
    await shell.drained("book", 1600)
    assert min(run["first"] for run in heir.notes("run")) == 100
    await shell.assert_counted_once(1600)

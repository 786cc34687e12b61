"""The embedded broker: real Kafka, its faults, and that it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.conftest import Kafka
from tests.waiting import eventually, eventually_sync
from vpp_dispatch.demo import jars
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.errors import ConfigurationError, ExternalFault, NotReachable

READY_WITHIN_S = 60.0  # 3 s on two quiet cores, 17 s were seen on busy ones
CHILD = """
import sys, time
from vpp_dispatch.demo.broker import Broker
broker = Broker()
broker.start()
print(broker.pid, broker.log.parent, flush=True)
time.sleep(600)
"""


async def create(servers: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def send(servers: str, topic: str, *values: bytes) -> None:
    """Returns when all are acknowledged."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, request_timeout_ms=5000)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def read(servers: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        values: list[bytes] = []

        async def enough() -> bool:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                values.extend(record.value for record in records)
            return len(values) >= count

        await eventually(enough, READY_WITHIN_S, f"{count} records of {topic}")
        return values
    finally:
        await consumer.stop()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that its new parent has not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def answers(servers: str) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=1000)
    try:
        await admin.start()
    except (KafkaError, TimeoutError):
        return False
    await admin.close()
    return True


async def test_the_cluster_for_tests_answers(kafka: Kafka, topic_prefix: str) -> None:
    await create(kafka.bootstrap_servers, f"{topic_prefix}a")
    await send(kafka.bootstrap_servers, f"{topic_prefix}a", b"one")


async def test_what_is_written_is_read(broker: Broker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}a"
    await create(broker.bootstrap_servers, topic)
    await send(broker.bootstrap_servers, topic, b"one", b"two")
    assert await read(broker.bootstrap_servers, topic, 2) == [b"one", b"two"]


async def test_no_topic_is_created_by_asking_for_it(broker: Broker, topic_prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.describe_topics([f"{topic_prefix}missing"])
        assert f"{topic_prefix}missing" not in await admin.list_topics()
    finally:
        await admin.close()


@pytest.mark.parametrize("ended_by", ["kill", "restart"])
async def test_a_restart_keeps_data_and_address(broker: Broker, topic_prefix: str, ended_by: str) -> None:
    topic, address, first = f"{topic_prefix}a", broker.bootstrap_servers, broker.pid
    await create(address, topic)
    await send(address, topic, b"before")
    if ended_by == "kill":
        broker.kill()
        assert not alive(first)
        broker.start()
    else:
        broker.restart()
    assert (broker.bootstrap_servers, broker.pid != first) == (address, True)
    await send(address, topic, b"after")
    assert await read(address, topic, 2) == [b"before", b"after"]


async def test_a_frozen_broker_answers_nothing_until_it_is_thawed(broker: Broker) -> None:
    assert await answers(broker.bootstrap_servers)
    broker.freeze()
    assert broker.running
    assert not await answers(broker.bootstrap_servers)
    broker.thaw()
    await eventually(lambda: answers(broker.bootstrap_servers), READY_WITHIN_S, "an answer after the thaw")


def test_a_second_broker_is_another_cluster(broker: Broker, second_broker: Broker) -> None:
    assert broker.bootstrap_servers != second_broker.bootstrap_servers
    assert broker.pid != second_broker.pid


def test_it_is_ready_in_seconds_and_leaves_nothing_behind() -> None:
    broker = Broker(properties={"num.partitions": "3"})
    begun = time.monotonic()
    broker.start()
    took = time.monotonic() - begun
    try:
        pid, folder = broker.pid, broker.log.parent
        assert "num.partitions=3" in (folder / "server.properties").read_text()
        broker.freeze()  # a frozen one can be stopped too
    finally:
        broker.stop()
    assert took < READY_WITHIN_S
    assert not alive(pid)
    assert not folder.exists()
    assert not broker.running
    broker.stop()  # once more does no harm


def test_a_given_folder_is_kept_and_must_be_empty(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path / "kafka"):
        pass
    assert (tmp_path / "kafka" / "data" / "meta.properties").exists()
    with pytest.raises(ConfigurationError, match="not empty"):
        Broker(data_dir=tmp_path / "kafka")


def test_a_start_that_fails_says_what_kafka_said_and_leaves_nothing() -> None:
    broker = Broker(properties={"log.segment.bytes": "nonsense"})
    with pytest.raises(ExternalFault, match="nonsense"):
        broker.start()
    assert not broker.running
    with pytest.raises(RuntimeError):
        _ = broker.log


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_it_does_not_outlive_a_parent_that_is_killed(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    pid, folder = child.stdout.readline().split()
    assert alive(int(pid))
    child.kill()
    eventually_sync(lambda: not alive(int(pid)), 10.0, "the end of the orphan")
    eventually_sync(lambda: not Path(folder).exists(), 10.0, "the removal of its data")


def test_in_the_foreground_it_ends_on_ctrl_c() -> None:
    command = [sys.executable, "-m", "vpp_dispatch.demo.broker"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        pid = int(said.split("process ")[1].split(",")[0])
        assert "127.0.0.1:" in said
        assert alive(pid)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    assert not alive(pid)


def test_a_jar_that_is_not_the_locked_one_is_fetched_again(tmp_path: Path) -> None:
    """Only the damaged jar: the others are there."""
    for jar in jars.class_path():
        (tmp_path / jar.name).symlink_to(jar)
    damaged = tmp_path / "slf4j-simple-1.7.36.jar"
    damaged.unlink()
    damaged.write_bytes(b"half a jar")
    assert damaged in jars.class_path(tmp_path)
    assert damaged.read_bytes()[:2] == b"PK"


def test_without_a_network_it_says_how_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(NotReachable, match="Connect this machine to Maven Central"):
        jars.class_path(tmp_path / "jars")
    assert list((tmp_path / "jars").iterdir()) == []

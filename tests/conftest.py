"""Fixtures for all tests: which Kafka they run on, and names of their own on it.

Which one, in this order: the servers in VPP_DISPATCH_KAFKA__BOOTSTRAP_SERVERS; Docker through testcontainers, if a
daemon answers; else the embedded broker. Tests that kill or freeze a broker always use the embedded one (`broker`).
Each is started once for a whole session, and only when the first test asks for it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.stack import Child

IMAGE = "apache/kafka:4.3.0"


TEARDOWN_S = 150.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """End the process if a teardown does not come to its end: once a test has failed, the timeouts of pytest-timeout
    and of pytest's faulthandler are off, and nothing else would."""
    faulthandler.dump_traceback_later(TEARDOWN_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once which test failed and why: a run that is cut off would never come to its summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} failed in its {report.when} after {report.duration:.0f} s:", flush=True)
        print(report.longreprtext[-4_000:], flush=True)


@dataclass(frozen=True)
class Kafka:
    """A running cluster that tests may use, but not break."""

    bootstrap_servers: str


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The embedded broker, which a test may kill, freeze and restart; after each test it runs again."""
    with Broker() as started:
        yield started


@pytest.fixture(scope="session")
def second_broker() -> Iterator[Broker]:
    """Another embedded broker: GoodWe's own cluster."""
    with Broker() as started:
        yield started


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A cluster as described at the top; one broker for a session unless servers are given or Docker is there."""
    if servers := os.environ.get("VPP_DISPATCH_KAFKA__BOOTSTRAP_SERVERS"):
        yield Kafka(servers)
    elif _docker_answers():
        yield from _in_docker()
    else:
        yield Kafka(request.getfixturevalue("broker").bootstrap_servers)


@pytest.fixture(autouse=True)
def _as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring back what a test, perhaps one that failed half way, left dead or frozen, and end what it left running: that
    would take time from all that follow."""
    yield
    for child in list(Child.started):
        if child.running:
            child.kill()
    for name in {"broker", "second_broker"} & set(request.fixturenames):
        used: Broker = request.getfixturevalue(name)
        if used.running:
            used.thaw()
        else:
            used.start()
        asyncio.run(_until_it_leads(used.bootstrap_servers))


async def _until_it_leads(servers: str) -> None:
    """Wait until a broker that was away names itself and a coordinator of groups: before that a client is told that
    topics are missing, and believes it for minutes."""
    for tries_left in range(200, -1, -1):
        admin = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=10_000)
        try:
            await admin.start()
            if (await admin.describe_cluster())["brokers"]:
                await admin.find_coordinator("tests")
                return
        except (KafkaError, OSError):
            if not tries_left:
                raise
        finally:
            await admin.close()
        await asyncio.sleep(0.2)
    raise TimeoutError(f"The broker at {servers} does not lead.")


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """Starts the names of a test's topics and groups; no two tests, nor two runs, share one. Ends with a dash."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"{name[:60]}-{uuid.uuid4().hex[:8]}-"


def _docker_answers() -> bool:
    """Whether there is a daemon, and not only a client."""
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, check=False)
    return asked.returncode == 0


def _in_docker() -> Iterator[Kafka]:
    # testcontainers' own KafkaContainer runs confluentinc's images only. The port is fixed beforehand: the broker has
    # to know, before it starts, what address to tell its clients. Inside the container it is the same, since the
    # broker connects to itself by that address when it ends a transaction.
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:9093",
        "ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
        "AUTO_CREATE_TOPICS_ENABLE": "false",
        "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "OFFSETS_TOPIC_NUM_PARTITIONS": "1",
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "MESSAGE_MAX_BYTES": str(8 * 1024 * 1024),
    }
    container = DockerContainer(IMAGE).with_bind_ports(port, port)
    for name, value in settings.items():
        container = container.with_env(f"KAFKA_{name}", value)
    with container.waiting_for(LogMessageWaitStrategy("Kafka Server started")):
        yield Kafka(f"127.0.0.1:{port}")

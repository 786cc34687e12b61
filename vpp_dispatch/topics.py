"""Our cluster's topics for people and scripts: publish a few records, read a topic to its end, follow it.

The service does not use this; it has its own path in `dispatch`. Readers here have no group and commit nothing, so they
never take anything away from anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)

from vpp_dispatch.errors import BadInput, ConfigurationError, ExternalFault, NotReachable
from vpp_dispatch.security import complaint
from vpp_dispatch.settings import SecuritySettings, Settings

TIMEOUT_MS = 10_000
"""Longest wait for one answer of the broker's."""

KNOCK_MS = 5_000
"""Longest wait for a broker to let a client in, when that is all that is wanted."""

LISTEN_S = 1.0
"""Longest wait for a broker to say why it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record of a topic. `at` is its time in epoch seconds; a `value` of None is a tombstone."""

    topic: str
    partition: int
    offset: int
    at: float
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A record to be published; `partition` None = by the key's hash."""

    key: bytes
    value: bytes | None
    partition: int | None = None


@contextlib.contextmanager
def faults_of(servers: str, topics: Sequence[str]) -> Iterator[None]:
    """Turns the Kafka client's faults into ours, each a sentence with its remedy."""
    names = ", ".join(topics)
    try:
        yield
    except UnknownTopicOrPartitionError:
        raise ConfigurationError(
            f"Kafka at {servers} has no topic {names}: name the right one in the settings, or create it "
            "(`vpp-dispatch preflight --create-topics`)."
        ) from None
    except TopicAuthorizationFailedError:
        raise ExternalFault(
            f"Kafka at {servers} does not let this user use {names}: add the ACL.", reason="unauthorized"
        ) from None
    except MessageSizeTooLargeError as fault:
        raise BadInput(f"{names} does not take so large a record ({fault}): make it smaller.") from None
    except (KafkaError, OSError, TimeoutError) as fault:
        raise NotReachable(
            f"Kafka at {servers} cannot be used ({type(fault).__name__}): start it, or set the right address and "
            "security (VPP_DISPATCH_KAFKA__*)."
        ) from fault


async def why_not(servers: str, security: SecuritySettings) -> str | None:
    """Why a cluster lets no client in, with what to do about it, found by knocking at each of `servers`; None where one
    of them lets this client in.

    aiokafka's own clients only say that no broker could be used.

    Raises:
        ConfigurationError: a PEM file is not usable.
    """
    says = None
    for host, port, _ in collect_hosts(servers):
        fault = await _knock(host, port, security)
        if fault is None:
            return None
        alert = await _alert(host, port, security) if security.uses_tls else None
        says = says or _complaint(alert or fault, f"{host}:{port}", security)
    return says


async def refuses(servers: str, security: SecuritySettings) -> bool:
    """Whether a broker is there that does not let this client in: not one that is away, or does not answer.

    Raises:
        ConfigurationError: a PEM file is not usable.
    """
    for host, port, _ in collect_hosts(servers):
        if isinstance(await _knock(host, port, security), (KafkaError, ssl.SSLError)):
            return True
    return False


async def _knock(host: str, port: int, security: SecuritySettings) -> Exception | None:
    """What happens when this client tries to be let in; None if it is."""
    connection = AIOKafkaConnection(host, port, request_timeout_ms=KNOCK_MS, **security.aiokafka())
    try:
        await connection.connect()
    except (KafkaError, OSError, TimeoutError) as fault:
        return fault
    finally:
        closed = connection.close()
        if connection._protocol is not None:  # there was a connection, which takes a moment to end
            await asyncio.wait({closed}, timeout=LISTEN_S)
    return None


async def _alert(host: str, port: int, security: SecuritySettings) -> ssl.SSLError | None:
    """What a server says about our certificate: with TLS 1.3 that comes after the handshake, and whoever has sent
    something by then, as Kafka's clients do, often only sees the connection reset."""
    try:
        async with asyncio.timeout(KNOCK_MS / 1000):
            reader, writer = await asyncio.open_connection(host, port, ssl=security.ssl_context())
            try:
                async with asyncio.timeout(LISTEN_S):
                    await reader.read(1)
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except ssl.SSLError as alert:
        return alert
    except (OSError, TimeoutError):
        pass  # it says nothing, which is what a server does that lets us in
    return None


def _complaint(fault: Exception, host: str, security: SecuritySettings) -> str:
    if says := complaint(fault, host):
        return says
    if isinstance(fault, SaslAuthenticationFailed):
        return (
            f"{host} refuses the user {security.username!r} or its password: compare USERNAME and PASSWORD_FILE "
            "(SECURITY__*) with what the cluster has for it"
        )
    if isinstance(fault, UnsupportedSaslMechanismError):
        return f"{host} does not take {security.mechanism}: set SECURITY__MECHANISM to one that it takes"
    if isinstance(fault, socket.gaierror):
        return f"the name of {host} is not known here: set the right address"
    if isinstance(fault, TimeoutError):
        return f"{host} does not answer: set the right address, or open the way to it"
    if isinstance(fault, ConnectionRefusedError):
        return f"nothing listens at {host}: start it, or set the right address"
    return f"{host} closes the connection ({type(fault).__name__}): compare SECURITY__PROTOCOL with that of this port"


async def publish(settings: Settings, topic: str, drafts: Sequence[Draft]) -> list[tuple[int, int]]:
    """Publishes records in order and waits until all are acknowledged; (partition, offset) of each.

    Raises:
        ConfigurationError: there is no such topic.
        ExternalFault: some may have been written, some not; the same records may be sent again.
    """
    servers = settings.kafka.bootstrap_servers
    with faults_of(servers, [topic]):
        producer = AIOKafkaProducer(
            bootstrap_servers=servers,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=TIMEOUT_MS,
            **settings.kafka.security.aiokafka(),
        )
        try:
            await producer.start()
            if not await producer.partitions_for(topic):
                raise UnknownTopicOrPartitionError(topic)
            sent = [await producer.send(topic, d.value, key=d.key, partition=d.partition) for d in drafts]
            placed = await asyncio.gather(*sent)
        finally:
            await producer.stop()
    return [(p.partition, p.offset) for p in placed]


class Reader:
    """Reads topics from their beginning or from a time on, in batches; an async context manager.

    `caught_up` becomes true when everything that was there at the start has been handed over.
    """

    def __init__(self, settings: Settings, topics: Sequence[str], *, since: float | None = None) -> None:
        """`since`: epoch seconds; older records are not handed over. None = from the beginning."""
        self._servers = settings.kafka.bootstrap_servers
        self._security = settings.kafka.security
        self._topics = tuple(dict.fromkeys(topics))
        self._since = since
        self._consumer: Any = None
        self._ends: dict[TopicPartition, int] = {}
        self.caught_up = False

    async def __aenter__(self) -> Self:
        with faults_of(self._servers, self._topics):
            consumer = AIOKafkaConsumer(
                *self._topics,
                bootstrap_servers=self._servers,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                request_timeout_ms=TIMEOUT_MS,
                **self._security.aiokafka(),
            )
            try:
                await consumer.start()
                partitions = list(consumer.assignment())
                self._ends = await consumer.end_offsets(partitions)
                if self._since is not None:
                    found = await consumer.offsets_for_times({p: int(self._since * 1000) for p in partitions})
                    for partition, at in found.items():
                        consumer.seek(partition, self._ends[partition] if at is None else at.offset)
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._consumer.stop()

    async def batch(self, *, wait_s: float = 0.25) -> list[Entry]:
        """The next records, none after `wait_s` without any.

        Raises:
            ExternalFault: the cluster cannot be read.
        """
        with faults_of(self._servers, self._topics):
            polled = await self._consumer.getmany(timeout_ms=int(wait_s * 1000))
            if not self.caught_up:
                async with asyncio.timeout(TIMEOUT_MS / 1000):
                    for partition, end in list(self._ends.items()):
                        if await self._consumer.position(partition) >= end:
                            del self._ends[partition]
                self.caught_up = not self._ends
        found = [
            Entry(
                topic=r.topic, partition=r.partition, offset=r.offset, at=r.timestamp / 1000, key=r.key, value=r.value
            )
            for records in polled.values()
            for r in records
        ]
        return [entry for entry in found if self._since is None or entry.at >= self._since]


async def read_all(settings: Settings, topic: str) -> AsyncIterator[Entry]:
    """The records of a topic that are there now, in the order of each partition.

    Raises:
        ConfigurationError: there is no such topic.
        ExternalFault: the cluster cannot be read.
    """
    async with Reader(settings, [topic]) as reader:
        while not reader.caught_up:
            for entry in await reader.batch():
                yield entry

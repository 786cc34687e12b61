"""What has to be there before the app starts: topics, with their partition counts, and leaders for them.

The service creates its internal topics, changelogs too (a topic that Faust creates on its way has the wrong segments,
and new topics answer without a leader at first). Operators' and GoodWe's topics belong to others: where one is missing
the service says which, and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaError,
    NodeNotReadyError,
    NoError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.errors import ConfigurationError, ExternalFault, NotReachable
from vpp_dispatch.goodwe.profile import Profile
from vpp_dispatch.settings import SecuritySettings, Settings
from vpp_dispatch.topics import why_not

DAY_MS = 86_400_000
FRESH_BROKER_TRIES = 20
"""Each 0.2 s apart."""

INBOX = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(7 * DAY_MS), "max.message.bytes": "8388608"}
CHANGELOG = {
    "cleanup.policy": "compact",
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": str(DAY_MS),
    "max.message.bytes": "8388608",
}


def internal_topics(settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Topics that the service creates: name -> (partitions, configuration)."""
    t = settings.topics
    return {
        t.event_inbox: (1, INBOX),
        t.shard_inbox: (SHARDS, INBOX),
        t.events_changelog: (1, CHANGELOG),
        t.pages_changelog: (SHARDS, CHANGELOG),
    }


def operators_topics(settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Topics of the operators' platform on our cluster: name -> (partitions, configuration) for trying it out."""
    t = settings.topics
    compacted = {"cleanup.policy": "compact"}
    wanted: dict[str, tuple[int, dict[str, str]]] = {}
    for name in settings.signals.topics:
        wanted[name] = (3, {"retention.ms": str(7 * DAY_MS), "message.timestamp.type": "LogAppendTime"})
    for name in (t.responses, *settings.responses.topics.values()):
        wanted[name] = (3, {"retention.ms": str(30 * DAY_MS)})
    for name in (t.reports, *settings.reports.topics.values()):
        wanted[name] = (3, compacted)
    wanted[t.outcomes] = (6, {"retention.ms": str(30 * DAY_MS)})
    wanted[t.dead_letters] = (3, {"retention.ms": str(14 * DAY_MS), "max.message.bytes": "8388608"})
    wanted[t.registry] = (6, compacted)
    return wanted


async def existing(admin: AIOKafkaAdminClient) -> dict[str, int]:
    """Topics that have a leader for each partition: name -> partitions."""
    found = {}
    for topic in await admin.describe_topics():
        partitions = topic["partitions"]
        if not topic["error_code"] and partitions and all(p["leader"] >= 0 for p in partitions):
            found[topic["topic"]] = len(partitions)
    return found


async def create(
    admin: AIOKafkaAdminClient, wanted: Mapping[str, tuple[int, Mapping[str, str]]], *, replication_factor: int
) -> list[str]:
    """Creates the topics that are missing; what the cluster refuses, in sentences."""
    there = await existing(admin)
    new = [
        NewTopic(name, partitions, replication_factor, topic_configs=dict(configs))
        for name, (partitions, configs) in wanted.items()
        if name not in there
    ]
    refused = []
    for name, code, *_ in (await admin.create_topics(new)).topic_errors if new else ():
        error = for_code(code)
        if error is InvalidReplicationFactorError:
            refused.append(
                f"The topic {name} cannot be created with {replication_factor} copies: add brokers, or set "
                "VPP_DISPATCH_KAFKA__REPLICATION_FACTOR to what the cluster has."
            )
        elif error not in (NoError, TopicAlreadyExistsError):  # exists: another worker was first
            refused.append(
                f"The topic {name} cannot be created ({error.__name__}): allow it, or create it by another user."
            )
    return refused


def client(bootstrap_servers: str, security: SecuritySettings) -> AIOKafkaAdminClient:
    """An admin client of a cluster; not started."""
    return AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, **security.aiokafka())


async def prepare(settings: Settings, *, waiting: Callable[[list[str]], None]) -> None:
    """Waits for our cluster, creates the internal topics and waits until all topics of our side are there.

    `waiting` is told, in sentences, what is waited for.

    Raises:
        ConfigurationError: an internal topic has another partition count than the service needs.
    """
    internal = internal_topics(settings)
    pause = 0.2
    while True:
        admin = client(settings.kafka.bootstrap_servers, settings.kafka.security)
        try:
            await admin.start()
            refused = await create(admin, internal, replication_factor=settings.kafka.replication_factor)
            there = await existing(admin)
            missing = _missing(there, [*internal, *operators_topics(settings)])
            _check_counts(there, internal)
            if not missing:
                return
            waiting(refused + missing)
        except (KafkaError, OSError) as fault:
            waiting([str(await _unusable(settings.kafka.bootstrap_servers, settings.kafka.security, fault))])
        finally:
            await admin.close()
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 5.0)


def _missing(there: Mapping[str, int], names: Iterable[str]) -> list[str]:
    return [f"The topic {name} does not exist or has no leader yet: create it." for name in names if name not in there]


def _check_counts(there: Mapping[str, int], wanted: Mapping[str, tuple[int, Any]]) -> None:
    wrong = [
        f"{name} has {there[name]} partitions and needs {count}"
        for name, (count, _) in wanted.items()
        if name in there and there[name] != count
    ]
    if wrong:
        raise ConfigurationError(
            "; ".join(wrong) + ": the number is for life. Delete the topic if nothing is held, or give it another name."
        )


async def create_for_trying_out(settings: Settings) -> None:
    """Creates all topics of our side, the operators' too: for the demo and tests, on one's own broker.

    Raises:
        ConfigurationError: the cluster refuses one, or gives it no leader.
        NotReachable: it cannot be used from here.
    """
    for tries_left in range(FRESH_BROKER_TRIES, -1, -1):
        admin = client(settings.kafka.bootstrap_servers, settings.kafka.security)
        try:
            await admin.start()
            await _create_all(admin, settings)
            return
        except NodeNotReadyError as fault:  # the first answers of a broker that has just started name no broker
            if not tries_left:
                raise await _unusable(settings.kafka.bootstrap_servers, settings.kafka.security, fault) from fault
            await asyncio.sleep(0.2)
        except (KafkaError, OSError) as fault:
            raise await _unusable(settings.kafka.bootstrap_servers, settings.kafka.security, fault) from fault
        finally:
            await admin.close()


async def _create_all(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    wanted = internal_topics(settings) | operators_topics(settings)
    if refused := await create(admin, wanted, replication_factor=settings.kafka.replication_factor):
        raise ConfigurationError(" ".join(refused))
    for _ in range(200):
        if not _missing(await existing(admin), wanted):
            return
        await asyncio.sleep(0.05)
    raise ConfigurationError("the topics that were just created got no leader within 10 s: look at the broker's log.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a cluster shows us.

    `topics`: name -> partitions, of those with a leader for each; `cleanup_policies` of them, where this user may know.
    """

    brokers: int
    topics: dict[str, int]
    cleanup_policies: dict[str, str]


async def look(bootstrap_servers: str, security: SecuritySettings) -> Cluster:
    """Asks a cluster for its brokers and topics.

    Raises:
        ConfigurationError: the security settings are of no use.
        NotReachable: it cannot be used from here.
    """
    admin = client(bootstrap_servers, security)
    try:
        await admin.start()
        brokers = len((await admin.describe_cluster())["brokers"])
        topics = await existing(admin)
        return Cluster(brokers=brokers, topics=topics, cleanup_policies=await _policies(admin, list(topics)))
    except (KafkaError, OSError) as fault:
        raise await _unusable(bootstrap_servers, security, fault) from fault
    finally:
        await admin.close()


async def _policies(admin: AIOKafkaAdminClient, topics: list[str]) -> dict[str, str]:
    """The cleanup policy of each topic; none where this user may not read configurations."""
    policies = {}
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, {"cleanup.policy": None}) for name in topics]
    for answer in await admin.describe_configs(asked) if asked else ():
        for code, _, _, name, entries in answer.resources:
            for entry in entries if not code else ():
                if entry[0] == "cleanup.policy":
                    policies[name] = str(entry[1])
    return policies


async def _unusable(servers: str, security: SecuritySettings, fault: Exception) -> NotReachable:
    if why := await why_not(servers, security):
        return NotReachable(f"Kafka at {servers} cannot be used: {why}.")
    return NotReachable(
        f"Kafka at {servers} cannot be used ({type(fault).__name__}): start it, or set the right address, user and "
        "certificates."
    )


# ---------------------------------------------------------------------------------------------- what a user may do

Need = tuple[Literal["topic", "group"], str, str]
"""What is used, its name, and one of Kafka's operations on it: `("topic", "fleet.devices.v1", "Read")`."""


def needs(settings: Settings) -> list[Need]:
    """What the service has to be allowed on our cluster, where the topics exist: no more, and no less (R9)."""
    t = settings.topics
    reads = [*settings.signals.topics, t.registry]
    writes = [t.responses, *settings.responses.topics.values(), t.reports, *settings.reports.topics.values()]
    writes += [t.outcomes, t.dead_letters]
    both = [t.event_inbox, t.shard_inbox, t.events_changelog, t.pages_changelog]
    wanted: list[Need] = [("group", settings.kafka.group, "Read")]
    wanted += [("topic", name, "Read") for name in (*reads, *both)]
    wanted += [("topic", name, "Write") for name in (*dict.fromkeys(writes), *both)]
    return wanted


def goodwe_needs(settings: Settings, profile: Profile) -> list[Need]:
    """What the service has to be allowed on GoodWe's cluster: no more, and no less."""
    t = profile.topics
    wanted: list[Need] = [("group", settings.goodwe_group, "Read")]
    wanted += [("topic", name, "Write") for name in (t.single_request, t.multi_request, t.query_request)]
    wanted += [("topic", name, "Read") for name in (t.single_result, t.multi_result, t.query_result)]
    return wanted


async def lacking(bootstrap_servers: str, security: SecuritySettings, wanted: Sequence[Need]) -> list[Need]:
    """What of `wanted` this user may not do, as the cluster itself tells it; nothing is tried out. A topic that does
    not exist lacks nothing.

    Raises:
        ConfigurationError: the security settings are of no use.
        ExternalFault: the cluster cannot be used from here, or does not tell (Kafka before 2.3).
    """
    admin = client(bootstrap_servers, security)
    try:
        await admin.start()
        names = sorted({name for kind, name, _ in wanted if kind == "topic"})
        told = await admin._send_request(_AskTopics(names))
        may: dict[tuple[str, str], int | None] = {
            ("topic", topic[1]): _EVERYTHING if for_code(topic[0]) is UnknownTopicOrPartitionError else topic[4]
            for topic in told.topics
        }
        for name in sorted({name for kind, name, _ in wanted if kind == "group"}):
            may["group", name] = await _group_operations(admin, name)
        return [need for need in wanted if not (may.get(need[:2]) or 0) & 1 << _OPERATIONS[need[2]]]
    except NotImplementedError:
        raise ExternalFault(f"Kafka at {bootstrap_servers} is too old to tell what a user may do.") from None
    except (KafkaError, OSError) as fault:
        raise await _unusable(bootstrap_servers, security, fault) from fault
    finally:
        await admin.close()


async def _group_operations(admin: AIOKafkaAdminClient, name: str) -> int:
    """What this user may do with a group, as bits; nothing of one that it may not even see."""
    for tries_left in range(FRESH_BROKER_TRIES, -1, -1):
        try:
            told = await admin._send_request(_AskGroups([name]), await admin.find_coordinator(name))
            if error := told.groups[0][0]:
                raise for_code(error)(name)
            return int(told.groups[0][6])
        except GroupAuthorizationFailedError:
            return 0
        except KafkaError as fault:  # a cluster without any group yet makes the topic of their offsets first
            if not fault.retriable or not tries_left:
                raise
            await asyncio.sleep(0.25)
    raise AssertionError("not reached")


_EVERYTHING = -1
_OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8}
"""Kafka's numbers of its operations, which are those of the bits too."""

# aiokafka has neither of these two questions in a version whose answer tells operations.


class _TopicsTold(Response):
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8")))),
        ("cluster_id", String("utf-8")),
        ("controller", Int32),
        (
            "topics",
            Array(
                ("error", Int16),
                ("name", String("utf-8")),
                ("internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("operations", Int32),
    )


class _TopicsAsked(RequestStruct):
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _TopicsTold
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))), ("create", Boolean), ("cluster_too", Boolean), ("operations", Boolean)
    )


class _AskTopics(Request[_TopicsAsked]):
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, version: type[_TopicsAsked]) -> _TopicsAsked:
        return version(self._topics, False, False, True)


class _GroupsTold(Response):
    API_KEY = 15
    API_VERSION = 3
    SCHEMA = DescribeGroupsResponse_v3.SCHEMA


class _GroupsAsked(RequestStruct):
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = _GroupsTold
    SCHEMA = DescribeGroupsRequest_v3.SCHEMA


class _AskGroups(Request[_GroupsAsked]):
    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, version: type[_GroupsAsked]) -> _GroupsAsked:
        return version(self._groups, True)


# ---------------------------------------------------------------------------------------------- the clock


async def clock_skew(settings: Settings) -> float:
    """Seconds by which this clock is ahead of our cluster's (behind: negative; 0 = they agree), as R7 measures it.

    Only an append tells the broker's time, and no topic of the service is written to for that: a topic of one record
    is made and removed again.

    Raises:
        ExternalFault: the topic cannot be made or written to.
    """
    servers, security = settings.kafka.bootstrap_servers, settings.kafka.security
    name = f"{settings.topics.event_inbox}.clock-{uuid.uuid4().hex[:8]}"
    admin = client(servers, security)
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", request_timeout_ms=10_000, **security.aiokafka())
    try:
        await admin.start()
        configs = {"message.timestamp.type": "LogAppendTime", "retention.ms": "60000"}
        answer = await admin.create_topics([NewTopic(name, 1, 1, topic_configs=configs)])
        if code := answer.topic_errors[0][1]:
            raise for_code(code)(name)
        await producer.start()
        await producer.send_and_wait(name, b"", partition=0)  # the first one waits for the leader
        asked_at = time.time()
        appended_at = float((await producer.send_and_wait(name, b"", partition=0)).timestamp) / 1000
        now = time.time()
    except (KafkaError, OSError) as fault:
        raise ExternalFault(
            f"a topic {name} cannot be made and written to ({type(fault).__name__}): allow topics with that prefix."
        ) from fault
    finally:
        await producer.stop()
        with contextlib.suppress(KafkaError):  # it was never made, or goes by its retention
            await admin.delete_topics([name])
        await admin.close()
    if appended_at < asked_at - 0.001:  # the broker tells milliseconds
        return asked_at - appended_at
    return min(now - appended_at, 0.0)

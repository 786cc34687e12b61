"""What an audit is given: records of topics and dumps of simulators, and its tolerances; and what it finds."""

from __future__ import annotations

import asyncio
import json
import time
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
INF = float("inf")
CLOCK_S = 0.002  # append times are whole milliseconds, rounded down


class Rule(StrEnum):
    """What can be violated."""

    EVIDENCE = "evidence"  # what was read cannot prove anything, or there is less of it than expected
    OUTCOME = "outcome"  # none, two that conflict, or one of a device that was not targeted
    REPORT = "report"  # report, outcomes, final response and simulator disagree
    PERMISSION = "permission"  # a setpoint without registry, consent, or an event that targets the device
    WINDOW = "window"  # a setpoint before the start, after the end, or after the cancellation of its event
    RELEASE = "release"  # a device left set, or a release reported as confirmed that was not
    ORDER = "order"  # responses out of order, twice or missing; outcomes, final report, final response out of order
    IDENTITY = "identity"  # one id with two contents or two devices, a sequence that does not rise
    MESSAGE = "message"  # envelope, key or schema
    READ_BACK = "read_back"  # a release or a verification by a query that may have overtaken the set
    VALUE = "value"  # told or reported another value than the event asks for
    PRIMACY = "primacy"  # a weaker event's setpoint, or a looser limit, while a stronger one holds
    SWITCH = "switch"  # published or accepted against a switch; a release signal or an abort without its effect
    OWNER = "owner"  # a setpoint against the owner's own choice, or an opt-out that nothing shows
    RAMP = "ramp"  # all at once where it was to be staggered
    FLOW = "flow"  # more in flight than allowed, or two setpoints where only one may be unanswered


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One thing that must not have happened. `where`: topic, partition and offset, or the event or device."""

    rule: Rule
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.rule.value}: {self.what} [{self.where}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a topic. `at`: epoch seconds; the broker's append time if `appended`, else the producer's."""

    role: str
    topic: str
    partition: int
    offset: int
    at: float
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    appended: bool = True

    @property
    def where(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"

    @property
    def order(self) -> tuple[float, str, int, int]:
        return (self.at, self.topic, self.partition, self.offset)


REQUESTS = ("single_request", "multi_request", "query_request")
RESULTS = ("single_result", "multi_result", "query_result")
OURS = ("signals", "registry", "responses", "reports", "outcomes", "dead_letters", "event_inbox")
ROLES = (*OURS, *REQUESTS, *RESULTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is judged: records by role (see ROLES), dumps of simulators, JSON Schemas by message name.

    `at`: epoch seconds when it was taken; everything is expected to be over by then.
    """

    records: dict[str, list[Record]]
    dumps: tuple[dict[str, Any], ...] = ()
    schemas: dict[str, Any] = field(default_factory=dict)
    at: float = INF


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Tolerances, seconds, and what must at least be there."""

    consent_refresh_s: float = 300.0  # as the service was configured; R16 adds 5 s
    registry_s: float = 2.0  # a removal takes effect within this
    cancel_s: float = 2.0  # a cancellation too, counted from its response 6
    late_s: float = 1.0  # R28
    result_timeout_s: float = 300.0  # as the service was configured
    answer_s: float = 15.0  # a signal younger than this may be unanswered
    switch_s: float = 5.0  # a switch takes effect within this
    max_in_flight: int = 0  # as the service was configured; 0 = not judged
    dead_band_w: int = 0  # as the service was configured (R21)
    family_defaults: bool = False  # whether `family` is among the defaults (R37)
    open_events: bool = False  # True: accepted events may be without their close
    expect_events: int = 0
    sample: int = 40  # outcomes messages, and rows of each, that are held against the schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Topic names by role; several where sources have their own. `prefix` stands before each."""

    signals: tuple[str, ...] = ("dispatch.signals.v1",)
    registry: tuple[str, ...] = ("fleet.devices.v1",)
    responses: tuple[str, ...] = ("dispatch.responses.v1",)
    reports: tuple[str, ...] = ("dispatch.reports.v1",)
    outcomes: tuple[str, ...] = ("dispatch.outcomes.v1",)
    dead_letters: tuple[str, ...] = ("dispatch.dead-letters.v1",)
    event_inbox: tuple[str, ...] = ("vpp-dispatch.event-inbox.v1",)
    requests: tuple[str, ...] = (
        "goodwe.control.single.request",
        "goodwe.control.multi.request",
        "goodwe.query.request",
    )
    results: tuple[str, ...] = ("goodwe.control.single.result", "goodwe.control.multi.result", "goodwe.query.result")
    prefix: str = ""

    @classmethod
    def of_profile(cls, profile: Path, *, prefix: str = "") -> Topics:
        """GoodWe's topics as a profile file names them; `prefix` stands before ours only."""
        names = tomllib.loads(profile.read_text(encoding="utf-8"))["topics"]
        defaults = cls()
        ours: dict[str, Any] = {role: tuple(prefix + name for name in getattr(defaults, role)) for role in OURS}
        theirs: dict[str, Any] = {
            "requests": tuple(names[r] for r in REQUESTS),
            "results": tuple(names[r] for r in RESULTS),
        }
        return cls(**ours, **theirs)

    def ours(self) -> dict[str, str]:
        """Topic -> role, on the operators' cluster."""
        return {self.prefix + name: role for role in OURS for name in getattr(self, role)}

    def theirs(self) -> dict[str, str]:
        """Topic -> role, on GoodWe's cluster."""
        pairs = [*zip(self.requests, REQUESTS, strict=True), *zip(self.results, RESULTS, strict=True)]
        return {self.prefix + name: role for name, role in pairs}


def read_schemas(folder: Path = SCHEMAS) -> dict[str, Any]:
    """JSON Schemas of what the service publishes; empty if there are none."""
    paths = {name: folder / name / "v1.json" for name in ("response", "report", "outcomes")}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


async def collect(
    bootstrap_servers: str,
    *,
    topics: Topics | None = None,
    goodwe_bootstrap_servers: str | None = None,
    dumps: Sequence[dict[str, Any]] = (),
    timeout_s: float = 60.0,
) -> Evidence:
    """Reads the topics from the first record to the end that they have now. A topic that does not exist is empty.

    Raises:
        TimeoutError: the end was not reached in time.
        KafkaError: the cluster cannot be reached.
    """
    topics = topics or Topics()
    records: dict[str, list[Record]] = {role: [] for role in ROLES}
    clusters: dict[str, dict[str, str]] = defaultdict(dict)
    clusters[bootstrap_servers] |= topics.ours()
    clusters[goodwe_bootstrap_servers or bootstrap_servers] |= topics.theirs()
    for servers, roles in clusters.items():
        for record in await asyncio.wait_for(_read(servers, roles), timeout_s):
            records[record.role].append(record)
    return Evidence(records=records, dumps=tuple(dumps), schemas=read_schemas(), at=time.time())


async def _read(bootstrap_servers: str, roles: dict[str, str]) -> list[Record]:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    found: list[Record] = []
    described = await _described(bootstrap_servers, roles)
    partitions = [TopicPartition(t["topic"], p["partition"]) for t in described for p in t["partitions"]]
    if not partitions:
        return found
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        left = set(partitions)
        while left:
            for partition, batch in (await consumer.getmany(timeout_ms=200, max_records=10_000)).items():
                for r in batch:
                    if r.offset < ends[partition]:
                        found.append(
                            Record(
                                role=roles[r.topic],
                                topic=r.topic,
                                partition=r.partition,
                                offset=r.offset,
                                at=r.timestamp / 1000,
                                key=r.key,
                                value=r.value,
                                headers=tuple(r.headers),
                                appended=r.timestamp_type == 1,
                            )
                        )
            # By position, not by record: a compacted topic, or a transaction's marker, ends without a record.
            left = {partition for partition in left if await consumer.position(partition) < ends[partition]}
    finally:
        await consumer.stop()
    return found


async def _described(bootstrap_servers: str, roles: dict[str, str]) -> list[dict[str, Any]]:
    """Those of the topics that exist, with their partitions; waits for a cluster that has just started."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import NodeNotReadyError

    while True:
        # Asked of the admin client: a consumer that has not subscribed knows partitions only by luck.
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            existing = sorted(set(await admin.list_topics()) & roles.keys())
            return await admin.describe_topics(existing) if existing else []
        except NodeNotReadyError:  # its first answers name no broker, not even itself
            await asyncio.sleep(0.2)
        finally:
            await admin.close()

"""One fleet, one embedded Kafka, one simulator and the workers: events are sent and watched from outside.

Nothing here asks the service how it did. Times are the broker's append times on the topics of both sides, sizes are
offsets and the broker's files, CPU and memory are the kernel's. What is read is read after the event, so that reading
does not take the processor away from what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from numpy.typing import NDArray

from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.stack import Child, Stack
from vpp_dispatch.errors import ExternalFault

T = TypeVar("T")
F64 = NDArray[np.float64]

QUERIES, SETPOINTS = "goodwe.query.request", "goodwe.control.multi.request"
QUERY_RESULTS, RESULTS = "goodwe.query.result", "goodwe.control.multi.result"
VENDOR: Final = (QUERIES, QUERY_RESULTS, SETPOINTS, RESULTS)
INBOX, CHANGELOG, REPORTS = "vpp-dispatch.shard-inbox.v1", "vpp-dispatch-pages-changelog", "dispatch.reports.v1"

BURST: Final = (0.02, 0.2)
"""Least and most seconds from a command to its result where the fleet answers at once."""

SETTINGS: Final = {
    # Production's values, where Stack has short ones so that tests do not wait.
    "KAFKA__SESSION_TIMEOUT_S": "15",
    "KAFKA__REBALANCE_TIMEOUT_S": "30",
    "GOODWE__RESULT_TIMEOUT_S": "300",
    "GOODWE__RESULT_LINGER_S": "1",
    "DISPATCH__RETRY_BACKOFF_S": "30",
    "DISPATCH__RELEASE_RETRY_S": "60",
    "DISPATCH__SETTLE_GRACE_S": "600",
    # Facts are read once: how fast GoodWe's API is asked is not what is measured here.
    "FLEET__CONSENT_REFRESH_S": "3600",
    "FLEET__CONSENT_MAX_AGE_S": "7200",
    "FLEET__TELEMETRY_POLICY": "ignore",
    "GOODWE__REALTIME__MAX_CALLS_PER_S": "1000",
}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Message:
    """A record of one of GoodWe's topics: append time in epoch s, partition, key and value."""

    at: float
    partition: int
    key: bytes | None
    value: bytes | None


@dataclass(slots=True, kw_only=True)
class Counters:
    """What can be read at any moment: messages per topic, changelog bytes on the broker's disk, worker CPU seconds."""

    ends: dict[str, dict[int, int]]
    changelog_bytes: int
    cpu_s: float
    at: float

    def messages(self, topic: str) -> int:
        return sum(self.ends[topic].values())


@dataclass(slots=True, kw_only=True)
class Measured:
    """One event, from its signal to its final report. All times in s after the signal's append time, unless said.

    Attributes:
        devices: how many were set. queries, setpoints, results: append times of what went out until everybody was set,
            and of what came back, sorted. query_results: of the queries for defaults.
        settled_s: the report said that everybody is set. cancel_s: the cancellation was sent.
        released_s: the last release was published; final_s: the final report; both after the cancellation.
        cpu_s, commands: of all workers, and all commands (queries too), from the signal until everybody was set;
            *_end: the same for releases and read-backs.
        peak_mb: the largest worker's memory while the event ran, in MB.
        inbox, changelog_bytes, returned: messages, bytes on the broker's disk, and results of all kinds, whole event.
        sent: the setpoints themselves, for the comparison.
    """

    name: str
    devices: int
    queries: F64
    query_results: F64
    setpoints: F64
    results: F64
    settled_s: float
    cancel_s: float
    released_s: float
    final_s: float
    cpu_s: float
    commands: int
    cpu_end_s: float
    commands_end: int
    peak_mb: float
    inbox: int
    changelog_bytes: int
    returned: int
    sent: list[Message] = field(default_factory=list)
    returned_messages: list[Message] = field(default_factory=list)


class Case:
    """A fleet that runs. Made by `running`."""

    def __init__(self, stack: Stack, broker: Broker, data_dir: Path, devices: int, limit_s: float) -> None:
        self.stack = stack
        self.broker = broker
        self.devices = devices
        self.limit_s = limit_s
        self.ready_s = 0.0
        self.idle_cpu = 0.0
        self._data = data_dir / "data"
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self._producer = AIOKafkaProducer(bootstrap_servers=stack.bootstrap_servers, acks="all")
        self._consumer = AIOKafkaConsumer(bootstrap_servers=stack.bootstrap_servers, enable_auto_commit=False)
        self._watcher: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ starting and stopping

    async def start(self, workers: int) -> None:
        """Everything up, the registry and all consents read."""
        await self.stack.create_topics()
        # Hybrids only: each of them can be charged and limited, and none is known to the registry with a limit.
        fleet = ["--series", "ETU,ETT", "--registered-limits", "0", "--latency", *map(str, BURST)]
        await self.stack.start_simulator(inverters=self.devices, options=fleet)
        await self._producer.start()
        await self._consumer.start()
        self._watcher = asyncio.create_task(self._watch())
        started = time.monotonic()
        children = [self.stack.start_worker() for _ in range(workers)]
        await self.stack.until_ready(*children, timeout_s=120)
        for gauge in ("devices_registered", "devices_authorized"):
            await self._until(lambda gauge=gauge: self._gauge(gauge) == self.devices, 180, f"{gauge} to be all")  # type: ignore[misc]
        self.ready_s = time.monotonic() - started
        before, since = self._cpu_s(), time.monotonic()
        await asyncio.sleep(3)
        self.idle_cpu = (self._cpu_s() - before) / (time.monotonic() - since)

    async def stop(self) -> None:
        """Everything down."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()
        await self.stack.stop()

    def _gauge(self, name: str) -> int:
        found = 0.0
        for worker in self.stack.workers.values():
            for line in self.stack.metrics(worker).splitlines():
                if line.startswith((f"vpp_dispatch_{name} ", f"vpp_dispatch_{name}{{")):
                    found += float(line.rsplit(" ", 1)[1])
        return int(found)

    async def _until(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        def living() -> T:
            for child in (*self.stack.workers.values(), self.stack.simulator):
                if isinstance(child, Child) and not child.running:
                    raise ExternalFault(f"{child.name} ended by itself:\n{child.tail(15)}")
            return condition()

        return await self.stack.until(living, timeout_s, what)

    async def _watch(self) -> None:
        """Keeps the newest report of each event, and when the broker had it."""
        consumer = AIOKafkaConsumer(
            self.stack.prefix + REPORTS,
            bootstrap_servers=self.stack.bootstrap_servers,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            while True:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        report = json.loads(record.value)
                        self._reports[report["event_id"]] = (record.timestamp / 1000, report)
        finally:
            await consumer.stop()

    # ------------------------------------------------------------------ one event

    async def play(self, name: str, kind: str, each_w: int, latency_s: tuple[float, float]) -> Measured:
        """Sends an event to all devices, waits until all are set, cancels it, waits for the final report.

        The fleet answers within `latency_s` until all are set, and in a burst while it is released.

        Raises:
            ExternalFault: it did not come to its end within the limit; the message has the last report.
        """
        await self._latency(latency_s)
        self._reset_peaks()
        begin = await self._counters()
        body = self.stack.signal(
            name,
            end_at=time.time() + 2 * self.limit_s + 60,
            targets={"all": True},
            controls=[{"kind": kind, "each_w": each_w}],
        )
        signal_at = await self._send(name, body)
        settled_at = await self._report(name, _is_settled, "all devices to be set")
        settled = await self._counters()
        report = self._reports[name][1]
        await self._latency(BURST)
        cancel_at = await self._send(name, self.stack.signal(name, revision=2, action="cancel"))
        final_at = await self._report(name, lambda r: bool(r["final"]), "the final report")
        await asyncio.sleep(1.5)  # the last checkpoint of it belongs to it
        end = await self._counters()
        if (release := self._reports[name][1]["release"])["due"] != release["confirmed"]:
            raise ExternalFault(f"{name}: {release['confirmed']} of {release['due']} releases are confirmed.")
        out = {topic: await self._read(topic, begin, end) for topic in VENDOR}
        times = {topic: np.array([m.at for m in messages]) for topic, messages in out.items()}
        before = {topic: np.sort(at[at < cancel_at]) - signal_at for topic, at in times.items()}
        after = times[SETPOINTS][times[SETPOINTS] >= cancel_at]
        return Measured(
            name=name,
            devices=report["devices"]["applied"] + report["devices"]["verified"],
            queries=before[QUERIES],
            query_results=before[QUERY_RESULTS],
            setpoints=before[SETPOINTS],
            results=before[RESULTS],
            settled_s=settled_at - signal_at,
            cancel_s=cancel_at - signal_at,
            released_s=float(after.max()) - cancel_at,
            final_s=final_at - cancel_at,
            cpu_s=settled.cpu_s - begin.cpu_s,
            commands=len(before[QUERIES]) + len(before[SETPOINTS]),
            cpu_end_s=end.cpu_s - settled.cpu_s,
            commands_end=sum(len(times[t]) - len(before[t]) for t in (QUERIES, SETPOINTS)),
            peak_mb=max(_status_kb(child.pid, "VmHWM") for child in self.stack.workers.values()) / 1024,
            inbox=end.messages(INBOX) - begin.messages(INBOX),
            changelog_bytes=end.changelog_bytes - begin.changelog_bytes,
            returned=len(out[RESULTS]) + len(out[QUERY_RESULTS]),
            sent=[m for m in out[SETPOINTS] if m.at < cancel_at],
            returned_messages=[m for m in out[RESULTS] if m.at < cancel_at],
        )

    async def _send(self, event_id: str, body: Mapping[str, Any]) -> float:
        """Publishes a signal; when the broker had it, epoch s."""
        placed = await self._producer.send_and_wait(
            self.stack.signals_topic, json.dumps(body).encode(), key=event_id.encode()
        )
        return float(placed.timestamp) / 1000

    async def _latency(self, latency_s: tuple[float, float]) -> None:
        await self.stack.tell("/sim/faults", {"latency_s": list(latency_s)})

    async def _report(self, event_id: str, is_so: Callable[[dict[str, Any]], bool], what: str) -> float:
        def found() -> float:
            at, report = self._reports.get(event_id, (0.0, None))
            return at if report is not None and is_so(report) else 0.0

        try:
            return await self._until(found, self.limit_s, what)
        except ExternalFault as fault:
            raise ExternalFault(f"{event_id}: {fault} The last report: {self._reports.get(event_id)}") from None

    # ------------------------------------------------------------------ looking from outside

    async def _counters(self) -> Counters:
        topics = (*VENDOR, INBOX)
        partitions: list[TopicPartition] = []
        for topic in topics:
            name = self.stack.prefix + topic
            await self._consumer._client._wait_on_metadata(name)
            partitions += [TopicPartition(name, p) for p in self._consumer.partitions_for_topic(name) or ()]
        ends: dict[str, dict[int, int]] = {topic: {} for topic in topics}
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            ends[partition.topic.removeprefix(self.stack.prefix)][partition.partition] = end
        return Counters(
            ends=ends,
            changelog_bytes=await asyncio.to_thread(self._changelog_bytes),
            cpu_s=self._cpu_s(),
            at=time.time(),
        )

    def _changelog_bytes(self) -> int:
        """Segments of the pages on the broker's disk, compressed as they are."""
        found = self._data.glob(f"{self.stack.prefix}{CHANGELOG}-*/*.log")
        return sum(path.stat().st_size for path in found)

    def _cpu_s(self) -> float:
        total = 0
        for child in self.stack.workers.values():
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def _reset_peaks(self) -> None:
        for child in self.stack.workers.values():
            with contextlib.suppress(PermissionError):  # then the peak is that of the whole life
                Path(f"/proc/{child.pid}/clear_refs").write_text("5")

    async def _read(self, topic: str, begin: Counters, end: Counters) -> list[Message]:
        """The records of a topic between two moments, sorted by their append time."""
        name = self.stack.prefix + topic
        span = {
            TopicPartition(name, p): (begin.ends[topic][p], last)
            for p, last in end.ends[topic].items()
            if last > begin.ends[topic][p]
        }
        found: list[Message] = []
        if not span:
            return found
        self._consumer.assign(list(span))
        for partition, (first, _) in span.items():
            self._consumer.seek(partition, first)
        wanted = sum(last - first for first, last in span.values())
        while len(found) < wanted:
            for partition, records in (await self._consumer.getmany(timeout_ms=500, max_records=20_000)).items():
                last = span[partition][1]
                found += [Message(r.timestamp / 1000, r.partition, r.key, r.value) for r in records if r.offset < last]
        found.sort(key=lambda m: m.at)
        return found


@asynccontextmanager
async def running(*, devices: int, workers: int, folder: Path, limit_s: float) -> AsyncIterator[Case]:
    """A fleet with everything around it, while the block runs.

    Raises:
        ExternalFault: a part did not come up, or ended by itself.
    """
    settings = SETTINGS | {"GOODWE__MAX_IN_FLIGHT": str(max(20_000, 3 * devices))}  # the window is not what is measured
    with Broker(data_dir=folder / "kafka") as broker:
        stack = Stack(bootstrap_servers=broker.bootstrap_servers, prefix="", folder=folder / "run", settings=settings)
        # How many calls it takes to read who is authorized is not what is measured: one page takes 10,000.
        stack.profile.write_text(re.sub(r"(?m)^page_size = \d+", "page_size = 10000", stack.profile.read_text()))
        case = Case(stack, broker, folder / "kafka", devices, limit_s)
        try:
            await case.start(workers)
            yield case
        finally:
            await case.stop()


def _is_settled(report: Mapping[str, Any]) -> bool:
    devices = report["devices"]
    set_ = devices["applied"] + devices["verified"]
    return bool(set_ and set_ + devices["skipped"] + devices["rejected"] == devices["targeted"])


def _status_kb(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ExternalFault(f"/proc/{pid}/status has no {name}: this benchmark needs Linux.")

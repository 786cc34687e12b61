"""A whole run on this machine: topics, the simulator and service workers as processes, and a reader of all topics.

The demo and the tests use it alike. Everything is ended by process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from vpp_dispatch import preflight
from vpp_dispatch.errors import ExternalFault
from vpp_dispatch.settings import Settings

T = TypeVar("T")

CLIENTS_STOP_S = 20.0


def rfc3339(at: float) -> str:
    """Epoch seconds as the contract writes times."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class Record:
    """A record of one of our topics, decoded. `at` is the broker's time in epoch seconds; `value` None if no JSON."""

    topic: str
    partition: int
    offset: int
    at: float
    key: str | None
    value: Any
    headers: dict[str, str]


class Child:
    """A process with its output in a file."""

    started: ClassVar[WeakSet[Child]] = WeakSet()
    """All that were made here and are still known to somebody: whoever cleans up sees what was left running."""

    def __init__(self, name: str, arguments: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.out = folder / f"{name}.log"
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env={**os.environ, **env},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.add(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to this process."""
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 45.0) -> int:
        """SIGTERM, and SIGKILL if that does not help; returns the exit code."""
        if self.running:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """What it wrote as JSON lines; other lines are left out."""
        found = []
        for line in self.out.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                content = json.loads(line)
                if isinstance(content, dict):
                    found.append(content)
        return found

    def tail(self, n: int = 40) -> str:
        """The end of its output, for error messages."""
        return "\n".join(self.out.read_text(errors="replace").splitlines()[-n:])


def get_json(url: str, timeout_s: float = 30.0) -> Any:
    """GET of a loopback URL; blocks."""
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return json.loads(answer.read())


def post_json(url: str, body: Any, timeout_s: float = 30.0) -> Any:
    """POST of a loopback URL; blocks."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())


@dataclass
class Stack:
    """Topics of one run by a prefix, a simulator, and workers.

    `settings`: variables of the service without the prefix VPP_DISPATCH_, over those that make a run quick. `goodwe`:
    the built-in profile. `operator`, `reader`: security arguments of the clients here that send signals, and that read
    all that is told.
    """

    bootstrap_servers: str
    prefix: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="vpp-dispatch-run-")))
    goodwe_servers: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    source: str = "gridco-west"
    goodwe: str = "goodwe"
    operator: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reader: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.workers: dict[str, Child] = {}
        self.simulator: Child | None = None
        self.url = ""
        self.records: dict[str, list[Record]] = {}
        self._producer: AIOKafkaProducer | None = None
        self._reader: asyncio.Task[None] | None = None
        self._names = 0
        self._ports: dict[str, int] = {}
        password = self.folder / "password"
        password.write_text("demo-only\n")
        self._password = password
        self.profile = self._profile()

    def _profile(self) -> Path:
        """A built-in profile with this run's topic names."""
        text = (Path(__file__).parents[1] / "goodwe" / "profiles" / f"{self.goodwe}.toml").read_text()
        for name in tomllib.loads(text)["topics"].values():
            text = text.replace(f'"{name}"', f'"{self.prefix}{name}"')
        path = self.folder / "profile.toml"
        path.write_text(text)
        return path

    @property
    def signals_topic(self) -> str:
        return f"{self.prefix}dispatch.signals.v1"

    def variables(self) -> dict[str, str]:
        """The environment of a worker."""
        p = self.prefix
        quick = {
            "KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "KAFKA__GROUP": f"{p}vpp-dispatch",
            "KAFKA__REPLICATION_FACTOR": "1",
            "KAFKA__SESSION_TIMEOUT_S": "6",
            "KAFKA__REBALANCE_TIMEOUT_S": "15",
            "SIGNALS__TOPICS": json.dumps({self.signals_topic: self.source}),
            "TOPICS__RESPONSES": f"{p}dispatch.responses.v1",
            "TOPICS__REPORTS": f"{p}dispatch.reports.v1",
            "TOPICS__OUTCOMES": f"{p}dispatch.outcomes.v1",
            "TOPICS__DEAD_LETTERS": f"{p}dispatch.dead-letters.v1",
            "TOPICS__REGISTRY": f"{p}fleet.devices.v1",
            "TOPICS__EVENT_INBOX": f"{p}vpp-dispatch.event-inbox.v1",
            "TOPICS__SHARD_INBOX": f"{p}vpp-dispatch.shard-inbox.v1",
            "TOPICS__EVENTS_CHANGELOG": f"{p}vpp-dispatch-events-changelog",
            "TOPICS__PAGES_CHANGELOG": f"{p}vpp-dispatch-pages-changelog",
            "GOODWE__PROFILE": str(self.profile),
            "GOODWE__REALTIME__BASE_URL": self.url,
            "GOODWE__REALTIME__ACCOUNT": "demo",
            "GOODWE__REALTIME__PASSWORD_FILE": str(self._password),
            "GOODWE__REALTIME__MAX_CALLS_PER_S": "100",
            "GOODWE__RESULT_TIMEOUT_S": "15",
            "GOODWE__RESULT_LINGER_S": "0.2",
            "FLEET__CONSENT_REFRESH_S": "2",
            "FLEET__CONSENT_MAX_AGE_S": "60",
            "FLEET__TELEMETRY_REFRESH_S": "3",
            "DISPATCH__SETTLE_GRACE_S": "30",
            "DISPATCH__RETRY_BACKOFF_S": "2",
            "DISPATCH__RELEASE_RETRY_S": "3",
            "HTTP__HOST": "127.0.0.1",
            "HTTP__PORT": "0",
            "LOG__FORMAT": "json",
            "DATA_DIR": str(self.folder),
        }
        if self.goodwe_servers:
            quick["GOODWE__KAFKA__BOOTSTRAP_SERVERS"] = self.goodwe_servers
        return {f"VPP_DISPATCH_{name}": value for name, value in (quick | self.settings).items()}

    def loaded(self) -> Settings:
        """The settings of a worker of this run."""
        return Settings.load(None, self.variables())

    # ------------------------------------------------------------------ starting and stopping

    async def start(self, *, inverters: int = 200, simulator: Sequence[str] = (), signals_partitions: int = 3) -> None:
        """Creates all topics, starts the simulator with a generated fleet, and begins to read what comes out."""
        await self.create_topics()
        await self.start_simulator(inverters=inverters, options=simulator)
        self._producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, acks="all", **self.operator)
        await self._producer.start()
        self._reader = asyncio.create_task(self._read())

    async def create_topics(self) -> None:
        """Creates all topics of our side."""
        self.url = self.url or "http://127.0.0.1:1"  # settings want an address before the simulator has one
        await preflight.create_for_trying_out(self.loaded())

    async def start_simulator(self, *, inverters: int, options: Sequence[str] = ()) -> None:
        """Starts the simulator and waits until it serves."""
        self.simulator = Child(
            "simulator",
            [
                "vpp_dispatch.simulator",
                "--bootstrap-servers",
                self.goodwe_servers or self.bootstrap_servers,
                "--profile",
                str(self.profile),
                "--inverters",
                str(inverters),
                "--publish-fleet",
                f"{self.prefix}fleet.devices.v1",
                "--fleet-bootstrap-servers",
                self.bootstrap_servers,
                "--create-topics",
                "--solar-hour",  # the same afternoon whenever it is run; options may say another hour
                "15",
                "--group",
                f"{self.prefix}goodwe-simulator",
                *options,
            ],
            {},
            self.folder,
        )
        ready = await self.until(
            lambda: next((x for x in self._sim_lines() if x.get("ready")), None), 40, "the simulator"
        )
        assert ready is not None
        self.url = ready["url"]

    def _sim_lines(self) -> list[dict[str, Any]]:
        assert self.simulator is not None
        if not self.simulator.running:
            raise ExternalFault(f"The simulator ended by itself:\n{self.simulator.tail()}")
        return self.simulator.lines()

    def start_worker(self, *, fault: str = "", extra: Mapping[str, str] | None = None) -> Child:
        """Starts one more worker; `fault` plants a death in it (name:n:SIGNAL)."""
        self._names += 1
        name = f"worker-{self._names}"
        env = self.variables()
        env.update({f"VPP_DISPATCH_{k}": v for k, v in (extra or {}).items()})
        if fault:
            env |= {"VPP_DISPATCH_FAULT__POINT": fault, "VPP_DISPATCH_FAULTS": "1"}
        worker = Child(name, ["vpp_dispatch", "run"], env, self.folder)
        self.workers[name] = worker
        return worker

    def port(self, worker: Child) -> int | None:
        """The port of a worker's pages, once it told it."""
        if worker.name not in self._ports:
            line = next((x for x in worker.lines() if x.get("event") == "service.starting"), None)
            if line is None:
                return None
            self._ports[worker.name] = int(line["http_port"])
        return self._ports[worker.name]

    async def until_ready(self, *workers: Child, timeout_s: float = 60, registered: int = 0) -> None:
        """Waits until these workers say that they are ready, and know so many registered devices together."""
        for worker in workers:
            await self.until(lambda worker=worker: self._is_ready(worker), timeout_s, f"{worker.name} to be ready")  # type: ignore[misc]

        def known() -> bool:
            return sum(self.gauge(worker, "devices_registered") for worker in workers) >= registered

        if registered:
            await self.until(known, timeout_s, f"{registered} devices to be registered")

    def gauge(self, worker: Child, name: str) -> int:
        """A number that a worker tells on its metrics page."""
        page = self.metrics(worker).splitlines()
        return int(float(next(line.split()[-1] for line in page if line.startswith(f"vpp_dispatch_{name} "))))

    def _is_ready(self, worker: Child) -> bool:
        if not worker.running:
            raise ExternalFault(f"{worker.name} ended by itself with {worker.process.poll()}:\n{worker.tail()}")
        port = self.port(worker)
        if port is None:
            return False
        try:
            return bool(get_json(f"http://127.0.0.1:{port}/readyz", 5)["ready"])
        except (urllib.error.URLError, OSError, TimeoutError):
            return False

    def metrics(self, worker: Child) -> str:
        """The metrics page of a worker."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port(worker)}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    async def stop(self) -> None:
        """Stops everything that was started here, the processes first: a client of a broker that is gone or frozen may
        not come to its end, and is then left behind."""
        children = [*self.workers.values(), *([self.simulator] if self.simulator else [])]
        await asyncio.gather(*(asyncio.to_thread(child.stop) for child in children))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLIENTS_STOP_S):
                if self._reader is not None:
                    self._reader.cancel()
                    await asyncio.gather(self._reader, return_exceptions=True)
                if self._producer is not None:
                    await self._producer.stop()
        self._reader = self._producer = None

    # ------------------------------------------------------------------ talking

    def signal(self, event_id: str, *, revision: int = 1, action: str = "dispatch", **fields: Any) -> dict[str, Any]:
        """A signal's body; times may be epoch seconds. Without `expires_at` it expires in an hour."""
        now = time.time()
        body: dict[str, Any] = {
            "event_id": event_id,
            "source": self.source,
            "revision": revision,
            "action": action,
            "created_at": now,
            "expires_at": now + 3600,
        } | fields
        for name in ("created_at", "expires_at", "start_at", "end_at"):
            if isinstance(body.get(name), int | float):
                body[name] = rfc3339(body[name])
        return body

    async def send(
        self,
        body: Any,
        *,
        topic: str | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Publishes a signal: a dict as JSON, bytes as they are."""
        assert self._producer is not None
        value = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self._producer.send_and_wait(
            topic or self.signals_topic, value, key=key, partition=partition, headers=list(headers)
        )

    async def ask(self, path: str) -> Any:
        """GET of the simulator's control API."""
        return await asyncio.to_thread(get_json, self.url + path)

    async def tell(self, path: str, body: Any) -> Any:
        """POST of the simulator's control API."""
        return await asyncio.to_thread(post_json, self.url + path, body)

    # ------------------------------------------------------------------ reading

    async def _read(self) -> None:
        topics = [
            self.prefix + name
            for name in (
                "dispatch.responses.v1",
                "dispatch.reports.v1",
                "dispatch.outcomes.v1",
                "dispatch.dead-letters.v1",
            )
        ]
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self.bootstrap_servers,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            **self.reader,
        )
        await consumer.start()
        try:
            while True:
                for tp, batch in (await consumer.getmany(timeout_ms=200)).items():
                    found = self.records.setdefault(tp.topic.removeprefix(self.prefix), [])
                    for r in batch:
                        try:
                            value = json.loads(r.value) if r.value is not None else None
                        except ValueError:
                            value = None
                        headers = {k: (v or b"").decode(errors="replace") for k, v in r.headers}
                        key = r.key.decode(errors="replace") if r.key is not None else None
                        found.append(Record(tp.topic, tp.partition, r.offset, r.timestamp / 1000, key, value, headers))
        finally:
            await consumer.stop()

    def responses(self, event_id: str | None = None) -> list[dict[str, Any]]:
        """Responses so far, in the order of arrival."""
        found = [r.value for r in self.records.get("dispatch.responses.v1", [])]
        return [v for v in found if v and (event_id is None or v["event_id"] == event_id)]

    def codes(self, event_id: str) -> list[tuple[int, int]]:
        """(revision, code) of an event's responses, each once, in order."""
        return list(dict.fromkeys((v["revision"], v["code"]) for v in self.responses(event_id)))

    def report(self, event_id: str) -> dict[str, Any] | None:
        """The newest report of an event."""
        found = [
            r.value for r in self.records.get("dispatch.reports.v1", []) if r.value and r.value["event_id"] == event_id
        ]
        return max(found, key=lambda v: v["sequence"]) if found else None

    def outcomes(self, event_id: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The newest outcome row per (SN, kind) of an event."""
        rows: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        for r in self.records.get("dispatch.outcomes.v1", []):
            for row in r.value["outcomes"] if r.value else ():
                name = (row["sn"], row["kind"])
                if row["event_id"] == event_id and (name not in rows or rows[name][0] < r.value["sequence"]):
                    rows[name] = (r.value["sequence"], row)
        return {name: row for name, (_, row) in rows.items()}

    def dead_letters(self) -> list[Record]:
        """Dead letters so far."""
        return self.records.get("dispatch.dead-letters.v1", [])

    async def until_devices(self, event_id: str, state: str, at_least: int, timeout_s: float = 60) -> dict[str, Any]:
        """Waits until an event's report counts so many devices in a state; the report. A verified one was applied."""
        states = ("applied", "verified") if state == "applied" else (state,)

        def there() -> dict[str, Any] | None:
            report = self.report(event_id)
            return report if report and sum(report["devices"][s] for s in states) >= at_least else None

        try:
            report = await self.until(there, timeout_s, f"{at_least} devices to be {state} in {event_id}")
        except ExternalFault as fault:
            raise ExternalFault(f"{fault} Its report: {self.report(event_id)}") from None
        assert report is not None
        return report

    async def until(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """Waits for a condition; its value."""
        end = time.monotonic() + timeout_s
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise ExternalFault(f"Waited {timeout_s:g} s in vain for {what}.")
            await asyncio.sleep(0.1)

    async def until_closed(self, event_id: str, timeout_s: float = 90) -> dict[str, Any]:
        """Waits for an event's final report, and its final response."""

        def closed() -> dict[str, Any] | None:
            report = self.report(event_id)
            return (
                report
                if report and report["final"] and {c for _, c in self.codes(event_id)} & {3, 6, 7, 8, 10}
                else None
            )

        report = await self.until(
            closed, timeout_s, f"{event_id} to close: {self.codes(event_id)} {self.report(event_id)}"
        )
        assert report is not None
        return report

"""A real Prometheus as a child process, on a free loopback port, its data in a temporary folder."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vpp_dispatch.demo.stack import Stack

JOB: Final = "vpp-dispatch"
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02
_FOLLOW_S: Final = 0.2


class QueryRefused(Exception):
    """Prometheus does not accept an expression; the message has it and Prometheus' reason."""


@dataclass(frozen=True, slots=True)
class Series:
    """A series of an answer: its labels, and its samples as (epoch seconds, value), in order of time."""

    labels: dict[str, str]
    samples: list[tuple[float, float]]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.samples[-1][1]


def program(name: str) -> str:
    """The path of a program that `make tools` brings. Raises: FileNotFoundError, with what to do."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is neither beside {sys.executable} nor on the PATH: run `make tools`.")
    return found


class Prometheus:
    """One server.

        with Prometheus() as prometheus:
            prometheus.query("vector(1)")

    Args:
        rules: rule files. Their groups are evaluated every `interval_s`, whatever interval they name.
        interval_s: between two scrapes, and two evaluations, in seconds.
    """

    def __init__(self, *, rules: Sequence[Path] = (), interval_s: float = 1.0) -> None:
        self._rules = tuple(rules)
        self._interval = f"{round(interval_s * 1000)}ms"
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Starts it and returns when it answers. Raises: RuntimeError, with its log; FileNotFoundError."""
        self._folder = Path(tempfile.mkdtemp(prefix="vpp-dispatch-prometheus-"))
        try:
            self._configure()
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{probe.getsockname()[1]}"
            self.url = f"http://{address}"
            options = {
                "config.file": str(self._folder / "prometheus.yml"),
                "storage.tsdb.path": str(self._folder / "data"),
                "web.listen-address": address,
                "log.level": "warn",
            }
            with (self._folder / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [program("prometheus"), *(f"--{name}={value}" for name, value in options.items())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends it and removes its data; more than once does nothing."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = Path()

    def load(self, rules: Sequence[Path]) -> None:
        """Reads these rule files too, without a new start. Raises: RuntimeError, it does not run."""
        if self._process is None:
            raise RuntimeError("Prometheus does not run.")
        self._rules = tuple(rules)
        self._write_rules()
        self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def scrape(self, targets: Mapping[str, Mapping[str, str]]) -> None:
        """Scrapes these from now on, and no others, as the job `vpp-dispatch`.

        Args:
            targets: `127.0.0.1:PORT` -> labels beside `job` and `instance`.
        """
        content = [{"targets": [address], "labels": dict(labels)} for address, labels in targets.items()]
        partial = self._folder / "targets.partial"
        partial.write_text(json.dumps(content))
        partial.replace(self._folder / "targets.json")

    async def follow(self, stack: Stack) -> None:
        """Scrapes the workers of a run, those that come later too, until it is cancelled. In Kubernetes' manner each
        has a label `pod`."""
        known: dict[str, dict[str, str]] = {}
        while True:
            ports = {worker.name: stack.port(worker) for worker in stack.workers.values()}
            found = {f"127.0.0.1:{port}": {"pod": name} for name, port in ports.items() if port is not None}
            if found != known:
                self.scrape(found)
                known = found
            await asyncio.sleep(_FOLLOW_S)

    def query(self, expr: str, at: float | None = None) -> list[Series]:
        """An instant query; `at` in epoch seconds, now if absent. A scalar is one series without labels.

        Raises:
            QueryRefused: the expression does not parse or cannot be evaluated.
        """
        asked = {"query": expr} | ({} if at is None else {"time": f"{at:.3f}"})
        data = self._ask("/api/v1/query", asked)
        if data["resultType"] in ("scalar", "string"):
            return [Series({}, [_sample(data["result"])])]
        return [Series(found["metric"], [_sample(found["value"])]) for found in data["result"]]

    def query_range(self, expr: str, start: float, end: float, step_s: float) -> list[Series]:
        """A range query; times in epoch seconds. Raises: QueryRefused."""
        asked = {"query": expr, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s:g}"}
        data = self._ask("/api/v1/query_range", asked)
        return [Series(found["metric"], [_sample(pair) for pair in found["values"]]) for found in data["result"]]

    def _ask(self, path: str, fields: Mapping[str, str]) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, data=urllib.parse.urlencode(fields).encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise QueryRefused(f"{fields['query']}: {error.read().decode(errors='replace')}") from None
        data: dict[str, Any] = content["data"]
        return data

    def _configure(self) -> None:
        self._write_rules()
        (self._folder / "targets.json").write_text("[]")
        config = {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": self._interval,
            },
            "rule_files": [str(self._folder / "[0-9]*.yaml")],
            "scrape_configs": [
                {"job_name": JOB, "file_sd_configs": [{"files": [str(self._folder / "targets.json")]}]},
            ],
        }
        (self._folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def _write_rules(self) -> None:
        for number, rule in enumerate(self._rules):
            content = re.sub(r"(?m)^ +interval:.*\n", "", rule.read_text(encoding="utf-8"))
            (self._folder / f"{number}-{rule.stem}.yaml").write_text(content, encoding="utf-8")

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                    return
            except OSError:
                time.sleep(_POLL_S)
        said = (self._folder / "log").read_text(errors="replace")
        raise RuntimeError(f"Prometheus does not answer within {_START_TIMEOUT_S:g} s; it said:\n{said[-2000:]}")


def _sample(pair: Sequence[Any]) -> tuple[float, float]:
    at, value = pair
    return float(at), float(value)

"""Whole runs against a second GoodWe contract: no echoed ids, two results per command, integer codes, other scales.

Where no id is echoed no result can confirm a release; queries do (R26, R27). Each run is audited at its end.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.audit import Command
from tests.auditing import audited, commands
from tests.conftest import Kafka
from vpp_dispatch.demo.stack import Child, Stack

KINDS = ("charge", "export_limit", "generation_limit")
CONTROLS: list[dict[str, Any]] = [
    {"kind": "charge", "each_w": 1230},
    {"kind": "export_limit", "each_w": 2000},
    {"kind": "generation_limit", "each_percent": 60},
]
LONG_S = 150.0
"""A window that the test cancels when it has seen enough."""


@pytest.fixture
async def variant(kafka: Kafka, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack whose GoodWe speaks the second profile; releases need two queries, so the result timeout is short."""
    made = Stack(bootstrap_servers=kafka.bootstrap_servers, prefix=topic_prefix, folder=tmp_path, goodwe="variant")
    made.settings |= {"GOODWE__RESULT_TIMEOUT_S": "4", "DISPATCH__SETTLE_GRACE_S": "90"}
    yield made
    await made.stop()


def gauge(stack: Stack, worker: Child, name: str) -> float:
    page = stack.metrics(worker).splitlines()
    return float(next(line.split()[-1] for line in page if line.startswith(f"vpp_dispatch_{name} ")))


async def until_ready(stack: Stack, devices: int, *workers: Child) -> None:
    """Waits until these workers, which are all, are ready and know all devices with both keys."""
    await stack.until_ready(*workers)
    await stack.until(
        lambda: sum(gauge(stack, worker, "devices_authorized") for worker in workers) == devices, 30, "the registry"
    )


def rows(stack: Stack, event_id: str) -> Counter[tuple[str, str]]:
    """How many outcome rows by (kind, state)."""
    return Counter((kind, row["state"]) for (_, kind), row in stack.outcomes(event_id).items())


def applied(stack: Stack, event_id: str) -> int:
    """How many devices are applied in all that was asked of them."""
    devices = (stack.report(event_id) or {}).get("devices", {})
    return int(devices.get("applied", 0) + devices.get("verified", 0))


async def begin(stack: Stack, event_id: str, **fields: Any) -> None:
    window = {"start_at": time.time(), "end_at": time.time() + LONG_S}
    await stack.send(stack.signal(event_id, **(window | {"targets": {"all": True}, "controls": CONTROLS} | fields)))


async def cancel(stack: Stack, event_id: str) -> None:
    await stack.send(stack.signal(event_id, revision=2, action="cancel", reason="seen enough"))


async def all_released(stack: Stack, event_id: str, actuators: int) -> None:
    """Waits for the close: every release was confirmed, and each by two read-backs that came after it."""
    report = await stack.until_closed(event_id, 90)
    assert report["release"] == {"due": actuators, "confirmed": actuators, "pending": 0, "refused": 0}
    devices = (await stack.ask("/sim/dump"))["devices"]
    for sn, device in devices.items():
        assert device["settings"] == device["default_settings"], f"{sn} is left as it was set"
    timeout_s = stack.loaded().goodwe.result_timeout_s
    read: dict[tuple[str, str], list[Command]] = defaultdict(list)
    last: dict[tuple[str, str], Command] = {}
    for command in await commands(stack):
        pair = (command.sn, command.actuator)
        if command.kind == "query":
            read[pair].append(command)
        else:
            last[pair] = command
    assert len(last) == actuators
    for pair, command in last.items():
        assert command.kind == "release", f"the last command to {pair} is a {command.kind}"
        late = [c for c in read[pair] if c.at >= command.at + timeout_s - 0.5]
        assert len(late) >= 2, f"{pair} was confirmed by fewer than two queries"


async def test_r27_losses_without_ids_all_released_and_confirmed_by_queries(variant: Stack) -> None:
    stack, n = variant, 60
    await stack.start(inverters=n, simulator=["--series", "ETU", "--loss", "0.1"])
    worker = stack.start_worker()
    await until_ready(stack, n, worker)
    await begin(stack, "limits")
    await stack.until(lambda: applied(stack, "limits") == n, 60, "all to be applied in spite of lost results")
    settings = [d["settings"] for d in (await stack.ask("/sim/dump"))["devices"].values()]
    told = Counter((s["workMode"], s["workPower"], s["feedInSwitch"], s["feedInLimit"]) for s in settings)
    assert told == {(31, 123, 1, 20_000): n}, "counted in 10 W and in 0.1 W"
    assert {s["outputCeiling"] for s in settings} == {60}
    await cancel(stack, "limits")
    await all_released(stack, "limits", 3 * n)
    assert stack.codes("limits") == [(1, 1), (1, 2), (2, 1), (2, 6)]
    assert {kind for kind, _ in rows(stack, "limits")} == set(KINDS)
    await audited(stack, events=1)


async def test_r26_r39_kill_9_in_mid_dispatch_and_in_mid_release_without_ids(variant: Stack) -> None:
    """One of two workers dies while it sets, then another while it releases; who is left brings all devices home."""
    stack, n = variant, 60
    slow = {"GOODWE__MAX_PER_S": "120"}
    await stack.start(inverters=n, simulator=["--series", "ETU", "--registered-limits", "0.3"])
    doomed = stack.start_worker(extra=slow, fault="published:6:SIGKILL")
    survivor = stack.start_worker()
    await until_ready(stack, n, doomed, survivor)
    await begin(stack, "first")
    await until_dead(stack, doomed)
    assert applied(stack, "first") < n, "it was to die in mid dispatch"
    await stack.until(lambda: applied(stack, "first") == n, 60, "the other to set all devices")

    doomed = stack.start_worker(extra=slow, fault="releases-published:3:SIGKILL")
    await until_ready(stack, n, doomed, survivor)
    await cancel(stack, "first")
    await until_dead(stack, doomed)
    assert not (stack.report("first") or {})["final"], "it was to die in mid release"
    await all_released(stack, "first", 3 * n)
    await audited(stack, events=1)


async def until_dead(stack: Stack, worker: Child) -> None:
    await stack.until(lambda: not worker.running, 30, f"{worker.name} to die at its planted point")
    assert worker.process.returncode == -signal.SIGKILL

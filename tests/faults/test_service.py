"""The whole service while parts of it die, freeze and fall silent, on real Kafka. Each run is audited at its end.

Judged by the topics and the simulator's state, never by logs. A worker that is to die in mid dispatch is slow (its
batches are small by its pace), so that its n-th batch is neither the first nor the last.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.audit import Command
from tests.auditing import audited, commands
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.stack import Child, Stack

DEVICES = 200
FLEET = ["--series", "ETU"]
EVERYONE = {"all": True}
SLOW = {"GOODWE__MAX_PER_S": "160"}
"""Batches of 40 commands for all shards, of 20 for half of them: so setpoints for half of the fleet
are at least 5 batches."""

LONG_S = 120.0
"""A window that the test cancels when it has seen enough, so that a slow machine changes nothing."""


def charge(watts: int = 1000) -> list[dict[str, Any]]:
    return [{"kind": "charge", "each_w": watts}]


async def begin(stack: Stack, event_id: str, *, seconds: float = LONG_S, after: float = 0.0, **fields: Any) -> float:
    """Sends a charge for all devices from `after` seconds from now on, for `seconds`; returns its end, epoch s."""
    start = time.time() + after
    body: dict[str, Any] = {
        "start_at": start,
        "end_at": start + seconds,
        "targets": EVERYONE,
        "controls": charge(),
    } | fields
    await stack.send(stack.signal(event_id, **body))
    return start + seconds


async def cancel(stack: Stack, event_id: str) -> None:
    await stack.send(stack.signal(event_id, revision=2, action="cancel", reason="seen enough"))


def done(report: dict[str, Any]) -> int:
    """How many devices are applied, those that were read back among them."""
    return int(report["devices"]["applied"] + report["devices"]["verified"])


def applied(stack: Stack, event_id: str) -> int:
    report = stack.report(event_id)
    return done(report) if report else 0


def published(stack: Stack, event_id: str) -> int:
    report = stack.report(event_id)
    return int(report["devices"]["published"]) if report else 0


async def until_applied(stack: Stack, event_id: str, n: int = DEVICES, timeout_s: float = 40) -> None:
    await stack.until(lambda: applied(stack, event_id) >= n, timeout_s, f"{n} devices of {event_id} to apply")


async def until_ready(stack: Stack, *workers: Child, devices: int = DEVICES) -> None:
    """Waits until these workers, which are all, are ready and know all devices with both keys."""
    await stack.until_ready(*workers)
    await stack.until(
        lambda: sum(stack.gauge(worker, "devices_authorized") for worker in workers) == devices, 20, "the registry"
    )


async def until_dead(stack: Stack, worker: Child) -> None:
    await stack.until(lambda: not worker.running, 20, f"{worker.name} to die at its planted point")
    assert worker.process.returncode == -signal.SIGKILL


async def until_past(stack: Stack, moment: float) -> None:
    await stack.until(lambda: time.time() > moment, moment - time.time() + 5, "a window to be over")


async def closed(stack: Stack, event_id: str, *, timeout_s: float = 60) -> dict[str, Any]:
    """Waits for the close; the states add up, report and outcomes agree, and each release was confirmed."""
    report = await stack.until_closed(event_id, timeout_s)
    states = Counter(row["state"] for row in stack.outcomes(event_id).values())
    told = {state: n for state, n in report["devices"].items() if n}
    assert told.pop("targeted") == sum(told.values()) == len(stack.outcomes(event_id))
    assert states == told
    release = report["release"]
    assert release["confirmed"] == release["due"], release
    assert report["shards"]["missing"] == []
    return report


async def whole(stack: Stack, event_id: str, *, n: int = DEVICES) -> None:
    """As `closed`, and all n devices were applied and released."""
    report = await closed(stack, event_id)
    odd = [row for row in stack.outcomes(event_id).values() if row["state"] not in ("applied", "verified")]
    assert not odd, f"{len(odd)} not applied, the first {odd[0]}"
    assert done(report) == report["release"]["due"] == n


async def finish(stack: Stack, event_id: str, *, n: int = DEVICES) -> None:
    """Cancels an event whose devices are all applied, and waits for its releases."""
    await until_applied(stack, event_id, n)
    await cancel(stack, event_id)
    await whole(stack, event_id, n=n)
    assert stack.codes(event_id) == [(1, 1), (1, 2), (2, 1), (2, 6)]


def between(found: list[Command], first: float, last: float = float("inf")) -> list[Command]:
    return [c for c in found if first < c.at <= last]


def owned(stack: Stack, worker: Child) -> int:
    """Shards that a worker owns, as it says."""
    return stack.gauge(worker, "owned_shards")


async def test_kill_9_at_each_point_loses_nothing_and_counts_nothing_twice(stack: Stack) -> None:
    """One of two workers dies in mid dispatch, the other takes over; again and again, each death at another point."""
    stack.settings["FLEET__CONSENT_REFRESH_S"] = "20"
    await stack.start(inverters=DEVICES, simulator=FLEET)
    # The first alone, so that it is the coordinator, whose second shard message is never sent.
    doomed = stack.start_worker(fault="shard-message:1:SIGKILL", extra=SLOW)
    await until_ready(stack, doomed)
    survivor = stack.start_worker()
    await until_ready(stack, doomed, survivor)
    for point in ("shard-message:1", "published:3", "rows-delivered:2", "inbox-delivered:3"):
        if not doomed.running:
            doomed = stack.start_worker(fault=f"{point}:SIGKILL", extra=SLOW)
            await until_ready(stack, doomed, survivor)
        event_id = f"at-{point.replace(':', '-')}"
        await begin(stack, event_id)
        await until_dead(stack, doomed)
        await finish(stack, event_id)

    doomed = stack.start_worker(fault="releases-published:3:SIGKILL", extra=SLOW)
    await until_ready(stack, doomed, survivor)
    await begin(stack, "in-mid-release")
    await until_applied(stack, "in-mid-release")
    await cancel(stack, "in-mid-release")
    await until_dead(stack, doomed)
    # Also those whose publish no checkpoint recorded: the results in the inbox prove it; nothing told is taken back.
    await whole(stack, "in-mid-release")
    await audited(stack, events=5)


async def test_after_a_windows_end_was_missed_the_first_thing_sent_is_releases(stack: Stack) -> None:
    """The only worker is killed in mid dispatch, and later stopped, and is back when the window is over."""
    await stack.start(inverters=DEVICES, simulator=FLEET)
    worker = stack.start_worker(fault="published:10:SIGKILL", extra=SLOW)
    await until_ready(stack, worker)
    end = await begin(stack, "killed", seconds=9)
    await until_dead(stack, worker)
    set_before = {c.sn for c in await commands(stack) if c.kind == "setpoint"}
    assert 0 < len(set_before) < DEVICES, "the death was to be in mid dispatch"
    await until_past(stack, end)
    back = time.time()
    worker = stack.start_worker()
    report = await closed(stack, "killed")
    # What no checkpoint records as published counts as unsent; it is released all the same.
    assert 0 < done(report) <= len(set_before) <= report["release"]["due"]
    found = between(await commands(stack), back)
    assert found[0].kind == "release"
    assert {c.sn for c in found if c.kind == "release"} >= set_before
    assert not [c for c in found if c.kind == "setpoint"]

    end = await begin(stack, "stopped", seconds=16)
    await until_applied(stack, "stopped")
    assert await asyncio.to_thread(worker.stop) == 0
    assert time.time() < end, "the stop was to be before the window's end"
    await until_past(stack, end)
    back = time.time()
    stack.start_worker()
    await whole(stack, "stopped")
    found = between(await commands(stack), back)
    assert [c.kind for c in found[:20]] == ["release"] * 20
    assert len({c.sn for c in found if c.kind == "release"}) == DEVICES
    assert not [c for c in found if c.kind == "setpoint"]
    await audited(stack, events=2)


async def test_workers_leave_and_join_under_backlog(stack: Stack) -> None:
    """SIGTERM of one of two in mid dispatch; another joins while setpoints wait, and leaves while releases wait."""
    await stack.start(inverters=DEVICES, simulator=FLEET)
    slow = {"GOODWE__MAX_PER_S": "50"}
    leaving, staying = stack.start_worker(extra=slow), stack.start_worker(extra=slow)
    await until_ready(stack, leaving, staying)
    await begin(stack, "moved")
    await until_applied(stack, "moved", 10)
    stopping = asyncio.create_task(asyncio.to_thread(leaving.stop))
    joining = stack.start_worker()
    assert await stopping == 0
    assert applied(stack, "moved") < DEVICES, "the SIGTERM was to be in mid dispatch"
    await until_ready(stack, joining, staying)
    await until_applied(stack, "moved")
    await cancel(stack, "moved")
    await stack.until(lambda: (2, 6) in stack.codes("moved"), 10, "the cancellation to be accepted")
    assert await asyncio.to_thread(joining.stop) == 0
    assert not (stack.report("moved") or {})["final"], "it was to leave while releases wait"
    await whole(stack, "moved")
    sets = [c for c in await commands(stack) if c.kind == "setpoint"]
    assert len({c.id for c in sets}) == len(sets) == DEVICES, "who leaves in good order leaves nothing to be sent twice"
    await audited(stack, events=1)


async def test_a_worker_frozen_past_its_session_sends_at_most_its_batch_in_hand_and_heals(stack: Stack) -> None:
    await stack.start(inverters=DEVICES, simulator=FLEET)
    frozen, other = stack.start_worker(fault="published:8:SIGSTOP", extra=SLOW), stack.start_worker()
    await until_ready(stack, frozen, other)
    await begin(stack, "frozen")
    await stack.until(lambda: _is_stopped(frozen), 20, "the worker to freeze")
    await until_applied(stack, "frozen")  # only when its session is over can the other have done all
    assert owned(stack, other) == 64
    thawed = time.time()
    frozen.signal(signal.SIGCONT)
    await stack.until(lambda: owned(stack, other) < 64, 30, "the thawed worker to be back in the group")
    await stack.until(lambda: 0 < owned(stack, frozen) == 64 - owned(stack, other), 20, "both to own their shards")
    late = between(await commands(stack), thawed)
    assert len(late) <= 20, "one batch"
    await finish(stack, "frozen")
    await begin(stack, "healed", controls=charge(1100))
    await finish(stack, "healed")
    await audited(stack, events=2)


def _is_stopped(worker: Child) -> bool:
    return Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


async def test_goodwes_cluster_gone_across_a_windows_end_and_ours_frozen(
    apart: Stack, broker: Broker, second_broker: Broker
) -> None:
    stack = apart
    await stack.start(inverters=DEVICES, simulator=FLEET)
    await until_ready(stack, stack.start_worker())

    end = await begin(stack, "frozen", seconds=14, priority=200)
    await until_applied(stack, "frozen")
    second_broker.freeze()
    gone = time.time()
    # Due while GoodWe's cluster is gone, over before it is back: it must never arrive.
    start = time.time() + 1
    end = max(end, await begin(stack, "during", after=1, seconds=max(end - start, 3), controls=charge(1500)))
    await stack.until(lambda: stack.codes("during") == [(1, 1), (1, 2)], 10, "the second event to start")
    await until_past(stack, end + 1)
    second_broker.thaw()
    await _all_released(stack, after=gone, back=time.time())
    for event_id in ("frozen", "during"):
        await closed(stack, event_id)
    told = {r.value["code"]: r.at for r in stack.records["dispatch.responses.v1"] if r.value["event_id"] == "during"}
    assert told[1] < start + 1 and told[2] < start + 2, "responses were late"
    reported = [r.at for r in stack.records["dispatch.reports.v1"] if r.value["event_id"] == "during"]
    assert [at for at in reported if start < at < end], "no report while GoodWe's cluster was gone"
    assert applied(stack, "during") == 0

    end = await begin(stack, "killed", seconds=12)
    await until_applied(stack, "killed")
    second_broker.kill()
    gone = time.time()
    await until_past(stack, end + 1)
    await asyncio.to_thread(second_broker.start)
    await _all_released(stack, after=gone, back=time.time())
    await whole(stack, "killed")

    await begin(stack, "ours")
    await stack.until(lambda: stack.codes("ours"), 10, "the event to be accepted")
    broker.freeze()
    froze = time.time()
    await until_past(stack, froze + 10)
    thawed = time.time()
    broker.thaw()
    await finish(stack, "ours")
    blind = between(await commands(stack), froze + 2.5, thawed)
    assert not blind, "without a lease nothing is published"
    await audited(stack, events=4)


async def _all_released(stack: Stack, *, after: float, back: float) -> None:
    """Every device gets its release within 30 s of the cluster's return, and no setpoint since it was gone."""

    def released(found: list[Command]) -> bool:
        return len({c.sn for c in between(found, after) if c.kind == "release"}) == DEVICES

    while not released(found := await commands(stack)):
        assert time.time() < back + 30, "releases within 30 s of the return"
        await asyncio.sleep(0.5)
    assert not [c for c in between(found, after) if c.kind == "setpoint"]


async def test_a_result_that_is_lost_hides_no_device_that_is_set(stack: Stack) -> None:
    """The only result of a set; of a set that is then cancelled, so that a weaker one resumes; of a release."""
    stack.settings["GOODWE__RESULT_TIMEOUT_S"] = "6"
    # A query is answered at once, a set only after a second: a query could overtake it.
    await stack.start(inverters=40, simulator=[*FLEET, "--topics-out-of-step", "multi:1"])
    await until_ready(stack, stack.start_worker(), devices=40)
    sns = sorted(d["sn"] for d in await stack.ask("/sim/fleet"))
    plain, resumed, once, never = sns[:10], sns[10:20], sns[20:30], sns[30:]

    weak: dict[str, Any] = {"targets": {"devices": resumed}, "priority": 200}
    await begin(stack, "weak", **weak)
    await until_applied(stack, "weak", 10)
    lost = [{"sns": plain + resumed, "kind": "set", "count": 1, "per_sn": True}]
    lost.append({"sns": once, "kind": "release", "count": 1, "per_sn": True})
    lost.append({"sns": never, "kind": "release", "count": None})
    await stack.tell("/sim/faults", {"drop": lost})
    discharge = [{"kind": "discharge", "each_w": 700}]
    strong: dict[str, Any] = {"targets": {"devices": resumed}, "priority": 1, "controls": discharge}
    await begin(stack, "strong", **strong)
    await begin(stack, "set", seconds=4, targets={"devices": plain})
    await begin(stack, "release", seconds=4, targets={"devices": once + never})

    await stack.until(lambda: published(stack, "strong") == 10, 10, "the stronger setpoints to be published")
    await cancel(stack, "strong")
    report = await closed(stack, "set")
    assert report["devices"]["unconfirmed"] == 10 and report["release"]["due"] == 10
    await whole(stack, "release", n=20)
    await closed(stack, "strong")
    await until_applied(stack, "weak", 10)
    device = await stack.ask("/sim/dump?sn=" + resumed[0])
    assert device["devices"][resumed[0]]["settings"]["EMS Power Set"] == 1000
    await finish(stack, "weak", n=10)
    verdict = await audited(stack, events=4)
    assert verdict.checked["read_backs"] >= 40

"""Many commands and slow answers: windows in flight, turns and priorities (R40), late results, topics out of step.

Judged by the request topics' append times and by the simulator's own state. Each run is audited at its end.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from tests.audit import Command
from tests.auditing import audited, commands
from vpp_dispatch.demo.stack import Child, Stack

WINDOW = 500
SOON_S = 2.0
"""R40's bound for a one-device event, and that of a cancellation."""

LOADED_S = 3.0
"""More than the bounds on a machine that runs other things on the same two cores."""


def gauge(stack: Stack, worker: Child, name: str) -> float:
    """A number on a worker's metrics page."""
    page = stack.metrics(worker).splitlines()
    return float(next(line.split()[-1] for line in page if line.startswith(f"vpp_dispatch_{name} ")))


def undisturbed(stack: Stack) -> None:
    """Facts are read less often than in other runs, where a fleet is small: a large one takes its time."""
    stack.settings |= {"FLEET__CONSENT_REFRESH_S": "30", "FLEET__CONSENT_MAX_AGE_S": "120"}
    stack.settings["FLEET__TELEMETRY_REFRESH_S"] = "60"


async def ready(stack: Stack, devices: int) -> Child:
    """Starts a worker; waits until it knows all devices with both keys."""
    worker = stack.start_worker()
    await stack.until_ready(worker)
    await stack.until(
        lambda: gauge(stack, worker, "devices_authorized") == devices, 30, "the registry and the consents"
    )
    return worker


def limit(watts: int) -> list[dict[str, Any]]:
    return [{"kind": "export_limit", "each_w": watts}]


def told_at(stack: Stack, event_id: str, code: int) -> float:
    """When an event's response stood on its topic, by the broker's clock; epoch s."""
    records = stack.records["dispatch.responses.v1"]
    return next(r.at for r in records if r.value["event_id"] == event_id and r.value["code"] == code)


def setpoints(found: list[Command], sns: set[str]) -> list[Command]:
    return [c for c in found if c.kind == "setpoint" and c.sn in sns]


async def feeders(stack: Stack) -> dict[str, list[str]]:
    """SNs by feeder, of the simulator's fleet."""
    groups: dict[str, list[str]] = {}
    for device in await stack.ask("/sim/fleet"):
        groups.setdefault(device["groups"][0], []).append(device["sn"])
    return groups


async def quick(stack: Stack) -> None:
    """From now on the simulator answers at once: the rest of a run is about nothing that takes its time."""
    await stack.tell("/sim/faults", {"latency_s": [0.02, 0.2], "latency_shape": "uniform"})


async def test_r40_one_device_events_beside_a_large_one(stack: Stack) -> None:
    """75 of higher and 75 of equal priority go out among 2,400 devices' setpoints that fill the window, not after."""
    stack.settings["GOODWE__MAX_IN_FLIGHT"] = str(WINDOW)
    undisturbed(stack)
    fleet = ["--series", "ETU", "--registered-limits", "1", "--feeders", "17", "--latency", "1", "3"]
    await stack.start(inverters=2550, simulator=fleet)
    await ready(stack, 2550)
    groups = await feeders(stack)
    alone = groups.pop("feeder-17")
    large = {sn for sns in groups.values() for sn in sns}
    assert (len(alone), len(large)) == (150, 2400)

    start = time.time()
    targets = {"groups": sorted(groups)}
    await stack.send(stack.signal("large", end_at=start + 300, priority=100, targets=targets, controls=limit(1000)))
    await stack.until_devices("large", "applied", 100, 40)  # the window was full once; from now on slots become free
    end = time.time() + 20
    signals = [
        stack.signal(
            f"one-{i:03d}",
            end_at=end,
            priority=(10, 100)[i % 2],
            targets={"devices": [sn]},
            controls=limit(2000),
        )
        for i, sn in enumerate(alone)
    ]
    await asyncio.gather(*(stack.send(signal) for signal in signals))
    await stack.until_devices("large", "applied", 2400, 90)

    found = await commands(stack)
    sets = {c.sn: c.at for c in setpoints(found, set(alone))}
    assert len(sets) == 150
    waited = {f"one-{i:03d}": sets[sn] - told_at(stack, f"one-{i:03d}", 1) for i, sn in enumerate(alone)}
    slowest = max(waited, key=lambda event_id: waited[event_id])  # since it was known, its default being registered
    assert waited[slowest] < SOON_S + LOADED_S, f"{slowest} waited {waited[slowest]:.1f} s"
    bulk = sorted(c.at for c in setpoints(found, large))
    behind = sum(at > max(sets.values()) for at in bulk)
    assert behind > 100, f"only {behind} of the large event's setpoints came after the last one-device event's"

    await quick(stack)
    await stack.send(stack.signal("large", revision=2, action="cancel", reason="seen enough"))
    report = await stack.until_closed("large", 60)
    assert report["release"] == {"due": 2400, "confirmed": 2400, "pending": 0, "refused": 0}
    for signal in signals:
        report = await stack.until_closed(signal["event_id"], 60)
        assert report["release"]["confirmed"] == report["release"]["due"] == 1
    verdict = await audited(stack, events=151)
    assert 0.8 * WINDOW < verdict.checked["in_flight.most"] <= WINDOW


async def test_r28_r40_results_slower_than_the_window_turns(stack: Stack) -> None:
    """A window full of unanswered setpoints, hundreds more waiting: one event is cancelled, one comes to its end."""
    stack.settings |= {"GOODWE__MAX_IN_FLIGHT": str(WINDOW), "GOODWE__RESULT_TIMEOUT_S": "45"}
    undisturbed(stack)
    fleet = ["--series", "ETU", "--registered-limits", "1", "--feeders", "2", "--latency", "12", "30"]
    await stack.start(inverters=1200, simulator=fleet)
    await ready(stack, 1200)
    groups = await feeders(stack)
    start = time.time() + 3  # both are known by then, and take turns
    for event_id, feeder, seconds in (("cancelled", "feeder-01", 200.0), ("over", "feeder-02", 10.0)):
        targets = {"groups": [feeder]}
        window: dict[str, Any] = {"start_at": start, "end_at": start + seconds}
        await stack.send(stack.signal(event_id, **window, targets=targets, controls=limit(1000)))

    def published() -> int:
        reports = [stack.report(event_id) or {} for event_id in ("cancelled", "over")]
        return sum(r.get("devices", {}).get("published", 0) for r in reports)

    await stack.until(lambda: published() >= 0.9 * WINDOW, 10, "the window to be full of setpoints")
    await stack.send(stack.signal("cancelled", revision=2, action="cancel", reason="fault cleared"))
    await stack.until(lambda: (2, 6) in stack.codes("cancelled"), 10, "the cancellation")
    cancelled_at = told_at(stack, "cancelled", 6)
    assert cancelled_at < start + 10, "the machine is too slow for this test: no setpoint may be answered yet"
    # Only now: releases that are answered soon make room for more setpoints of the other event.
    await stack.until(lambda: (stack.report("over") or {}).get("state") == "ending", 30, "the end of the other")
    await quick(stack)  # of what is told from now on; what is in flight takes its time
    for event_id in ("cancelled", "over"):
        report = await stack.until_closed(event_id, 90)
        assert 100 < report["release"]["confirmed"] == report["release"]["due"], report
    found = await commands(stack)
    for event_id, feeder, over_at in (("cancelled", "feeder-01", cancelled_at), ("over", "feeder-02", start + 10)):
        sns = set(groups[feeder])
        sets = setpoints(found, sns)
        # 450 of 1,200 fit into the window, and no setpoint is answered before 12 s.
        assert 100 < len(sets) < 500, event_id
        assert max(c.at for c in sets) < over_at + 1, f"{event_id}: a setpoint after its window (R28)"
        released: dict[str, float] = {}
        for c in found:
            if c.kind == "release" and c.sn in sns:
                released.setdefault(c.sn, c.at)
        assert set(released) == {c.sn for c in sets}
        took = max(released.values()) - over_at
        assert took < SOON_S + LOADED_S, f"{event_id}: the last release left {took:.1f} s after its end"
    verdict = await audited(stack, events=2)
    assert verdict.checked["in_flight.most"] <= WINDOW


async def test_r22_r27_topics_out_of_step_leave_nobody_latched(stack: Stack) -> None:
    """Effects and answers overtake each other, queries overtake setpoints; events follow each other all the while."""
    stack.settings["GOODWE__RESULT_TIMEOUT_S"] = "20"
    late = {"reorder_s": 5}
    weather = ["--topics-out-of-step", "multi:3", "--reorder", "0.2", "--reorder-effects", "0.1", "--duplicates", "0.1"]
    await stack.start(inverters=100, simulator=["--series", "ETU", *weather, "--faults", json.dumps(late)])
    worker = await ready(stack, 100)
    start = time.time()

    def power(kind: str, watts: int) -> list[dict[str, Any]]:
        return [{"kind": kind, "each_w": watts}]

    plan = (  # (from, to, priority, kind, W): each changes what most devices are told, while answers are on their way
        (0, 26, 200, "charge", 1000),
        (6, 12, 10, "discharge", 1500),
        (9, 15, 5, "charge", 2000),
        (17, 22, 50, "standby", 0),
    )
    for i, (first, last, priority, kind, watts) in enumerate(plan):
        controls = power(kind, watts) if watts else [{"kind": kind}]
        window: dict[str, Any] = {"start_at": start + first, "end_at": start + last}
        signal = stack.signal(f"e{i}", **window, priority=priority, targets={"all": True}, controls=controls)
        await stack.send(signal)
    for i in range(len(plan)):
        report = await stack.until_closed(f"e{i}", 120)
        assert report["release"]["confirmed"] == report["release"]["due"], report
    assert report["devices"]["skipped"] == 0
    assert gauge(stack, worker, "suspect_total") > 0, "no answer was overtaken: this run has shown nothing"
    assert gauge(stack, worker, "results_duplicate_total") > 0
    await stack.until(lambda: gauge(stack, worker, "commands_in_flight") == 0, 60, "all answers")
    await audited(stack, events=len(plan))
    devices = (await stack.ask("/sim/dump"))["devices"]
    latched = [sn for sn, d in devices.items() if d["settings"]["EMS Power Mode"] != 1]
    assert not latched, f"{len(latched)} devices are left latched, the first {devices[latched[0]]}"

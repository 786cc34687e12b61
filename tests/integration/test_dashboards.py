"""Every query of every panel, on what a real Prometheus scraped from the real service under a dispatch."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pytest

from deploy.grafana.generate import loaded
from deploy.grafana.picture import Run, draw
from deploy.grafana.record import VARIABLES, answer, rules
from tests.prometheus import Prometheus
from tests.waiting import eventually
from vpp_dispatch.demo.stack import Stack

INVERTERS: Final = 300
ZERO: Final = "is 0 throughout"
NOTHING_WRONG: Final = {
    "Batches unknown": "GoodWe's cluster acknowledges everything here",
    "Break-glass failures": "the disk takes everything",
    "Lease lapses": "no worker loses its lease",
    "Rebalances and lease lapses: lease lapses": "no worker loses its lease",
    "Switches": "nobody turns one",
    "Circuit to the API": "the API answers",
    "Actuators made suspect": "no result comes so late",
    "Retries": "see the offline devices: they are skipped, not retried",
    "Results that are no success: no answer (unconfirmed)": "every result comes in time",
    "Results without a match: orphan": "nobody else commands this fleet",
    "Results without a match: late": "every result comes in time",
    "Clock skew": "broker and workers share a clock",
    "Publish latency: burn rate": "on an idle machine every command leaves within 2 s",
    "Release: burn rate": "nobody stands past its window for 15 minutes",
}
"""Queries that may stand at 0 throughout, by panel or `panel: legend`: nothing of the kind happens in this run."""


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    with Prometheus(rules=rules()) as started:
        yield started


async def test_every_query_of_every_panel_gives_data(stack: Stack, prometheus: Prometheus) -> None:
    """Some inverters are offline, without consent, or refuse; one event is cancelled, two signals are no good."""
    following = asyncio.create_task(prometheus.follow(stack))
    try:
        begin = time.time()
        await _dispatch(stack)
        scraped = f"min(timestamp(vpp_dispatch_owned_shards)) > {time.time():.3f}"
        await eventually(lambda: prometheus.query(scraped), 20, "a scrape of the last changes")
        end = time.time()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    run = Run(start=begin, end=end, scrape_s=1.0, note="a test's run", variables=VARIABLES)
    faults = await asyncio.to_thread(_faults, prometheus, run)
    assert not faults, "\n".join(faults)
    for board in loaded():
        figure = await asyncio.to_thread(draw, board, partial(answer, prometheus), run)
        assert len(figure.axes) > len(board["panels"]) / 2


async def _dispatch(stack: Stack) -> None:
    options = ["--latency", "0.1", "0.6", "--offline", "0.05", "--no-consent", "0.05", "--refusals", "1099:0.05"]
    await stack.start(inverters=INVERTERS, simulator=[*options, "--duplicates", "0.05", "--feeders", "4"])
    workers = [stack.start_worker(), stack.start_worker()]
    await stack.until_ready(*workers, registered=INVERTERS)
    await stack.until(lambda: all(stack.gauge(w, "owned_shards") for w in workers), 30, "both workers to own shards")
    await stack.until(
        lambda: sum(stack.gauge(w, "devices_authorized") for w in workers) > 0.9 * INVERTERS, 30, "consent to be read"
    )
    await stack.send(b"this is not JSON")
    await stack.send(stack.signal("odd", targets={"all": True}, controls=[], colour="blue"))
    now = time.time()
    charge, discharge = [{"kind": "charge", "each_w": 1500}], [{"kind": "discharge", "each_w": 1200}]
    limit = [{"kind": "export_limit", "each_w": 1000}]
    targets = {"take": ("import_target", "feeder-03"), "give": ("export_target", "feeder-04")}
    some = {"groups": ["feeder-02"]}
    await stack.send(stack.signal("charge", end_at=now + 16, priority=20, targets={"all": True}, controls=charge))
    await stack.send(stack.signal("limit", end_at=now + 14, targets={"groups": ["feeder-01"]}, controls=limit))
    await stack.send(stack.signal("discharge", end_at=now + 60, priority=10, targets=some, controls=discharge))
    for event_id, (kind, group) in targets.items():
        asked = [{"kind": kind, "each_w": 600}]
        body = stack.signal(event_id, end_at=now + 12, priority=5, targets={"groups": [group]}, controls=asked)
        await stack.send(body)
    await stack.until_devices("charge", "applied", 50, 30)
    await stack.until_devices("discharge", "applied", 5, 30)
    await stack.send(stack.signal("discharge", revision=2, action="cancel", reason="the peak is over"))
    for event_id in ("charge", "limit", "discharge", *targets):
        await stack.until_closed(event_id)


def _faults(prometheus: Prometheus, run: Run) -> list[str]:
    """What is not as it should be with the answers to the panels' queries, in sentences."""
    found = []
    asked = 0
    known: set[str] = set()
    for board in loaded():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                asked += 1
                names = (panel["title"], f"{panel['title']}: {target['legendFormat']}")
                fault = _fault(prometheus, run, panel, target)
                known |= {*names}
                if fault and not (fault == ZERO and NOTHING_WRONG.keys() & names):
                    found.append(f"{board['uid']}, {names[1]}: {fault}: {target['expr']}")
    assert asked > 100 and NOTHING_WRONG.keys() <= known
    return found


def _fault(prometheus: Prometheus, run: Run, panel: dict[str, Any], target: dict[str, Any]) -> str:
    step = run.steps(panel)
    answered = prometheus.query_range(run.filled(target["expr"], step), run.start, run.end, step)
    values = [value for series in answered for _, value in series.samples]
    if not values:
        return "has no data"
    if any(not math.isfinite(value) for value in values):
        return "has values that are no numbers"
    return "" if any(values) else ZERO

"""The rules of deploy/prometheus in a real Prometheus that scrapes the real service: quiet where all is well, and not
where it is not. How long each alert waits is held by promtool's tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from deploy.grafana.record import rules
from tests.prometheus import Prometheus
from tests.waiting import eventually
from vpp_dispatch.demo.stack import Stack

INVERTERS = 200


AS_EVER = {"VppDispatchWatchdog", "VppDispatchDebtsGrowing", "VppDispatchHeldPastWindow"}
"""The last two look back over 2 minutes, so each release has them pending; they fire after 20 and 15 minutes."""


def raised(prometheus: Prometheus) -> set[str]:
    """Alerts that are pending or firing, but for those that are so in any dispatch that goes well."""
    return {series.labels["alertname"] for series in prometheus.query("ALERTS")} - AS_EVER


async def until_raised(prometheus: Prometheus, wanted: Callable[[set[str]], bool], what: str) -> None:
    """Waits for some alerts, or for none; a failure tells which there were last."""
    seen: set[str] = set()

    def there() -> bool:
        seen.clear()
        seen.update(raised(prometheus))
        return wanted(seen)

    try:
        await eventually(there, 30, what)
    except AssertionError as fault:
        raise AssertionError(f"{fault}; raised: {sorted(seen)}") from None


def value(prometheus: Prometheus, expr: str) -> float | None:
    found = prometheus.query(expr)
    return found[0].last if found else None


async def test_a_dispatch_that_goes_well_raises_nothing_and_what_goes_wrong_is_raised(stack: Stack) -> None:
    with Prometheus() as prometheus:
        following = asyncio.create_task(prometheus.follow(stack))
        try:
            await asyncio.to_thread(prometheus.load, rules())
            await stack.start(inverters=INVERTERS, simulator=["--latency", "0.1", "0.6", "--offline", "0.05"])
            workers = [stack.start_worker(), stack.start_worker()]
            await stack.until_ready(*workers, registered=INVERTERS)
            charge = [{"kind": "charge", "each_w": 1500}]
            body = stack.signal("well", end_at=time.time() + 10, targets={"all": True}, controls=charge)
            await stack.send(body)
            await stack.until_devices("well", "applied", 100, 30)
            await stack.until_closed("well")
            await eventually(lambda: value(prometheus, 'ALERTS{alertname="VppDispatchWatchdog"}') == 1, 20, "watchdog")
            await until_raised(prometheus, lambda seen: not seen, "no alert to be raised")
            for slo in ("results", "publish_latency", "release"):
                ratio = f'vpp_dispatch:slo_errors:ratio_rate5m{{slo="{slo}"}}'
                assert value(prometheus, ratio) is not None
            results = 'sum(vpp_dispatch:slo_total:5m{slo="results"})'
            assert (value(prometheus, results) or 0) > INVERTERS, (
                "setpoints, releases and read-backs, born with a value"
            )

            await stack.send(b"not JSON at all")
            await until_raised(prometheus, lambda seen: seen == {"VppDispatchDeadLetters"}, "the first dead letter")

            for worker in workers:
                worker.kill()
            gone = {"VppDispatchAllWorkersDown", "VppDispatchShardsWithoutOwner", "VppDispatchWorkerDown"}
            await until_raised(prometheus, lambda seen: gone <= seen, "the loss of all workers")
            bad = 'vpp_dispatch:slo_bad:5m{slo="release"}'
            await eventually(lambda: value(prometheus, bad) == 1, 30, "the objective of releases to be missed")
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

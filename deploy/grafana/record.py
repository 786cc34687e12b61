"""Plays the demo under a real Prometheus and draws the dashboards: `python -m deploy.grafana.record [--inverters N]`.

Kafka, simulator and two workers are real and on this machine; so are the rules of deploy/prometheus. The pictures go to
docs/dashboards/ as SVG. Beside the demo's four events an operator sends two signals that are refused.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from deploy.grafana.generate import loaded
from deploy.grafana.picture import Answer, Run, draw, save
from tests.prometheus import JOB, Prometheus
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.plan import Plan
from vpp_dispatch.demo.stack import Stack
from vpp_dispatch.demo.teller import Teller

ROOT: Final = Path(__file__).parents[2]
PICTURES: Final = ROOT / "docs" / "dashboards"
SETTINGS: Final = {
    "FLEET__CONSENT_REFRESH_S": "4",
    "FLEET__TELEMETRY_REFRESH_S": "6",
    "FLEET__TELEMETRY_MAX_AGE_S": "60",
}
SCRAPE_S: Final = 2.0
BUSY: Final = {"refusals": {"1003": 0.02}}
"""GoodWe asks for less now and then; such commands are sent again."""
VARIABLES: Final = {
    "job": JOB,
    "worker": ".*",
    "runbooks": "docs/runbooks",
    "consent_max_age_s": "60",
    "telemetry_max_age_s": "60",
}
"""The dashboards' variables, as this run is set."""


def rules() -> list[Path]:
    """The rule files that Prometheus loads in production."""
    return sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))


def answer(prometheus: Prometheus, expr: str, start: float, end: float, step_s: float) -> Answer:
    """A range query for `picture.draw`."""
    return [(series.labels, series.samples) for series in prometheus.query_range(expr, start, end, step_s)]


async def play(prometheus: Prometheus, servers: str, *, inverters: int, seconds: float) -> tuple[float, float]:
    """Plays the demo's plan; from when to when, in epoch seconds."""
    stack = Stack(bootstrap_servers=servers, prefix="", settings=SETTINGS)
    teller = Teller()
    plan = Plan(stack, teller, inverters=inverters, seconds=seconds)
    tasks = [asyncio.create_task(prometheus.follow(stack)), asyncio.create_task(teller.follow(stack))]
    try:
        await asyncio.to_thread(prometheus.load, rules())
        await plan.start()
        await stack.until(lambda: len(prometheus.query("up == 1")) == 2, 20, "the workers to be scraped")
        await stack.tell("/sim/faults", BUSY)
        begin = time.time()
        await stack.send(b"not JSON at all")
        await stack.send(stack.signal("odd-1", targets={"all": True}, controls=[], colour="blue"))
        await plan.play()
        end = time.time()
        await asyncio.sleep(7)  # not to wait for anything: the picture shows the rest after it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stack.stop()
    return begin - 6, end + 6


@click.command()
@click.option("--inverters", type=click.IntRange(100, 100_000), default=2000, show_default=True)
@click.option("--seconds", type=float, default=90.0, show_default=True, help="Of the longest event.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=PICTURES, help="Of the pictures.")
@click.option("--format", "form", type=click.Choice(["svg", "png"]), default="svg", show_default=True)
def main(folder: Path, form: str, **options: Any) -> None:
    """Play the demo, and draw each dashboard from what Prometheus saw of it."""
    with Prometheus(interval_s=SCRAPE_S) as prometheus:
        with Broker() as broker:
            start, end = asyncio.run(play(prometheus, broker.bootstrap_servers, **options))
        began = datetime.fromtimestamp(start, UTC)
        run = Run(
            start=start,
            end=end,
            scrape_s=SCRAPE_S,
            note=f"{options['inverters']:,} simulated inverters, two workers and Apache Kafka on one machine, "
            f"{began:%Y-%m-%d %H:%M} UTC; scraped every {SCRAPE_S:g} s, drawn from the dashboard's JSON",
            variables=VARIABLES,
        )
        folder.mkdir(parents=True, exist_ok=True)
        for board in loaded():
            figure = draw(board, partial(answer, prometheus), run)
            path = folder / f"{board['uid'].removeprefix('vpp-dispatch-')}.{form}"
            save(figure, path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-smoke`: how fast, and at what cost, fleets of two sizes are set and released on this machine.

    python -m benchmarks.smoke [--devices 10000] [--shape burst] [--workers 1] [--write]

Each fleet has a Kafka, a simulator and workers of its own. Cold: the defaults have to be queried first (R37). Warm: the
second event on the same actuator, whose defaults are known. Burst: the fleet answers each command within 0.2 s.
Trickle: its answers come over a minute. Everything runs on the same cores, so the simulator and the broker take their
share of them; what the worker itself takes is in the CPU column.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import page, picture, raw
from benchmarks.case import BURST, Case, Measured, running
from vpp_dispatch.errors import VppDispatchError

SHAPES: Final = ("burst", "trickle")
EVENTS: Final = {"burst": ("export_limit", (1500, 1200)), "trickle": ("charge", (1500, 1200))}
"""Kind, and W per device of the cold and the warm event: an actuator per shape, since an actuator is cold only once."""


async def _fleet(devices: int, options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """All cases of one fleet: facts of it, and (row, panel) of each case."""
    found = []
    async with running(devices=devices, workers=options["workers"], folder=folder, limit_s=options["limit_s"]) as case:
        fleet: dict[str, Any] = {"devices": devices, "ready_s": case.ready_s, "idle_cpu": case.idle_cpu}
        _say(f"{devices} devices: ready after {case.ready_s:.1f} s")
        for shape in options["shapes"]:
            latency_s = BURST if shape == "burst" else (BURST[0], options["trickle_s"])
            kind, watts = EVENTS[shape]
            for state, each_w in zip(("cold", "warm"), watts, strict=True):
                title = f"{devices:,} {state} {shape}"
                try:
                    found.append(await _event(case, title, kind, each_w, latency_s))
                except VppDispatchError as error:  # what this fleet is in now is no start for another event
                    fleet["failed"] = f"{title}: {error}"
                    _say(fleet["failed"])
                    return fleet, found
    return fleet, found


async def _event(
    case: Case, title: str, kind: str, each_w: int, latency_s: tuple[float, float]
) -> tuple[dict[str, Any], Any]:
    name = title.replace(",", "").replace(" ", "-")
    measured = await case.play(name, kind, each_w, latency_s)
    if measured.devices < case.devices:
        _say(f"{title}: only {measured.devices} of {case.devices} were set")
    beside = await raw.measure(case.stack.bootstrap_servers, measured.sent, measured.returned_messages)
    measured.sent, measured.returned_messages = [], []
    row = _row(title, measured, beside)
    _say(
        f"{title}: last setpoint {row['last_setpoint_s']:.2f} s, last result {row['last_result_s']:.2f} s, all set "
        f"{row['settled_s']:.2f} s; released {row['released_s']:.2f} s and final report {row['final_s']:.2f} s after "
        f"the cancellation; {row['cpu_us']:.0f} us per command"
    )
    gc.collect()
    return row, (title, measured, beside.publish_s)


def _row(title: str, m: Measured, beside: raw.Raw) -> dict[str, Any]:
    """What goes into the table and the JSON; the ratios compare with raw aiokafka per message."""
    wall_s = float(m.setpoints[-1] - m.setpoints[0]) or 1e-3
    paced = title.endswith("cold trickle")  # by the answers to the queries, not by us
    cpu_s = (m.cpu_s + m.cpu_end_s) / (m.commands + m.commands_end)
    raw_cpu_s = beside.publish_cpu_s / beside.messages + beside.read_cpu_s / beside.read
    return {
        "case": title,
        "devices_set": m.devices,
        "first_setpoint_s": float(m.setpoints[0]),
        "last_query_s": float(m.queries[-1]) if len(m.queries) else None,
        "last_setpoint_s": float(m.setpoints[-1]),
        "last_result_s": float(m.results[-1]),
        "settled_s": m.settled_s,
        "released_s": m.released_s,
        "final_s": m.final_s,
        "setpoints_per_s": None if paced else len(m.setpoints) / wall_s,
        "commands": m.commands + m.commands_end,
        "cpu_us": 1e6 * cpu_s,
        "cpu_set_us": 1e6 * m.cpu_s / m.commands,
        "cpu_release_us": 1e6 * m.cpu_end_s / max(m.commands_end, 1),
        "cpu_set_s": m.cpu_s,
        "peak_mb": m.peak_mb,
        "results": m.returned,
        "inbox_per_result": m.inbox / m.returned,
        "changelog_per_result": m.changelog_bytes / m.returned,
        "raw_publish_s": beside.publish_s,
        "raw_read_s": beside.read_s,
        "raw_cpu_us": 1e6 * raw_cpu_s,
        "wall_ratio": None if paced else wall_s / beside.publish_s,
        "cpu_ratio": cpu_s / raw_cpu_s,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Sequence[Any]]:
    """Runs all cases: the result as it is written, and the panels of the picture.

    A fleet's `failed` says which of its events did not come to its end; the later ones of that fleet are left out.

    Raises:
        VppDispatchError: a part did not come up.
    """
    about, started = page.facts(), time.monotonic()
    fleets, rows, panels = [], [], []
    for devices in options["devices"]:
        fleet, found = asyncio.run(_fleet(devices, options, folder / str(devices)))
        fleets.append(fleet)
        rows += [row for row, _ in found]
        panels += [panel for _, panel in found]
        shutil.rmtree(folder / str(devices) / "kafka", ignore_errors=True)
    result = {
        "command": f"make bench-smoke ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else "make bench-smoke",
        "facts": about,
        "workers": options["workers"],
        "trickle_s": options["trickle_s"],
        "seconds": time.monotonic() - started,
        "fleets": fleets,
        "cases": rows,
    }
    return result, panels


@click.command()
@click.option("--devices", multiple=True, type=click.IntRange(100, 1_000_000), default=(10_000, 100_000))
@click.option("--shape", "shapes", multiple=True, type=click.Choice(SHAPES), default=SHAPES)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--trickle-s", type=float, default=60.0, show_default=True, help="The slowest answer of a trickle, in s.")
@click.option("--limit-s", type=float, default=300.0, show_default=True, help="Longest wait for one step, in s.")
@click.option("--write", is_flag=True, help="Write docs/performance.md's table, and benchmarks/results/.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for smoke.json and smoke.svg.")
def main(write: bool, out: Path | None, **options: Any) -> None:
    """Measure a dispatch from outside, with raw aiokafka beside it; print a table."""
    folder = Path(tempfile.mkdtemp(prefix="vpp-dispatch-bench-"))
    try:
        result, panels = measure(options, folder)
    except VppDispatchError as error:
        _say(f"{error}\nThe logs are in {folder}.")
        sys.exit(1)
    out = page.RESULTS if write else out or page.ROOT / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "smoke.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "smoke.svg").write_text(picture.svg(panels))
    print(page.section(result))
    if write:
        page.write(page.section(result))
    failed = [fleet["failed"] for fleet in result["fleets"] if "failed" in fleet]
    _say(f"Written: {out / 'smoke.json'}, {out / 'smoke.svg'}{', ' + str(page.PAGE) if write else ''}")
    if failed:
        _say(f"The logs are in {folder}.")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

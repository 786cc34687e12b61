"""What a run says: the table and the machine's facts, and where they go."""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vpp_dispatch.demo import jars

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "performance.md"
RESULTS: Final = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- bench-smoke: begin -->", "<!-- bench-smoke: end -->"

COLUMNS: Final[Sequence[tuple[str, str]]] = (
    ("case", "case"),
    ("last setpoint", "last_setpoint_s"),
    ("last result", "last_result_s"),
    ("all set, said the report", "settled_s"),
    ("last release", "released_s"),
    ("final report", "final_s"),
    ("setpoints/s", "setpoints_per_s"),
    ("CPU per command", "cpu_us"),
    ("peak memory", "peak_mb"),
    ("inbox messages per result", "inbox_per_result"),
    ("changelog bytes per result", "changelog_per_result"),
    ("raw: publish", "raw_publish_s"),
    ("raw: read", "raw_read_s"),
    ("wall, ratio", "wall_ratio"),
    ("CPU, ratio", "cpu_ratio"),
)


def facts() -> dict[str, Any]:
    """The machine, the versions, the commit, and how busy the machine was before the run."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown CPU"
    )
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    versions = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _git("rev-parse", "--short=10", "HEAD") or "unknown",
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "version": versions["version"],
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_kb / 2**20),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kafka": "Kafka " + jars.KAFKA.rsplit(":", 1)[1],
        "load_before": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if name.endswith("_s") and name != "setpoints_per_s":
        return f"{value:.2f} s"
    if name == "cpu_us":
        return f"{value:.0f} us"
    if name == "peak_mb":
        return f"{value:.0f} MB"
    if name.endswith("_ratio"):
        return f"{value:.0f}"
    return f"{value:.3f}" if name == "inbox_per_result" else f"{value:,.0f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, its sides swapped: a line per quantity, a column per case."""
    head, *rest = COLUMNS
    lines = ["| | " + " | ".join(_cell(head[1], row) for row in rows) + " |", "|---|" + "---|" * len(rows)]
    lines += [f"| {title} | " + " | ".join(_cell(name, row) for row in rows) + " |" for title, name in rest]
    return "\n".join(lines)


def section(result: Mapping[str, Any]) -> str:
    """The generated part of docs/performance.md."""
    about, rows = result["facts"], result["cases"]
    dirty = f" with {about['changed_files']} changed files" if about["changed_files"] else ""
    fleets = "; ".join(
        f"{fleet['devices']:,} devices: ready {fleet['ready_s']:.0f} s after its start (registry and consents read), "
        f"{fleet['idle_cpu']:.1%} of a core when idle"
        for fleet in result["fleets"]
    )
    workers = f"{result['workers']} worker{'s' if result['workers'] > 1 else ''}"
    return "\n\n".join(
        [
            f"Written by `{result['command']}` on {about['at']}, at commit {about['commit']}{dirty}. "
            f"{about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB, {about['kernel']}, "
            f"Python {about['python']}, {about['kafka']}; load before the start {about['load_before']}; {workers}; "
            f"{result['seconds']:.0f} s in all. {fleets}.",
            *(f"**Did not come to its end**: {fleet['failed']}" for fleet in result["fleets"] if "failed" in fleet),
            table(rows),
            "![Shares of the fleet over time](../benchmarks/results/smoke.svg)",
        ]
    )


def write(section_: str) -> None:
    """Replaces what stands between the markers of docs/performance.md.

    Raises:
        ValueError: the markers are not there.
    """
    text = PAGE.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found and found_end):
        raise ValueError(f"{PAGE.name} has no {BEGIN} and {END}.")
    PAGE.write_text(f"{before}{BEGIN}\n\n{section_}\n\n{END}{after}", encoding="utf-8")

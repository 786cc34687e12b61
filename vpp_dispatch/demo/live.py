"""The live picture of a run on a terminal: power against what was asked, events, workers, and the lines as they come.

It takes the whole screen while the plan is played; afterwards the terminal is as before, and the lines that went by are
written to it. `render` is pure: data in, something for rich out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vpp_dispatch.demo.course import Course
from vpp_dispatch.demo.teller import COLOURS, Teller, Told

SMALLEST: Final = (80, 28)
"""Columns and rows; on less there are plain lines."""
TINTS: Final = ("dodger_blue1", "dark_orange", "spring_green3", "orchid")
"""Of the events, in their order: to be told apart by everyone, on dark and on light."""
_FRAME_S: Final = 0.5
_LABEL: Final = 24
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_TAIL: Final = 1.35
"""The time axis is this much longer than the plan's seconds: releases, and what waits for them."""

Reports = Mapping[str, Mapping[str, Any]]


def fits(console: Console, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a live picture is wanted and possible: a terminal that is large enough, without NO_COLOR and CI."""
    plain = environment.get("NO_COLOR") or environment.get("CI") or environment.get("TERM", "dumb") == "dumb"
    return console.is_terminal and not plain and console.width >= SMALLEST[0] and console.height >= SMALLEST[1]


def watts(value: float) -> str:
    """`2.68 MW`, `354 kW`, `1500 W`: three digits are enough."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} MW"
    return f"{value / 1e3:.0f} kW" if abs(value) >= 1e4 else f"{value:.0f} W"


def columns(samples: Sequence[tuple[float, float]], begin: float, seconds: float, width: int) -> list[float | None]:
    """Samples (epoch s, W) sorted into equal columns of time: the last of each, and where there is none the one before;
    None before the first and after the last."""
    found: list[float | None] = [None] * width
    for at, value in samples:
        column = int((at - begin) / seconds * width)
        if 0 <= column < width:
            found[column] = value
    there = [column for column, value in enumerate(found) if value is not None]
    if not there:
        return found
    for column in range(there[0], there[-1]):
        if found[column + 1] is None:
            found[column + 1] = found[column]
    return found


def chart(values: Sequence[float | None], asked: Sequence[float | None], top: float, rows: int, tint: str) -> Text:
    """Columns of blocks under a line of what was asked.

    Args:
        values, asked: W per column; None = nothing to draw.
        top: W at the upper edge, > 0.
        rows: lines of text, from the top down.
    """
    text = Text()
    for row in range(rows - 1, -1, -1):
        for value, wanted in zip(values, asked, strict=True):
            eighths = 0 if value is None else round(min(value / top, 1.0) * rows * 8) - row * 8
            eighths = min(max(eighths, 0), 8)
            if wanted is not None and row == min(int(wanted / top * rows), rows - 1):
                text.append("─", style=f"bold white on {tint}" if eighths == 8 else "bold")
            else:
                text.append(_BLOCKS[eighths], style=tint)
        if row:
            text.append("\n")
    return text


def render(
    course: Course, reports: Reports, told: Sequence[Told], *, now: float, width: int, height: int
) -> RenderableType:
    """The whole screen.

    Args:
        reports: the newest per event, of those that have one.
        told: the lines so far; the newest that fit are shown.
        now: epoch s.
        width, height: of the screen, columns and rows; at least `SMALLEST`.
    """
    events = len(course.events)
    tables = max(events, 1) + 5
    rows = 3 if height - tables - events * 3 >= 16 else 2 if height - tables - events * 2 >= 10 else 1
    power = events * max(rows, 2) + 2 if events else 3
    layout = Layout()
    layout.split_column(
        Layout(_headline(course, now, width), size=1),
        Layout(_power(course, now, width, max(rows, 2)), size=power),
        Layout(_accounts(course, reports), size=tables),
        Layout(_lines(told, width, height - 1 - power - tables - 2)),
    )
    return layout


def _headline(course: Course, now: float, width: int) -> Text:
    gone = f"{now - course.began_at:5.1f} s" if course.began_at else "starting"
    sample = course.samples[-1] if course.samples else None
    parts = [f" VPP dispatch  {gone}", f"{course.inverters:,} inverters"]
    if sample:
        parts.append(f"{sample.held:,} held")
        parts.append(f"{sample.owed:,} releases owed")
        for name, worker in sample.workers.items():
            parts.append(f"{name} {worker.shards} shards, {worker.in_flight} in flight")
    text = Text("   ".join(parts), style="reverse", no_wrap=True, overflow="ellipsis")
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def _power(course: Course, now: float, width: int, rows: int) -> Panel:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_LABEL, no_wrap=True)
    grid.add_column(no_wrap=True)
    across, seconds = width - _LABEL - 5, course.seconds * _TAIL
    for tint, (event_id, played) in zip(TINTS * 9, course.events.items(), strict=False):
        samples = [(s.at, s.power_w[event_id]) for s in course.samples if event_id in s.power_w]
        newest = samples[-1][1] if samples else 0.0
        top = max([played.asked_w * 1.1, *(value for _, value in samples)]) or 1.0
        middles = [course.began_at + (column + 0.5) * seconds / across for column in range(across)]
        asked = [played.asked_w if played.from_at <= at < played.over_at else None for at in middles]
        label = Text(f"{event_id}  {watts(newest)}", style=f"bold {tint}")
        bound = "at most" if played.sight.limit else "asked"
        runs = played.from_at <= now < played.over_at
        label.append(f"\n{bound} {watts(played.asked_w)}", style="" if runs else "dim")
        if rows > 2:
            label.append(f"\n{played.sight.power}, {played.whom}", style="dim")
        grid.add_row(label, chart(columns(samples, course.began_at, seconds, across), asked, top, rows, tint))
    body: RenderableType = grid if course.events else Text("nothing has been asked for yet", style="dim")
    return Panel(body, title="power, measured by the inverters  (─ asked)", title_align="left", border_style="dim")


def _accounts(course: Course, reports: Reports) -> Panel:
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True)
    for name in ("event", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("set", "waiting", "skipped", "refused", "released", "publish s", "result s"):
        table.add_column(name, justify="right", no_wrap=True)
    for tint, (event_id, played) in zip(TINTS * 9, course.events.items(), strict=False):
        report = reports.get(event_id)
        if report is None:
            table.add_row(Text(event_id, style=f"bold {tint}"), "sent", *[""] * 7)
            continue
        devices, release, latency = report["devices"], report["release"], report["latency_s"]
        owed = Text(f"{release['confirmed']}/{release['due']}" if release["due"] else "-")
        if release["due"] > release["confirmed"]:
            owed.stylize("bold yellow")
        table.add_row(
            Text(event_id, style=f"bold {tint}"),
            report["state"] + (", cancelled" if played.cancelled else ""),
            str(devices["applied"] + devices["verified"]),
            str(devices["pending"] + devices["published"] + devices["accepted"]),
            str(devices["skipped"]),
            str(devices["rejected"] + devices["unconfirmed"]),
            owed,
            _two(latency["publish"]),
            _two(latency["result"]),
        )
    caption = Text("publish: desired to published, result: published to result; p50 / p95", style="dim")
    return Panel(Group(table, Text(""), caption), title="events, as reported", title_align="left", border_style="dim")


def _two(latency: Mapping[str, float | None]) -> str:
    p50, p95 = latency["p50"], latency["p95"]
    return "-" if p50 is None or p95 is None else f"{p50:.1f} / {p95:.1f}"


def _lines(told: Sequence[Told], width: int, rows: int) -> Panel:
    text = Text(no_wrap=True, overflow="ellipsis")
    for line in told[-max(rows, 1) :]:
        text.append(f"{line.at_s:6.1f} s  ", style="dim")
        text.append(f"{line.who:8}", style=COLOURS[line.who])
        text.append(f"  {line.what}\n")
    text.rstrip()
    return Panel(text, title="what happens", title_align="left", border_style="dim")


class Screen:
    """The live picture while a plan is played; without a fitting terminal nothing, and the teller writes as it does.

    Args:
        reports: gives the newest report of an event, or None.
    """

    def __init__(
        self,
        course: Course,
        teller: Teller,
        reports: Callable[[str], Mapping[str, Any] | None],
        console: Console | None = None,
    ) -> None:
        self._course = course
        self._teller = teller
        self._report = reports
        self._console = console or Console(file=sys.stdout)

    @contextlib.contextmanager
    def shown(self, wanted: bool = True) -> Iterator[Live | None]:
        """Takes the screen for the time of the block, if it is wanted and one fits; gives it back whatever happens."""
        if not (wanted and fits(self._console)):
            yield None
            return
        self._teller.hold_back()
        try:
            with Live(self._frame(), console=self._console, screen=True, auto_refresh=False) as live:
                yield live
        finally:
            self._teller.let_go()

    async def follow(self, live: Live) -> None:
        """A frame twice a second, until cancelled."""
        while True:
            live.update(self._frame(), refresh=True)
            await asyncio.sleep(_FRAME_S)

    def _frame(self) -> RenderableType:
        found = {event_id: self._report(event_id) for event_id in self._course.events}
        reports = {event_id: report for event_id, report in found.items() if report is not None}
        size = self._console.size
        return render(self._course, reports, self._teller.told, now=time.time(), width=size.width, height=size.height)

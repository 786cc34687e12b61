"""Tells a person what happens in a run while it happens: one plain line each, good for a terminal and for a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TextIO

from vpp_dispatch.demo.stack import Stack

STATUS: Final = {
    1: "received",
    2: "started",
    3: "completed",
    6: "cancelled",
    7: "superseded",
    8: "completed_partially",
    10: "no_participation",
    252: "not_applicable",
    253: "invalid",
    254: "expired",
}
COLOURS: Final = {"operator": "cyan", "service": "green", "fleet": "yellow", "fault": "red", "demo": "bold"}
"""Of those who speak, by rich's names."""
_CODES: Final = {"cyan": "36", "green": "32", "yellow": "33", "red": "31", "bold": "1"}
_FOLLOW_S: Final = 0.2
_PROGRESS_S: Final = 3.0
"""A report comes every second; a line about an event that goes on comes at most this often."""


def counted(counts: Mapping[str, int]) -> str:
    """`1331 applied, 664 skipped`, without the zeros; `none` if all are zero."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "none"


def states_of(report: Mapping[str, Any]) -> str:
    """The states of a report, and the reasons behind those that have some."""
    parts = []
    for state, number in report["devices"].items():
        if state == "targeted" or not number:
            continue
        start = f"{state}."
        why = [f"{name.removeprefix(start)} {n}" for name, n in report["reasons"].items() if name.startswith(start)]
        parts.append(f"{number} {state}" + (f" ({', '.join(why)})" if why else ""))
    return ", ".join(parts) or "none"


@dataclass(frozen=True, slots=True)
class Told:
    """A line: seconds since the start, who, and what."""

    at_s: float
    who: str
    what: str


class Teller:
    """Writes lines `seconds since start, who, what`; colours only on a terminal, and never against NO_COLOR.

    Attributes:
        told: all lines so far, newest last.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._colours = self._out.isatty() and not os.environ.get("NO_COLOR")
        self._started = time.monotonic()
        self._kept: list[str] | None = None
        self.told: list[Told] = []
        self._responses = 0
        self._told: dict[str, tuple[Any, float]] = {}

    def say(self, who: str, what: str) -> None:
        """One line. `who`: demo, operator, service, fleet or fault."""
        told = Told(self.now_s, who, what)
        self.told.append(told)
        name = f"{who:8}"
        if self._colours:
            name = f"\033[{_CODES[COLOURS[who]]}m{name}\033[0m"
        self.write(f"{told.at_s:6.1f} s  {name}  {what}")

    def write(self, line: str = "") -> None:
        """A line as it is."""
        if self._kept is not None:
            self._kept.append(line)
        else:
            print(line, file=self._out, flush=True)

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def hold_back(self) -> None:
        """Keeps what is written until `let_go`: a live view has the screen, and shows it there."""
        self._kept = self._kept or []

    def let_go(self) -> None:
        """Writes what was held back, and from now on at once."""
        kept, self._kept = self._kept or [], None
        for line in kept:
            self.write(line)

    async def follow(self, stack: Stack) -> None:
        """Tells responses and the progress of events as they arrive on the topics, until cancelled."""
        while True:
            self.catch_up(stack)
            await asyncio.sleep(_FOLLOW_S)

    def catch_up(self, stack: Stack) -> None:
        """Tells what has arrived since the last call."""
        responses = stack.responses()
        for position, response in enumerate(responses[self._responses :], self._responses):
            reasons = f" ({', '.join(response['reasons'])})" if response["reasons"] else ""
            name = f"{response['event_id']} r{response['revision']}"
            again = ", sent again" if response in responses[:position] else ""
            self.say("service", f"response to {name}: {response['code']} {response['status']}{reasons}{again}")
        self._responses = len(responses)
        for record in stack.records.get("dispatch.reports.v1", []):
            if record.value:
                self._told.setdefault(record.value["event_id"], (None, 0.0))
        for event_id, (told, told_at) in self._told.items():
            report = stack.report(event_id)
            if report is None:
                continue
            news = (report["devices"], report["reasons"], report["release"], report["final"])
            if news != told and (report["final"] or time.monotonic() - told_at >= _PROGRESS_S):
                self._told[event_id] = (news, time.monotonic())
                self.say("service", f"report on {event_id}: {_progress(report)}")


def _progress(report: Mapping[str, Any]) -> str:
    release = report["release"]
    owed = f"; {release['confirmed']} of {release['due']} releases confirmed" if release["due"] else ""
    return f"{report['state']}, {states_of(report)}{owed}" + (", final" if report["final"] else "")

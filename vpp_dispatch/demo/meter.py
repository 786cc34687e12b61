"""Measures a run: the power of all inverters, as GoodWe's Real-Time Data API tells it, and the workers' gauges.

Two cores play the demo, and measuring it must not slow it down. The API tells of a hundred inverters per call, so a
sample renews as many pages as a tenth of its time allows, in turn, and leaves the others as they were read last: with
2,000 inverters no reading is older than about two seconds. Of a larger fleet 2,000 are read, chosen at random, and
stand for all.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.demo.asked import EMS_MODES, Played
from vpp_dispatch.demo.course import Course, Gauges, Sample
from vpp_dispatch.demo.stack import Stack

PERIOD_S: Final = 0.5
_BUDGET_S: Final = PERIOD_S / 10
_READ: Final = 2000
_GAUGES: Final = {
    "owned_shards": "shards",
    "held_devices": "held",
    "debts": "owed",
    "commands_in_flight": "in_flight",
    "commands_due": "due",
}

Floats = NDArray[np.float64]


class Reading(msgspec.Struct, rename="camel"):
    """A row of the interface `operation`; power in W in the API's signs (battery + = discharge, grid + = export, output
    +), None where an offline inverter has none."""

    sn: str
    battery_power: float | None = None
    grid_power: float | None = None
    ac_power: float | None = None
    ems_mode: int | None = None


class _Data(msgspec.Struct, rename={"rows": "list"}):
    rows: list[Reading]


class _Page(msgspec.Struct):
    code: str
    data: _Data | None = None


class Powers:
    """The newest power of each inverter: W, arrays of shape (n,), nan while nothing is known.

    An inverter that is offline keeps its last reading, as it keeps its setting (R19). One that the API does not show
    has no consent, and counts for nothing.
    """

    def __init__(self, sns: Sequence[str]) -> None:
        self.row_of = {sn: row for row, sn in enumerate(sns)}
        n = len(sns)
        self.battery_w, self.grid_w, self.ac_w = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
        self.ems_mode = np.zeros(n, dtype=np.int64)

    def take(self, asked: Sequence[str], readings: Sequence[Reading]) -> None:
        """A page: of whom it was asked, and what came."""
        gone = set(asked)
        for reading in readings:
            gone.discard(reading.sn)
            if reading.battery_power is None or reading.grid_power is None or reading.ac_power is None:
                continue
            row = self.row_of[reading.sn]
            self.battery_w[row], self.grid_w[row] = reading.battery_power, reading.grid_power
            self.ac_w[row], self.ems_mode[row] = reading.ac_power, reading.ems_mode or 0
        for sn in gone:
            row = self.row_of[sn]
            self.battery_w[row] = self.grid_w[row] = self.ac_w[row] = np.nan
            self.ems_mode[row] = 0

    def of(self, played: Played) -> float:
        """Power of an event now, W >= 0, in the direction of its first control (see `course.Sample`)."""
        rows = np.fromiter((self.row_of[sn] for sn in played.targets if sn in self.row_of), dtype=np.int64)
        share = len(rows) / max(len(played.targets), 1)
        kind, power = played.controls[0].kind, played.sight.power
        if power in ("charge", "discharge"):
            rows = rows[self.ems_mode[rows] == EMS_MODES[kind]]
        column = {
            "charge": -self.battery_w[rows],
            "discharge": self.battery_w[rows],
            "export": self.grid_w[rows],
            "output": self.ac_w[rows],
        }[power]
        return float(np.nansum(np.maximum(column, 0.0))) / share if share else 0.0


class Meter:
    """Adds samples to a course until it is cancelled.

    Args:
        stack: running.
        sns: all inverters.
    """

    def __init__(self, stack: Stack, course: Course, sns: Sequence[str]) -> None:
        self._stack = stack
        self._course = course
        self._profile = tomllib.loads(stack.profile.read_text())["realtime"]
        size: int = self._profile["page_size"]
        read = list(sns) if len(sns) <= _READ else random.Random(1).sample(list(sns), _READ)
        pages = [read[start : start + size] for start in range(0, len(read), size)]
        self._turns = itertools.cycle(pages)
        self._most = len(pages)
        self._powers = Powers(read)

    async def run(self) -> None:
        """Samples about twice a second; what does not answer is left out of that sample, and asked again."""
        timeout = aiohttp.ClientTimeout(total=5)
        workers: dict[str, Gauges] = {}
        async with aiohttp.ClientSession(timeout=timeout) as session:
            token = ""
            for turn in itertools.count():
                begin = time.monotonic()
                try:
                    token = token or await self._token(session)
                    for page in itertools.islice(self._turns, self._most):
                        await self._read(session, token, page)
                        if turn and time.monotonic() - begin > _BUDGET_S:  # the first time, all of them
                            break
                except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
                    token = ""  # the simulator is away: the next turn starts anew
                else:
                    if turn % 2 == 0:
                        workers = await self._workers(session)
                    power = {event_id: self._powers.of(played) for event_id, played in self._course.events.items()}
                    self._course.samples.append(Sample(at=time.time(), power_w=power, workers=workers))
                await asyncio.sleep(max(0.1, begin + PERIOD_S - time.monotonic()))

    async def _token(self, session: aiohttp.ClientSession) -> str:
        body = {"account": "demo", "password": "demo-only"}
        async with session.post(self._stack.url + self._profile["token_path"], json=body) as answer:
            data: Mapping[str, Any] = (await answer.json())["data"] or {}
            return str(data.get(self._profile["token_field"], ""))

    async def _read(self, session: aiohttp.ClientSession, token: str, page: list[str]) -> None:
        headers = {"Authorization": f"Bearer {token}", "content-type": "application/json"}
        body = msgspec.json.encode({"sns": page, "page": 1, "pageSize": len(page)})
        url = self._stack.url + self._profile["path"].format(name="operation")
        async with session.post(url, data=body, headers=headers) as answer:
            read = msgspec.json.decode(await answer.read(), type=_Page)
        if read.data is not None:  # a rate limit, or a token that has expired, answers without
            self._powers.take(page, read.data.rows)

    async def _workers(self, session: aiohttp.ClientSession) -> dict[str, Gauges]:
        found = {}
        for name, worker in self._stack.workers.items():
            if not worker.running or (port := self._stack.port(worker)) is None:
                continue
            try:
                async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                    found[name] = gauges(await answer.text())
            except (aiohttp.ClientError, TimeoutError):
                continue  # killed just now, or starting
        return found


def gauges(page: str) -> Gauges:
    """The gauges of a metrics page, each summed over its labels."""
    sums = dict.fromkeys(_GAUGES.values(), 0.0)
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        ours = _GAUGES.get(name.partition("{")[0].removeprefix("vpp_dispatch_"))
        if ours is not None:
            sums[ours] += float(value)
    return Gauges(**{name: int(value) for name, value in sums.items()})

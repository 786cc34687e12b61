"""Keeps the break-glass files of the owned shards up to date (R36): what is set stands there before it is published.

The files are for the day on which our Kafka is gone; nothing here ever reads them, and a disk that fails stops no
dispatch: it is told, and tried again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.dispatch.held import Entry, Held, HeldFiles, Released
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import Commands
from vpp_dispatch.domain.roster import Rows
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.observability.metrics import Metrics

WORN = 10_000
"""Entries after which a file is written anew, so that it does not grow for ever."""

TELL_AGAIN_S = 60.0


class BreakGlass:
    """The files of one worker. `before` and `after` run one after the other, since both may wait for the disk."""

    def __init__(self, *, folder: Path, metrics: Metrics, log: Any) -> None:
        self._files = HeldFiles(folder)
        self._metrics = metrics
        self._log = log
        self._filed: dict[int, dict[Actuator, NDArray[np.uint32]]] = {}  # generation that stands in the file, 0 = none
        self._disk = asyncio.Lock()
        self._writing = threading.Lock()  # a file is never closed under the thread that writes it
        self._told_at = -TELL_AGAIN_S

    def reset(self) -> None:
        """The shards are given up; their files stay as they are."""
        self._filed.clear()
        with self._writing:
            self._files.close_all()

    async def before(self, parts: Sequence[tuple[Book, Commands]]) -> None:
        """Setpoints are about to be published: their devices stand in the files when this returns."""
        async with self._disk:
            work: dict[int, tuple[Book, list[Entry]]] = {}
            for book, commands in parts:
                kind = int(commands.actuator[0])
                if kind >= QUERY_BIT:
                    continue
                actuator = Actuator(kind)
                filed = self._rows_of(book, actuator)
                rows = commands.row.astype(np.int64)
                new = np.flatnonzero(np.isfinite(commands.deadline_at) & (filed[rows] != commands.generation))
                if len(new):
                    work.setdefault(book.shard, (book, []))[1].extend(_entries(book, actuator, rows[new]))
                    filed[rows[new]] = commands.generation[new]
            await self._write(work)

    async def after(self, books: Iterable[Book]) -> None:
        """Says of what is released that it is; opens the files of shards that owe something since before our time."""
        async with self._disk:
            work: dict[int, tuple[Book, list[Entry]]] = {}
            for book in books:
                gone: list[Entry] = []
                for actuator, setpoints in book.setpoints.items():
                    filed = self._rows_of(book, actuator)
                    over = np.flatnonzero((filed > 0) & ~setpoints.columns["armed"])
                    gone.extend(Released(sn=book.roster.sns[row], actuator=int(actuator)) for row in over.tolist())
                    filed[over] = 0
                owes = any(setpoints.columns["armed"].any() for setpoints in book.setpoints.values())
                if gone or (owes and not self._files.is_open(book.shard, book.epoch)):
                    work[book.shard] = (book, gone)
            await self._write(work)

    def _rows_of(self, book: Book, actuator: Actuator) -> NDArray[np.uint32]:
        of_shard = self._filed.setdefault(book.shard, {})
        filed = of_shard.get(actuator, np.zeros(0, np.uint32))
        missing = len(book.setpoints[actuator].columns) - len(filed)
        if missing:
            filed = of_shard[actuator] = np.concatenate([filed, np.zeros(missing, np.uint32)])
        return filed

    async def _write(self, work: dict[int, tuple[Book, list[Entry]]]) -> None:
        if not work:
            return
        # An append is one write into the system's cache, done before a thread would get to run beside a busy loop. A
        # file that is written anew waits for the disk, so that the loop must not.
        anew = {shard: (book.epoch, self._all(book)) for shard, (book, _) in work.items() if self._is_due(book)}
        failed = self._append({shard: part for shard, part in work.items() if shard not in anew})
        if anew:
            failed |= await asyncio.to_thread(self._rewrite, anew)
        for shard, fault in failed.items():
            self._filed.pop(shard, None)  # nothing is known of the file any more
            self._metrics.break_glass_failures.add()
            if time.monotonic() - self._told_at >= TELL_AGAIN_S:
                self._told_at = time.monotonic()
                self._log.error(
                    "break_glass.not_written",
                    shard=shard,
                    shards=len(failed),
                    detail=f"{fault.filename}: {fault.strerror}. Dispatch goes on, but without Kafka `vpp-dispatch "
                    "release --from` would not find these devices: see to DATA_DIR.",
                )

    def _is_due(self, book: Book) -> bool:
        return not self._files.is_open(book.shard, book.epoch) or self._files.appended(book.shard) > WORN

    def _all(self, book: Book) -> list[Entry]:
        entries: list[Entry] = []
        for actuator, setpoints in book.setpoints.items():
            rows = np.flatnonzero(setpoints.columns["armed"])
            entries += _entries(book, actuator, rows)
            self._rows_of(book, actuator)[rows] = setpoints.columns["generation"][rows]
        return entries

    def _append(self, work: dict[int, tuple[Book, list[Entry]]]) -> dict[int, OSError]:
        failed: dict[int, OSError] = {}
        for shard, (book, entries) in work.items():
            try:
                self._files.append(shard, book.epoch, entries)
            except OSError as fault:
                failed[shard] = fault
        return failed

    def _rewrite(self, work: dict[int, tuple[int, list[Entry]]]) -> dict[int, OSError]:
        failed: dict[int, OSError] = {}
        with self._writing:
            for shard, (epoch, entries) in work.items():
                try:
                    self._files.rewrite(shard, epoch, entries)
                except OSError as fault:
                    failed[shard] = fault
        return failed


def _entries(book: Book, actuator: Actuator, rows: Rows) -> list[Entry]:
    setpoints = book.setpoints[actuator]
    known, first, second = setpoints.default()
    generation = setpoints.columns["generation"]
    return [
        Held(
            sn=book.roster.sns[row],
            row=row,
            actuator=int(actuator),
            generation=int(generation[row]),
            first=int(first[row]) if known[row] else None,
            second=int(second[row]) if known[row] else None,
            rated_w=max(int(book.roster.ability["rated_w"][row]), 0),
        )
        for row in rows.tolist()
    ]

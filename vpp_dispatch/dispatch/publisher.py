"""The only way out to GoodWe. It pulls due work from the owned books and checks, at this one place, all that allows it.

It is state, not a queue: a newer setpoint replaces an unsent one for nothing, and an outage of GoodWe's cluster stops
nothing else. One batch is in hand at a time and awaited, which is what bounds a worker that was frozen (R39).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.dispatch.lease import Lease
from vpp_dispatch.dispatch.shards import Shards
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import U8, U32, Commands, concatenate
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.errors import NotReachable
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.observability.tracing import Revision, Tracing

BATCH = 1000
"""Commands in one batch at most."""

GATHER_S = 0.01
"""A pause between batches, in which due work gathers: many small batches cost more than one."""

PROBE = 10
"""Retries per retry interval while nothing at all comes back (R41)."""

RELEASES_FIRST_S = 10.0
"""How long a takeover waits for all shards to be read up before it lets setpoints out, if a release is owed."""

BULK, HIGHER = 0.9, 0.95
"""Parts of the window: for everyone; for what is more urgent than something in flight. The rest is kept for releases
(R40)."""

LEAST_LEFT_S = 1.0
"""A setpoint whose window ends sooner is not begun any more."""

SKEW_STOPS_S = 5.0
"""Above it the clock cannot be trusted with windows: only releases (R7)."""


class Prepared(Protocol):
    """Commands ready to be published. `ids` (n, 16) u1; `digests` u8 (n,); `refused`: (index, sentence) of those that
    cannot be said to GoodWe and are left out."""

    @property
    def ids(self) -> U8: ...
    @property
    def digests(self) -> NDArray[np.uint64]: ...
    @property
    def refused(self) -> tuple[tuple[int, str], ...]: ...


class Link(Protocol):
    """GoodWe's side as this package sees it."""

    @property
    def reachable(self) -> bool: ...
    @property
    def lag(self) -> int: ...
    def prepare(self, commands: Commands) -> Any: ...
    async def publish(self, prepared: Any, *, now: float, give_up_after_s: float) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Slice:
    """The commands of one book, one actuator and one sort inside a batch. `owners`: slots of the events behind them."""

    book: Book
    commands: Commands
    start: int
    owners: U32

    def revisions(self) -> set[Revision]:
        """The events behind the commands; a release may have none any more."""
        behind = set(self.owners.tolist())
        return {name for name, membership in self.book.memberships.items() if membership.slot in behind}


class Publisher:
    """Pulls, checks, publishes, and tells the books."""

    def __init__(
        self,
        *,
        shards: Shards,
        link: Link,
        lease: Lease,
        max_in_flight: int,
        max_per_s: float,
        result_timeout_s: float,
        retry_interval_s: float,
        request_timeout_s: float,
        metrics: Metrics,
        log: Any,
        fault: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        tracing: Tracing | None = None,
    ) -> None:
        self.tracing = tracing or Tracing()
        self.shards = shards
        self.singles = [int(a) for a in Actuator if shards.catalogue.is_single(a)]
        self.link = link
        self.lease = lease
        self.max_in_flight = max_in_flight
        self.max_per_s = max_per_s
        self.result_timeout_s = result_timeout_s
        self.retry_interval_s = retry_interval_s
        self.request_timeout_s = request_timeout_s
        self.metrics = metrics
        self.log = log
        self.fault = fault
        self.clock = clock
        self.skew_s = 0.0
        self.open = False  # the shell lets it publish
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting_since: float | None = None  # something is unanswered and nothing came back since
        self._probed_at = 0.0
        self._paced_until = 0.0

    async def stop_publishing(self, timeout_s: float) -> None:
        """Lets the batch in hand finish, and begins no other."""
        self.open = False
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            self.log.warning("publisher.batch_in_hand", detail=f"a batch was still in hand after {timeout_s:g} s")

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        while True:
            self.shards.wake.clear()
            if await self.publish_some():
                await asyncio.sleep(GATHER_S)
            else:
                try:
                    await asyncio.wait_for(self.shards.wake.wait(), 0.1)
                    await asyncio.sleep(GATHER_S)  # more may follow, and each look costs as much as one for all of it
                except TimeoutError:
                    continue

    async def publish_some(self) -> bool:
        """Publishes one batch if anything is due and allowed; returns whether it did."""
        now = self.clock()
        self.metrics.link_reachable.set(1.0 if self.link.reachable else 0.0)
        self.metrics.consumer_lag.set(self.link.lag, topic="results")
        if not (self.open and self.lease.fresh() and self.link.reachable) or now < self._paced_until:
            return False
        slices = self._pull(now)
        if not slices:
            return False
        self._idle.clear()
        try:
            await self._publish(slices, now)
        finally:
            self._idle.set()
        return True

    # ------------------------------------------------------------------ what may go

    def _pull(self, now: float) -> list[_Slice]:
        shards = self.shards
        ready = [book for shard, book in shards.books.items() if shards.read_up(shard)]
        self._silence(now)
        if not any(now >= book.due_at for book in ready):
            self.metrics.commands_due.set(0)
            return []
        owing = any(book.owes_release() for book in shards.books.values())
        waits = owing and not shards.all_read_up() and shards.seconds_since_takeover < RELEASES_FIRST_S
        in_flight = [book.in_flight(now) for book in ready]
        used, weakest = sum(n for n, _ in in_flight), max(rank for _, rank in in_flight)
        if not self._room(np.zeros(1, np.int64) if owing else np.full(1, 2), used, weakest).any():
            return []  # before all that is due is looked at, which costs the more the more waits
        found = [(book, actuator, due) for book in ready for actuator, due in book.due(now)]
        self.metrics.commands_due.set(sum(len(due.row) for _, _, due in found))
        if not found:
            return []
        rank = np.concatenate([due.rank for _, _, due in found])
        deadline = np.concatenate([due.deadline_at for _, _, due in found])
        again = np.concatenate([due.again for _, _, due in found])
        owner = np.concatenate([np.full(len(due.row), i) for i, (_, _, due) in enumerate(found)])
        query = np.concatenate([due.query for _, _, due in found])
        row = np.concatenate([due.row for _, _, due in found])
        event = np.concatenate([due.owner for _, _, due in found])

        may = deadline - now > LEAST_LEFT_S
        if waits or self.skew_s > SKEW_STOPS_S:
            may &= rank < 2
        closed = np.array([book.switches.releases_only for book, _, _ in found])
        may &= (rank < 2) | ~closed[owner]
        chosen = np.flatnonzero(may)
        # Stable: releases, read-backs, then priority, within it the events by turns, then deadline, then book and row:
        # a replay chooses the same, and a batch touches few books, since each has to be looked at again after it.
        if len(chosen) and not _all_equal(rank[chosen], event[chosen], deadline[chosen]):
            chosen = chosen[np.lexsort((deadline[chosen], event[chosen], rank[chosen]))]
            turn = _turns(rank[chosen], event[chosen])
            chosen = chosen[np.lexsort((turn, rank[chosen]))]
        if self._silent(now):
            chosen = self._probe(chosen, again, now)
        chosen = chosen[:BATCH]
        chosen = chosen[self._room(rank[chosen], used, weakest)]
        if self.max_per_s:
            allowance = max(1, int(self.max_per_s * len(shards.books) / SHARDS * 0.25))
            chosen = chosen[:allowance]
            self._paced_until = now + len(chosen) / (self.max_per_s * len(shards.books) / SHARDS)
        slices: list[_Slice] = []
        start = 0
        for i in np.unique(owner[chosen]).tolist():
            book, actuator, _ = found[i]
            for sort in (False, True):
                mine = chosen[(owner[chosen] == i) & (query[chosen] == sort)]
                if len(mine):
                    commands = book.commands(actuator, row[mine], sort)
                    slices.append(_Slice(book=book, commands=commands, start=start, owners=np.unique(event[mine])))
                    start += len(commands)
        return slices

    def _room(self, rank: NDArray[np.int64], used: int, weakest: int) -> NDArray[np.bool_]:
        """Which of some commands in their order, the most urgent first, may be in flight beside `used` others (R40).

        The window is the owned shards' share of the whole. `weakest`: the highest rank in flight, -1 if nothing is.
        """
        window = self.max_in_flight * len(self.shards.books) / SHARDS
        part = np.where(rank < 2, 1.0, np.where(rank < weakest, HIGHER, BULK))
        room: NDArray[np.bool_] = used + np.arange(1, len(rank) + 1) <= np.floor(window * part)
        # A small window split over 64 shards may leave less than one command: one at a time is then in flight.
        if len(rank) and not used:
            room[0] = True
        return room

    def _silence(self, now: float) -> None:
        """Keeps the time since which something is unanswered and nothing at all came back (R41)."""
        last = max((book.last_result_at for book in self.shards.books.values()), default=0.0)
        if self._waiting_since is not None and last >= self._waiting_since:
            self._waiting_since = None
        self.metrics.silence_seconds.set(0.0 if self._waiting_since is None else now - self._waiting_since)

    def _silent(self, now: float) -> bool:
        return self._waiting_since is not None and now - self._waiting_since >= self.result_timeout_s

    def _probe(self, chosen: np.ndarray, again: np.ndarray, now: float) -> np.ndarray:
        """First tries go out as ever; of retries a few at a time, until anything comes back (R41)."""
        retries = np.flatnonzero(again[chosen])
        keep = 0 if now - self._probed_at < self.retry_interval_s else PROBE
        if len(retries) and keep:
            self._probed_at = now
        return np.delete(chosen, retries[keep:])

    # ------------------------------------------------------------------ out

    async def _publish(self, slices: list[_Slice], now: float) -> None:
        commands = concatenate([s.commands for s in slices])
        prepared = self.link.prepare(commands)
        if self.shards.break_glass is not None:
            await self.shards.break_glass.before([(s.book, s.commands) for s in slices])
        now = self.clock()
        left = float(commands.deadline_at.min()) - now
        if not self.lease.fresh() or left <= 0:
            return  # the disk took its time; what is still due is chosen again
        started = time.monotonic()
        events = set().union(*(s.revisions() for s in slices)) if self.tracing.on else ()
        try:
            with self.tracing.span("commands.publish", sorted(events), **{"vpp.commands": len(commands)}):
                await self.link.publish(prepared, now=now, give_up_after_s=min(self.request_timeout_s, left))
        except NotReachable as fault:
            # Published and unknown: the same ids go out again once GoodWe's cluster is back.
            self.metrics.publish_failures.add()
            self.metrics.link_batches.add(outcome="unknown")
            self.log.warning("batch.unknown", commands=len(commands), detail=str(fault))
            for s in slices:
                s.book.look_again()
            return
        self.fault("published")
        if (np.isinf(commands.deadline_at) & (commands.actuator < QUERY_BIT)).any():
            self.fault("releases-published")
        done = self.clock()
        unsayable = dict(prepared.refused)
        for s in slices:
            part = slice(s.start, s.start + len(s.commands))
            s.book.published(s.commands, prepared.digests[part], done)
            refused = [i for i in range(part.start, part.stop) if i in unsayable]
            if refused:
                # It was never published, and never can be: as good as GoodWe's own refusal of the value.
                self.log.error("command.unsayable", commands=len(refused), detail=unsayable[refused[0]])
                s.book.refuse(prepared.ids[refused], done)
        if self._waiting_since is None:
            self._waiting_since = done
        self._count(commands, time.monotonic() - started)

    def _count(self, commands: Commands, took_s: float) -> None:
        query = commands.actuator >= QUERY_BIT
        release = np.isinf(commands.deadline_at) & ~query
        queries, releases = int(query.sum()), int(release.sum())
        sets = len(commands) - queries - releases
        if queries:
            self.metrics.commands_published.add(queries, role="query", purpose="query")
        single = np.isin(commands.actuator, self.singles)
        for role, mine in (("single", single), ("multi", ~single)):
            for purpose, mask in (("release", release & mine), ("set", ~release & ~query & mine)):
                if mask.any():
                    self.metrics.commands_published.add(int(mask.sum()), role=role, purpose=purpose)
        self.metrics.commands_retried.add(int((commands.attempt > 1).sum()))
        self.metrics.link_batches.add(outcome="acknowledged")
        self.metrics.publish_latency_seconds.observe_many(np.full(len(commands), took_s))
        by_actuator = {a.name.lower(): int((commands.actuator & 7 == a).sum()) for a in Actuator}
        self.log.info(
            "batch.published",
            sets=sets,
            releases=releases,
            queries=queries,
            seconds=round(took_s, 4),
            **{name: n for name, n in by_actuator.items() if n},
        )


def _all_equal(*columns: NDArray[Any]) -> bool:
    return all(bool((column == column[0]).all()) for column in columns)


def _turns(rank: NDArray[np.int64], event: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The how-manieth of its rank and event each is, from 0; both columns sorted by rank, then event (R40)."""
    n = np.arange(len(rank))
    begins = np.ones(len(rank), bool)
    begins[1:] = (rank[1:] != rank[:-1]) | (event[1:] != event[:-1])
    first = np.maximum.accumulate(np.where(begins, n, 0))
    return n - first

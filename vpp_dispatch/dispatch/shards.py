"""The shards that this worker owns: inbox records into books, books into saved pages, and what is told of them.

One writer per shard. A checkpoint takes dirty pages and the next offset in one step without an await, waits until the
rows are delivered, then commits that offset. Nothing here decides anything about a device; `domain.book` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from aiokafka.structs import ConsumerRecord

from vpp_dispatch.dispatch import inbox, pages
from vpp_dispatch.dispatch.breakglass import BreakGlass
from vpp_dispatch.dispatch.lease import Lease
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.answer import OutcomeRow
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import ResultCode
from vpp_dispatch.domain.inputs import Progress, Telemetry
from vpp_dispatch.domain.joining import Effects
from vpp_dispatch.domain.membership import MEASURED, Membership, Part, Telling, has_watts
from vpp_dispatch.domain.roster import Catalogue, Policy, cos_phi_of
from vpp_dispatch.domain.shard import Digests
from vpp_dispatch.domain.signal import Actuator, Kind
from vpp_dispatch.errors import InvariantBroken
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.observability.tracing import Revision, Tracing
from vpp_dispatch.operators.envelope import Message, Origin, dead_letter
from vpp_dispatch.operators.messages import encode_outcomes

PUBLISHED_S, RESULTS_S = 1.0, 5.0
"""How soon a shard is saved: with newly published commands, with anything else; with a new arming at once."""

FAILED_PAUSE_S = 5.0
"""How long a book is left alone after a fault of ours in it."""

OUTCOMES_PER_MESSAGE = 500

POWER_EVERY_S = 5.0
"""Between two sums of the power of all members: nobody scrapes more often."""

POWERS = ("requested", "allocated", "acknowledged", "measured")

RELEASE: Literal["release"] = "release"
"""The kind of a release signal's outcome rows."""


class Table(Protocol):
    """The pages table: rows by key, each write returns its delivery."""

    def put(self, key: bytes, value: bytes) -> Awaitable[Any]: ...
    def drop(self, key: bytes) -> Awaitable[Any]: ...


class Outlet(Protocol):
    """Our Kafka: publishes messages and waits until they are acknowledged; raises ExternalFault."""

    async def publish(self, topic: str, messages: Sequence[Message], *, partition: int | None = None) -> None: ...
    async def progress(self, progress: Sequence[Progress]) -> None: ...


class Shards:
    """Owner of some of the 64 books."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        policy: Policy,
        table: Table,
        outlet: Outlet,
        lease: Lease,
        outcomes_topic: str,
        dead_letters_topic: str,
        inbox_topic: str,
        metrics: Metrics,
        log: Any,
        fault: Callable[[str], None],
        digests: Digests | None = None,
        break_glass: BreakGlass | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.tracing = tracing or Tracing()
        self.digests = digests
        self.break_glass = break_glass
        self.catalogue = catalogue
        self.policy = policy
        self.table = table
        self.outlet = outlet
        self.lease = lease
        self.outcomes_topic = outcomes_topic
        self.dead_letters_topic = dead_letters_topic
        self.inbox_topic = inbox_topic
        self.metrics = metrics
        self.log = log
        self.fault = fault
        self.books: dict[int, Book] = {}
        self.wake = asyncio.Event()  # something may be due
        self._next: dict[int, int] = {}  # offset after the last folded record
        self._safe: dict[int, int] = {}  # offset that the saved rows stand for
        self._read_to: dict[int, int] = {}  # end of the inbox at takeover
        self._kept: dict[int, dict[pages.PageName, set[bytes]]] = {}
        self._saved_at: dict[int, float] = {}
        self._letters: list[tuple[ConsumerRecord, int]] = []
        self._drops: dict[int, list[bytes]] = {}  # rows that have to go, once what replaces them is delivered
        self._retell = True
        self._saving = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._taken_at = 0.0
        self._power_at = 0.0
        self._lapsed = False  # was so at the last attempt to renew
        self._joined: list[tuple[float, Any, set[Revision]]] = []  # for traces: when, counts by code, events

    # ------------------------------------------------------------------ ownership

    def take_over(
        self,
        shards: Iterable[int],
        rows: Mapping[bytes, bytes],
        *,
        generation: int,
        ends: Mapping[int, int],
        now: float,
    ) -> None:
        """Builds the books of the owned shards from their saved rows.

        `generation` is the consumer group's; `ends` tells per shard the offset up to which its inbox has to be read
        before anything of it is published.
        """
        started = time.monotonic()
        self._reset()
        found = pages.newest(rows, shards)
        for shard, names in found.items():
            highest = max((epoch for by_epoch in names.values() for epoch in by_epoch), default=0)
            book = Book(
                shard=shard,
                epoch=max(generation, highest + 1),
                catalogue=self.catalogue,
                policy=self.policy,
                digests=self.digests,
            )
            self._kept[shard] = pages.load(book, names, rows, now)
            self.books[shard] = book
            self._read_to[shard] = ends.get(shard, 0)
            self._saved_at[shard] = time.monotonic() + (shard % 20) * RESULTS_S / 20
        self._taken_at = time.monotonic()
        self._retell = True
        self.metrics.owned_shards.set(len(self.books))
        self.log.info(
            "shards.taken_over",
            shards=len(self.books),
            rows=sum(len(n) for n in found.values()),
            devices=sum(len(b.roster) for b in self.books.values()),
            generation=generation,
            seconds=round(time.monotonic() - started, 3),
        )

    def _reset(self) -> None:
        self.books.clear()
        self._next.clear()
        self._safe.clear()
        self._read_to.clear()
        self._kept.clear()
        self._saved_at.clear()
        self._letters.clear()
        self._drops.clear()
        if self.break_glass is not None:
            self.break_glass.reset()

    def give_up(self) -> None:
        """The shards are somebody else's now."""
        self._reset()
        self.metrics.owned_shards.set(0)

    def positioned(self, shard: int, offset: int) -> None:
        """Where the broker's commit put the inbox; what is not known is never committed."""
        self._safe.setdefault(shard, offset)
        self._next.setdefault(shard, offset)

    def read_up(self, shard: int) -> bool:
        """Whether a shard's inbox was read to the end that it had at the takeover."""
        return self._next.get(shard, -1) >= self._read_to.get(shard, 0)

    def all_read_up(self) -> bool:
        """Whether all owned shards were read up."""
        return all(self.read_up(shard) for shard in self.books)

    @property
    def seconds_since_takeover(self) -> float:
        return time.monotonic() - self._taken_at

    # ------------------------------------------------------------------ fold

    def fold(self, shard: int, run: Sequence[ConsumerRecord], now: float) -> None:
        """Folds one fetch of a shard's inbox; records below the shard's position change nothing."""
        book = self.books.get(shard)
        if book is None:
            return
        position = self._next.get(shard, 0)
        messages = []
        for record in run:
            if record.offset < position:
                continue
            try:
                message = inbox.decode(record.value or b"")
                self.metrics.inbox_messages.add(kind=type(message).__name__.lower())
                messages.append((record.offset, message))
            except InvariantBroken as fault:
                self.log.error("inbox.undecodable", shard=shard, offset=record.offset, detail=str(fault))
                self._letters.append((record, 0))
        was_read_up = self.read_up(shard)
        self._next[shard] = max(position, run[-1].offset + 1)
        read_up = self.read_up(shard)
        try:
            effects = book.step(messages, now, reconcile=read_up)  # type: ignore[arg-type]
            self._note(effects, run)
            if self.tracing.on and effects.codes.sum():
                self._joined.append((now, effects.codes, {name for name, m in book.memberships.items() if m.news}))
            if read_up and not was_read_up:
                book.step([], now)
        except Exception:  # noqa: BLE001  told one by one below
            self._fold_alone(book, messages, run, now)
        self.wake.set()

    def _fold_alone(self, book: Book, messages: Sequence[Any], run: Sequence[ConsumerRecord], now: float) -> None:
        """A fault of ours in one message must not stop the shard (R8): each is folded alone, and the bad one buried.

        Those before it are folded twice, which changes no device; only results may then be counted as duplicates.
        """
        by_offset = {record.offset: record for record in run}
        for offset, message in messages:
            try:
                self._note(book.step([(offset, message)], now, reconcile=self.read_up(book.shard)), run)
            except Exception as fault:
                self.log.error("inbox.failed", shard=book.shard, offset=offset, detail=repr(fault), exc_info=True)
                self._letters.append((by_offset[offset], 0))

    def _note(self, effects: Effects, run: Sequence[ConsumerRecord]) -> None:
        if effects.orphans:
            by_offset = {record.offset: record for record in run}
            self._letters.extend((by_offset[offset], effects.orphan_results) for offset in effects.orphans)
            self.metrics.results_orphan.add(effects.orphan_results)
        for code, n in zip(ResultCode, effects.codes.tolist(), strict=True):
            if n:
                self.metrics.results.add(n, code=code.name.lower())
        self.metrics.results_duplicate.add(effects.duplicates)
        self.metrics.results_late.add(effects.late)
        self.metrics.suspect.add(effects.suspects)
        if effects.took:
            self.metrics.result_latency_seconds.observe_many(np.concatenate(effects.took))

    def _trace_results(self) -> None:
        """One span for the results that were joined since the last time, with the events that they may be of."""
        if not self._joined:
            return
        since = min(at for at, _, _ in self._joined)
        codes = np.sum([codes for _, codes, _ in self._joined], axis=0).tolist()
        events = sorted(set().union(*(events for _, _, events in self._joined)))
        self._joined.clear()
        counts = {f"vpp.results.{code.name.lower()}": n for code, n in zip(ResultCode, codes, strict=True) if n}
        with self.tracing.span("results.join", events, since=since, **counts):
            return

    def observe(self, shard: int, telemetry: Telemetry, now: float) -> None:
        """Folds telemetry, which has no place in the inbox."""
        book = self.books.get(shard)
        if book is not None:
            book.step([(-1, telemetry)], now, reconcile=self.read_up(shard))
            self.wake.set()

    def tick(self, now: float) -> None:
        """Lets time pass in all books that are read up."""
        for shard, book in self.books.items():
            if self.read_up(shard):
                try:
                    book.step([], now)
                except Exception as fault:
                    # One book that we fail on must not stop the others, nor kill worker after worker.
                    self.log.error("shard.failed", shard=shard, detail=repr(fault), exc_info=True)
                    book.wake_at = now + FAILED_PAUSE_S
        self.wake.set()

    # ------------------------------------------------------------------ checkpoint

    async def renew(self, commit: Callable[[Mapping[int, int]], Awaitable[bool]]) -> None:
        """Commits the offsets that are saved, once more: a success renews the lease.

        Beside the checkpoints, since those wait for rows to be delivered. Raises ExternalFault if it was refused.
        """
        lapsed = self.lease.lapsed()
        if lapsed and not self._lapsed:
            # Whoever owns these shards by now makes this fail; only then may anything be written or published (R39).
            self.metrics.lease_lapses.add()
            self.log.warning("lease.lapsed", detail="renewing before anything is written or published")
        self._lapsed = lapsed
        await self._commit(commit, {})

    async def checkpoint(
        self, commit: Callable[[Mapping[int, int]], Awaitable[bool]], *, everything: bool = False
    ) -> bool:
        """Saves the shards that are due and commits what is saved; nothing without the lease (R39).

        `commit` takes the next offset per shard and says whether the broker accepted any. Returns False if nothing may
        be written. Raises ExternalFault when rows or commit were refused; everything is then saved again.
        """
        async with self._saving:
            books = dict(self.books)
            if not books or not self.lease.fresh():
                return False
            started = time.monotonic()
            due = [b for s, b in books.items() if s in self._next and (everything or self._is_due(b, started))]
            shots = [pages.snapshot(book, self._kept[book.shard], self._next[book.shard]) for book in due]
            for shot in shots:
                self._drops.setdefault(shot.shard, []).extend(shot.drops)
            letters, self._letters = self._letters, []
            try:
                deliveries = [self.table.put(key, value) for shot in shots for key, value in shot.rows]
                if deliveries:
                    self.fault("rows-queued")
                for delivery in deliveries:
                    await delivery
                for record, count in letters:
                    await self._bury(record, count)
                if deliveries:
                    self.fault("rows-delivered")
                offsets = {shot.shard: shot.offset for shot in shots if shot.offset is not None}
                await self._commit(commit, offsets)
            except BaseException:
                for book in due:
                    pages.soil(book)
                self._letters = letters + self._letters
                raise
            if deliveries:
                self.fault("committed")
            for book, shot in zip(due, shots, strict=True):
                if self.books.get(book.shard) is book:
                    pages.saved(book, shot)
                    self._saved_at[book.shard] = started
                    self._safe[book.shard] = shot.offset if shot.offset is not None else self._safe[book.shard]
                    await self._drop(shot.shard)
            if shots:
                self.metrics.checkpoint_seconds.observe(time.monotonic() - started)
                self.metrics.checkpoint_pages.add(len(deliveries))
                self.metrics.checkpoint_bytes.add(sum(shot.size for shot in shots))
                self.wake.set()
            return True

    async def _drop(self, shard: int) -> None:
        """Deletes the rows that newer ones have replaced; what is not deleted now is deleted after the next save."""
        drops = self._drops.get(shard, [])
        while drops:
            await self.table.drop(drops[-1])
            drops.pop()

    def _is_due(self, book: Book, now: float) -> bool:
        age = now - self._saved_at[book.shard]
        if any(s.urgent for s in book.setpoints.values()):
            return True
        if book.published_news:
            return age >= PUBLISHED_S
        return age >= RESULTS_S and (pages.is_dirty(book) or self._next[book.shard] != self._safe.get(book.shard))

    def is_urgent(self) -> bool:
        """Whether a device waits for its arming to be saved."""
        return any(s.urgent for book in self.books.values() for s in book.setpoints.values())

    async def _commit(self, commit: Callable[[Mapping[int, int]], Awaitable[bool]], offsets: Mapping[int, int]) -> None:
        asked_at = self.lease.clock()
        wanted = {shard: self._safe[shard] for shard in self.books if shard in self._safe} | dict(offsets)
        if await commit(wanted):
            self.lease.renew(asked_at)

    async def _bury(self, record: ConsumerRecord, count: int) -> None:
        origin = Origin(
            topic=self.inbox_topic, partition=record.partition, offset=record.offset, timestamp=record.timestamp / 1000
        )
        reason, detail = "orphan_result", f"{count} results answer nothing that this shard asked for"
        if not count:
            reason, detail = "inbox_record", "an inbox record cannot be read; it was written by another version"
        letter = dead_letter(
            record.value,
            record.key,
            record.headers,
            origin=origin,
            reason=reason,
            detail=detail,
            at=time.time(),
        )
        self.metrics.dead_letters.add(origin="results", reason=reason)
        await self.outlet.publish(self.dead_letters_topic, [letter])

    def readable(self) -> list[tuple[str, bool]]:
        """(SN, has a battery) of all registered and consenting devices, by shard and row."""
        found: list[tuple[str, bool]] = []
        for book in self.books.values():
            n = len(book.roster)
            registered, consenting = book.roster.allowed(np.arange(n), book.now)
            battery = book.roster.ability["battery"]
            rows = np.flatnonzero(registered & consenting).tolist()
            found.extend((book.roster.sns[row], bool(battery[row])) for row in rows)
        return found

    def gauge(self, now: float) -> None:
        """Brings the gauges of devices, holds and debts up to date."""
        states = dict.fromkeys((state.name.lower() for state in State), 0.0)
        for book in self.books.values():
            for _, counts in book.counts():
                for state in State:
                    states[state.name.lower()] += counts.states[state]
        self.metrics.devices.set_all(states)
        if now >= self._power_at:
            self._power_at = now + POWER_EVERY_S
            self._gauge_power()
        oldest_hold = oldest_debt = np.inf
        past_window = 0
        for actuator in Actuator:
            held = [book.held(actuator, now) for book in self.books.values()]
            name = actuator.name.lower()
            self.metrics.held_devices.set(sum(h.held for h in held), actuator=name)
            self.metrics.debts.set(sum(h.debts for h in held), actuator=name)
            self.metrics.debts_refused.set(sum(h.refused for h in held), actuator=name)
            past_window += sum(h.past_window + h.debts for h in held)
            oldest_hold = min([oldest_hold, *(h.oldest_hold_at for h in held)])
            oldest_debt = min([oldest_debt, *(h.oldest_debt_at for h in held)])
        self.metrics.held_past_window_devices.set(past_window)
        closed = any(book.switches.releases_only for book in self.books.values())
        self.metrics.switches.set(float(closed), switch="releases_only")
        self.metrics.oldest_hold_seconds.set(max(now - oldest_hold, 0.0))
        self.metrics.oldest_debt_seconds.set(max(now - oldest_debt, 0.0))
        registered = authorized = 0
        consent_at = np.inf
        for book in self.books.values():
            n = len(book.roster)
            known, consenting = book.roster.allowed(np.arange(n), now)
            registered += int(known.sum())
            authorized += int((known & consenting).sum())
            consent_at = min(consent_at, book.roster.consent_at)
        self.metrics.devices_registered.set(registered)
        self.metrics.devices_authorized.set(authorized)
        age = now - consent_at if 0 < consent_at < np.inf else self.seconds_since_takeover
        self.metrics.consent_age_seconds.set(age)
        self.metrics.commands_in_flight.set(sum(book.in_flight(now)[0] for book in self.books.values()))
        self.metrics.last_tick_timestamp_seconds.set(now)

    def _gauge_power(self) -> None:
        sums = {kind: np.zeros(len(POWERS)) for kind in MEASURED}
        for book in self.books.values():
            for kind, watts in book.power().items():
                sums[kind] += watts
        for kind, watts in sums.items():
            for name, value in zip(POWERS, watts.tolist(), strict=True):
                self.metrics.power_watts.set(value, control=kind.value, kind=name)

    # ------------------------------------------------------------------ telling

    async def tell(self, now: float) -> None:
        """Outcome rows first, then the counts that stand for them; nothing without the lease (R39)."""
        self._trace_results()
        async with self._telling:
            if not self.lease.fresh():
                return
            progress: list[Progress] = []
            everything = self._retell and self.all_read_up()
            if everything:
                self._retell = False
            try:
                for shard, book in list(self.books.items()):
                    if not self.read_up(shard):
                        continue
                    for membership in list(book.memberships.values()):
                        if membership.untold or everything:
                            await self._tell_outcomes(book, membership, now)
                    progress.extend(book.progress(all_=everything))
                if progress:
                    await self.outlet.progress(progress)
            except BaseException:
                self._retell = True
                raise

    async def keep_files(self) -> None:
        """Brings the break-glass files up to date with what is released (R36)."""
        if self.break_glass is not None and self.lease.fresh():
            await self.break_glass.after([book for shard, book in self.books.items() if self.read_up(shard)])

    async def _tell_outcomes(self, book: Book, membership: Membership, now: float) -> None:
        tellings = membership.tellings()
        membership.untold = False  # what changes while these are on their way is told the next time
        for telling in tellings:
            for start in range(0, len(telling.index), OUTCOMES_PER_MESSAGE):
                part = Telling(
                    part=telling.part,
                    index=telling.index[start : start + OUTCOMES_PER_MESSAGE],
                    state=telling.state[start : start + OUTCOMES_PER_MESSAGE],
                    reason=telling.reason[start : start + OUTCOMES_PER_MESSAGE],
                    code=telling.code[start : start + OUTCOMES_PER_MESSAGE],
                    generation=telling.generation[start : start + OUTCOMES_PER_MESSAGE],
                )
                sequence = book.next_outcome_sequence()
                rows = outcome_rows(book, membership, part)
                for state, n in zip(*np.unique(part.state, return_counts=True), strict=True):
                    self.metrics.outcome_rows.add(int(n), state=State(int(state)).name.lower())
                message = encode_outcomes(rows, shard=book.shard, sequence=sequence, at=now)
                await self.outlet.publish(self.outcomes_topic, [message])
                membership.tell(part, sequence)


def outcome_rows(book: Book, membership: Membership, telling: Telling) -> list[OutcomeRow]:
    """The rows of a telling as the contract has them (R24)."""
    selector = membership.selector
    common: dict[str, Any] = {"event_id": selector.event_id, "source": selector.source, "revision": selector.revision}
    if telling.part is None:
        kinds: list[Kind | Literal["release"]] = [control.kind for control in selector.controls] or [RELEASE]
        return [
            OutcomeRow(
                sn=membership.strangers[i],
                kind=kind,
                state=State.SKIPPED,
                reason=Reason.UNKNOWN_TARGET,
                response_code=int(telling.code[k]),
                **common,
            )
            for k, i in enumerate(telling.index.tolist())
            for kind in kinds
        ]
    part = telling.part
    told_of = part.members[telling.index]
    m, actuator = told_of.copy(), np.full(len(told_of), part.actuator, np.uint8)
    if part.control is None:  # a release: of each device the actuator that stands where the row says
        for other in membership.parts[1:]:
            theirs = other.members[telling.index]
            worst = (theirs["state"] == telling.state) & (m["state"] != telling.state)
            m[worst], actuator[worst] = theirs[worst], other.actuator
    sent = m["published_at"] > 0
    n = len(m)
    ids = correlation.pack(
        shard=np.full(n, book.shard, np.uint8),
        row=m["row"].astype(np.uint32),
        actuator=actuator,
        generation=m["generation"].astype(np.uint32),
        attempt=m["attempt"],
        digests=m["digest"].tolist(),
    )
    rows = []
    for k in range(n):
        told = bool(sent[k]) and telling.state[k] != State.PENDING
        rows.append(
            OutcomeRow(
                sn=book.roster.sns[int(m["row"][k])],
                kind=part.control.kind if part.control else RELEASE,
                state=State(int(telling.state[k])),
                reason=Reason(int(telling.reason[k])),
                response_code=int(telling.code[k]),
                **(_setpoint(part, m[k]) if told else {}),
                correlation_id=correlation.text(ids[k].tobytes()) if told else None,
                attempt=int(m["attempt"][k]) if told else None,
                published_at=float(m["published_at"][k]) if told else None,
                result_at=float(m["result_at"][k]) if told and m["result_at"][k] > 0 else None,
                corrects=int(told_of["told_sequence"][k]) if membership.closed_at and _was_closed(told_of[k]) else None,
                **common,
            )
        )
    return rows


def _setpoint(part: Part, member: np.void) -> dict[str, Any]:
    """What the device was told, in the field that belongs to the kind."""
    if part.control is None or part.control.kind is Kind.STANDBY:
        return {}
    if has_watts(part.control):
        return {"setpoint_w": int(member["second"])}
    if part.actuator is Actuator.ACTIVE:
        return {"setpoint_percent": int(member["first"]) / 10}
    return {"cos_phi": cos_phi_of(int(member["first"]))}


def _was_closed(member: np.void) -> bool:
    """Whether the row that was told last was already an outcome of the closed event: then a new one corrects it."""
    return bool(member["told_sequence"]) and bool(member["told_final"])

"""Break-glass (R36): the releases of what is held, one by one until each is confirmed, with GoodWe's cluster alone.

`Debts` decides and does no I/O: what to publish next, what an answer means. `paying` connects it with GoodWe. The rules
are those of the service: a release that was answered is read back (R27), one that was not is published again, refused
ones wait for a person. Ids are one generation above what was held, so that a service that comes back sees that somebody
else spoke, and asserts what it desires (R26).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vpp_dispatch.dispatch.held import Entry, Header, Held, HeldFound, Released
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.command import Commands, ResultCode, Results
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import Profile

State = Literal["confirmed", "pending", "refused"]
BATCH = 1000

_NEVER = float("inf")
_HOPELESS = (ResultCode.UNAUTHORIZED, ResultCode.VALUE, ResultCode.UNSUPPORTED)
_TWICE = (ResultCode.FAILED, ResultCode.PARTIAL)
"""Tried twice more, then refused."""


@dataclass(slots=True, eq=False)
class Debt:
    """One release that is owed. Times are of a monotonic clock, in seconds.

    `pair` is the default that it returns to; `shown` what a read-back shows once it is back there (an export limit in
    raw values); `generation` that of the ids.
    """

    shard: int
    held: Held
    pair: tuple[int, int]
    shown: tuple[int, int]
    rated_w: int
    generation: int
    state: State = "pending"
    reason: str = "not_sent"
    attempt: int = 0
    publish_at: float = 0.0
    query_at: float = _NEVER
    answered: bool = False
    agreed: int = 0
    published_at: float = -_NEVER
    asked_at: float = -_NEVER
    waiting: bool = False
    asking: int = 0

    @property
    def actuator(self) -> Actuator:
        return Actuator(self.held.actuator)


@dataclass(slots=True, kw_only=True)
class Batch:
    """What goes out together; `query` tells read-backs from releases."""

    debts: list[Debt]
    commands: Commands
    query: bool


@dataclass
class Debts:
    """All releases that are owed.

    Attributes:
        debts: those that can be published.
        unknown: (shard, entry) whose default is not known; they are left alone.
    """

    profile: Profile
    catalogue: Catalogue
    result_timeout_s: float
    retry_s: float
    debts: list[Debt] = field(default_factory=list)
    unknown: list[tuple[int, Held]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._of_id: dict[tuple[int, int, int], Debt] = {}
        self._of_slot: dict[tuple[str, bool], list[Debt]] = {}
        self._of_sn: dict[tuple[str, int], Debt] = {}
        # Far above what the service counts its own queries by, so never taken for one; and above what a `release` begun
        # before this one has used by now, at up to two batches of queries a second. Fits 32 bits until 2038.
        self._query = int(time.time() * 2)

    # ------------------------------------------------------------------ filling

    def add(self, found: HeldFound, *, family_defaults: bool) -> None:
        """Takes what files say is held. Without a known default an actuator goes back to the family's only if told."""
        for shard, entries in found.held.items():
            for held in entries:
                actuator = Actuator(held.actuator)
                if held.first is not None and held.second is not None:
                    pair = (held.first, held.second)
                elif family_defaults:
                    pair = self.catalogue.family_default(actuator)
                else:
                    self.unknown.append((shard, held))
                    continue
                rated_w = self.catalogue.rated_w(held.sn, held.rated_w)
                debt = Debt(
                    shard=shard,
                    held=held,
                    pair=pair,
                    shown=self._shown(held.sn, actuator, pair, rated_w),
                    rated_w=rated_w,
                    generation=held.generation + 1,
                )
                self.debts.append(debt)
                self._of_id[shard, held.row, held.actuator] = debt
                self._of_sn[held.sn, held.actuator] = debt

    def _shown(self, sn: str, actuator: Actuator, pair: tuple[int, int], rated_w: int) -> tuple[int, int]:
        """What a query reads once the pair is set: rounded as on the wire, an export limit in raw values."""
        first, second = pair
        scale = self.catalogue.scales[actuator]
        if actuator is Actuator.EMS:
            return first, scale.value_of(scale.raw_of(second))
        if actuator is Actuator.EXPORT:
            if self.catalogue.family_of(sn) in self.catalogue.percent_families:
                return first, min(second * 100 // rated_w, 100) if rated_w else second
            return first, scale.raw_of(second)
        if actuator is Actuator.ACTIVE:
            return scale.value_of(scale.raw_of(first)), 0
        return first, 0

    def refuse_unsayable(self, codec: Codec) -> None:
        """Marks what cannot be said to GoodWe as refused: a value outside the profile's range, a rating not known."""
        for batch in self._batches(self.debts, query=False, size=BATCH):
            for index, sentence in codec.prepare(batch.commands).refused:
                self._refuse(batch.debts[index], f"unsayable: {sentence}")

    # ------------------------------------------------------------------ what goes out

    @property
    def done(self) -> bool:
        """Whether nothing more can be expected."""
        return all(debt.state != "pending" for debt in self.debts)

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        counted = Counter(debt.state for debt in self.debts)
        return {state: counted[state] for state in ("confirmed", "pending", "refused")}

    def reasons(self) -> dict[str, int]:
        """Why what is not confirmed is not, most frequent first; sentences cut to their first word."""
        counted = Counter(debt.reason.partition(":")[0] for debt in self.debts if debt.state != "confirmed")
        return dict(counted.most_common())

    def in_flight(self, now: float) -> int:
        """Commands that are published and neither answered nor timed out (R40)."""
        since = now - self.result_timeout_s
        return sum((d.waiting and d.published_at > since) + (d.asking > 0 and d.asked_at > since) for d in self.debts)

    def due(self, now: float, room: int) -> Batch | None:
        """What may go out now, at most `room`: releases first. None if nothing is due."""
        for query in (False, True):
            at = "query_at" if query else "publish_at"
            ready = [d for d in self.debts if d.state == "pending" and getattr(d, at) <= now][: min(room, BATCH)]
            if ready:
                return next(self._batches(ready, query=query, size=BATCH))
        return None

    def sent(self, batch: Batch, now: float) -> None:
        """The batch goes out now. To be called before it does, since answers may be faster than its acknowledgement."""
        for debt in batch.debts:
            if batch.query:
                debt.asking, debt.asked_at, debt.query_at = self._query, now, now + self.result_timeout_s
                debt.publish_at = _NEVER if debt.answered else debt.query_at
                continue
            debt.attempt += 1
            debt.published_at, debt.waiting, debt.answered, debt.agreed, debt.asking = now, True, False, 0, 0
            debt.reason = "no_answer"
            # No answer in time: it is read back, and unless that agrees it is published again (R27).
            debt.publish_at, debt.query_at = _NEVER, now + self.result_timeout_s
            self._of_slot.setdefault((debt.held.sn, self.catalogue.is_single(debt.actuator)), []).append(debt)

    def failed(self, batch: Batch, now: float, detail: str) -> None:
        """The cluster did not take the batch, or not in time: it may have arrived. It goes again, in a moment."""
        for debt in batch.debts:
            if debt.state != "pending":
                continue
            if batch.query:
                debt.asking, debt.query_at = 0, now + 1.0
            else:
                debt.waiting, debt.publish_at, debt.query_at = False, now + 1.0, _NEVER
                debt.reason = f"unreachable: {detail}"

    def _batches(self, debts: Sequence[Debt], *, query: bool, size: int) -> Iterator[Batch]:
        if query:
            self._query += 1
        for start in range(0, len(debts), size):
            part = list(debts[start : start + size])
            n = len(part)
            bit = QUERY_BIT if query else 0
            commands = Commands(
                shard=np.array([d.shard for d in part], np.uint8),
                row=np.array([d.held.row for d in part], np.uint32),
                actuator=np.array([d.held.actuator | bit for d in part], np.uint8),
                generation=np.array([self._query if query else d.generation for d in part], np.uint32),
                attempt=np.array([1 if query else min(d.attempt + 1, 255) for d in part], np.uint8),
                sn=[d.held.sn for d in part],
                first=np.array([0 if query else d.pair[0] for d in part], np.int32),
                second=np.array([0 if query else d.pair[1] for d in part], np.int32),
                deadline_at=np.full(n, np.inf),
                rated_w=np.array([d.rated_w for d in part], np.int32),
            )
            yield Batch(debts=part, commands=commands, query=query)

    # ------------------------------------------------------------------ what comes back

    def heard(self, results: Results | SlotResults, now: float) -> None:
        """Takes results; those of other commands than ours change nothing."""
        codes, accepted = results.code.tolist(), results.accepted.tolist()
        pairs = list(zip(results.first.tolist(), results.second.tolist(), strict=True))
        if isinstance(results, SlotResults):
            singles = results.single.tolist()
            for i, (sn, actuator) in enumerate(zip(results.sn, results.actuator.tolist(), strict=True)):
                self._slot(sn, actuator, singles[i], ResultCode(codes[i]), accepted[i], pairs[i], now)
            return
        shards, rows, kinds, generations, _ = (column.tolist() for column in correlation.unpack(results.ids))
        for i, kind in enumerate(kinds):
            debt = self._of_id.get((shards[i], rows[i], kind & (QUERY_BIT - 1)))
            if debt is None:
                continue
            if kind >= QUERY_BIT:
                if generations[i] == debt.asking:
                    self._read(debt, ResultCode(codes[i]), pairs[i], now)
            elif generations[i] == debt.generation and debt.attempt:
                self._answer(debt, ResultCode(codes[i]), accepted[i], now, sure=True)

    def _slot(
        self, sn: str, actuator: int, single: bool, code: ResultCode, accepted: bool, pair: tuple[int, int], now: float
    ) -> None:
        """A result that names no id. Of a setpoint it may be an older one's: it tells when to read back, no more."""
        if actuator >= QUERY_BIT:
            debt = self._of_sn.get((sn, actuator - QUERY_BIT))
            if debt is not None and debt.asking:
                self._read(debt, code, pair, now)
            return
        queue = self._of_slot.get((sn, single), [])
        if queue:
            self._answer(queue[0] if accepted else queue.pop(0), code, accepted, now, sure=False)

    def _answer(self, debt: Debt, code: ResultCode, accepted: bool, now: float, *, sure: bool) -> None:
        if debt.state != "pending":
            return
        if code is ResultCode.SUCCESS:
            if accepted:
                debt.reason = "accepted"
            elif not debt.answered:
                debt.waiting, debt.answered = False, sure
                debt.reason, debt.publish_at, debt.query_at = "not_read_back", _NEVER, now
            return
        debt.waiting, debt.reason = False, code.name.lower()
        if sure and (code in _HOPELESS or (code in _TWICE and debt.attempt > 2)):
            self._refuse(debt, debt.reason)
            return
        debt.publish_at, debt.query_at = now + self.retry_s, _NEVER

    def _read(self, debt: Debt, code: ResultCode, pair: tuple[int, int], now: float) -> None:
        if debt.state != "pending":
            return
        debt.asking = 0
        if code is not ResultCode.SUCCESS:
            debt.reason = code.name.lower()
            if code in _HOPELESS:
                self._refuse(debt, f"{debt.reason}: it cannot be read back")
            debt.query_at = now + self.retry_s
            return
        if pair != debt.shown:
            debt.agreed, debt.reason = 0, "differs"
            debt.publish_at, debt.query_at = now + self.retry_s, _NEVER
            return
        debt.agreed += 1
        # Without an answer to the release itself one reading may be from before it: two have to agree (R27).
        if debt.agreed >= (1 if debt.answered else 2):
            debt.state, debt.reason, debt.waiting = "confirmed", "", False
        else:
            debt.query_at, debt.publish_at = now, _NEVER

    @staticmethod
    def _refuse(debt: Debt, reason: str) -> None:
        debt.state, debt.reason, debt.waiting, debt.asking = "refused", reason, False, 0

    # ------------------------------------------------------------------ what is left

    def rest(self, found: HeldFound, at: float) -> list[tuple[Header, Sequence[Entry]]]:
        """What is left for the next try, as sections of a break-glass file; `at` epoch seconds.

        What is confirmed stands there as released, so that it may be read together with the files it came from. The
        generations of the others are raised: the ids of this try are used up.
        """
        entries: dict[int, list[Entry]] = {}
        for debt in self.debts:
            h = debt.held
            left: Entry = Released(sn=h.sn, actuator=h.actuator)
            if debt.state != "confirmed":
                left = Held(
                    sn=h.sn, row=h.row, actuator=h.actuator, generation=debt.generation, first=h.first, second=h.second,
                    rated_w=h.rated_w,
                )  # fmt: skip
            entries.setdefault(debt.shard, []).append(left)
        for shard, held in self.unknown:
            entries.setdefault(shard, []).append(held)
        return [
            (Header(shard=shard, epoch=found.shards[shard].epoch, at=at), part)
            for shard, part in sorted(entries.items())
        ]

"""One shard: its devices, their setpoints and the events that target them, and what can be read from these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.domain.account import Counts
from vpp_dispatch.domain.command import Commands
from vpp_dispatch.domain.inputs import Switches
from vpp_dispatch.domain.membership import LINGERING, Membership, Part
from vpp_dispatch.domain.roster import Catalogue, Policy, Roster, Rows
from vpp_dispatch.domain.setpoint import Setpoints
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator, Kind

Digests = Callable[[Commands], NDArray[np.uint64]]
"""The digests that stand in the ids of commands, as the codec makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a shard's devices owe now, per actuator; times epoch seconds, inf if none."""

    held: int
    debts: int
    refused: int
    past_window: int
    oldest_hold_at: float
    oldest_debt_at: float


class Shard:
    """All devices of one shard, their setpoints and the events that target them."""

    def __init__(
        self, *, shard: int, epoch: int, catalogue: Catalogue, policy: Policy, digests: Digests | None = None
    ) -> None:
        """`digests` tells what stands in the ids of commands; without it, what was not recorded proves nothing."""
        self.shard = shard
        self.digests = digests
        self.epoch = epoch
        self.catalogue = catalogue
        self.policy = policy
        self.roster = Roster(catalogue=catalogue, policy=policy)
        self.setpoints = {
            a: Setpoints(actuator=a, policy=policy, family_default=catalogue.family_default(a), echoes=catalogue.echoes)
            for a in Actuator
        }
        self.memberships: dict[tuple[str, int], Membership] = {}
        self.closed: dict[str, tuple[int, float]] = {}  # event -> (revision, forget at)
        self.switches = Switches()
        self.now = 0.0
        self.last_result_at = 0.0
        self.folded_to: dict[tuple[Actuator, int], int] = {}  # page -> inbox offset that its saved row holds
        self.head_dirty = False
        self.dropped: set[tuple[str, int]] = set()  # memberships whose saved rows have to go

    def grow(self) -> None:
        """Makes room for the setpoints of devices that were added to the roster."""
        for setpoints in self.setpoints.values():
            setpoints.grow(len(self.roster.columns))

    def registry_defaults(self, rows: Iterable[int]) -> None:
        """Takes the registry's defaults of these rows (R37)."""
        for row in rows:
            record = self.roster.records[row]
            for actuator, setpoints in self.setpoints.items():
                pair = record.default.get(actuator) if record else None
                if pair:
                    pair = self._told(actuator, row, pair)
                setpoints.registry[row] = (True, *pair) if pair else (False, 0, 0)

    def _told(self, actuator: Actuator, row: int, pair: tuple[int, int]) -> tuple[int, int]:
        """A pair as the device can be told it."""
        rows = np.array([row])
        value = pair[0] if actuator is Actuator.ACTIVE else pair[1]
        told = int(self.roster.in_steps(actuator, rows, np.array([value], np.int32))[0])
        return (told, pair[1]) if actuator is Actuator.ACTIVE else (pair[0], told)

    def at_slot(self, slot: int) -> Membership | None:
        """The event revision that a setpoint's `owner` names."""
        return next((m for m in self.memberships.values() if m.slot == slot), None)

    def heir(self, membership: Membership | None) -> Membership | None:
        """The newest revision of a membership's event: a replaced one tells nothing any more, its releases included."""
        if membership is None or not membership.replaced:
            return membership
        event = membership.selector.event
        return self.memberships[event, max(revision for key, revision in self.memberships if key == event)]

    def observe(self, membership: Membership, part: Part, now: float, *, last: bool = False) -> None:
        """Copies what stands behind a part's members to them (see `Membership.observe`)."""
        membership.observe(part, self.setpoints[part.actuator], now, last=last)

    def setpoint_commands(self, actuator: Actuator, rows: Rows, query: bool) -> Commands:
        """The commands that a publish of these rows now would be."""
        setpoints = self.setpoints[actuator]
        n = len(rows)
        c = setpoints.columns[rows]
        return Commands(
            shard=np.full(n, self.shard, np.uint8),
            row=rows.astype(np.uint32),
            actuator=np.full(n, actuator | QUERY_BIT if query else actuator, np.uint8),
            generation=setpoints.next_query(rows) if query else c["generation"].copy(),
            attempt=np.ones(n, np.uint8) if query else setpoints.next_attempt(rows),
            sn=[self.roster.sns[row] for row in rows.tolist()],
            first=np.zeros(n, np.int32) if query else c["first"].copy(),
            second=np.zeros(n, np.int32) if query else c["second"].copy(),
            deadline_at=np.where(c["held"], c["end_at"], np.inf) if not query else np.full(n, np.inf),
            rated_w=self.roster.ability["rated_w"][rows].astype(np.int32),
        )

    # ------------------------------------------------------------------ what is told

    def held(self, actuator: Actuator, now: float) -> Held:
        """What the shard's devices hold and owe."""
        c = self.setpoints[actuator].columns
        held, debt = c["held"], c["armed"] & ~c["held"]
        late = held & (c["end_at"] < now)
        for membership in self.memberships.values():
            for part in membership.parts if membership.ended else ():
                if part.actuator is actuator:  # these only wait for their turn (R14)
                    m = part.members
                    late[m["row"][(m["phase"] == LINGERING) & (m["leaves_at"] > now)]] = False
        return Held(
            held=int(held.sum()),
            debts=int(debt.sum()),
            refused=int((debt & c["refused"]).sum()),
            past_window=int(late.sum()),
            oldest_hold_at=float(c["since"][held].min(initial=np.inf)),
            oldest_debt_at=float(c["since"][debt].min(initial=np.inf)),
        )

    def power(self) -> dict[Kind, NDArray[np.float64]]:
        """Control -> (requested, allocated, acknowledged, measured) in W over the events whose window is open."""
        found: dict[Kind, NDArray[np.float64]] = {}
        for membership in self.memberships.values():
            if not membership.replaced:
                for kind, watts in membership.power(self.roster):
                    found[kind] = found.get(kind, np.zeros(4)) + watts
        return found

    def counts(self) -> Iterable[tuple[str, Counts]]:
        """The account of each event that is not closed, for metrics."""
        return [
            (key[0], m.told or m.counts()) for key, m in self.memberships.items() if not m.closed_at and not m.replaced
        ]

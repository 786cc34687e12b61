"""What the evidence is decoded into: commands, results, outcome rows, signals and what became of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .evidence import INF, Record
from .wire import ACTUATOR_OF, CorrelationId, Values

STATES = ("skipped", "unused", "pending", "published", "accepted", "applied", "verified", "rejected", "unconfirmed")
BADNESS = {state: rank for rank, state in enumerate(
    ("unused", "skipped", "verified", "applied", "accepted", "published", "pending", "unconfirmed", "rejected")
)}  # fmt: skip
BY_GOODWE = frozenset({"unauthorized", "busy", "value", "unsupported", "failed", "partial", "unknown_code"})
ALONE, FINAL = frozenset({252, 253, 254}), frozenset({3, 7, 8, 10})

Pair = tuple[str, str]  # SN, actuator
EventKey = tuple[str, str, int]  # source, event id, revision


@dataclass(slots=True, kw_only=True, eq=False)
class Command:
    """One record of a request topic. `kind`: setpoint, release or query; `values` in the actuator's order."""

    id: str
    names: CorrelationId
    sn: str
    actuator: str
    values: Values
    at: float
    record: Record
    kind: str = ""

    @property
    def newness(self) -> tuple[int, int]:
        return (self.names.generation, self.names.attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One record of a result topic, of a stage that is final. `values`: of a query, by name."""

    id: str
    sn: str
    meaning: str
    values: dict[str, Any]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A switch that was turned, or an event (as `source/event_id`) that was aborted: a record of the event inbox."""

    switch: str
    on: bool
    event: str | None
    at: float
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One outcome row and the message it stood in."""

    record: Record
    sequence: int
    body: dict[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        return {name: value for name, value in self.body.items() if name != "corrects"}


@dataclass(slots=True, kw_only=True, eq=False)
class Revision:
    """One signal, and what became of it. Times epoch seconds; `end` is where its window really ended."""

    key: EventKey
    body: dict[str, Any]
    record: Record
    codes: dict[int, Record] = field(default_factory=dict)
    start: float = INF
    end: float = INF
    ended_by: str = "its end"
    replaced: bool = False
    cancelled: bool = False
    over_at: float = INF
    """When its window really ended, to the moment; `end` has the tolerance of what ended it."""
    ramp_up_s: int = 0
    ramp_down_s: int = 0
    aborted_at: float | None = None
    required: set[str] = field(default_factory=set)
    allowed: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    finals: list[tuple[Record, dict[str, Any]]] = field(default_factory=list)
    controls: dict[str, dict[str, Any]] = field(init=False)  # by actuator
    _newest: tuple[int, dict[tuple[str, str], Row]] | None = None  # of how many rows, by (SN, kind)

    def __post_init__(self) -> None:
        found = self.body.get("controls") or []
        known = (c for c in found if isinstance(c, dict) and c.get("kind") in ACTUATOR_OF)
        self.controls = {ACTUATOR_OF[control["kind"]]: control for control in known}
        self.ramp_up_s, self.ramp_down_s = (_whole(self.body.get(name)) for name in ("ramp_up_s", "ramp_down_s"))

    @property
    def name(self) -> str:
        return "/".join(map(str, self.key))

    @property
    def action(self) -> str:
        return str(self.body.get("action"))

    @property
    def test(self) -> bool:
        return bool(self.body.get("test"))

    @property
    def accepted(self) -> bool:
        return 1 in self.codes

    @property
    def commands(self) -> bool:
        """Whether setpoints can follow from it."""
        return self.accepted and self.action == "dispatch" and not self.test

    @property
    def released_by(self) -> float:
        """When the last device's release begins."""
        return self.end + self.ramp_down_s

    @property
    def primacy(self) -> tuple[int, float, str]:
        """Sorts the strongest last (R10)."""
        priority = self.body.get("priority")
        created = epoch(self.body.get("created_at")) or 0.0
        return (-(255 if priority is None else priority), created, self.key[1])

    @property
    def kinds(self) -> list[str]:
        return ["release"] if self.action == "release" else [c["kind"] for c in self.controls.values()]

    def effective(self, until: float = INF) -> dict[tuple[str, str], Row]:
        """The rows that count at a time, by (SN, kind)."""
        if until == INF:
            if self._newest is None or self._newest[0] != len(self.rows):
                self._newest = (len(self.rows), {(row.body["sn"], row.body["kind"]): row for row in self.rows})
            return self._newest[1]
        return {(row.body["sn"], row.body["kind"]): row for row in self.rows if row.record.at <= until}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def body_of(record: Record) -> Any:
    try:
        return json.loads(record.value or b"")
    except (ValueError, UnicodeDecodeError):
        return None


def epoch(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None

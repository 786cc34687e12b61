"""Everything that was commanded, executed and answered, for an auditor to compare with what the service reported."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class Answer:
    """One result message (or one that was lost on purpose).

    Attributes:
        due_at: when it was meant to leave, epoch s.
        published_at: when the broker had acknowledged it, epoch s; None while it has not, and if it was dropped.
        copy: the second of a duplicated pair.
    """

    stage: str
    code: str
    due_at: float
    dropped: bool = False
    copy: bool = False
    published_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Command:
    """One message of a request topic and what became of it.

    Attributes:
        role: `single`, `multi` or `query`; kind: `set`, `release` (gives the device back) or `query`.
        items: (name, value) as sent; a query's values are None.
        arrival_at: the broker's append time of the request, epoch s. seen_at: when the simulator read it.
        effect_at: when it reached the device, epoch s; None while it has not, and if it was swallowed.
        executed: it wrote at least one parameter (a query: it was read).
        code: GoodWe's code as text; None before the effect.
        values: (name, value, code) as answered.
        repeat: how often the same id came before; such a command is answered like the first and executed never.
        conflict: its id came before with other content; it is refused.
    """

    correlation_id: str
    sn: str
    role: str
    kind: str
    items: list[tuple[str, Any]]
    topic: str
    partition: int
    offset: int
    arrival_at: float
    seen_at: float
    repeat: int = 0
    conflict: bool = False
    swallowed: bool = False
    executed: bool = False
    effect_at: float | None = None
    code: str | None = None
    values: list[tuple[str, Any, str]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """As it stands in the dump."""
        return {
            "correlation_id": self.correlation_id,
            "sn": self.sn,
            "role": self.role,
            "kind": self.kind,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "parameters": [
                {"name": name} if self.role == "query" else {"name": name, "value": value} for name, value in self.items
            ],
            "arrival_at": self.arrival_at,
            "seen_at": self.seen_at,
            "effect_at": self.effect_at,
            "executed": self.executed,
            "code": self.code,
            "values": [{"name": name, "value": value, "code": code} for name, value, code in self.values],
            "dropped": bool(self.answers) and all(answer.dropped for answer in self.answers),
            "swallowed": self.swallowed,
            "repeat": self.repeat,
            "conflict": self.conflict,
            "results": [
                {
                    "stage": answer.stage,
                    "code": answer.code,
                    "due_at": answer.due_at,
                    "published_at": answer.published_at,
                    "dropped": answer.dropped,
                    "copy": answer.copy,
                }
                for answer in self.answers
            ],
        }


class Ledger:
    """Commands by SN in the order of their arrival, requests that could not be read, and totals."""

    def __init__(self) -> None:
        self.commands: dict[str, list[Command]] = {}
        self.unreadable: list[dict[str, Any]] = []
        self.owner_changes: dict[str, list[dict[str, Any]]] = {}
        self.online_changes: dict[str, list[tuple[float, bool]]] = {}
        self.totals: Counter[str] = Counter()

    def add(self, command: Command) -> None:
        """Record a command on arrival."""
        self.commands.setdefault(command.sn, []).append(command)
        self.totals["requests"] += 1
        self.totals[f"requests.{command.role}"] += 1

    def add_unreadable(self, *, topic: str, partition: int, offset: int, reason: str) -> None:
        """Record a request that no command could be made of."""
        self.totals["requests.unreadable"] += 1
        self.unreadable.append({"topic": topic, "partition": partition, "offset": offset, "reason": reason})

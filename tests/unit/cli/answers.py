"""What the service answers about one event, as records of its topics, and who reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from vpp_dispatch.domain.answer import STATUS
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Entry

REPORT: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "schemas" / "report" / "examples" / "valid" / "active.json").read_text()
)
EVENT, SOURCE = REPORT["event_id"], REPORT["source"]


def entry(value: dict[str, Any], key: str = EVENT) -> Entry:
    """A record with this value."""
    return Entry(topic="t", partition=0, offset=0, at=0.0, key=key.encode(), value=json.dumps(value).encode())


def response(code: int, *, revision: int = 1, reasons: tuple[str, ...] = (), source: str = SOURCE) -> Entry:
    """A response."""
    value = {"event_id": EVENT, "source": source, "revision": revision, "code": code, "status": STATUS[code]}
    return entry(value | {"at": "2026-11-22T16:00:00Z", "reasons": list(reasons)})


def report(sequence: int, *, final: bool = False, revision: int = 1, **devices: int) -> Entry:
    """A report with so many devices in these states."""
    told = {**dict.fromkeys(REPORT["devices"], 0), "targeted": sum(devices.values()), **devices}
    return entry(REPORT | {"sequence": sequence, "final": final, "revision": revision, "devices": told, "reasons": {}})


Script = list[list[Entry] | BaseException]


class Reader:
    """Hands out a script: the first batch is what was there before, the others come one by one, then nothing."""

    script: Script
    asked: list[tuple[str, ...]]

    def __init__(self, settings: Settings, topics: Sequence[str], *, since: float | None = None) -> None:
        self.asked.append(tuple(topics))
        self.caught_up = False
        self._batches: Iterator[list[Entry] | BaseException] = iter(self.script)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def batch(self, *, wait_s: float = 0.25) -> list[Entry]:
        self.caught_up = True
        found = next(self._batches, [])
        if isinstance(found, BaseException):
            raise found
        return found

"""What the service answers about one event, as records of its topics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vpp_dispatch.domain.answer import STATUS
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

"""Commands and records for the tests of this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vpp_dispatch.domain.command import Commands

NOW = 1_795_370_531.0
HYBRID = "9010KETU000W0001"
PERCENT = "5017KDTT00BW0001"


def commands(
    rows: Sequence[tuple[int, str, int, int]],
    *,
    rated_w: int = 10_000,
    shard: int = 17,
    generation: int = 4,
    attempt: int = 1,
) -> Commands:
    """From rows of (actuator, SN, first, second)."""
    n = len(rows)
    return Commands(
        shard=np.full(n, shard, np.uint8),
        row=np.arange(n, dtype=np.uint32),
        actuator=np.array([row[0] for row in rows], np.uint8),
        generation=np.full(n, generation, np.uint32),
        attempt=np.full(n, attempt, np.uint8),
        sn=[row[1] for row in rows],
        first=np.array([row[2] for row in rows], np.int32),
        second=np.array([row[3] for row in rows], np.int32),
        deadline_at=np.full(n, np.inf),
        rated_w=np.full(n, rated_w, np.int32),
    )


@dataclass
class Rec:
    """A record as aiokafka hands it over."""

    topic: str
    value: bytes | None
    partition: int = 0
    offset: int = 0
    timestamp: int = int(NOW * 1000)
    timestamp_type: int = 1
    key: bytes | None = HYBRID.encode()
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def answer(request: bytes, *, code: Any = "0", **more: Any) -> bytes:
    """A result to a request; a query's or a set's parameters only where `parameters` gives them."""
    asked = json.loads(request)
    result = {"requestId": asked["requestId"], "sn": asked["sn"], "code": code, "message": "x", "timestamp": 1} | more
    return json.dumps({key: value for key, value in result.items() if value is not ...}).encode()

"""Commands on their way to GoodWe and results on their way back, as columns.

A setpoint is a pair of integers in our own terms; only the codec knows the names, scales and units that GoodWe has:

| actuator | first | second |
|---|---|---|
| ems | mode, GoodWe's EMS Power Mode code | power in W, no sign (the mode gives the direction) |
| export | 0 off, 1 on | limit in W |
| active | tenths of a percent of the rating | 0 |
| reactive | Power Factor, raw (100 = unity, 80..99 over, 1..20 under) | 0 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

FORCED_ISLANDING = 7
"""GoodWe's EMS mode that takes a house off the grid: never dispatched, and nothing that a device is returned to."""

NO_VALUE = -(2**31)
"""Stands in a pair where nothing was read."""


class ResultCode(IntEnum):
    """What GoodWe said of a command. Append only: the numbers stand in messages and saved pages."""

    SUCCESS = 0
    OFFLINE = 1
    UNAUTHORIZED = 2
    BUSY = 3
    VALUE = 4
    UNSUPPORTED = 5
    FAILED = 6
    PARTIAL = 7
    UNKNOWN_CODE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """One batch for the link; all columns have the length n.

    `shard` u1, `row` u4, `actuator` u1 (with QUERY_BIT for a query), `generation` u4, `attempt` u1, `sn` list of str,
    `first`/`second` i4 (0 for queries), `deadline_at` f8 epoch seconds after which it must not be published any more
    (inf for releases and queries, R28), `rated_w` i4 (0 = not known; scales percent).
    """

    shard: U8
    row: U32
    actuator: U8
    generation: U32
    attempt: U8
    sn: list[str]
    first: I32
    second: I32
    deadline_at: F64
    rated_w: I32

    def __len__(self) -> int:
        return len(self.sn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Results of one shard, in the order of their topics; all columns have the length n.

    `ids` (n, 16) u1, the correlation ids; `code` u1, a ResultCode; `accepted` bool, True where GoodWe only took the
    command (stage accepted); `first`/`second` i4, what a query read, NO_VALUE where nothing; `at` f8, epoch seconds
    at which the broker appended the result.
    """

    ids: U8
    code: U8
    accepted: Flags
    first: I32
    second: I32
    at: F64

    def __len__(self) -> int:
        return len(self.code)


def concatenate(parts: Sequence[Commands]) -> Commands:
    """One batch of several, in their order; `parts` must not be empty."""
    return Commands(
        sn=[sn for part in parts for sn in part.sn],
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in (
                "shard",
                "row",
                "actuator",
                "generation",
                "attempt",
                "first",
                "second",
                "deadline_at",
                "rated_w",
            )
        },
    )

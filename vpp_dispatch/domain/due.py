"""What may be published now of the setpoints of one actuator in one shard, and what is in flight (R21, R25-R28, R40).

What is in sync is not found here; whatever else is, is work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.domain.command import F64, U8, U32, Flags
from vpp_dispatch.domain.roster import Rows
from vpp_dispatch.domain.setpoint import NO_CODE, READ_BACK, READ_DEFAULT, Setpoints

VERIFY_RANK = 2 + 256
"""Read-backs of setpoints go after everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Work that may be published now, columns of length n.

    `rank`: 0 releases, 1 read-backs of releases, 2 + priority otherwise; `deadline_at` inf where nothing bounds it;
    `again` marks what was published before and never answered (R41); `owner`: slot of the event that it is for, 0 for
    releases.
    """

    row: Rows
    query: Flags
    rank: NDArray[np.int64]
    deadline_at: F64
    again: Flags
    owner: U32


NOTHING_DUE = Due(
    row=np.zeros(0, np.int64),
    query=np.zeros(0, bool),
    rank=np.zeros(0, np.int64),
    deadline_at=np.zeros(0),
    again=np.zeros(0, bool),
    owner=np.zeros(0, np.uint32),
)


def _asks(purpose: U8) -> Flags:
    """Whether a query is out whose answer counts."""
    asks: Flags = (purpose == READ_DEFAULT) | (purpose == READ_BACK)
    return asks


def find_due(setpoints: Setpoints, *, now: float, allowed: Flags, reading: Flags, blocked: Flags | None = None) -> Due:
    """What may be published now.

    `allowed`: rows with both keys (R16), asked again here, right before the publish; `reading`: rows whose
    default may be read; `blocked`: rows where another setpoint has to be answered first (R26). Releases ask for
    none of them.
    """
    if setpoints.idle:
        return NOTHING_DUE
    c = setpoints.columns
    open_ = c["armed"] & (c["generation"] > 0) & (c["acknowledged"] != c["generation"]) & (c["next_at"] <= now)
    again = (c["published"] == c["generation"]) & (c["code"] == NO_CODE)
    set_ = open_ & c["held"] & setpoints.durable & allowed & (c["end_at"] > now)
    set_ &= now - c["published_at"] >= setpoints.policy.min_interval_s
    if blocked is not None:
        set_ &= ~blocked
    # An unanswered release is published again first, and read back after the second time (R27); at once where no
    # answer could tell.
    unanswered_twice = again & ((c["tries"] % 2 == 0) | (not setpoints.echoes)) & (c["tries"] > 0)
    agreed_once = c["armed"] & ~c["held"] & (c["agreed"] == 1) & ~_asks(c["purpose"])
    reads_instead = ((open_ & ~c["held"] & unanswered_twice) | agreed_once) & (c["query_next_at"] <= now)
    release = open_ & ~c["held"] & ~reads_instead & ~setpoints.unsaved
    settled = c["armed"] & ~c["held"] & (c["acknowledged"] == c["generation"]) & (c["generation"] > 0)
    back = (settled | reads_instead) & (c["query_next_at"] <= now)
    default = setpoints.wanted & reading & ~c["armed"] & (c["query_next_at"] <= now)
    verify = c["armed"] & c["held"] & (c["acknowledged"] == c["generation"]) & (c["checked"] != c["generation"])
    verify &= (c["generation"] > 0) & allowed & (c["end_at"] > now) & (c["query_next_at"] <= now)
    rows, rank, query, deadline, re, owner = [], [], [], [], [], []
    for mask, is_query in ((release, False), (back, True), (set_, False), (default, True), (verify, True)):
        found = np.flatnonzero(mask)
        if not len(found):
            continue
        rows.append(found)
        query.append(np.full(len(found), is_query))
        if mask is release:
            rank.append(np.zeros(len(found), np.int64))
        elif mask is back:
            rank.append(np.ones(len(found), np.int64))
        elif mask is set_:
            rank.append(2 + c["priority"][found].astype(np.int64))
        elif mask is default:
            rank.append(2 + setpoints.wanted_priority[found])
        else:
            rank.append(np.full(len(found), VERIFY_RANK, np.int64))
        if mask is release or mask is back:
            owner.append(np.zeros(len(found), np.uint32))
        else:
            owner.append(setpoints.wanted_by[found] if mask is default else c["owner"][found])
        deadline.append(c["end_at"][found] if mask is set_ else np.full(len(found), np.inf))
        # A read-back in place of an unanswered release's next publish is a retry too.
        re.append(again[found] if not is_query else _asks(c["purpose"])[found] | reads_instead[found])
    if not rows:
        return NOTHING_DUE
    return Due(
        row=np.concatenate(rows),
        query=np.concatenate(query),
        rank=np.concatenate(rank),
        deadline_at=np.concatenate(deadline),
        again=np.concatenate(re),
        owner=np.concatenate(owner),
    )


def in_flight(setpoints: Setpoints, now: float) -> tuple[int, int]:
    """How many commands are published and neither answered nor timed out, and the highest rank of them (R40)."""
    c = setpoints.columns
    if not (c["open"].any() or c["purpose"].any()):
        return 0, -1
    sets = setpoints.unanswered(now)
    asked = (c["purpose"] > 0) & (now - c["query_at"] < setpoints.policy.result_timeout_s)
    defaults = asked & (c["purpose"] == READ_DEFAULT)
    weakest = -1
    if sets.any() or asked.any():
        held = sets & c["held"]
        weakest = max(
            0,
            2 + int(c["priority"][held].max()) if held.any() else 0,
            2 + int(setpoints.wanted_priority[defaults].max()) if defaults.any() else 0,
            VERIFY_RANK if (asked & ~defaults & c["held"]).any() else 0,
        )
    return int(sets.sum() + asked.sum()), weakest

"""What is counted of an event: in its shards, over its shards, and in its report.

A shard tells its counts cumulatively; the newest (epoch, sequence) of a shard replaces the older ones, so
a message that is lost, repeated or late changes nothing (R34).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class State(IntEnum):
    """Where a device stands in an event (R24), in the order of the report."""

    SKIPPED = 0
    UNUSED = 1
    PENDING = 2
    PUBLISHED = 3
    ACCEPTED = 4
    APPLIED = 5
    VERIFIED = 6
    REJECTED = 7
    UNCONFIRMED = 8


class Reason(IntEnum):
    """The public vocabulary of reasons. Append only: the numbers stand in saved pages."""

    NONE = 0
    UNKNOWN_TARGET = 1
    NOT_IN_TABLE = 2
    NOT_REGISTERED = 3
    CONSENT_MISSING = 4
    CONSENT_STALE = 5
    CAPABILITY = 6
    OFFLINE = 7
    FAULTED = 8
    OFF_GRID = 9
    SOC = 10
    TELEMETRY_STALE = 11
    DEFAULT_UNKNOWN = 12
    SUPERSEDED = 13
    NO_ANSWER = 14
    UNAUTHORIZED = 20
    BUSY = 21
    VALUE = 22
    UNSUPPORTED = 23
    FAILED = 24
    PARTIAL = 25
    UNKNOWN_CODE = 26
    CONSENT_WITHDRAWN = 30
    REMOVED = 31
    RELEASED = 32
    OPTED_OUT = 33

    @property
    def word(self) -> str | None:
        """As it stands on the wire; None for no reason."""
        return None if self is Reason.NONE else self.name.lower()


# Upper bounds of the latency buckets in seconds; one more bucket is open.
LATENCY_BUCKETS_S: tuple[float, ...] = (
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 600, 1200,
    3600,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Fixed buckets that fold by addition. `counts` has one entry more than LATENCY_BUCKETS_S; `max_s` in seconds."""

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BUCKETS_S) + 1)
    max_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """One shard's cumulative account of one event.

    A device counts once, by its worst state; `states` is indexed by State. `reasons` are keyed `skipped.offline`.
    Power in whole watts in the control's direction, 0 where it has none. `held_at_end` and `won_at_end` count the
    holds when the window closed and those of them that were the setpoint (R33, code 7). `measured_w` is of the
    `measured` devices, by kind, that were applied when the window closed and of which telemetry took a sample while
    their setpoint stood; of the `unmeasured` it took none.
    """

    states: tuple[int, ...] = (0,) * len(State)
    reasons: dict[str, int] = field(default_factory=dict)
    release_due: int = 0
    release_confirmed: int = 0
    release_refused: int = 0
    requested_w: int = 0
    allocated_w: int = 0
    acknowledged_w: int = 0
    published: int = 0
    retried: int = 0
    duplicate_results: int = 0
    late_results: int = 0
    publish_latency: Latency = field(default_factory=Latency)
    result_latency: Latency = field(default_factory=Latency)
    held_at_end: int = 0
    won_at_end: int = 0
    measured_w: int = 0
    measured: int = 0
    unmeasured: int = 0
    settled: bool = False
    closed: bool = False

    @property
    def targeted(self) -> int:
        return sum(self.states)


SUMMED = (
    "release_due", "release_confirmed", "release_refused", "requested_w", "allocated_w", "acknowledged_w", "published",
    "retried", "duplicate_results", "late_results", "held_at_end", "won_at_end", "measured_w", "measured", "unmeasured",
)  # fmt: skip
"""The numbers of Counts that fold by addition. Saved in this order: a new one goes to the end."""

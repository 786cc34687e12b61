"""What the grid operator is told: responses, reports, outcome rows, and why bytes were refused.

Times are epoch seconds in UTC; power is whole watts >= 0 in the control's direction. `operators.messages` gives these
values their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.signal import Kind


class Refused(StrEnum):
    """Why bytes from outside cannot be used (R8). Stable: they stand in dead letters, responses and metrics."""

    UNDECODABLE = "undecodable"
    TOO_LARGE = "too_large"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_FIELD = "unknown_field"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What names a signal, so that it can be answered."""

    source: str
    event_id: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Bytes that cannot be used, as a value (R8).

    `reason` is a `Refused` where this package decides, else another stable word. `detail` is one sentence: what, where
    and what to do. `identity` is None where the bytes did not tell it: then no response 253 is possible.
    """

    reason: str
    detail: str
    identity: Identity | None = None


class Status(StrEnum):
    """The status word of each response code (R33, the codes of IEEE 2030.5)."""

    RECEIVED = "received"
    STARTED = "started"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    COMPLETED_PARTIALLY = "completed_partially"
    NO_PARTICIPATION = "no_participation"
    NOT_APPLICABLE = "not_applicable"
    INVALID = "invalid"
    EXPIRED = "expired"


STATUS: dict[int, Status] = {
    1: Status.RECEIVED,
    2: Status.STARTED,
    3: Status.COMPLETED,
    6: Status.CANCELLED,
    7: Status.SUPERSEDED,
    8: Status.COMPLETED_PARTIALLY,
    10: Status.NO_PARTICIPATION,
    252: Status.NOT_APPLICABLE,
    253: Status.INVALID,
    254: Status.EXPIRED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response to one revision (R33). `at` comes from durable content, so that a repeat is equal (R1)."""

    event_id: str
    source: str
    revision: int
    code: int
    """A key of STATUS."""
    at: float
    reasons: tuple[str, ...] = ()
    """Stable words such as `unknown_field` or `finished`."""


EventState = Literal["scheduled", "active", "ending", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAccount:
    """Devices whose release this event owes, because it held the actuator last (R19, R34)."""

    confirmed: int = 0
    pending: int = 0
    refused: int = 0

    @property
    def due(self) -> int:
        return self.confirmed + self.pending + self.refused


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerAccount:
    """Whole watts >= 0 in the control's direction; None where there is none (percent, power factor, not measured)."""

    requested: int | None = None
    allocated: int | None = None
    acknowledged: int | None = None
    measured: int | None = None
    shortfall: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAccount:
    """Counts of setpoints and releases, not of queries (R34)."""

    published: int = 0
    retried: int = 0
    duplicate_results: int = 0
    late_results: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Latencies in seconds; None while nothing was measured."""

    p50: float | None = None
    p95: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAccount:
    """How many shards were addressed and have told their counts; `missing` are the numbers of the others."""

    expected: int
    reported: int
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The account of one event (R34).

    `devices` counts by state, each device once by its worst; what is not named counts 0, and `targeted` is the sum.
    `reasons` are keyed `skipped.offline`, `rejected.busy` and add up to the skipped and the rejected.
    """

    event_id: str
    source: str
    revision: int
    sequence: int
    state: EventState
    final: bool
    at: float
    devices: Mapping[State, int]
    reasons: Mapping[str, int]
    release: ReleaseAccount
    power_w: PowerAccount
    commands: CommandAccount
    publish_latency_s: Quantiles
    result_latency_s: Quantiles
    shards: ShardAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """Where one device stands in an event, for one kind; a later row replaces it.

    Of `setpoint_w` (W), `setpoint_percent` (of the rating) and `cos_phi` at most one is set, None = the device was told
    nothing; on the wire stands the one that belongs to the kind. `response_code` is the row's own code (R33).
    `corrects` is the sequence of the row that this one replaces after the close.
    """

    sn: str
    event_id: str
    source: str
    revision: int
    kind: Kind | Literal["release"]
    state: State
    response_code: int
    reason: Reason = Reason.NONE
    setpoint_w: int | None = None
    setpoint_percent: float | None = None
    cos_phi: float | None = None
    correlation_id: str | None = None
    attempt: int | None = None
    published_at: float | None = None
    result_at: float | None = None
    corrects: int | None = None

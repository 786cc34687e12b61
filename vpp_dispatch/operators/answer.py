"""Responses, reports and outcomes on the wire, version 1. `operators.messages` encodes them; tests hold it to this."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.answer import STATUS
from vpp_dispatch.operators.wire import Count, EventName, Percent, Revision, Sn, Time, Whole, Wire, Word


def _response_schema(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"properties": {"code": {"const": c}, "status": {"const": s.value}}} for c, s in STATUS.items()]


class ResponseV1(Wire):
    """What the operator is told about a revision; each code at most once."""

    model_config = ConfigDict(title="Response", json_schema_extra=_response_schema)

    event_id: EventName
    source: EventName
    revision: Revision
    code: Literal[1, 2, 3, 6, 7, 8, 10, 252, 253, 254]
    status: str
    at: Time
    reasons: list[Word]

    @model_validator(mode="after")
    def _status_of_code(self) -> Self:
        if self.status != STATUS[self.code]:
            raise PydanticCustomError("status", "is not the status of its code")
        return self


class DevicesV1(Wire):
    """Devices by state; each counts once, by its worst."""

    targeted: Count
    skipped: Count
    unused: Count
    pending: Count
    published: Count
    accepted: Count
    applied: Count
    verified: Count
    rejected: Count
    unconfirmed: Count

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.targeted != sum(getattr(self, state.name.lower()) for state in State):
            raise PydanticCustomError("devices", "the states do not add up to targeted")
        return self


class ReleaseAccountV1(Wire):
    """Releases owed by this event as the last that held the actuator."""

    due: Count
    confirmed: Count
    pending: Count
    refused: Count

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.due != self.confirmed + self.pending + self.refused:
            raise PydanticCustomError("release", "confirmed, pending and refused do not add up to due")
        return self


class PowerAccountV1(Wire):
    """Whole watts in the control's direction; null where there is none."""

    requested: Count | None
    allocated: Count | None
    acknowledged: Count | None
    measured: Count | None
    shortfall: Count | None


class CommandAccountV1(Wire):
    """Setpoints and releases, no queries."""

    published: Count
    retried: Count
    duplicate_results: Count
    late_results: Count


class QuantilesV1(Wire):
    """Seconds; null while nothing was measured."""

    p50: Annotated[float, Field(ge=0)] | None
    p95: Annotated[float, Field(ge=0)] | None
    max: Annotated[float, Field(ge=0)] | None


class LatencyV1(Wire):
    """From due to published, and from published to result."""

    publish: QuantilesV1
    result: QuantilesV1


class ShardAccountV1(Wire):
    """Which part of the service has told its counts."""

    expected: Count
    reported: Count
    missing: list[Count]


class ReportV1(Wire):
    """The account of one event; its sums agree with the outcomes."""

    model_config = ConfigDict(title="Report")

    event_id: EventName
    source: EventName
    revision: Revision
    sequence: Count
    state: Literal["scheduled", "active", "ending", "closed"]
    final: bool
    at: Time
    devices: DevicesV1
    reasons: dict[Annotated[str, Field(pattern=r"^(skipped|rejected)\.[a-z_]+$")], Count]
    release: ReleaseAccountV1
    power_w: PowerAccountV1
    commands: CommandAccountV1
    latency_s: LatencyV1
    shards: ShardAccountV1

    @model_validator(mode="after")
    def _reasons_add_up(self) -> Self:
        for state in ("skipped", "rejected"):
            if getattr(self.devices, state) != sum(n for word, n in self.reasons.items() if word.startswith(state)):
                raise PydanticCustomError("reasons", "the reasons of {state} do not add up", {"state": state})
        return self


_SETPOINTS = ("setpoint_w", "setpoint_percent", "cos_phi")


def _row_schema(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"required": [name]} for name in _SETPOINTS]
    for name in _SETPOINTS:
        schema["properties"][name].pop("default", None)


class OutcomeRowV1(Wire):
    """Where one device stands in an event, for one kind."""

    model_config = ConfigDict(json_schema_extra=_row_schema)

    sn: Sn
    event_id: EventName
    source: EventName
    revision: Revision
    kind: Literal[
        "charge", "discharge", "standby", "import_target", "export_target", "export_limit", "generation_limit",
        "power_factor", "release",
    ]  # fmt: skip
    setpoint_w: Count | None = None
    setpoint_percent: Percent | None = None
    cos_phi: Annotated[float, Field(ge=0.8, le=1)] | None = None
    state: Literal[
        "skipped", "unused", "pending", "published", "accepted", "applied", "verified", "rejected", "unconfirmed"
    ]
    reason: Word | None
    response_code: Literal[1, 2, 3, 6, 7, 8, 10]
    correlation_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", max_length=36)] | None
    attempt: Annotated[int, Field(ge=1, le=255), Whole] | None
    published_at: Time | None
    result_at: Time | None
    corrects: Count | None

    @model_validator(mode="after")
    def _one_setpoint(self) -> Self:
        if len(self.model_fields_set & set(_SETPOINTS)) != 1:
            raise PydanticCustomError("setpoint", "needs exactly one of setpoint_w, setpoint_percent, cos_phi")
        return self

    @model_validator(mode="after")
    def _known_reason(self) -> Self:
        if self.reason is not None and self.reason.upper() not in Reason.__members__:
            raise PydanticCustomError("reason", "is not in the public vocabulary")
        return self


class OutcomesV1(Wire):
    """Outcome rows of one shard: the audit trail."""

    model_config = ConfigDict(title="Outcomes")

    shard: Annotated[int, Field(ge=0, le=63), Whole]
    sequence: Count
    at: Time
    outcomes: Annotated[list[OutcomeRowV1], Field(min_length=1, max_length=500)]

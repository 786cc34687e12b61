"""The public messages as pydantic models: the one source of `schemas/` (see `operators.schemas`).

Inputs (`SignalV1`, `DeviceV1`) are judged by these models; what the service publishes is encoded faster elsewhere and
held to them by tests. Rules that JSON Schema can say stand in tables that feed both the validator and the schema.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.answer import STATUS
from vpp_dispatch.domain.signal import ACTUATOR_OF, Action, Form, Kind

MAX_TARGETS = 10_000
"""Named targets of one signal; also entries of one `by_target_w`."""
MAX_DEVICE_W = 1_000_000
MAX_SITE_W = 1_000_000_000
MAX_TOTAL_W = 10_000_000_000
MAX_RAMP_S = 86_400
MAX_COUNT = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly (RFC 7493)."""

FIELDS: dict[Action, tuple[frozenset[str], frozenset[str]]] = {
    Action.DISPATCH: (
        frozenset({"targets", "controls"}),
        frozenset({"start_at", "end_at", "open_ended", "priority", "ramp_up_s", "ramp_down_s", "test"}),
    ),
    Action.CANCEL: (frozenset(), frozenset({"ramp_up_s", "ramp_down_s", "reason"})),
    Action.RELEASE: (frozenset({"targets"}), frozenset({"ramp_up_s", "ramp_down_s", "reason"})),
}
"""Fields that an action requires, and those that it may have besides; every action has those of `ALWAYS`."""

ALWAYS = frozenset({"event_id", "source", "revision", "action", "created_at", "expires_at", "ext"})

_WATTS = (Form.EACH_W, Form.BY_TARGET_W, Form.TOTAL_W)
FORMS: dict[Kind, tuple[Form, ...]] = {
    Kind.CHARGE: _WATTS,
    Kind.DISCHARGE: _WATTS,
    Kind.STANDBY: (Form.NONE,),
    Kind.IMPORT_TARGET: _WATTS,
    Kind.EXPORT_TARGET: _WATTS,
    Kind.EXPORT_LIMIT: _WATTS,
    Kind.GENERATION_LIMIT: (Form.EACH_PERCENT, Form.EACH_W),
    Kind.POWER_FACTOR: (Form.COS_PHI,),
}
"""The forms that each kind of control may have."""

_FORM_FIELDS: dict[Form, tuple[str, ...]] = {
    Form.NONE: (),
    Form.EACH_W: ("each_w",),
    Form.BY_TARGET_W: ("by_target_w",),
    Form.TOTAL_W: ("total_w",),
    Form.EACH_PERCENT: ("each_percent",),
    Form.COS_PHI: ("cos_phi", "excitation"),
}
_NUMBERS = ("each_w", "by_target_w", "total_w", "each_percent", "cos_phi", "excitation")

TIME_PATTERN = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_TIME = re.compile(TIME_PATTERN[:-1])


def _whole(value: Any) -> Any:
    """1500.0 is the integer 1500, as JSON Schema has it; a boolean is none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plus_zero(value: Any) -> Any:
    """-0.0 and 0.0 are the same number and must give the same digest."""
    return 0.0 if isinstance(value, float) and value == 0 else value


def epoch_seconds(value: Any) -> float:
    """Epoch seconds of an RFC 3339 time with offset, to the microsecond; a leap second is the next second (R7).

    Raises:
        PydanticCustomError: no such time; times without an offset are refused.
    """
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise PydanticCustomError("time", "must be an RFC 3339 time with offset, such as 2026-11-22T11:00:00Z")
    text = value.upper().replace("Z", "+00:00")
    body, offset = text[:-6], text[-6:]
    whole, _, fraction = body.partition(".")
    leap = whole.endswith(":60")
    if leap:
        whole = whole[:-2] + "59"
    try:
        seconds = datetime.fromisoformat(whole + offset).timestamp()
    except (ValueError, OverflowError) as error:
        raise PydanticCustomError("time", "is not a date of the calendar") from error
    return seconds + int((fraction + "000000")[:6]) / 1_000_000 + leap


Time = Annotated[
    float,
    BeforeValidator(epoch_seconds),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIME_PATTERN}),
]
Sn = Annotated[str, Field(pattern=r"^[0-9A-Z]{16}$", min_length=16, max_length=16)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]*$", max_length=64)]
EventName = Annotated[str, Field(min_length=1, max_length=64)]
PlaceName = Annotated[str, Field(min_length=1, max_length=128)]
Whole = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=0, le=MAX_COUNT), Whole]
Revision = Annotated[int, Field(ge=1, le=MAX_COUNT), Whole]
DeviceWatts = Annotated[int, Field(ge=0, le=MAX_DEVICE_W), Whole]
SiteWatts = Annotated[int, Field(ge=0, le=MAX_SITE_W), Whole]
TotalWatts = Annotated[int, Field(ge=0, le=MAX_TOTAL_W), Whole]
RampSeconds = Annotated[int, Field(ge=0, le=MAX_RAMP_S), Whole]
Percent = Annotated[float, Field(ge=0, le=100), BeforeValidator(_plus_zero)]


class Wire(BaseModel):
    """Base of all public messages: nothing is coerced, nothing unknown is let in."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Input(Wire):
    """Base of what comes from outside: a field is there with a value or not there at all; null is no value."""

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, value in data.items():
                if value is None and name in cls.model_fields and name != "ext":
                    raise PydanticCustomError("null", "{name} must not be null; leave it out", {"name": name})
        return data


def _targets_schema(schema: dict[str, Any]) -> None:
    named = [{"properties": {n: {"minItems": 1}}, "required": [n]} for n in ("devices", "sites", "groups", "areas")]
    everyone = {"properties": {"all": {"const": True}}, "required": ["all"]}
    schema["oneOf"] = [everyone, {"anyOf": named}]


class TargetsV1(Input):
    """For whom the signal is: the union of the named, or `all`."""

    model_config = ConfigDict(json_schema_extra=_targets_schema)

    devices: Annotated[list[Sn], Field(max_length=MAX_TARGETS)] = []
    sites: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = []
    groups: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = []
    areas: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = []
    all: bool = False

    @model_validator(mode="after")
    def _someone(self) -> Self:
        named = len(self.devices) + len(self.sites) + len(self.groups) + len(self.areas)
        if self.all == (named > 0):
            raise PydanticCustomError("targets", "must name somebody, or say all: true, and not both")
        if named > MAX_TARGETS:
            raise PydanticCustomError("targets", "names {n} targets, more than 10,000; use a group", {"n": named})
        return self


def _table_schema(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"properties": {n: {"minProperties": 1}}, "required": [n]} for n in ("sites", "devices")]


class ByTargetV1(Input):
    """Watts by site and by device; a device's own entry wins over its site's, which is split by `site_share`."""

    model_config = ConfigDict(json_schema_extra=_table_schema)

    sites: Annotated[dict[PlaceName, SiteWatts], Field(max_length=MAX_TARGETS)] = {}
    devices: Annotated[dict[Sn, DeviceWatts], Field(max_length=MAX_TARGETS)] = {}

    @model_validator(mode="after")
    def _something(self) -> Self:
        entries = len(self.sites) + len(self.devices)
        if not 1 <= entries <= MAX_TARGETS:
            raise PydanticCustomError("by_target_w", "must have 1 to 10,000 entries, not {n}", {"n": entries})
        return self


def _control_schema(schema: dict[str, Any]) -> None:
    rules: list[dict[str, Any]] = []
    for forms in dict.fromkeys(FORMS.values()):
        kinds = [kind.value for kind, allowed in FORMS.items() if allowed == forms]
        one_of = []
        for form in forms:
            fields = _FORM_FIELDS[form]
            rule: dict[str, Any] = {"properties": {n: False for n in _NUMBERS if n not in fields}}
            if fields:
                rule["required"] = list(fields)
            one_of.append(rule)
        rules.append({"if": {"properties": {"kind": {"enum": kinds}}, "required": ["kind"]}, "then": {"oneOf": one_of}})
    schema["allOf"] = rules


class ControlV1(Input):
    """One thing that is asked for; for whom its number is stands in the field's name."""

    model_config = ConfigDict(json_schema_extra=_control_schema)

    kind: Annotated[Kind, Field(strict=False)]
    each_w: DeviceWatts | None = Field(None, description="W per device")
    by_target_w: ByTargetV1 | None = Field(None, description="W by site or device")
    total_w: TotalWatts | None = Field(None, description="W, split over the targets")
    each_percent: Percent | None = Field(None, description="percent of each device's rated power")
    cos_phi: Annotated[float, Field(ge=0.8, le=1)] | None = None
    excitation: Literal["over", "under"] | None = Field(None, description="over = capacitive")

    @property
    def form(self) -> Form:
        """The form whose fields are there, exactly."""
        there = self.model_fields_set - {"kind"}
        return next((form for form in FORMS[self.kind] if there == set(_FORM_FIELDS[form])), Form.NONE)

    @model_validator(mode="after")
    def _form_of_kind(self) -> Self:
        there = self.model_fields_set - {"kind"}
        if there != set(_FORM_FIELDS[self.form]) or self.form not in FORMS[self.kind]:
            allowed = " or ".join(" + ".join(_FORM_FIELDS[form]) or "no number" for form in FORMS[self.kind])
            raise PydanticCustomError(
                "form",
                "kind {kind} takes {allowed}, not {there}",
                {"kind": self.kind.value, "allowed": allowed, "there": " + ".join(sorted(there)) or "no number"},
            )
        return self


def _signal_schema(schema: dict[str, Any]) -> None:
    rules: list[dict[str, Any]] = []
    for action, (required, optional) in FIELDS.items():
        foreign = sorted(set(schema["properties"]) - ALWAYS - required - optional)
        then: dict[str, Any] = {"properties": {name: False for name in foreign}}
        if required:
            then["required"] = sorted(required)
        if "end_at" in optional:
            ended = {"required": ["end_at"], "properties": {"open_ended": {"const": False}}}
            then["oneOf"] = [
                ended,
                {"required": ["open_ended"], "properties": {"open_ended": {"const": True}, "end_at": False}},
            ]
        rules.append({"if": {"properties": {"action": {"const": action.value}}, "required": ["action"]}, "then": then})
    for actuator in sorted(set(ACTUATOR_OF.values())):
        kinds = [kind.value for kind, on in ACTUATOR_OF.items() if on is actuator]
        one = {
            "contains": {"properties": {"kind": {"enum": kinds}}, "required": ["kind"]},
            "minContains": 0,
            "maxContains": 1,
        }
        rules.append({"properties": {"controls": one}})
    schema["allOf"] = rules


class SignalV1(Input):
    """A grid operator's dispatch signal: a revision, a cancellation or a release of the event (source, event_id)."""

    model_config = ConfigDict(title="Signal", json_schema_extra=_signal_schema)

    event_id: EventName
    source: EventName = Field(description="must be the source of its topic")
    revision: Revision = Field(description="rising; a cancellation is a revision too")
    action: Annotated[Action, Field(strict=False)]
    created_at: Time
    expires_at: Time = Field(description="first read after it = too late")
    start_at: Time | None = Field(None, description="absent = now; the window is half-open")
    end_at: Time | None = Field(None, description="absent only with open_ended")
    open_ended: bool = False
    priority: Annotated[int, Field(ge=0, le=255), Whole] = Field(255, description="the lower wins")
    targets: TargetsV1 | None = None
    controls: Annotated[list[ControlV1], Field(min_length=1, max_length=4)] | None = Field(
        None, description="one per actuator"
    )
    ramp_up_s: RampSeconds = 0
    ramp_down_s: RampSeconds = 0
    test: bool = Field(False, description="no hold, nothing published: judged once on receipt")
    reason: str | None = None
    ext: Any = Field(None, description="ignored")

    @model_validator(mode="after")
    def _fields_of_action(self) -> Self:
        required, optional = FIELDS[self.action]
        missing = sorted(required - self.model_fields_set)
        foreign = sorted(self.model_fields_set - ALWAYS - required - optional)
        for names, says in ((missing, "needs {names}"), (foreign, "must not have {names}")):
            if names:
                raise PydanticCustomError(
                    "fields", f"action {{action}} {says}", {"action": self.action.value, "names": ", ".join(names)}
                )
        if self.action is Action.DISPATCH:
            self._window()
            actuators = [ACTUATOR_OF[control.kind] for control in self.controls or ()]
            if len(set(actuators)) < len(actuators):
                raise PydanticCustomError("controls", "has two controls on one actuator; keep one of them")
        return self

    def _window(self) -> None:
        if self.open_ended == (self.end_at is not None):
            raise PydanticCustomError("window", "needs end_at, or open_ended: true, and not both")
        if self.end_at is not None and self.start_at is not None and self.end_at <= self.start_at:
            raise PydanticCustomError("window", "has an end_at that is not after its start_at")


def _default_schema(schema: dict[str, Any]) -> None:
    schema["dependentRequired"] = {"ems_mode": ["ems_power_w"], "ems_power_w": ["ems_mode"]}


class DefaultV1(Input):
    """What the device's actuators return to when nothing holds them."""

    model_config = ConfigDict(json_schema_extra=_default_schema)

    export_limit_w: DeviceWatts | None = None
    ems_mode: Annotated[int, Field(ge=0, le=255), Whole] | None = Field(
        None, description="GoodWe's EMS Power Mode code"
    )
    ems_power_w: DeviceWatts | None = None
    active_percent: Percent | None = Field(None, description="percent of the rated power")
    power_factor: Annotated[int, Field(ge=0, le=100), Whole] | None = Field(None, description="GoodWe's raw value")

    @model_validator(mode="after")
    def _mode_and_power(self) -> Self:
        if (self.ems_mode is None) != (self.ems_power_w is None):
            raise PydanticCustomError("default", "needs both ems_mode and ems_power_w, or neither")
        return self


class DeviceV1(Input):
    """A device's registry record; the key is its SN, and a tombstone removes the device."""

    model_config = ConfigDict(title="Device")

    sn: Sn
    site: PlaceName | None = None
    groups: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = []
    area: PlaceName | None = None
    rated_w: DeviceWatts = Field(0, description="absent or 0 = read from the SN")
    site_share: Annotated[float, Field(ge=0, le=1), BeforeValidator(_plus_zero)] = Field(
        1.0, description="of its site's value"
    )
    default: DefaultV1 | None = None
    ext: Any = Field(None, description="ignored")


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


PUBLIC: dict[str, type[Wire]] = {
    "signal": SignalV1,
    "response": ResponseV1,
    "report": ReportV1,
    "outcomes": OutcomesV1,
    "device": DeviceV1,
}
"""The public messages of version 1 by the name of their schema."""

"""The dispatch signal on the wire, version 1: which fields, forms and combinations there are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from vpp_dispatch.domain.signal import ACTUATOR_OF, Action, Form, Kind
from vpp_dispatch.operators.wire import (
    MAX_TARGETS,
    DeviceWatts,
    EventName,
    Input,
    Percent,
    PlaceName,
    RampSeconds,
    Revision,
    SiteWatts,
    Sn,
    Time,
    TotalWatts,
    Whole,
)

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


def _targets_schema(schema: dict[str, Any]) -> None:
    named = [{"properties": {n: {"minItems": 1}}, "required": [n]} for n in ("devices", "sites", "groups", "areas")]
    everyone = {"properties": {"all": {"const": True}}, "required": ["all"]}
    schema["oneOf"] = [everyone, {"anyOf": named}]


class TargetsV1(Input):
    """For whom the signal is: the union of the named, or `all`."""

    model_config = ConfigDict(json_schema_extra=_targets_schema)

    devices: Annotated[list[Sn], Field(max_length=MAX_TARGETS)] = Field([])
    sites: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = Field([])
    groups: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = Field([])
    areas: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = Field([])
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

    sites: Annotated[dict[PlaceName, SiteWatts], Field(max_length=MAX_TARGETS)] = Field({})
    devices: Annotated[dict[Sn, DeviceWatts], Field(max_length=MAX_TARGETS)] = Field({})

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
        then: dict[str, Any] = {"properties": dict.fromkeys(foreign, False)}
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

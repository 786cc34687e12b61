"""The contract with GoodWe as data: every name, code, scale and sign that an operator's own contract may change.

A profile is a TOML file, built in (by name) or the operator's own (by path). It is read once, at start, strictly: a key
that is not known here is refused, since a misspelt one would silently leave an assumption in force.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from vpp_dispatch.errors import ConfigurationError

PROFILES: Final = Path(__file__).resolve().parent / "profiles"
SCHEMA_ID: Final = "urn:vpp-dispatch:schema:goodwe-profile:v1"

Name = Annotated[str, StringConstraints(pattern=r'^[^\x00-\x1f"\\=]+$', max_length=100)]
"""A name on the wire. Quotes, backslashes, control characters and `=` would break templates and digests."""

Topic = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Series = Annotated[str, StringConstraints(pattern=r"^[0-9A-Z]{3}$")]
Code = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Raw = Annotated[int, Field(ge=-(2**31) + 1, le=2**31 - 1)]
"""A raw parameter value; the lowest i4 is kept for "nothing was read"."""

ActuatorName = Literal["ems", "export", "active", "reactive"]
PARAMETERS: Final[Mapping[str, tuple[str, int]]] = {
    "ems": ("multi", 2),
    "export": ("multi", 2),
    "active": ("single", 1),
    "reactive": ("single", 1),
}
"""One actuator, one topic, one parameter set (R20): the command and how many parameters it has."""


class Meaning(StrEnum):
    """What a result code of GoodWe's can mean."""

    SUCCESS = "success"
    OFFLINE = "offline"
    UNAUTHORIZED = "unauthorized"
    BUSY = "busy"
    VALUE = "value"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Topics(_Part):
    """The six topics of the Batch Remote Control API."""

    single_request: Topic
    single_result: Topic
    multi_request: Topic
    multi_result: Topic
    query_request: Topic
    query_result: Topic

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.__dict__.values())
        if len(set(names)) != len(names):
            raise ValueError("the six topics have to differ")
        return self


class Fields(_Part):
    """Field names of the JSON messages on the six topics."""

    correlation_id: Name
    sn: Name
    parameter: Name
    """single: one object"""
    parameters: Name
    """multi: a list of objects; query: a list of names; result: a list of objects"""
    name: Name
    value: Name
    timestamp: Name
    """epoch milliseconds"""
    code: Name
    message: Name
    stage: Name

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        request = [self.correlation_id, self.sn, self.parameter, self.parameters, self.timestamp]
        for names in ([*request, self.code, self.message, self.stage], [self.name, self.value, self.code]):
            if len(set(names)) != len(names):
                raise ValueError("two fields of one object have the same name")
        return self


class Correlation(_Part):
    """How results name their command."""

    echoed: bool
    """Whether a result carries the request's id."""
    text: Literal["uuid", "hex"]
    """uuid: 8-4-4-4-12; hex: 32 digits"""


class ResultRules(_Part):
    """What results look like."""

    per_command: Literal[1, 2]
    """2: one `accepted`, then one `applied`"""
    code_type: Literal["string", "integer"]
    accepted: Name
    applied: Name
    """also the meaning of an absent stage"""
    max_parameters: Annotated[int, Field(ge=1)]
    """of one multi-parameter command"""


class EmsModes(_Part):
    """EMS Power Mode codes. Forced islanding (7) is none of them: it is never dispatched."""

    auto: Raw
    standby: Raw
    import_target: Raw
    export_target: Raw
    charge: Raw
    discharge: Raw

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.__dict__.values())) != len(self.__dict__):
            raise ValueError("two EMS modes have the same code")
        return self


class ActuatorRules(_Part):
    """The parameter set of one actuator."""

    command: Literal["single", "multi"]
    parameters: Annotated[list[Name], Field(min_length=1)]
    min: list[Raw]
    """smallest raw value of each parameter"""
    max: list[Raw]
    """largest raw value of each parameter"""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """raw = value * scale, of the last parameter; W for ems and export, percent of the rating for active"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.parameters) == len(self.min) == len(self.max):
            raise ValueError("`parameters`, `min` and `max` need one entry for each parameter")
        if any(low > high for low, high in zip(self.min, self.max, strict=True)):
            raise ValueError("a `min` is above its `max`")
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError("the same parameter twice")
        return self


class Actuators(_Part):
    """What each actuator is to GoodWe."""

    ems: ActuatorRules
    export: ActuatorRules
    active: ActuatorRules
    reactive: ActuatorRules

    @model_validator(mode="after")
    def _one_topic_one_set(self) -> Self:
        for name, (command, count) in PARAMETERS.items():
            rules: ActuatorRules = getattr(self, name)
            if rules.command != command or len(rules.parameters) != count:
                raise ValueError(f"{name} has to be a {command} command with {count} parameter(s) (R20)")
        names = [parameter for rules in self.__dict__.values() for parameter in rules.parameters]
        if len(set(names)) != len(names):
            raise ValueError("two actuators share a parameter (R20)")
        return self


class Family(_Part):
    """Devices of some series: characters 6 to 8 of the SN."""

    name: Name
    series: Annotated[list[Series], Field(min_length=1)]
    actuators: list[ActuatorName]
    """what a device of the family takes"""
    battery: bool
    export_unit: Literal["w", "percent"]
    """percent: of the rating"""


class FamilyDefaults(_Part):
    """Raw values that an actuator returns to where neither the registry nor a query tells (R37, only if allowed)."""

    ems: Annotated[list[Raw], Field(min_length=2, max_length=2)]
    export: Annotated[list[Raw], Field(min_length=2, max_length=2)]
    active: Annotated[list[Raw], Field(min_length=1, max_length=1)]
    reactive: Annotated[list[Raw], Field(min_length=1, max_length=1)]


class RealTimeEnvelope(_Part):
    """Field names around the rows of the Real-Time Data API."""

    account: Name = "account"
    password: Name = "password"
    code: Name = "code"
    message: Name = "msg"
    data: Name = "data"
    total: Name = "total"
    rows: Name = "list"
    sns: Name = "sns"
    page: Name = "page"
    page_size: Name = "pageSize"


class RealTimeInterface(_Part):
    """One of the seven interfaces: its name in the path, and the name of each field that is called otherwise here."""

    name: Name
    fields: dict[Name, Name] = Field(default_factory=dict)
    """our name -> theirs; a field that is not named is called the same"""


class RealTimeInterfaces(_Part):
    """The seven interfaces of the Real-Time Data API."""

    authorized: RealTimeInterface
    bms: RealTimeInterface
    grid_status: RealTimeInterface
    alarms: RealTimeInterface
    operation: RealTimeInterface
    production: RealTimeInterface
    station: RealTimeInterface


class ModeCodes(_Part):
    """Codes of grid-status by which a device counts as something; in each field any of them is enough."""

    work_mode: list[int] = Field(default_factory=list)
    grid_mode: list[int] = Field(default_factory=list)


class RealTimeModes(_Part):
    """What the modes of grid-status mean (R18). With no codes at all, grid-status is not read and nothing is known."""

    off_grid: ModeCodes = ModeCodes()
    """the device has no grid, or runs as an island"""
    faulted: ModeCodes = ModeCodes()
    """the device reports a fault of its own"""


class RealTime(_Part):
    """The Real-Time Data API."""

    token_path: Annotated[str, StringConstraints(pattern=r"^/")]
    path: Annotated[str, StringConstraints(pattern=r"^/.*\{name\}")]
    page_size: Annotated[int, Field(ge=1, le=10_000)]
    """SNs per call, and rows per page"""
    token_field: Name
    expires_field: Name
    """seconds"""
    success_codes: Annotated[list[Code], Field(min_length=1)]
    """as text, however the code is typed; any code of zeros only is a success too"""
    token_expired_codes: list[Code]
    rate_limit_codes: list[Code]
    backoff_s: Annotated[float, Field(gt=0)]
    """after a rate limit that names no Retry-After"""
    stale_after_s: Annotated[float, Field(gt=0)]
    """an older sample proves nothing"""
    time_unit_s: Annotated[float, Field(gt=0)] = 0.001
    """times are counted in this unit since the epoch"""
    header: Name = "Authorization"
    header_value: Annotated[str, StringConstraints(pattern=r"\{token\}")] = "Bearer {token}"
    envelope: RealTimeEnvelope = RealTimeEnvelope()
    sentinels: dict[Name, list[float]] = Field(default_factory=dict)
    """values that mean "no value", by their field name"""
    factors: dict[Name, float] = Field(default_factory=dict)
    """factors that bring a field to our signs and units, by their field name"""
    modes: RealTimeModes = RealTimeModes()
    interfaces: RealTimeInterfaces


class Profile(_Part):
    """One version of the contract with GoodWe."""

    name: Name
    version: Literal[1]
    topics: Topics
    fields: Fields
    correlation: Correlation
    results: ResultRules
    codes: dict[Code, Annotated[Meaning, Field(strict=False)]]
    """result codes, as text; a code that is not here is `unknown_code`"""
    ems_modes: EmsModes
    actuators: Actuators
    families: Annotated[list[Family], Field(min_length=1)]
    ratings: dict[Annotated[str, StringConstraints(pattern=r"^[0-9A-Z]{4}$")], Annotated[int, Field(gt=0)]] = Field(
        default_factory=dict
    )
    """rated power codes (characters 2 to 5 of the SN) that are model numbers: code = W"""
    family_defaults: FamilyDefaults
    realtime: RealTime

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if Meaning.SUCCESS not in self.codes.values():
            raise ValueError("no code means `success`")
        if self.results.code_type == "integer" and not all(_is_integer(code) for code in self.codes):
            raise ValueError("`results.code_type` is integer, but a code is none")
        series = [name for family in self.families for name in family.series]
        twice = sorted({name for name in series if series.count(name) > 1})
        if twice:
            raise ValueError(f"series in two families: {', '.join(twice)}")
        for family in self.families:
            if "ems" in family.actuators and not family.battery:
                raise ValueError(f"family {family.name} takes `ems` but has no battery")
        most = max(len(rules.parameters) for rules in self.actuators.__dict__.values())
        if most > self.results.max_parameters:
            raise ValueError(f"`results.max_parameters` is below {most}, the parameters of one actuator")
        for name, rules in self.actuators.__dict__.items():
            raws = getattr(self.family_defaults, name)
            if any(not low <= raw <= high for raw, low, high in zip(raws, rules.min, rules.max, strict=True)):
                raise ValueError(f"the family default of {name} is outside `min` and `max`")
        modes = self.ems_modes.__dict__.values()
        if any(not self.actuators.ems.min[0] <= mode <= self.actuators.ems.max[0] for mode in modes):
            raise ValueError("an EMS mode is outside `min` and `max` of the ems actuator")
        return self


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def parse_profile(data: Mapping[str, Any], origin: str) -> Profile:
    """A profile from a parsed TOML document; `origin` says in messages where it came from.

    Raises:
        ConfigurationError: it has an unknown key, lacks one, or a value cannot work. Each complaint has its place.
    """
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        complaints = [
            f"{'.'.join(str(part) for part in e['loc']) or 'the profile'}: "
            + ("this key is not known" if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, "))
            for e in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigurationError(
            f"The GoodWe profile {origin} cannot be used: {'; '.join(complaints)}. Correct the file; its form is "
            "described by schemas/goodwe-profile.v1.json, and the built-in `goodwe` is an example."
        ) from None


def load_profile(name_or_path: str) -> Profile:
    """Reads a built-in profile by its name, or any by its path (a path has a suffix or a separator).

    Raises:
        ConfigurationError: no such file, no TOML, or see `parse_profile`.
    """
    path = Path(name_or_path)
    if not path.suffix and len(path.parts) == 1:
        path = PROFILES / f"{name_or_path}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
        raise ConfigurationError(
            f"There is no GoodWe profile {name_or_path!r}: name a built-in one ({known}) or the path of a TOML file."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The GoodWe profile {path} cannot be read: {error}. Correct the file.") from error
    return parse_profile(data, str(path))


def profile_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a profile file, as it stands in schemas/goodwe-profile.v1.json."""
    schema = Profile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID} | schema


def schema_text() -> str:
    """The bytes of schemas/goodwe-profile.v1.json, as text."""
    return json.dumps(profile_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())

"""The contract with GoodWe as data: every name, code, scale and sign that an operator's own contract may change.

A profile is a TOML file, built in (by name) or the operator's own (by path). It is read once, at start, strictly: a key
that is not known here is refused, since a misspelt one would silently leave an assumption in force.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from vpp_dispatch.domain.command import FORCED_ISLANDING
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.goodwe.complaints import Inconsistent, like, sentences, twice

PROFILES: Final = Path(__file__).resolve().parent / "profiles"
SCHEMA_ID: Final = "urn:vpp-dispatch:schema:goodwe-profile:v1"

Name = Annotated[str, StringConstraints(pattern=r'^[^\x00-\x1f"\\=]+$', max_length=100)]
"""A name on the wire. Quotes, backslashes, control characters and `=` would break templates and digests."""

Topic = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Series = Annotated[str, StringConstraints(pattern=r"^[0-9A-Z]{3}$")]
Code = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Raw = Annotated[int, Field(ge=-(2**31) + 1, le=2**31 - 1)]
"""A raw parameter value; the lowest i4 is kept for "nothing was read"."""

UNITY: Final = 100
"""The raw power factor of cos phi 1."""

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


class Part(BaseModel):
    """A table of a profile: strict, closed, and it names everything in it that does not fit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def _complaints(self) -> Iterator[tuple[str, str]]:
        """What does not fit within this part, all of it."""
        yield from ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if complaints := list(self._complaints()):
            raise Inconsistent(complaints)
        return self


class Topics(Part):
    """The six topics of the Batch Remote Control API."""

    single_request: Topic
    """commands of one parameter: actuators active and reactive"""
    single_result: Topic
    multi_request: Topic
    """commands of several parameters: actuators ems and export"""
    multi_result: Topic
    query_request: Topic
    """queries of any actuator"""
    query_result: Topic

    def _complaints(self) -> Iterator[tuple[str, str]]:
        for name in twice(list(self.__dict__.values())):
            yield "", f"the six topics have to differ, but {name} stands there more than once"


class Fields(Part):
    """Field names of the JSON messages on the six topics."""

    correlation_id: Name
    """request, and result if echoed: the id"""
    sn: Name
    """request and result: the serial number"""
    parameter: Name
    """single: one object"""
    parameters: Name
    """multi: a list of objects; query: a list of names; result: a list of objects"""
    name: Name
    """inside a parameter: its name"""
    value: Name
    """inside a parameter: its raw value"""
    timestamp: Name
    """epoch milliseconds"""
    code: Name
    """result, and inside each of its parameters: the result code"""
    message: Name
    """result: text for people"""
    stage: Name
    """result: accepted or applied"""

    def _complaints(self) -> Iterator[tuple[str, str]]:
        request = ("correlation_id", "sn", "parameter", "parameters", "timestamp")
        for keys in ((*request, "code", "message", "stage"), ("name", "value", "code")):
            names = [getattr(self, key) for key in keys]
            for name in twice(names):
                same = " and ".join(key for key in keys if getattr(self, key) == name)
                yield "", f'two fields of one object have the same name: {same} are both "{name}"; give each its own'


class Correlation(Part):
    """How results name their command."""

    echoed: bool
    """Whether a result carries the request's id."""
    text: Literal["uuid", "hex"]
    """uuid: 8-4-4-4-12; hex: 32 digits"""


class ResultRules(Part):
    """What results look like."""

    per_command: Literal[1, 2]
    """2: one `accepted`, then one `applied`"""
    code_type: Literal["string", "integer"]
    """the type of result codes"""
    accepted: Name
    """the stage of a result whose command was only taken"""
    applied: Name
    """also the meaning of an absent stage"""
    max_parameters: Annotated[int, Field(ge=1)]
    """of one multi-parameter command"""

    def _complaints(self) -> Iterator[tuple[str, str]]:
        if self.accepted == self.applied:
            yield "", f'`accepted` and `applied` are both "{self.applied}": they have to differ'


class EmsModes(Part):
    """EMS Power Mode codes. Forced islanding (7) is none of them: it is never dispatched."""

    auto: Raw
    standby: Raw
    import_target: Raw
    export_target: Raw
    charge: Raw
    discharge: Raw

    def _complaints(self) -> Iterator[tuple[str, str]]:
        for code in twice(list(self.__dict__.values())):
            same = " and ".join(name for name, value in self.__dict__.items() if value == code)
            yield "", f"two EMS modes have the same code: {same} are both {code}"
        for name, code in self.__dict__.items():
            if code == FORCED_ISLANDING:
                yield name, f"{code} is forced islanding, which is never dispatched; name another code"


class ActuatorRules(Part):
    """The parameter set of one actuator."""

    command: Literal["single", "multi"]
    parameters: Annotated[list[Name], Field(min_length=1)]
    min: list[Raw]
    """smallest raw value of each parameter"""
    max: list[Raw]
    """largest raw value of each parameter"""
    scale: Annotated[float, Field(ge=0.0001, le=1000)] = 1.0
    """raw = value * scale, of the last parameter; W for ems and export, percent of the rating for active; at most four
    digits that count"""

    def _complaints(self) -> Iterator[tuple[str, str]]:
        if not len(self.parameters) == len(self.min) == len(self.max):
            yield (
                "",
                f"`parameters` has {len(self.parameters)}, `min` {len(self.min)} and `max` {len(self.max)}: "
                "they need one entry for each parameter",
            )
        elif above := [name for name, low, high in zip(self.parameters, self.min, self.max, strict=True) if low > high]:
            yield "", f"a `min` is above its `max`: that of {', '.join(above)}"
        if same := twice(self.parameters):
            yield "parameters", f"the same parameter twice: {', '.join(map(str, same))}"
        if float(f"{self.scale:.4g}") != self.scale:
            yield "scale", f"{self.scale!r} has more than four digits that count; round it, as 0.3333 for a third"


class Actuators(Part):
    """The four actuators."""

    ems: ActuatorRules
    """mode, power"""
    export: ActuatorRules
    """enable 0 or 1, limit"""
    active: ActuatorRules
    """limit in percent of the rating"""
    reactive: ActuatorRules
    """power factor, raw: 100 = unity, 80 to 99 over, 1 to 20 under"""

    def _complaints(self) -> Iterator[tuple[str, str]]:
        for name, (command, count) in PARAMETERS.items():
            rules: ActuatorRules = getattr(self, name)
            if rules.command != command or len(rules.parameters) != count:
                yield name, f"{name} has to be a {command} command with {count} parameter(s) (R20)"
                return
        if same := twice([parameter for rules in self.__dict__.values() for parameter in rules.parameters]):
            yield (
                "",
                (
                    f"two actuators share a parameter: {', '.join(map(str, same))}. Each belongs to one, so that set "
                    "and release go one way, and a result tells whose it is (R20, R26)"
                ),
            )
        if not self.export.min[0] <= 0 <= 1 <= self.export.max[0]:
            yield "export", "`min` and `max` of the first parameter do not let 0 (off) and 1 (on) through"
        whole = round(100 * self.active.scale)
        if not self.active.min[0] <= whole <= self.active.max[0]:
            yield (
                "active",
                (
                    f"100 % is raw {whole} at scale {self.active.scale:g}, outside {self.active.min[0]}.."
                    f"{self.active.max[0]}: correct `scale`, or `min` and `max`"
                ),
            )
        if self.reactive.scale != 1:
            yield "reactive.scale", "a power factor has no scale: take the key out"
        if not self.reactive.min[0] <= UNITY <= self.reactive.max[0]:
            yield "reactive", f"`min` and `max` do not let unity through, which is raw {UNITY}"


class Family(Part):
    """Devices of some series: characters 6 to 8 of the SN."""

    name: Name
    """for people"""
    series: Annotated[list[Series], Field(min_length=1)]
    actuators: list[ActuatorName]
    """what a device of the family takes"""
    battery: bool
    """whether it has one; needed for ems"""
    export_unit: Literal["w", "percent"]
    """percent: of the rating"""

    def _complaints(self) -> Iterator[tuple[str, str]]:
        if "ems" in self.actuators and not self.battery:
            yield "", f"family {self.name} takes `ems` but has no battery: set `battery`, or take `ems` out"


class FamilyDefaults(Part):
    """Raw values that an actuator returns to where neither the registry nor a query tells (R37, only if allowed)."""

    ems: Annotated[list[Raw], Field(min_length=2, max_length=2)]
    export: Annotated[list[Raw], Field(min_length=2, max_length=2)]
    active: Annotated[list[Raw], Field(min_length=1, max_length=1)]
    reactive: Annotated[list[Raw], Field(min_length=1, max_length=1)]


class RealTimeEnvelope(Part):
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

    def _complaints(self) -> Iterator[tuple[str, str]]:
        for keys in (
            ("account", "password"),
            ("sns", "page", "page_size"),
            ("code", "message", "data"),
            ("total", "rows"),
        ):
            for name in twice([getattr(self, key) for key in keys]):
                yield "", f'two fields of one object have the same name: "{name}" among {", ".join(keys)}'


class RealTimeInterface(Part):
    """One of the seven interfaces: its name in the path, and the name of each field that is called otherwise here."""

    name: Name
    fields: dict[Name, Name] = Field(default_factory=dict)
    """our name -> theirs; a field that is not named is called the same"""


INTERFACE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "authorized": ("sn", "authorized_at", "expires_at"),
    "bms": (
        *("sn", "time", "soc", "soh", "power", "voltage", "current", "temperature", "status"),
        *("charge_limit_a", "discharge_limit_a"),
    ),
    "grid_status": ("sn", "time", "grid_mode", "work_mode", "voltage", "frequency"),
    "alarms": ("sn", "time", "error_bits", "diagnostic_bits"),
    "operation": (
        *("sn", "time", "online", "pv_power", "grid_power", "load_power", "battery_power", "ac_power", "ems_mode"),
        *("ems_power", "export_limit_enabled", "export_limit", "active_power_limit", "power_factor"),
    ),
    "production": ("sn", "time", "today", "total"),
    "station": ("sn", "time", "station_name", "area", "capacity", "battery_capacity", "firmware"),
}
"""Our names of what an interface tells."""


class RealTimeInterfaces(Part):
    """The seven interfaces of the Real-Time Data API."""

    authorized: RealTimeInterface
    bms: RealTimeInterface
    grid_status: RealTimeInterface
    alarms: RealTimeInterface
    operation: RealTimeInterface
    production: RealTimeInterface
    station: RealTimeInterface

    def names(self, interface: str) -> list[str]:
        """Their names of an interface's fields."""
        renamed = getattr(self, interface).fields
        return [renamed.get(field, field) for field in INTERFACE_FIELDS[interface]]

    def _complaints(self) -> Iterator[tuple[str, str]]:
        if same := twice([interface.name for interface in self.__dict__.values()]):
            yield "", f"two interfaces have the same name: {', '.join(map(str, same))}"
        for key, interface in self.__dict__.items():
            for field in interface.fields:
                if field not in INTERFACE_FIELDS[key]:
                    yield (
                        f"{key}.fields.{field}",
                        f"no field of this interface; ours are {', '.join(INTERFACE_FIELDS[key])}, "
                        "and theirs stands right of the =",
                    )
            if same := twice(self.names(key)):
                yield f"{key}.fields", f"two fields have the same name: {', '.join(map(str, same))}"


class ModeCodes(Part):
    """Codes of grid-status by which a device counts as something; in each field any of them is enough."""

    work_mode: list[int] = Field(default_factory=list)
    grid_mode: list[int] = Field(default_factory=list)


class RealTimeModes(Part):
    """What the modes of grid-status mean (R18). With no codes at all, grid-status is not read and nothing is known."""

    off_grid: ModeCodes = ModeCodes()
    """the device has no grid, or runs as an island"""
    faulted: ModeCodes = ModeCodes()
    """the device reports a fault of its own"""

    @property
    def told(self) -> bool:
        """Whether there is any code, so that grid-status has something to tell."""
        return any(codes.work_mode or codes.grid_mode for codes in (self.off_grid, self.faulted))


class RealTime(Part):
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
    """what the modes of grid-status mean"""
    interfaces: RealTimeInterfaces

    def _complaints(self) -> Iterator[tuple[str, str]]:
        if self.token_field == self.expires_field:
            yield "", f'`token_field` and `expires_field` are both "{self.token_field}"'
        lists = ("success_codes", "token_expired_codes", "rate_limit_codes")
        for code in twice([code for name in lists for code in set(getattr(self, name))]):
            yield "", f"the code {code} stands in two of {', '.join(lists)}: it can mean one thing only"
        known = {name for key in INTERFACE_FIELDS for name in self.interfaces.names(key)}
        for table in ("sentinels", "factors"):
            for name in getattr(self, table):
                if name not in known:
                    yield f"{table}.{name}", f"no interface has a field of that name{like(name, known)}"
        for name, factor in self.factors.items():
            if factor == 0:
                yield f"factors.{name}", "a factor of 0 would make everything 0"


class Profile(Part):
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

    def _complaints(self) -> Iterator[tuple[str, str]]:
        if Meaning.SUCCESS not in self.codes.values():
            yield "codes", "no code means `success`: every command would count as failed"
        if self.results.code_type == "integer":
            for code in self.codes:
                if not _is_integer(code):
                    yield (
                        f"codes.{code}",
                        (
                            "`results.code_type` is integer, but this is none as GoodWe would write it: no letters, no "
                            "leading zeros"
                        ),
                    )
        if same := twice([name for family in self.families for name in family.series]):
            yield "families", f"series in two families: {', '.join(map(str, same))}; leave each in one"
        if same := twice([family.name for family in self.families]):
            yield "families", f"two families have the same name: {', '.join(map(str, same))}"
        most = max(len(rules.parameters) for rules in self.actuators.__dict__.values())
        if most > self.results.max_parameters:
            yield "results.max_parameters", f"`results.max_parameters` is below {most}, the parameters of one actuator"
        for name, rules in self.actuators.__dict__.items():
            raws = getattr(self.family_defaults, name)
            if any(not low <= raw <= high for raw, low, high in zip(raws, rules.min, rules.max, strict=True)):
                yield (
                    f"family_defaults.{name}",
                    (
                        f"the family default of {name} is outside `min` {rules.min} and `max` {rules.max} of its "
                        "actuator"
                    ),
                )
        if self.family_defaults.ems[0] == FORCED_ISLANDING:
            yield "family_defaults.ems", f"{FORCED_ISLANDING} is forced islanding: no device is returned to it"
        low, high = self.actuators.ems.min[0], self.actuators.ems.max[0]
        for name, mode in self.ems_modes.__dict__.items():
            if not low <= mode <= high:
                yield f"ems_modes.{name}", f"an EMS mode is outside `min` {low} and `max` {high} of the ems actuator"


def _is_integer(text: str) -> bool:
    """Whether a number that is written like this comes back as the same text."""
    try:
        return str(int(text)) == text
    except ValueError:
        return False


def parse_profile(data: Mapping[str, Any], origin: str) -> Profile:
    """A profile from a parsed TOML document; `origin` says in messages where it came from.

    Raises:
        ConfigurationError: it has an unknown key, lacks one, or a value cannot work. Each complaint has its place.
    """
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        listed = "\n".join(f"  {text}" for text in sentences(error.errors(include_url=False), data, Profile))
        raise ConfigurationError(
            f"The GoodWe profile {origin} cannot be used:\n{listed}\nCorrect the file; its form is described by "
            "docs/profile-guide.md and schemas/goodwe-profile.v1.json, and the built-in `goodwe` is an example."
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

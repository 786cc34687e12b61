"""The contract with GoodWe as the simulator reads it from a profile file.

Only the file is shared with the service. Whatever a profile renames or rescales is undone here, so that the other
modules know columns and families, never a name of the wire.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROFILES: Final = Path(__file__).resolve().parent.parent / "goodwe" / "profiles"

# Columns of the settings of a device, by actuator and position in the actuator's parameter set.
MODE, POWER, EXPORT_ENABLED, EXPORT_LIMIT, ACTIVE_LIMIT, POWER_FACTOR = range(6)
COLUMNS: Final[Mapping[str, tuple[int, ...]]] = {
    "ems": (MODE, POWER),
    "export": (EXPORT_ENABLED, EXPORT_LIMIT),
    "active": (ACTIVE_LIMIT,),
    "reactive": (POWER_FACTOR,),
}
ACTUATOR_OF: Final[tuple[str, ...]] = ("ems", "ems", "export", "export", "active", "reactive")

# Register 47511 as the inverter knows it; a profile may give the named ones other codes on the wire.
MODE_CODES: Final[Mapping[str, int]] = {
    "auto": 1,
    "standby": 8,
    "import_target": 9,
    "export_target": 10,
    "charge": 11,
    "discharge": 12,
}
UNNAMED_MODES: Final = (2, 3, 4, 5, 6, 7, 255)
ROLES: Final = ("single", "multi", "query")


# The interfaces of the Real-Time Data API as the simulator names them, and as a profile does.
INTERFACES: Final[Mapping[str, str]] = {
    "authorized-sns": "authorized",
    "bms": "bms",
    "grid-status": "grid_status",
    "alarms": "alarms",
    "operation": "operation",
    "production": "production",
    "station": "station",
}
# What the inverter's modes of grid-status mean: not connected, grid fault; off-grid, fault.
MEANINGS: Final[Mapping[tuple[str, int], str]] = {
    ("grid_mode", 0): "off_grid",
    ("grid_mode", 2): "off_grid",
    ("work_mode", 2): "off_grid",
    ("work_mode", 3): "faulted",
}
TIMES: Final = ("time", "authorized_at", "expires_at")


class ProfileError(ValueError):
    """The profile file lacks something the simulator needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What devices of some series can do.

    Attributes:
        actuators: of `ems`, `export`, `active`, `reactive`; others are answered "not supported".
        battery: whether the device has one.
        export_percent: True if the export limit is in percent of the rating, False if in W.
    """

    name: str
    series: frozenset[str]
    actuators: frozenset[str]
    battery: bool
    export_percent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One control parameter: its name on the wire, its raw range, and raw = value * scale."""

    name: str
    actuator: str
    minimum: int
    maximum: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTime:
    """How the Real-Time Data API is spoken: our names and units in, theirs out, and their requests understood.

    Attributes:
        paths: the path of each of INTERFACES, by our name for it.
        envelope: their name of each field around the rows, by ours.
    """

    token_path: str
    paths: Mapping[str, str]
    page_size: int
    token_field: str
    expires_field: str
    success_code: str
    token_expired_code: str
    rate_limit_code: str
    time_unit_s: float
    header: str
    header_value: str
    envelope: Mapping[str, str]
    fields: Mapping[str, Mapping[str, str]]
    sentinels: Mapping[str, float]
    factors: Mapping[str, float]
    modes: Mapping[str, Mapping[str, list[int]]]

    def answer(self, code: str, message: str, data: Any) -> dict[str, Any]:
        """An answer in its envelope."""
        name = self.envelope
        return {name["code"]: code, name["message"]: message, name["data"]: data}

    def page(self, total: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The data of an answer with rows."""
        return {self.envelope["total"]: total, self.envelope["rows"]: rows}

    def token_of(self, header: str) -> str:
        """The token in the header's value; empty if that has another form."""
        before, _, after = self.header_value.partition("{token}")
        fits = header.startswith(before) and header.endswith(after) and len(header) >= len(before) + len(after)
        return header[len(before) : len(header) - len(after)] if fits else ""

    def row(self, interface: str, ours: Mapping[str, Any]) -> dict[str, Any]:
        """One row as they write it: names, units and signs, times, what stands for "no value", codes of modes."""
        names = self.fields[interface]
        theirs: dict[str, Any] = {}
        for field, value in ours.items():
            name = names.get(field, field)
            if value is None:
                value = self.sentinels.get(name)
            elif field in TIMES:
                value = int(value / self.time_unit_s)
            elif name in self.factors and not isinstance(value, bool):
                value = round(value / self.factors[name], 6)
                value = int(value) if value == int(value) else value
            theirs[name] = value
        return theirs

    def mode(self, field: str, ours: int) -> int:
        """Their code of a mode of grid-status, where the profile names codes for what it means; else ours."""
        codes = self.modes.get(MEANINGS.get((field, ours), ""), {}).get(field, [])
        return codes[0] if codes and ours not in codes else ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The contract. `codes` maps a meaning (`offline`) to GoodWe's code, `meanings` the other way round."""

    name: str
    request_topics: Mapping[str, str]
    result_topics: Mapping[str, str]
    fields: Mapping[str, str]
    echoed: bool
    results_per_command: int
    integer_codes: bool
    accepted: str
    applied: str
    max_parameters: int
    codes: Mapping[str, str]
    meanings: Mapping[str, str]
    columns: tuple[Column, ...]
    column_of: Mapping[str, int]
    modes: Mapping[int, int]
    families: tuple[Family, ...]
    ratings: Mapping[str, int]
    neutral: tuple[int, ...]
    realtime: RealTime

    def family_of(self, sn: str) -> Family | None:
        """The family by characters 6 to 8 of the SN, or None for an unknown series."""
        series = sn[5:8]
        return next((family for family in self.families if series in family.series), None)

    def rating_of(self, sn: str) -> int | None:
        """Rated power in W from characters 2 to 5 of the SN: `010K`, `29K9`, `5000`; None if it is none of these."""
        text = sn[1:5]
        if text in self.ratings:
            return self.ratings[text]
        if text.isdigit():
            return int(text) or None
        whole, separator, tenths = text.partition("K")
        if separator and whole.isdigit() and (tenths.isdigit() or not tenths):
            return round(float(f"{whole}.{tenths or 0}") * 1000) or None
        return None

    def code(self, meaning: str) -> str | int:
        """GoodWe's code of a meaning, in the type the contract has. A meaning without a code is `failed`."""
        text = self.codes.get(meaning, self.codes.get("failed", "1099"))
        return int(text) if self.integer_codes else text


def _families(tables: list[dict[str, Any]]) -> tuple[Family, ...]:
    return tuple(
        Family(
            name=table["name"],
            series=frozenset(table["series"]),
            actuators=frozenset(table["actuators"]),
            battery=table["battery"],
            export_percent=table["export_unit"] == "percent",
        )
        for table in tables
    )


def _columns(actuators: Mapping[str, Mapping[str, Any]]) -> tuple[Column, ...]:
    columns = []
    for actuator, indices in COLUMNS.items():
        table = actuators[actuator]
        for position, index in enumerate(indices):
            # A scale belongs to the value, which is last; a mode or a switch before it has none.
            scale = float(table.get("scale", 1)) if index == indices[-1] else 1.0
            columns.append(
                Column(
                    name=table["parameters"][position],
                    actuator=actuator,
                    minimum=table["min"][position],
                    maximum=table["max"][position],
                    scale=scale,
                )
            )
    return tuple(columns)


def _realtime(table: Mapping[str, Any]) -> RealTime:
    envelope = {
        "account": "account",
        "password": "password",
        "code": "code",
        "message": "msg",
        "data": "data",
        "total": "total",
        "rows": "list",
        "sns": "sns",
        "page": "page",
        "page_size": "pageSize",
    }
    interfaces = {name: table["interfaces"][key] for name, key in INTERFACES.items()}
    return RealTime(
        token_path=table["token_path"],
        paths={name: table["path"].replace("{name}", each["name"]) for name, each in interfaces.items()},
        page_size=table["page_size"],
        token_field=table["token_field"],
        expires_field=table["expires_field"],
        success_code=table["success_codes"][0],
        token_expired_code=table["token_expired_codes"][0],
        rate_limit_code=table["rate_limit_codes"][0],
        time_unit_s=table.get("time_unit_s", 0.001),
        header=table.get("header", "Authorization"),
        header_value=table.get("header_value", "Bearer {token}"),
        envelope=envelope | table.get("envelope", {}),
        fields={name: dict(each.get("fields", {})) for name, each in interfaces.items()},
        sentinels={field: values[0] for field, values in table.get("sentinels", {}).items()},
        factors=dict(table.get("factors", {})),
        modes=dict(table.get("modes", {})),
    )


def parse_profile(data: Mapping[str, Any]) -> Profile:
    """Build a profile from a parsed TOML document.

    Raises:
        ProfileError: something is missing or of the wrong form.
    """
    try:
        columns = _columns(data["actuators"])
        named = {wire: MODE_CODES[name] for name, wire in data["ems_modes"].items()}
        modes = {code: code for code in UNNAMED_MODES if code not in named} | named
        correlation, results = data["correlation"], data["results"]
        return Profile(
            name=data["name"],
            request_topics={role: data["topics"][f"{role}_request"] for role in ROLES},
            result_topics={role: data["topics"][f"{role}_result"] for role in ROLES},
            fields=dict(data["fields"]),
            echoed=correlation["echoed"],
            results_per_command=results["per_command"],
            integer_codes=results["code_type"] == "integer",
            accepted=results["accepted"],
            applied=results["applied"],
            max_parameters=results["max_parameters"],
            codes={meaning: code for code, meaning in data["codes"].items()},
            meanings=dict(data["codes"]),
            columns=columns,
            column_of={column.name: index for index, column in enumerate(columns)},
            modes=modes,
            families=_families(data["families"]),
            ratings=dict(data.get("ratings", {})),
            neutral=tuple(value for actuator in COLUMNS for value in data["family_defaults"][actuator]),
            realtime=_realtime(data["realtime"]),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ProfileError(f"the profile cannot be used: {type(error).__name__} {error}") from error


def load_profile(name_or_path: str) -> Profile:
    """Read a built-in profile by its name, or any by its path.

    Raises:
        ProfileError: there is no such file, it is not TOML, or it lacks something.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = PROFILES / f"{name_or_path}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"cannot read the profile {path}: {error}") from error
    return parse_profile(data)

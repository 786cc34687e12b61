"""GoodWe's side of the wire as a profile file describes it, and the service's correlation ids; own decoders."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """GoodWe's side as the default profile has it; `read` takes another profile file."""

    fields: dict[str, str] = field(
        default_factory=lambda: (
            {n: n for n in ("sn", "parameter", "parameters", "name", "value", "timestamp", "code", "stage")}
            | {"correlation_id": "requestId"}
        )
    )
    echoed: bool = True
    accepted: str = "accepted"
    codes: dict[str, str] = field(
        default_factory=lambda: {
            "0": "success",
            "1001": "offline",
            "1002": "unauthorized",
            "1003": "busy",
            "1004": "value",
            "1005": "unsupported",
            "1099": "failed",
        }
    )
    modes: dict[str, int] = field(
        default_factory=lambda: {
            "auto": 1,
            "standby": 8,
            "import_target": 9,
            "export_target": 10,
            "charge": 11,
            "discharge": 12,
        }
    )
    parameters: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "ems": ("EMS Power Mode", "EMS Power Set"),
            "export": ("Export Limit Enable", "Export Power Limit"),
            "active": ("Active Power Limit",),
            "reactive": ("Power Factor",),
        }
    )
    percent_series: frozenset[str] = frozenset({"DTU", "DTS", "KDT", "KMT"})
    ratings: dict[str, int] = field(default_factory=lambda: {"5048": 5000})
    scales: dict[str, Fraction] = field(
        default_factory=lambda: {"ems": Fraction(1), "export": Fraction(1), "active": Fraction(10)}
    )
    """By actuator: raw = W * scale, of `active` percent * scale."""
    takes: dict[str, frozenset[str]] = field(default_factory=dict)
    """Series -> the actuators that its family takes; empty = not known, and not judged."""
    family_defaults: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Wire:
        """Raises OSError, KeyError or TOMLDecodeError if the file is no profile."""
        profile = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(
            fields=profile["fields"],
            echoed=profile["correlation"]["echoed"],
            accepted=profile["results"]["accepted"],
            codes=profile["codes"],
            modes=profile["ems_modes"],
            parameters={name: tuple(table["parameters"]) for name, table in profile["actuators"].items()},
            percent_series=frozenset(
                series for f in profile["families"] if f["export_unit"] == "percent" for series in f["series"]
            ),
            ratings=profile.get("ratings", {}),
            scales={name: Fraction(repr(float(table.get("scale", 1)))) for name, table in profile["actuators"].items()},
            takes={series: frozenset(f["actuators"]) for f in profile["families"] for series in f["series"]},
            family_defaults={name: tuple(values) for name, values in profile.get("family_defaults", {}).items()},
        )

    def raw_of(self, actuator: str, watts: int) -> int:
        """W on the wire (`ems`, `export`); rounded down where the wire counts in coarser steps."""
        return floor(watts * self.scales[actuator])

    def watts_of(self, actuator: str, raw: float) -> float:
        """The W of a raw value."""
        return float(Fraction(raw) / self.scales[actuator])

    def in_percent(self, sn: str) -> bool:
        """Whether the device takes its export limit in percent of its rating."""
        return sn[5:8] in self.percent_series

    def takes_actuator(self, sn: str, actuator: str) -> bool:
        """Whether the device's family takes the actuator, as far as the profile is known."""
        return not self.takes or actuator in self.takes.get(sn[5:8], ())

    def rated_w(self, sn: str) -> int:
        """Rated power by characters 2 to 5 of the SN in W; 0 if they tell none."""
        code = sn[1:5]
        if code in self.ratings:
            return self.ratings[code]
        whole, kilo, tenths = code.partition("K")
        try:
            return round(float(f"{whole}.{tenths or 0}") * 1000) if kilo else int(code)
        except ValueError:
            return 0


ACTUATORS = {1: "ems", 2: "export", 3: "active", 4: "reactive"}
ACTUATOR_OF = {
    "charge": "ems", "discharge": "ems", "standby": "ems", "import_target": "ems", "export_target": "ems",
    "export_limit": "export", "generation_limit": "active", "power_factor": "reactive",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CorrelationId:
    """A decoded id: shard 8 | row 24 | actuator 4 | generation 32 | attempt 8 | digest 46, a UUIDv8's 122 free bits."""

    shard: int
    row: int
    actuator: int
    generation: int
    attempt: int
    digest: int


def plain(correlation_id: str) -> str:
    """One spelling of an id."""
    return correlation_id.replace("-", "").lower()


def decode_id(correlation_id: str) -> CorrelationId | None:
    """Own decoder; None if the text is no UUIDv8."""
    text = plain(correlation_id)
    if len(text) != 32 or text[12] != "8" or text[16] not in "89ab":
        return None
    try:
        free = int(text[:12], 16) << 74 | int(text[13:16], 16) << 62 | int(text[16:], 16) & (1 << 62) - 1
    except ValueError:
        return None
    return CorrelationId(
        free >> 114,
        free >> 90 & 0xFFFFFF,
        free >> 86 & 0xF,
        free >> 54 & 0xFFFFFFFF,
        free >> 46 & 0xFF,
        free & (1 << 46) - 1,
    )


def digest_of(sn: str, parts: Iterable[str]) -> int:
    """First 46 bits of blake2b(SN, NUL, name=value, NUL, ...)."""
    return int.from_bytes(hashlib.blake2b("\0".join((sn, *parts)).encode()).digest(), "big") >> (512 - 46)

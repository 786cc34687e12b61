"""Which devices exist: generated from a seed, or read from a file; and what the registry says about them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from vpp_dispatch.simulator.profile import Profile

AREAS: Final = ("west", "east", "north", "south")
DEFAULT_KEYS: Final = ("export_limit_w", "ems_mode", "ems_power_w", "active_percent", "power_factor")
_BASE36: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# (rating code in the SN, series, share of a generated fleet): hybrids with a battery first, then PV only.
_CATALOGUE: Final = (
    ("010K", "ETU", 0.30),
    ("5000", "EHU", 0.10),
    ("5000", "BTU", 0.08),
    ("5048", "ESN", 0.08),
    ("29K9", "ETT", 0.12),
    ("100K", "ETC", 0.02),
    ("5000", "DSN", 0.10),
    ("012K", "DTU", 0.10),
    ("017K", "KDT", 0.10),
)


class FleetError(ValueError):
    """A fleet file, or the wish for a generated fleet, cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One inverter and what the registry says about it.

    Attributes:
        rated_w: W, > 0.
        site_share: part of its site's value that is this device's, 0..1.
        default: what the registry says it returns to (`export_limit_w`, `ems_mode` + `ems_power_w`,
            `active_percent`, `power_factor`); the device starts with it.
    """

    sn: str
    site: str
    groups: tuple[str, ...]
    area: str
    rated_w: int
    site_share: float = 1.0
    default: dict[str, int] = field(default_factory=dict)

    def registry_record(self) -> dict[str, Any]:
        """The record of `fleet.devices.v1`."""
        record: dict[str, Any] = {
            "sn": self.sn,
            "site": self.site,
            "groups": list(self.groups),
            "area": self.area,
            "rated_w": self.rated_w,
            "site_share": self.site_share,
        }
        record = {name: value for name, value in record.items() if value != ""}  # a device need not have a place
        return record | ({"default": dict(self.default)} if self.default else {})


def _base36(number: int, width: int) -> str:
    text = ""
    for _ in range(width):
        number, digit = divmod(number, 36)
        text = _BASE36[digit] + text
    return text


def generate_fleet(
    *,
    profile: Profile,
    inverters: int,
    seed: int,
    feeders: int = 4,
    sites: int | None = None,
    series: Sequence[str] = (),
    registered_limits: float = 0.25,
) -> list[Device]:
    """The same fleet for the same arguments.

    Args:
        sites: how many; each has one device by default. A whole site is on one feeder, a feeder in one area.
        series: only these series of the catalogue (all that the profile knows if empty).
        registered_limits: share of devices whose connection agreement limits their export to 60 % of the rating; the
            registry says so and the device starts with it set.

    Raises:
        FleetError: no series is left, or numbers that cannot be.
    """
    catalogue = [
        kind for kind in _CATALOGUE if (not series or kind[1] in series) and profile.family_of("?????" + kind[1])
    ]
    if not catalogue or inverters < 0 or inverters > 36**4 or feeders < 1 or (sites is not None and sites < 1):
        raise FleetError(f"no fleet of {inverters} inverters with {feeders} feeders, {sites} sites and series {series}")
    random = np.random.default_rng(seed)
    weights = np.array([kind[2] for kind in catalogue])
    kinds = random.choice(len(catalogue), size=inverters, p=weights / weights.sum())
    limited = random.random(inverters) < registered_limits
    site_count = min(sites or inverters, max(inverters, 1))
    run = _base36(seed % 36**3, 3)
    devices = []
    for index in range(inverters):
        rating, kind, _ = catalogue[int(kinds[index])]
        sn = f"9{rating}{kind}{run}W{_base36(index, 4)}"
        rated_w = profile.rating_of(sn)
        if rated_w is None:
            raise FleetError(f"the profile gives {sn} no rating")
        site = index % site_count
        on_site = len(range(site, inverters, site_count))
        feeder = site % feeders
        devices.append(
            Device(
                sn=sn,
                site=f"site-{site + 1:04d}",
                groups=(f"feeder-{feeder + 1:02d}",),
                area=AREAS[feeder % len(AREAS)],
                rated_w=rated_w,
                site_share=1.0 if on_site == 1 else round(1 / on_site, 6),
                default={"export_limit_w": rated_w * 60 // 100} if limited[index] else {},
            )
        )
    return devices


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                default = {key: int(row[f"default_{key}"]) for key in DEFAULT_KEYS if row.get(f"default_{key}")}
                groups = (row.get("groups") or "").replace(";", " ").split()
                yield {key: value for key, value in row.items() if value} | {"groups": groups, "default": default}
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield msgspec.json.decode(line)


def read_fleet(path: Path, *, profile: Profile) -> list[Device]:
    """Devices from CSV (`groups` separated by blanks or semicolons, `default_...` columns) or JSON lines.

    Raises:
        FleetError: the file cannot be read, a row has no SN or no rating, or an SN comes twice.
    """
    devices: dict[str, Device] = {}
    try:
        for row in _rows(path):
            sn = str(row["sn"])
            rated_w = int(row["rated_w"]) if row.get("rated_w") else profile.rating_of(sn)
            if rated_w is None or sn in devices:
                raise FleetError(f"{path}: {sn} comes twice" if sn in devices else f"{path}: {sn} has no rating")
            devices[sn] = Device(
                sn=sn,
                site=str(row.get("site", "")),
                groups=tuple(row.get("groups") or ()),
                area=str(row.get("area", "")),
                rated_w=rated_w,
                site_share=float(row.get("site_share") or 1.0),
                default={key: int(value) for key, value in (row.get("default") or {}).items()},
            )
    except (OSError, KeyError, ValueError, TypeError, msgspec.DecodeError) as error:
        raise (
            error if isinstance(error, FleetError) else FleetError(f"{path}: {type(error).__name__} {error}")
        ) from error
    return list(devices.values())

"""One GoodWe inverter: its serial number, what the registry says of it, and the facts read about it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

SHARDS = 64
"""For life: the number stands in ids, topics and pages."""

SN_PATTERN = re.compile(r"^[0-9A-Z]{16}$")
"""Loose on purpose: [1] place, [2-5] rated power, [6-8] series, [9-11] date, [12] communication, [13-16] serial."""


def shard_of(sn: str) -> int:
    """The shard of a device, 0..63: a stable hash of the SN, for life."""
    return hashlib.blake2b(sn.encode(), digest_size=8).digest()[0] % SHARDS


def rating_of(sn: str, ratings: Mapping[str, int]) -> int:
    """Rated power in W read from the SN: `010K` 10 kW, `29K9` 29.9 kW, `5000` 5 kW; 0 where it says nothing.

    `ratings` names the codes that are model numbers and not watts.
    """
    code = sn[1:5]
    if code in ratings:
        return ratings[code]
    if code.isdigit():
        return int(code)
    whole, k, tenth = code.partition("K")
    if k and whole.isdigit() and (not tenth or tenth.isdigit()):
        return int(whole) * 1000 + int(int(tenth or "0") * 1000 / 10 ** len(tenth or "0"))
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A device's registry record. `default` is the registry's, by actuator number: a pair as in `domain.command`.

    `rated_w` 0 = not told; `site_share` 0..1, what part of its site's value the device takes.
    """

    sn: str
    site: str | None = None
    groups: tuple[str, ...] = ()
    area: str | None = None
    rated_w: int = 0
    site_share: float = 1.0
    default: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """The end user's consent for one device as GoodWe lists it; times epoch seconds, None = no end."""

    sn: str
    authorized_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A device's operation data. Signs are ours: import and charging positive. None = no value."""

    sn: str
    at: float
    online: bool
    grid_power_w: float | None = None
    battery_power_w: float | None = None
    pv_power_w: float | None = None
    load_power_w: float | None = None
    faulted: bool | None = None
    off_grid: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """A device's battery data. `power_w` is charging positive; None = no value."""

    sn: str
    at: float
    soc_percent: float | None = None
    power_w: float | None = None

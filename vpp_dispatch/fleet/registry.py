"""The registry topic (`fleet.devices.v1`): bytes to records, a hundred thousand in about a second.

The same rules stand in `operators.device.DeviceV1`, the source of the schema; tests hold the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpp_dispatch.domain.answer import Refusal, Refused
from vpp_dispatch.domain.command import FORCED_ISLANDING
from vpp_dispatch.domain.device import SN_PATTERN, Record
from vpp_dispatch.domain.signal import Actuator

_MAX_W = 1_000_000

_Name = Annotated[str, Meta(min_length=1, max_length=128)]
# Whole numbers are read as float, since 5000.0 is the integer 5000 to JSON Schema; `_whole` refuses 5000.5.
_Watts = Annotated[float, Meta(ge=0, le=_MAX_W)]


class _Default(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    export_limit_w: _Watts | UnsetType = UNSET
    ems_mode: Annotated[float, Meta(ge=0, le=255)] | UnsetType = UNSET
    ems_power_w: _Watts | UnsetType = UNSET
    active_percent: Annotated[float, Meta(ge=0, le=100)] | UnsetType = UNSET
    power_factor: Annotated[float, Meta(ge=0, le=100)] | UnsetType = UNSET


class _Device(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    sn: str
    site: _Name | UnsetType = UNSET
    groups: Annotated[list[_Name], Meta(max_length=10_000)] = []
    area: _Name | UnsetType = UNSET
    rated_w: _Watts = 0
    site_share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    default: _Default | UnsetType = UNSET
    ext: msgspec.Raw | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_Device)


@dataclass(frozen=True, slots=True)
class Removed:
    """A tombstone: the device leaves the registry, and is released first."""

    sn: str


def decode_record(key: bytes | None, value: bytes | None) -> Record | Removed | Refusal:
    """Decodes one message of the registry topic; a null value removes. Never raises.

    Defaults become pairs by actuator, as in `domain.command`: the export limit is on at its watts, `ems` is (mode, W),
    `active` tenths of a percent rounded half up, `reactive` the raw value.
    """
    sn = _sn_of(key)
    if sn is None:
        told = "null" if key is None else repr(key[:40])
        return _refusal(
            Refused.INVALID, f"The key is {told} and not a 16-character SN; send the record with its SN as key."
        )
    if value is None:
        return Removed(sn)
    try:
        device = _decoder.decode(value)
    except msgspec.ValidationError as error:
        reason = Refused.UNKNOWN_FIELD if "unknown field" in str(error) else Refused.INVALID
        return _refusal(reason, f"The record of {sn}: {error}; correct it and send it again.")
    except (msgspec.DecodeError, RecursionError) as error:
        return _refusal(Refused.UNDECODABLE, f"The record of {sn} is not JSON in UTF-8 ({error}); mend its encoder.")
    if device.sn != sn:
        return _refusal(Refused.INVALID, f"The key is {sn} but the record's sn {device.sn[:40]!r}; make the two equal.")
    try:
        return Record(
            sn=sn,
            site=None if device.site is UNSET else device.site,
            groups=tuple(device.groups),
            area=None if device.area is UNSET else device.area,
            rated_w=_whole("rated_w", device.rated_w),
            site_share=device.site_share,
            default={} if device.default is UNSET else _default(device.default),
        )
    except ValueError as error:
        return _refusal(Refused.INVALID, f"The record of {sn}: {error}; correct it and send it again.")


def _sn_of(key: bytes | None) -> str | None:
    if key is None or not key.isascii():
        return None
    sn = key.decode("ascii")
    return sn if SN_PATTERN.fullmatch(sn) else None


def _default(default: _Default) -> dict[int, tuple[int, int]]:
    """Pairs by actuator number. Raises ValueError where a number is not whole or half of a pair is missing."""
    pairs: dict[int, tuple[int, int]] = {}
    if (default.ems_mode is UNSET) != (default.ems_power_w is UNSET):
        raise ValueError("default needs both ems_mode and ems_power_w, or neither")
    if default.ems_mode is not UNSET and default.ems_power_w is not UNSET:
        if default.ems_mode == FORCED_ISLANDING:
            raise ValueError("default.ems_mode is 7, forced islanding, which is never dispatched")
        pairs[int(Actuator.EMS)] = (
            _whole("default.ems_mode", default.ems_mode),
            _whole("default.ems_power_w", default.ems_power_w),
        )
    if default.export_limit_w is not UNSET:
        pairs[int(Actuator.EXPORT)] = (1, _whole("default.export_limit_w", default.export_limit_w))
    if default.active_percent is not UNSET:
        pairs[int(Actuator.ACTIVE)] = (math.floor(default.active_percent * 10 + 0.5), 0)
    if default.power_factor is not UNSET:
        pairs[int(Actuator.REACTIVE)] = (_whole("default.power_factor", default.power_factor), 0)
    return pairs


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ValueError(f"{name} is {value} and not a whole number")
    return int(value)


def _refusal(reason: Refused, detail: str) -> Refusal:
    return Refusal(reason=reason, detail=detail[:500])

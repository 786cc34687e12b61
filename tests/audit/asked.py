"""What a control asks of a device, and what its default is, in the raw values of the wire."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

from .wire import ACTUATOR_OF, Values, Wire


def asked_values(wire: Wire, control: dict[str, Any], sn: str, record: dict[str, Any], rated: int) -> Values | None:
    """The raw values that a control asks of a device; None if it asks nothing, or says only a total.

    `record`: the registry's; `rated`: the rated power in W, 0 = not known.
    """
    kind, watts = control["kind"], asked_w(control, sn, record)
    match ACTUATOR_OF[kind]:
        case "ems" if kind == "standby":
            return (wire.modes[kind], 0)
        case "ems" if watts is not None:
            return (wire.modes[kind], wire.raw_of("ems", watts))
        case "export" if watts is not None and wire.in_percent(sn):
            return (1, min(watts * 100 // rated, 100)) if rated else None
        case "export" if watts is not None:
            return (1, wire.raw_of("export", watts))
        case "active" if control.get("each_percent") is not None:
            return (active_raw(wire, half_up(10 * Fraction(str(control["each_percent"])))),)
        case "active" if watts is not None and rated:
            return (active_raw(wire, min(half_up(Fraction(1000 * watts, rated)), 1000)),)
        case "reactive" if control.get("cos_phi") is not None:
            hundredths = half_up(100 * Fraction(str(control["cos_phi"])))
            under = control.get("excitation") == "under" and hundredths < 100
            return (100 - hundredths if under else hundredths,)
    return None


def registered_default(wire: Wire, sn: str, actuator: str, record: dict[str, Any], rated_w: int) -> Values | None:
    """The raw values of the registry's default of an actuator (R37); None if it names none."""
    default = record.get("default") or {}
    match actuator:
        case "ems" if "ems_mode" in default:
            return (default["ems_mode"], wire.raw_of("ems", default["ems_power_w"]))
        case "export" if "export_limit_w" in default:
            limit = default["export_limit_w"]
            if wire.in_percent(sn):
                return (1, min(limit * 100 // max(rated_w, 1), 100))
            return (1, wire.raw_of("export", limit))
        case "active" if "active_percent" in default:
            return (active_raw(wire, half_up(10 * Fraction(str(default["active_percent"])))),)
        case "reactive" if "power_factor" in default:
            return (default["power_factor"],)
    return None


def asked_w(control: dict[str, Any], sn: str, record: dict[str, Any]) -> int | None:
    """What a control asks of a device in W, before any rounding to what it can be told; None = nothing, or no watts.

    A device's own entry in a table wins over its site's, which is rounded down after its share.
    """
    if "by_target_w" not in control:
        watts = control.get("each_w")
        return watts if isinstance(watts, int) else None
    table = control["by_target_w"]
    if sn in (table.get("devices") or {}):
        return int(table["devices"][sn])
    whole = (table.get("sites") or {}).get(record.get("site"))
    share = record.get("site_share")
    return None if whole is None else floor(whole * Fraction(str(1 if share is None else share)))


def half_up(value: Fraction) -> int:
    """The nearest whole number; a half goes up."""
    return floor(value + Fraction(1, 2))


def active_raw(wire: Wire, permille: int) -> int:
    """An active power limit on the wire, rounded down where that is coarser."""
    return floor(permille * wire.scales["active"] / 10)


def cos_phi(raw: int) -> float:
    """The cos phi of a raw power factor."""
    return raw / 100 if raw >= 80 else 1 - raw / 100

"""Grafana's units, as the pictures write them."""

from __future__ import annotations

import math
from typing import Final

_SCALES: Final[dict[str, tuple[tuple[float, str], ...]]] = {
    "short": ((1.0, ""),),
    "none": ((1.0, ""),),
    "watt": ((1e6, " MW"), (1e3, " kW"), (1.0, " W")),
    "s": ((3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms")),
    "percentunit": ((0.01, " %"),),
    "ops": ((1.0, "/s"),),
    "Bps": ((1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")),
    "bytes": ((2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"), (1.0, " B")),
}
"""Of a unit: size and name of what it is told in, the largest first."""
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


def scale(value: float, unit: str) -> tuple[float, str]:
    """What a value of this size is told in: how much one of it is, and its name. Raises: KeyError, unknown unit."""
    sizes = _SCALES[unit]
    if value == 0:
        return next(((size, name) for size, name in sizes if size == 1.0), sizes[-1])
    longest = 2.0 if unit == "s" else 1.0  # 90 s rather than 1.5 min
    return next(((size, name) for size, name in sizes if abs(value) >= size * (longest if size > 1 else 1)), sizes[-1])


def told(value: float, unit: str, decimals: int | None = None) -> str:
    """A value for people: three digits unless `decimals` says how many after the point."""
    size, name = scale(value, unit)
    number = value / size
    if decimals is not None:
        return f"{number:,.{decimals}f}{name}"
    digits = 0 if abs(number) >= 100 or number == round(number) else 1 if abs(number) >= 10 else 2
    return f"{number:,.{digits}f}{name}"


def axis(low: float, top: float, unit: str, most: int = 5) -> tuple[list[float], list[str], float]:
    """Round ticks with their words, and where the axis ends; values up to `top` fit."""
    size, name = scale(top, unit)
    span = max((top - low) / size, 1e-9) if top > low else 1.0
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.999)
    first = math.ceil(low / size / step - 1e-9)
    high = max(top, low + span * size) if unit == "percentunit" else low + span * 1.06 * size
    count = math.floor(high / size / step + 1e-9)
    marks = [i * step for i in range(first, count + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, digits) != step and step * 10**digits % 1:
        digits += 1
    return [mark * size for mark in marks], [f"{mark:,.{digits}f}{name}" for mark in marks], high

"""The picture of a run, as SVG by hand: the share of the fleet that was commanded, and that answered, over time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np

from benchmarks.case import F64, Measured

WIDTH, HEIGHT, COLUMNS = 320, 190, 4
LEFT, TOP, RIGHT, BOTTOM = 44, 34, 14, 34
INK, FAINT, RAW = "#333", "#ddd", "#d1495b"
CURVES: Final = (
    ("queries", "#9a9a9a", "default queried"),
    ("setpoints", "#1f6fb4", "setpoint published"),
    ("results", "#2a9d4a", "result came back"),
)


def svg(cases: Sequence[tuple[str, Measured, float]]) -> str:
    """One panel per case: (title, what was measured, s that raw aiokafka took to publish the same setpoints)."""
    rows = -(-len(cases) // COLUMNS)
    width = WIDTH * min(COLUMNS, len(cases))
    legend, lines = _legend(width, HEIGHT * rows + 16)
    height = HEIGHT * rows + 18 * lines + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (title, measured, raw_s) in enumerate(cases):
        parts.append(f'<g transform="translate({WIDTH * (i % COLUMNS)},{HEIGHT * (i // COLUMNS)})">')
        parts += _panel(title, measured, raw_s)
        parts.append("</g>")
    return "\n".join([*parts, *legend, "</svg>", ""])


def _legend(width: int, top: int) -> tuple[list[str], int]:
    """The lines and their names, and how many rows they take."""
    parts, x, row = list[str](), 14.0, 0
    for _, colour, label in (*CURVES, ("", RAW, "raw aiokafka, same setpoints"), ("", INK, "all set, said the report")):
        wide = 40 + 6.2 * len(label)
        if x + wide > width and x > 14:
            x, row = 14.0, row + 1
        y = top + 18 * row
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{x + 24:.0f}" y="{y}">{escape(label)}</text>')
        x += wide
    return parts, row + 1


def _panel(title: str, measured: Measured, raw_s: float) -> list[str]:
    end = max(measured.settled_s, 0.1)
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(seconds: float) -> float:
        return LEFT + inner_w * min(seconds / end, 1.0)

    def y(share: float) -> float:
        return TOP + inner_h * (1 - share)

    parts = [f'<text x="{LEFT}" y="{TOP - 12}" font-weight="bold">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="{FAINT}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    step = _step(end)
    for tick in np.arange(0, end + 1e-9, step).tolist():
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{tick:g} s</text>')
    if len(measured.setpoints):
        first = float(measured.setpoints[0])
        parts.append(_line([(x(first), y(0)), (x(first + raw_s), y(1))], RAW, ' stroke-dasharray="4 3"'))
    for name, colour, _ in CURVES:
        times: F64 = getattr(measured, name)
        if name == "queries":
            times = times[: measured.devices]  # what comes later reads setpoints back
        if len(times) >= measured.devices / 2:
            shares = np.linspace(0, 1, 101)
            parts.append(
                _line(
                    [(x(t), y(s)) for t, s in zip(np.quantile(times, shares).tolist(), shares.tolist(), strict=True)],
                    colour,
                )
            )
    parts.append(_line([(x(end), y(0)), (x(end), y(1))], INK))
    return parts


def _line(points: Sequence[tuple[float, float]], colour: str, more: str = "") -> str:
    text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.8"{more}/>'


def _step(end: float) -> float:
    """A round number of seconds that makes two to five ticks."""
    for step in (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300):
        if end / step <= 5:
            return float(step)
    return 600.0

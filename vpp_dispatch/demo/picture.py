"""The picture of a run: an SVG with power asked and delivered over time, a panel per event, and what happened when.

Drawn by hand: a few lines and words need no plotting library, text stays text, and the same run gives the same bytes.
Colours are those of Okabe and Ito, which people with any colour vision tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from vpp_dispatch.demo.asked import Played
from vpp_dispatch.demo.course import Course, Sample

TINTS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Of the events, in their order."""
_OWED: Final = "#D55E00"
_INK, _PALE, _GRID, _BAND = "#222222", "#5f5f5f", "#e3e3e3", "#8a8a70"
_WIDTH: Final = 1000
_LEFT, _RIGHT = 76, 156
_HEAD, _STRIP, _PANEL, _GAP, _AXIS = 84, 42, 112, 44, 58
_ROW: Final = 19
_NEAR: Final = 20
_STEPS: Final = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels along one axis."""

    first: float
    last: float
    low: float
    high: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)


def ticks(high: float, most: int = 4) -> list[float]:
    """Round numbers from 0 to `high` or less, at most so many steps.

    Args:
        high: above 0.
    """
    rough = high / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.999)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def unit_of(high_w: float) -> tuple[str, float]:
    """The unit of an axis up to so many W, and how many W it has."""
    return ("MW", 1e6) if high_w >= 1e6 else ("kW", 1e3) if high_w >= 1e3 else ("W", 1.0)


def plateau(samples: Sequence[Sample], played: Played) -> float | None:
    """The median of an event's measured power over the second half of its window, W; None if nothing was measured."""
    begin = (played.from_at + played.over_at) / 2
    inside = [s.power_w for s in samples if begin <= s.at < played.over_at]
    found = sorted(power_w[played.event_id] for power_w in inside if played.event_id in power_w)
    return found[len(found) // 2] if found else None


def draw(course: Course, *, title: str, subtitle: str, remarks: Mapping[str, str] | None = None) -> str:
    """The picture as the text of an SVG file; it has a white ground of its own.

    Args:
        course: of a run that has at least one sample since it began.
        remarks: a few words more, per event.

    Raises:
        ValueError: nothing was measured.
    """
    samples = [sample for sample in course.samples if sample.at >= course.began_at]
    if not samples:
        raise ValueError("Nothing was measured, so there is nothing to draw.")
    notes = math.ceil(len(course.marks) / 2)
    panels = len(course.events) + 1
    top = _HEAD + _STRIP
    bottom = top + panels * (_PANEL + _GAP) - _GAP + 22
    height = bottom + _AXIS + notes * _ROW + 22
    across = _Scale(_LEFT, _WIDTH - _RIGHT, 0.0, samples[-1].at - course.began_at)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" font-family="Inter, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" '
        f'fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_description(course, samples))}</desc>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 30, title, size=20, weight=600),
        _text(_LEFT, 51, subtitle, fill=_PALE),
        *_legend(_LEFT, 74),
    ]
    y = top + 22
    marks = [(across(mark.at - course.began_at), number) for number, mark in enumerate(course.marks, 1)]
    parts += _marks(marks, top - 14, bottom)
    for index, played in enumerate(course.events.values()):
        remark = (remarks or {}).get(played.event_id, "")
        parts += _event(course, samples, played, across, y, TINTS[index % len(TINTS)], remark)
        y += _PANEL + _GAP
    parts += _debts(course, samples, across, y)
    parts += _time_axis(across, bottom)
    for number, mark in enumerate(course.marks):
        column, row = divmod(number, notes)
        x, at = _LEFT + column * 440, bottom + _AXIS + 14 + row * _ROW
        parts += _number(x + 8, at - 4, number + 1)
        parts.append(_text(x + 24, at, f"{mark.at - course.began_at:.1f} s", fill=_PALE))
        parts.append(_text(x + 76, at, mark.what))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _description(course: Course, samples: Sequence[Sample]) -> str:
    told = []
    for played in course.events.values():
        level = plateau(samples, played)
        told.append(f"{played.asked}" + ("" if level is None else f": {_watts(level)} measured"))
    return "Power asked and delivered over time. " + "; ".join(told) + "."


def _event(
    course: Course, samples: Sequence[Sample], played: Played, across: _Scale, top: float, tint: str, remark: str
) -> list[str]:
    measured = [(s.at - course.began_at, s.power_w[played.event_id]) for s in samples if played.event_id in s.power_w]
    high = max([played.asked_w, *(value for _, value in measured)]) * 1.12 or 1.0
    unit, size = unit_of(high)
    up = _Scale(top + _PANEL, top, 0.0, high)
    begin, end = across(played.from_at - course.began_at), across(min(played.over_at - course.began_at, across.high))
    asked = up(played.asked_w)
    parts = [
        f'<rect x="{begin}" y="{top}" width="{round(end - begin, 1)}" height="{_PANEL}" fill="{_BAND}" '
        'fill-opacity="0.1"/>',
        _words(_LEFT, top - 9, (played.event_id, tint, 600), (f"\u2002{played.asked}", _INK, 0)),
        *_value_axis([(tick * size, f"{tick:g}") for tick in ticks(high / size)], up, unit),
    ]
    if measured:
        points = [(across(at), up(value)) for at, value in measured]
        parts += [_area("delivered", points, up(0), tint, 0.18), _line("delivered", points, tint)]
    dashes = f'stroke="{_INK}" stroke-width="1.6" stroke-dasharray="6 4"'
    parts.append(f'<path class="asked" d="M{begin},{asked}H{end}" {dashes}/>')
    bound = "at most" if played.sight.limit else "asked"
    level = plateau(samples, played)
    labels = [(asked, f"{bound} {_watts(played.asked_w)}", _INK)]
    if level is not None:
        labels.append((up(level), f"{'measured' if played.sight.limit else 'delivered'} {_watts(level)}", tint))
    right = _WIDTH - _RIGHT + 10
    labels = _apart(labels)
    parts += [_text(right, y + 4, words, fill=fill, weight=600) for y, words, fill in labels]
    return [*parts, _text(right, labels[-1][0] + 20, remark, fill=_PALE)] if remark else parts


def _debts(course: Course, samples: Sequence[Sample], across: _Scale, top: float) -> list[str]:
    """What the service holds and still owes, as its own workers count it."""
    counted = [(s.at - course.began_at, s.held, s.owed) for s in samples if s.workers]
    high = max([1, *(max(held, owed) for _, held, owed in counted)]) * 1.12
    up = _Scale(top + _PANEL, top, 0.0, high)
    parts = [
        _words(
            _LEFT,
            top - 9,
            ("held", _INK, 600),
            (" by events, and ", _INK, 0),
            ("releases owed", _OWED, 600),
            (" and not yet confirmed, as the living workers count them", _INK, 0),
        ),
        *_value_axis([(tick, f"{tick:,.0f}") for tick in ticks(high)], up, "actuators"),
    ]
    if counted:
        held = [(across(at), up(value)) for at, value, _ in counted]
        owed = [(across(at), up(value)) for at, _, value in counted]
        parts += [_area("owed", owed, up(0), _OWED, 0.35), _line("owed", owed, _OWED), _line("held", held, _INK)]
        _, now_held, now_owed = counted[-1]
        parts.append(_text(_WIDTH - _RIGHT + 10, up(0) - 20, f"{now_held} held, {now_owed} owed", weight=600))
        parts.append(_text(_WIDTH - _RIGHT + 10, up(0) - 4, "at the end", fill=_PALE))
    return parts


def _value_axis(marks: Sequence[tuple[float, str]], up: _Scale, unit: str) -> list[str]:
    parts = []
    for value, words in marks:
        y = up(value)
        parts.append(f'<path d="M{_LEFT},{y}H{_WIDTH - _RIGHT}" stroke="{_GRID if value else _PALE}"/>')
        parts.append(_text(_LEFT - 8, y + 4, words, fill=_PALE, anchor="end"))
    middle = (up.first + up.last) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 22 {middle})"'
    parts.append(f'<text x="22" y="{middle}" fill="{_PALE}" {turned}>{unit}</text>')
    return parts


def _line(name: str, points: Sequence[tuple[float, float]], stroke: str) -> str:
    through = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline class="{name}" points="{through}" fill="none" stroke="{stroke}" stroke-width="2" '
        'stroke-linejoin="round"/>'
    )


def _area(name: str, points: Sequence[tuple[float, float]], ground: float, fill: str, opacity: float) -> str:
    through = " ".join(f"{x},{y}" for x, y in [(points[0][0], ground), *points, (points[-1][0], ground)])
    return f'<polygon class="{name}" points="{through}" fill="{fill}" fill-opacity="{opacity}"/>'


def _time_axis(across: _Scale, bottom: float) -> list[str]:
    parts = []
    for tick in ticks(across.high, 9):
        x = across(tick)
        parts.append(f'<path d="M{x},{bottom}v5" stroke="{_PALE}"/>')
        parts.append(_text(x, bottom + 19, f"{tick:g}", fill=_PALE, anchor="middle"))
    middle = (across.first + across.last) / 2
    parts.append(_text(middle, bottom + 38, "seconds since the first signal", fill=_PALE, anchor="middle"))
    return parts


def _legend(x: float, y: float) -> list[str]:
    return [
        f'<rect x="{x}" y="{y - 11}" width="26" height="14" fill="{_BAND}" fill-opacity="0.2"/>',
        _text(x + 33, y, "window of the event", fill=_PALE),
        f'<path d="M{x + 180},{y - 4}h26" stroke="{_INK}" stroke-width="1.6" stroke-dasharray="6 4"/>',
        _text(x + 213, y, "asked of all targets", fill=_PALE),
        f'<rect x="{x + 350}" y="{y - 11}" width="26" height="14" fill="{TINTS[0]}" fill-opacity="0.18"/>',
        f'<path d="M{x + 350},{y - 11}h26" stroke="{TINTS[0]}" stroke-width="2"/>',
        _text(x + 383, y, "measured by the inverters", fill=_PALE),
    ]


def _marks(marks: Sequence[tuple[float, int]], top: float, bottom: float) -> list[str]:
    """A line through all panels for each, under a number; numbers that would touch stand one above the other."""
    parts, before, lifted = [], -math.inf, False
    for x, number in sorted(marks):
        lifted = x - before < _NEAR and not lifted
        before = x
        y = top - 20 if lifted else top
        parts.append(f'<path class="mark" d="M{x},{y + 9}V{bottom}" stroke="{_PALE}" stroke-dasharray="2 3"/>')
        parts += _number(x, y, number)
    return parts


def _number(x: float, y: float, number: int) -> list[str]:
    return [
        f'<circle cx="{x}" cy="{y}" r="9" fill="{_INK}"/>',
        _text(x, y + 4, str(number), fill="#ffffff", anchor="middle", size=11, weight=600),
    ]


def _apart(labels: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Labels at heights, moved so that they do not touch."""
    labels = sorted(labels)
    for i in range(1, len(labels)):
        gap = labels[i][0] - labels[i - 1][0]
        if gap < 16:
            half = (16 - gap) / 2
            labels[i - 1] = (labels[i - 1][0] - half, *labels[i - 1][1:])
            labels[i] = (labels[i][0] + half, *labels[i][1:])
    return labels


def _watts(value: float) -> str:
    unit, size = unit_of(value)
    return f"{value / size:.3g} {unit}"


def _text(x: float, y: float, words: str, *, fill: str = "", anchor: str = "", size: int = 0, weight: int = 0) -> str:
    more = "".join(
        f' {name}="{value}"'
        for name, value in (("fill", fill), ("text-anchor", anchor), ("font-size", size), ("font-weight", weight))
        if value
    )
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}"{more}>{escape(words)}</text>'


def _words(x: float, y: float, *runs: tuple[str, str, int]) -> str:
    """One line of text of several (words, fill, weight; 0 = normal), on white where lines pass under it."""
    spans = "".join(
        f'<tspan fill="{fill}"' + (f' font-weight="{weight}"' if weight else "") + f">{escape(words)}</tspan>"
        for words, fill, weight in runs
    )
    halo = 'stroke="#ffffff" stroke-width="5" stroke-linejoin="round" paint-order="stroke"'
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" {halo} xml:space="preserve">{spans}</text>'

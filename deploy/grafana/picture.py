"""Draws a dashboard from its JSON and Prometheus' answers, laid out as Grafana lays it out: for docs/dashboards.md.

No Grafana is needed, and none is imitated further than it helps: the grid, titles, units, colours, thresholds, stacking
and legends are the JSON's; the data are the panels' own queries. Time is in seconds of the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from deploy.grafana.units import axis, told

Floats = NDArray[np.float64]
Answer = list[tuple[dict[str, str], list[tuple[float, float]]]]
"""Series of a range query: labels, and (epoch seconds, value) in order of time."""
Ask = Callable[[str, float, float, float], Answer]
"""A range query: expression, start and end in epoch seconds, step in seconds."""

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica", "Arial", "DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "vpp-dispatch",
    "axes.edgecolor": "#d8d9da",
    "axes.linewidth": 0.8,
}
_NAMED: Final = {"green": "#56a64b", "blue": "#3274d9", "orange": "#ff780a", "red": "#e02f44", "text": "#24292e"}
_PALETTE: Final = (
    "#3274d9", "#56a64b", "#ff780a", "#a352cc", "#e0b400", "#1f9e9e", "#e02f44", "#8f3bb8", "#7b8794", "#c4a000",
)  # fmt: skip
_INK, _PALE, _GROUND, _EDGE, _LINES = "#24292e", "#6b7280", "#f4f5f5", "#dcdee2", "#eceef1"
_ACROSS, _COLUMN, _UNIT, _GAP, _HEAD = 1400, 58, 34, 8, 78
_DOTS: Final = 100


@dataclass(frozen=True, slots=True)
class Run:
    """What a picture shows.

    Attributes:
        start, end: epoch seconds; `start` is second 0.
        scrape_s: between two scrapes.
        note: a line under the title.
        variables: the dashboards' own, by name.
    """

    start: float
    end: float
    scrape_s: float
    note: str
    variables: Mapping[str, str]

    def steps(self, panel: Mapping[str, Any]) -> float:
        """Between two points of a panel, in seconds: five scrapes where it wants a longest resolution, else one."""
        return self.scrape_s * (5 if panel.get("interval") else 1)

    def filled(self, expr: str, step_s: float) -> str:
        """An expression with its variables filled in, Grafana's own too."""
        own = {
            "__rate_interval": f"{max(5 * self.scrape_s, step_s):g}s",
            "__interval": f"{step_s:g}s",
            "__range": f"{math.ceil(self.end - self.start)}s",
        }
        return fill(expr, {**self.variables, **own})


def fill(expr: str, values: Mapping[str, str]) -> str:
    """`$name` and `${name}` by their values. Raises: KeyError, a variable has none."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values[found[1] or found[2]], expr)


def named(legend: str, labels: Mapping[str, str]) -> str:
    """What Grafana calls a series: `{{label}}` by its value; labels that it has not leave nothing."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend).strip()


@dataclass(frozen=True, slots=True)
class Curve:
    """A series on the panel's own points in time: `values` shape (n,), NaN where there is none."""

    name: str
    values: Floats


def curves(panel: Mapping[str, Any], ask: Ask, run: Run) -> tuple[Floats, list[Curve]]:
    """Seconds of the run, shape (n,), and the series of all queries of a panel."""
    step = run.steps(panel)
    points = run.start + step * np.arange(int((run.end - run.start) / step) + 1)
    found = []
    for target in panel["targets"]:
        for labels, samples in ask(run.filled(target["expr"], step), float(points[0]), float(points[-1]), step):
            values = np.full(len(points), np.nan)
            for at, value in samples:
                values[round((at - run.start) / step)] = value
            found.append(Curve(named(target.get("legendFormat", ""), labels), values))
    seconds: Floats = np.asarray(points - run.start, dtype=np.float64)
    return seconds, found


def draw(board: Mapping[str, Any], ask: Ask, run: Run) -> Figure:
    """The whole dashboard as one figure."""
    panels = board["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    height = _HEAD + rows * _UNIT + 2 * _GAP
    with rc_context(_STYLE):
        figure = Figure(figsize=(_ACROSS / _DOTS, height / _DOTS), dpi=_DOTS, facecolor=_GROUND)
        sheet = Sheet(figure, height)
        sheet.text(_GAP * 2, 32, board["title"], size=16, weight="bold")
        sheet.text(_GAP * 2, 54, board["description"], colour=_PALE)
        sheet.text(_GAP * 2, 72, run.note, size=8, colour=_PALE)
        for panel in panels:
            place = panel["gridPos"]
            box = Box(
                _GAP + place["x"] * _COLUMN * (_ACROSS - 2 * _GAP) / (24 * _COLUMN),
                _HEAD + _GAP + place["y"] * _UNIT,
                place["w"] * (_ACROSS - 2 * _GAP) / 24 - _GAP,
                place["h"] * _UNIT - _GAP,
            )
            if panel["type"] == "row":
                sheet.text(box.x + 2, box.y + 19, panel["title"], size=11, weight="bold")
                continue
            sheet.card(box)
            sheet.text(box.x + 10, box.y + 18, _fitting(panel["title"], box.width - 16), size=9, weight="bold")
            {"stat": _stat, "timeseries": _lines, "heatmap": _heat}[panel["type"]](sheet, box, panel, ask, run)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure, as SVG whose text stays text or as PNG, by the name's ending."""
    with rc_context(_STYLE):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    if path.suffix == ".svg":  # a tenth of a point is enough for anybody, and the names of groups are for nobody
        drawn = re.sub(r"<(?:path|text|use|g|image|rect)\b[^>]*>", _shorter, path.read_text(encoding="utf-8"))
        drawn = re.sub(r' id="(?:line2d|patch|text|axes|xtick|ytick|matplotlib\.axis|FillBetween\w+)_\d+"', "", drawn)
        path.write_text(drawn, encoding="utf-8")


def _shorter(tag: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", tag[0])


@dataclass(frozen=True, slots=True)
class Box:
    """A place on the sheet, in pixels from the upper left."""

    x: float
    y: float
    width: float
    height: float


class Sheet:
    """The figure, addressed in pixels from the upper left."""

    def __init__(self, figure: Figure, height: int) -> None:
        self._figure = figure
        self._height = height
        self._under = figure.add_axes((0, 0, 1, 1))
        self._under.set_xlim(0, _ACROSS)
        self._under.set_ylim(height, 0)
        self._under.axis("off")

    def text(
        self, x: float, y: float, words: str, *, size: float = 9, weight: str = "normal", colour: str = _INK,
        side: str = "left",
    ) -> None:  # fmt: skip
        """Words with their base line at y."""
        self._under.text(x, y, words, fontsize=size, fontweight=weight, color=colour, ha=side, va="baseline")

    def card(self, box: Box) -> None:
        """The ground of a panel."""
        shape = "round,pad=0,rounding_size=3"
        corner = (box.x, box.y)
        self._under.add_patch(
            FancyBboxPatch(corner, box.width, box.height, boxstyle=shape, facecolor="white", edgecolor=_EDGE, lw=0.8)
        )

    def swatch(self, x: float, y: float, colour: str, *, dashed: bool = False) -> None:
        """A short line in a legend."""
        self._under.plot([x, x + 14], [y, y], color=colour, lw=3 if not dashed else 1.6, ls="--" if dashed else "-")

    def axes(self, box: Box) -> Axes:
        """Axes that fill a place."""
        place = (
            box.x / _ACROSS,
            1 - (box.y + box.height) / self._height,
            box.width / _ACROSS,
            box.height / self._height,
        )
        return self._figure.add_axes(place)


# ------------------------------------------------------------------------------------------------------- panels


def _stat(sheet: Sheet, box: Box, panel: Mapping[str, Any], ask: Ask, run: Run) -> None:
    seconds, found = curves(panel, ask, run)
    defaults = panel["fieldConfig"]["defaults"]
    with_names = panel["options"]["textMode"] == "value_and_name"
    shown = [(curve, values[-1]) for curve in found if len(values := curve.values[~np.isnan(curve.values)])]
    if not shown:
        sheet.text(box.x + box.width / 2, box.y + box.height * 0.62, "No data", size=13, colour=_PALE, side="center")
    for index, (curve, value) in enumerate(shown):
        words, colour = _worded(float(value), defaults)
        if with_names:
            y = box.y + 48 + index * 32
            sheet.text(box.x + 12, y, curve.name, size=9, colour=_PALE)
            sheet.text(box.x + box.width - 12, y + 2, words, size=14, weight="bold", colour=colour, side="right")
            continue
        size = 26 if len(words) < 8 else 20
        sheet.text(box.x + box.width / 2, box.y + box.height * 0.6, words, size=size, weight="bold", colour=colour,
                   side="center")  # fmt: skip
        if panel["options"]["graphMode"] == "area":
            axes = sheet.axes(Box(box.x + 2, box.y + box.height * 0.7, box.width - 4, box.height * 0.3 - 2))
            axes.axis("off")
            axes.set_xlim(seconds[0], seconds[-1])
            top = np.nanmax(curve.values)
            axes.set_ylim(min(0.0, float(np.nanmin(curve.values))), max(top * 1.1, 1e-9))
            axes.fill_between(seconds, 0, curve.values, color=colour, alpha=0.22, lw=0)
            axes.plot(seconds, curve.values, color=colour, lw=1)


def _worded(value: float, defaults: Mapping[str, Any]) -> tuple[str, str]:
    """The value as words and its colour, by mappings, then thresholds."""
    for mapping in defaults.get("mappings", ()):
        if known := mapping["options"].get(f"{value:g}"):
            return known["text"], _colour(known["color"])
    colour = defaults["thresholds"]["steps"][0]["color"]
    for step in defaults["thresholds"]["steps"][1:]:
        if value >= step["value"]:
            colour = step["color"]
    return told(value, defaults["unit"], defaults.get("decimals")), _colour(colour)


def _lines(sheet: Sheet, box: Box, panel: Mapping[str, Any], ask: Ask, run: Run) -> None:
    seconds, found = curves(panel, ask, run)
    defaults = panel["fieldConfig"]["defaults"]
    custom, changes = defaults["custom"], _changes(panel)
    entries = []
    palette = 0
    for curve in found:
        change = next((then for matches, then in changes if matches(curve.name)), {})
        if "color" in change:
            colour = _colour(change["color"]["fixedColor"])
        else:
            colour, palette = _PALETTE[palette % len(_PALETTE)], palette + 1
        entries.append((curve, colour, change.get("displayName", curve.name), "custom.lineStyle" in change))
    lines_of_legend = _legend(sheet, box, [(name, colour, dashed) for _, colour, name, dashed in entries])
    axes = sheet.axes(Box(box.x + 62, box.y + 30, box.width - 86, box.height - 62 - 16 * lines_of_legend))
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    top = _plot(axes, seconds, entries, custom, stacked=stacked)
    for step in defaults.get("thresholds", {}).get("steps", ())[1:]:
        axes.axhline(step["value"], color=_colour(step["color"]), lw=1.2, ls=(0, (6, 4)))
        top = max(top, step["value"] * 1.1) if top > step["value"] / 10 else top
    low = 0.0
    if defaults.get("max") is not None:
        top = defaults["max"] * 1.0005
        least = min((float(np.nanmin(c.values)) for c in found if not np.isnan(c.values).all()), default=0.0)
        low = max(0.0, math.floor((least - 0.02) * 20) / 20) if least > 0.5 else 0.0
    _frame(axes, seconds, low, top, defaults["unit"])
    if not found:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", color=_PALE, fontsize=11)


def _plot(
    axes: Axes,
    seconds: Floats,
    entries: Sequence[tuple[Curve, str, str, bool]],
    custom: Mapping[str, Any],
    *,
    stacked: bool,
) -> float:
    """Draws series; the highest value."""
    stepped, bars = custom.get("lineInterpolation") == "stepAfter", custom["drawStyle"] == "bars"
    base = np.zeros(len(seconds))
    top = 0.0
    for curve, colour, _, dashed in entries:
        values = curve.values
        if bars:
            heights = np.nan_to_num(values)
            axes.bar(seconds, heights, width=(seconds[1] - seconds[0]) * 0.8, bottom=base, color=colour, alpha=0.85)
            base = base + heights
        elif stacked and not np.nan_to_num(values).any():
            continue
        elif stacked:
            upper = base + np.nan_to_num(values)
            axes.fill_between(seconds, base, upper, color=colour, alpha=0.55, lw=0, step="post" if stepped else None)
            shown = np.where(np.isnan(values) | (np.nan_to_num(values) == 0), np.nan, upper)
            axes.plot(seconds, shown, color=colour, lw=1, drawstyle="steps-post" if stepped else "default")
            base = upper
        else:
            style = "steps-post" if stepped else "default"
            axes.plot(seconds, values, color=colour, lw=1.8, ls=(0, (5, 3)) if dashed else "-", drawstyle=style,
                      marker="o" if custom["showPoints"] == "always" else None, ms=4,
                      zorder=3 if dashed else 2)  # fmt: skip
            if not dashed and len(entries) <= 2:
                axes.fill_between(seconds, 0, values, color=colour, alpha=0.07, lw=0, step="post" if stepped else None)
            if not np.isnan(values).all():
                top = max(top, float(np.nanmax(values)))
    return max(top, float(base.max()) if len(base) else 0.0)


def _frame(axes: Axes, seconds: Floats, low: float, top: float, unit: str) -> None:
    ticks, words, high = axis(low, top, unit)
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, words)
    axes.set_xlim(seconds[0], seconds[-1])
    axes.grid(color=_LINES, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, colors=_PALE, length=0, pad=4)
    _seconds(axes)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _seconds(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")


def _heat(sheet: Sheet, box: Box, panel: Mapping[str, Any], ask: Ask, run: Run) -> None:
    seconds, found = curves(panel, ask, run)
    rows = sorted(((float(curve.name), curve.values) for curve in found), key=lambda row: row[0])
    counts = np.diff(np.nan_to_num([np.zeros(len(seconds)), *(values for _, values in rows)]), axis=0)
    used = np.flatnonzero(counts.max(axis=1) > 0) if len(rows) else np.array([], dtype=np.int64)
    axes = sheet.axes(Box(box.x + 62, box.y + 30, box.width - 86, box.height - 82))
    if not len(used):
        axes.axis("off")
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", color=_PALE, fontsize=11)
        return
    first, last = max(0, used[0] - 1), min(len(rows), used[-1] + 2)
    cells = np.ma.masked_less_equal(np.clip(counts[first:last], 0, None), 1e-9)
    bounds = [bound for bound, _ in rows[first:last]]
    half = (seconds[1] - seconds[0]) / 2
    extent = (float(seconds[0] - half), float(seconds[-1] + half), 0.0, float(len(bounds)))
    top = float(cells.max())
    axes.imshow(cells, origin="lower", aspect="auto", extent=extent, cmap="YlOrRd", interpolation="nearest", vmin=0,
                vmax=top)  # fmt: skip
    axes.set_yticks(
        np.arange(len(bounds)) + 1,
        [f"\u2264 {told(bound, 's')}" if math.isfinite(bound) else "longer" for bound in bounds],
        va="top",
    )
    axes.set_xlim(seconds[0], seconds[-1])
    axes.tick_params(labelsize=7.5, colors=_PALE, length=0, pad=4)
    axes.grid(axis="y", color=_LINES, lw=0.8)
    _seconds(axes)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    scale = sheet.axes(Box(box.x + 62, box.y + box.height - 22, 90, 8))
    scale.imshow(np.linspace(0, 1, 64).reshape(1, -1), aspect="auto", cmap="YlOrRd")
    scale.axis("off")
    sheet.text(box.x + 158, box.y + box.height - 14, f"up to {told(top, 'ops')}", size=7.5, colour=_PALE)


def _legend(sheet: Sheet, box: Box, entries: Sequence[tuple[str, str, bool]]) -> int:
    """Swatches and names at the foot of a panel; how many lines they take."""
    lines: list[list[tuple[str, str, bool, float]]] = [[]]
    x = 12.0
    for name, colour, dashed in entries:
        width = 28 + 5.7 * len(name)
        if x + width > box.width - 4 and lines[-1]:
            lines.append([])
            x = 12.0
        lines[-1].append((name, colour, dashed, x))
        x += width + 6
    for number, line in enumerate(lines):
        y = box.y + box.height - 10 - 16 * (len(lines) - 1 - number)
        for name, colour, dashed, at in line:
            sheet.swatch(box.x + at, y - 3.5, colour, dashed=dashed)
            sheet.text(box.x + at + 20, y, name, size=7.5)
    return len(lines)


def _changes(panel: Mapping[str, Any]) -> list[tuple[Callable[[str], object], dict[str, Any]]]:
    """Of a panel's overrides: whether a series of this name is meant, and property -> value."""
    found: list[tuple[Callable[[str], object], dict[str, Any]]] = []
    for change in panel["fieldConfig"]["overrides"]:
        wanted = change["matcher"]["options"]
        pattern = wanted.strip("/") if change["matcher"]["id"] == "byRegexp" else f"^{re.escape(wanted)}$"
        found.append((re.compile(pattern).search, {entry["id"]: entry["value"] for entry in change["properties"]}))
    return found


def _colour(name: str) -> str:
    return _NAMED.get(name, name)


def _fitting(words: str, width: float) -> str:
    most = int(width / 6.6)
    return words if len(words) <= most else words[: most - 1] + "\u2026"

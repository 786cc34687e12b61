"""The kinds of panel that the dashboards use. Each has a unit, and a description: what to look for and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.queries import Query, of

NONE: Final = r"/^\s*none\s*$/"
"""What `queries.or_none` calls its series, in Grafana's way to write a pattern."""
BAR: Final = "1m"
"""A bar is at least so long: a window that is shorter than some scrapes counts nothing."""
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "#EAB839", "orange", "red", "blue", "#8e8e8e"
SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

Steps = Sequence[tuple[float | None, str]]
"""Thresholds: (from this value on, colour); the first from None."""
GOOD_BELOW_1: Final[Steps] = ((None, GREEN), (1, RED))
WARN_FROM_1: Final[Steps] = ((None, GREEN), (1, YELLOW))
PLAIN: Final[Steps] = ((None, BLUE),)


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel and its width in columns."""

    made: stat.Panel | timeseries.Panel | heatmap.Panel
    width: int


def number(
    width: int,
    title: str,
    description: str,
    expr: str,
    *,
    legend: str = "",
    unit: str = "short",
    steps: Steps = PLAIN,
    words: Mapping[str, tuple[str, str]] | None = None,
    decimals: int | None = None,
    runbook: str = "",
) -> Panel:
    """One big number, or one per series if `legend` names them.

    Args:
        words: value -> (what is shown in its place, colour).
    """
    panel = (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(look.BigValueGraphMode.NONE if words else look.BigValueGraphMode.AREA)
        .color_mode(look.BigValueColorMode.VALUE)
        .text_mode(look.BigValueTextMode.VALUE_AND_NAME if legend else look.BigValueTextMode.VALUE)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(steps))
    )
    if words:
        shown = {value: model.ValueMappingResult(text=text, color=colour) for value, (text, colour) in words.items()}
        panel.mappings([model.ValueMap(options=shown)])
    if decimals is not None:
        panel.decimals(decimals)
    _dress(panel, title, description, [Query(expr, legend)], runbook)
    return Panel(panel.unit(unit), width)


def lines(
    width: int,
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str = "short",
    stacked: bool = False,
    stepped: bool = False,
    bars: bool = False,
    sparse: bool = False,
    limit: tuple[float, str] | None = None,
    names: Mapping[str, str] | None = None,
    colours: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    highest: float | None = None,
    runbook: str = "",
) -> Panel:
    """Series over time.

    Args:
        bars, sparse: a bar or a dot for a minute or more, of what happens now and then.
        limit: (value, colour) of a dashed line: from there on it is not as it should be.
        names: legend -> what is shown in its place.
        colours: legend (before `names`) -> colour.
        dashed: legends (before `names`) of lines that are a bound or a wish and no measurement.
        highest: the top of the axis, if it is fixed.
    """
    panel = (
        timeseries.Panel()
        .draw_style(look.GraphDrawStyle.BARS if bars else look.GraphDrawStyle.LINE)
        .line_width(1 if stacked or bars else 2)
        .fill_opacity(70 if bars else 35 if stacked else 8)
        .line_interpolation(look.LineInterpolation.STEP_AFTER if stepped else look.LineInterpolation.LINEAR)
        .show_points(look.VisibilityMode.ALWAYS if sparse else look.VisibilityMode.NEVER)
        .point_size(8 if sparse else 5)
        .min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(look.LegendDisplayMode.LIST)
            .placement(look.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
    )
    if bars or sparse:
        panel.interval(BAR)
    if stacked or bars:
        panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    if highest is not None:
        panel.max(highest)
    if limit is not None:
        value, colour = limit
        panel.thresholds(_thresholds(((None, "transparent"), (value, colour))))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(look.GraphTresholdsStyleMode.DASHED))
    changes: dict[str, list[model.DynamicConfigValue]] = {}
    for legend, colour in (colours or {}).items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        changes.setdefault(legend, []).append(model.DynamicConfigValue(id_val="color", value=fixed))
    for legend in dashed:
        dashes = {"fill": "dash", "dash": [6, 4]}
        changes.setdefault(legend, []).append(model.DynamicConfigValue(id_val="custom.lineStyle", value=dashes))
        changes[legend].append(model.DynamicConfigValue(id_val="custom.fillOpacity", value=0))
    for legend, name in (names or {}).items():
        changes.setdefault(legend, []).append(model.DynamicConfigValue(id_val="displayName", value=name))
    for legend, properties in changes.items():
        panel.override_by_name(legend, properties)
    if any("label_replace" in query.expr for query in queries):  # `queries.or_none`
        grey = {"mode": "fixed", "fixedColor": GREY}
        panel.override_by_regexp(NONE, [model.DynamicConfigValue(id_val="color", value=grey)])
    _dress(panel, title, description, queries, runbook)
    return Panel(panel.unit(unit), width)


def heat(width: int, title: str, description: str, name: str, *, runbook: str = "") -> Panel:
    """How many per second fell into each bucket of a histogram of seconds, over time."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(look.AxisPlacement.LEFT))
        .cell_gap(1)
        .show_legend()
        .show_tooltip()
        .filter_values(heatmap.FilterValueRange().le(1e-9))
    )
    expr = f"sum by (le) (rate({of(name + '_bucket')}[$__rate_interval]))"
    _dress(panel, title, description, [Query(expr, "{{le}}")], runbook, form=PromQueryFormat.HEATMAP)
    return Panel(panel.unit("ops"), width)


def _dress(
    panel: stat.Panel | timeseries.Panel | heatmap.Panel,
    title: str,
    description: str,
    queries: Sequence[Query],
    runbook: str,
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> None:
    panel.title(title).description(description).datasource(SOURCE)
    for letter, query in zip("ABCDEFGHIJ", queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        panel.with_target(target.range().format(form).datasource(SOURCE))
    if runbook:
        link = dashboard.DashboardLink(f"Runbook: {runbook}").type(model.DashboardLinkType.LINK)
        panel.links([link.url(f"${{runbooks}}/{runbook}.md").target_blank(True)])


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=colour) for value, colour in steps])
    )

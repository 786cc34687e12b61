"""A dashboard as rows of panels, and the same in Grafana's own form: a grid without gaps, variables, links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model

from deploy.grafana.panels import SOURCE, Panel

WIDTH: Final = 24
"""Columns of Grafana's grid."""
TAG: Final = "vpp-dispatch"
WORKER_REGEX: Final = '/instance="(?<value>[^"]+)"(?:.*pod="(?<text>[^"]+)")?/'
"""Grafana's own way to choose by one label and show another: the pod's name where there is one."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of panels under a title of its own (empty: they go on under the last one); widths add up to 24."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard. `since`: how far back it looks when it is opened; `refresh`: how often it reads anew."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    since: str
    refresh: str
    variables: Sequence[Builder[model.VariableModel]] = ()


def build(board: Board, others: Sequence[Board], runbooks: str) -> model.Dashboard:
    """Grafana's own form of a dashboard.

    Args:
        others: the boards it links to.
        runbooks: where the runbooks can be read, without a slash at the end.

    Raises:
        ValueError: a row does not fill the grid.
    """
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .time(f"now-{board.since}", "now")
        .refresh(board.refresh)
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
        .version(1)
        .variables([*_variables(runbooks), *board.variables])
        .links([_link(other.title, f"/d/{other.uid}") for other in others])
    )
    y = number_of = 0
    for row in board.rows:
        if sum(panel.width for panel in row.panels) != WIDTH:
            raise ValueError(f"{board.title}, {row.title}: widths add up to {sum(p.width for p in row.panels)}")
        if row.title:
            number_of += 1
            made.with_row(dashboard.Row(row.title).id(number_of).grid_pos(model.GridPos(h=1, w=WIDTH, x=0, y=y)))
            y += 1
        x = 0
        for panel in row.panels:
            number_of += 1
            made.with_panel(panel.made.id(number_of).grid_pos(model.GridPos(h=row.height, w=panel.width, x=x, y=y)))
            x += panel.width
        y += row.height
    return made.build()


def _link(title: str, url: str) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(title)
        .type(model.DashboardLinkType.LINK)
        .icon("dashboard")
        .url(url)
        .keep_time(True)
        .include_vars(True)
    )


def _variables(runbooks: str) -> list[Builder[model.VariableModel]]:
    """Where from, which installation, which workers. Workers that are gone but lived in the range can be chosen too."""
    return [
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        dashboard.QueryVariable("job")
        .label("Job")
        .datasource(SOURCE)
        .query("label_values(vpp_dispatch_owned_shards, job)")
        .current(model.VariableOption(text="vpp-dispatch", value="vpp-dispatch"))
        .refresh(model.VariableRefresh.ON_DASHBOARD_LOAD),
        dashboard.QueryVariable("worker")
        .label("Worker")
        .datasource(SOURCE)
        .query('query_result(last_over_time(vpp_dispatch_owned_shards{job="$job"}[$__range]))')
        .regex(WORKER_REGEX)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(text=["All"], value=["$__all"]))
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED),
        dashboard.ConstantVariable("runbooks").label("Runbooks").value(runbooks),
    ]

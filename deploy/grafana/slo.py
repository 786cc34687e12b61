"""SLOs and error budget: what is promised, how much of the room for failure is left, how fast it goes.

Objectives and error ratios are recorded by deploy/prometheus/slo.rules.yaml, once for dashboards and alerts alike.
"""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import Board, Row
from deploy.grafana.panels import BLUE, GREEN, ORANGE, RED, YELLOW, Panel, lines, number
from deploy.grafana.queries import Query, or_none, or_zero, pace, quantiles, worst

WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
SLOS: Final = {
    "results": "Commands that ended in success, of all that were answered or given up; offline devices do not count",
    "publish_latency": "Commands that GoodWe's cluster acknowledged within 2 s of being given to it",
    "release": "Time in which a worker was there and at most 1 % of the fleet stood past its window for 15 minutes",
}
RUNBOOKS: Final = {
    "results": "VppDispatchSloResults",
    "publish_latency": "VppDispatchSloPublishLatency",
    "release": "VppDispatchSloRelease",
}
_TITLES: Final = {"results": "Results", "publish_latency": "Publish latency", "release": "Release"}


def _errors(window: str, slo: str) -> str:
    return f'vpp_dispatch:slo_errors:ratio_rate{window}{{slo="{slo}"}}'


def _room(slo: str) -> str:
    return f'(1 - vpp_dispatch:slo_objective{{slo="{slo}"}})'


def _left(slo: str, what: str) -> Panel:
    return number(
        4,
        f"{_TITLES[slo]}: budget left",
        f"{what}. Error budget that is left of the last 30 days: 100 % = nothing went wrong, 0 = as much as is "
        "allowed. Below a quarter: no risky roll-outs. Below 0: the objective is missed; reliability goes first.",
        f"1 - {_errors('30d', slo)} / on (slo) {_room(slo)}",
        unit="percentunit",
        decimals=1,
        steps=((None, RED), (0, ORANGE), (0.25, YELLOW), (0.5, GREEN)),
        runbook=RUNBOOKS[slo],
    )


def _objective(slo: str, what: str) -> Panel:
    return number(
        4,
        f"{_TITLES[slo]}: objective",
        f"{what}. The share that is promised over 30 days; docs/slo.md says why.",
        f'vpp_dispatch:slo_objective{{slo="{slo}"}}',
        unit="percentunit",
        decimals=1,
    )


def _burn(slo: str) -> Panel:
    return lines(
        8,
        f"{_TITLES[slo]}: burn rate",
        "How many times faster than allowed the budget goes, by the window it is measured over: 1 uses it up in "
        "exactly 30 days, 14.4 (dashed) in two. A page needs a short and a long window above it. A short one alone is "
        "over already.",
        [Query(f"{_errors(window, slo)} / on (slo) {_room(slo)}", window) for window in WINDOWS],
        unit="none",
        limit=(14.4, RED),
        runbook=RUNBOOKS[slo],
    )


def _level(slo: str) -> Panel:
    return lines(
        8,
        f"{_TITLES[slo]}: share that was good",
        f"{SLOS[slo]}, over 5 minutes and an hour, against the objective (dashed). Below the dashed line budget is "
        "spent.",
        [
            Query(f"1 - {_errors('5m', slo)}", "5 m"),
            Query(f"1 - {_errors('1h', slo)}", "1 h"),
            Query(f'vpp_dispatch:slo_objective{{slo="{slo}"}}', "objective"),
        ],
        unit="percentunit",
        highest=1,
        colours={"5 m": BLUE, "1 h": "#b877d9", "objective": RED},
        dashed=("objective",),
        runbook=RUNBOOKS[slo],
    )


SLO: Final = Board(
    uid="vpp-dispatch-slo",
    title="VPP dispatch: SLOs and error budget",
    description="What is promised, how much of the room for failure is left, how fast it goes, and what spends it.",
    since="24h",
    refresh="1m",
    rows=(
        Row(
            "Error budget of 30 days",
            tuple(panel for slo, what in SLOS.items() for panel in (_left(slo, what), _objective(slo, what))),
            height=4,
        ),
        Row("How fast it goes", tuple(_burn(slo) for slo in SLOS)),
        Row("What was promised", tuple(_level(slo) for slo in SLOS)),
        Row(
            "What spends it",
            (
                lines(
                    8,
                    "Results that are no success",
                    "Per second, by what GoodWe's code means. The largest is where to look first: Command path.",
                    [
                        Query(or_none(pace("results", "code", 'code!~"success|offline"'), "code"), "{{code}}"),
                        Query(or_zero(pace("outcome_rows", "", 'state="unconfirmed"')), "no answer (unconfirmed)"),
                    ],
                    unit="ops",
                    stacked=True,
                    runbook="VppDispatchResultsFailing",
                ),
                lines(
                    8,
                    "Publish latency",
                    "From giving a batch to GoodWe's cluster to its acknowledgement; above 2 s is bad. All together: "
                    "their cluster or the way to it. Empty without commands.",
                    quantiles("publish_latency_seconds"),
                    unit="s",
                    colours={"half within": GREEN, "95 % within": YELLOW, "99 % within": RED},
                    runbook="VppDispatchPublishSlow",
                ),
                lines(
                    8,
                    "Oldest release owed",
                    "Time spends this budget while a release is owed for too long: Live dispatch shows which ones.",
                    [Query(worst("oldest_debt_seconds"), "oldest debt")],
                    unit="s",
                    colours={"oldest debt": ORANGE},
                    runbook="VppDispatchDebtOld",
                ),
            ),
        ),
    ),
)

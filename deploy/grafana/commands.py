"""Command path: from work that is due to the result that confirms it."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import Board, Row
from deploy.grafana.panels import BLUE, GOOD_BELOW_1, GREEN, ORANGE, RED, YELLOW, heat, lines, number
from deploy.grafana.queries import Query, grown, of, or_none, or_zero, pace, quantiles, total, worst

_RESULTS: Final = {
    "success": GREEN,
    "offline": "#8e8e8e",
    "unauthorized": "#b877d9",
    "busy": YELLOW,
    "value": RED,
    "unsupported": "#ff7383",
    "failed": ORANGE,
    "partial": "#fade2a",
    "unknown_code": "#b0a0ff",
}
_SUCCESS, _ANSWERED = 'code="success"', 'code!="offline"'
_SPEED: Final = {"half within": GREEN, "95 % within": YELLOW, "99 % within": RED}

COMMANDS: Final = Board(
    uid="vpp-dispatch-commands",
    title="VPP dispatch: command path",
    description="From work that is due, over GoodWe's cluster and the inverter, to the result that confirms it.",
    since="1h",
    refresh="15s",
    rows=(
        Row(
            "Do commands get through?",
            (
                number(
                    4,
                    "GoodWe's cluster",
                    "The worst over the workers. Away: nothing is published; holds latch as they are, releases are "
                    "kept and go out when it is back.",
                    f"min({of('link_reachable')})",
                    words={"0": ("AWAY", RED), "1": ("reachable", GREEN)},
                    runbook="VppDispatchGoodweUnreachable",
                ),
                number(
                    4,
                    "Silence",
                    "Longest time that a worker waits with something unanswered and nothing at all coming back (R41). "
                    "Above GOODWE__RESULT_TIMEOUT_S only probes are sent: GoodWe or the inverters' connection is away.",
                    worst("silence_seconds"),
                    unit="s",
                    steps=((None, GREEN), (60, YELLOW), (300, RED)),
                    runbook="VppDispatchGoodweSilent",
                ),
                number(
                    4,
                    "Due",
                    "Work that is due and not published yet. A peak at the start of an event is normal and falls at "
                    "the rate of the link. Standing still above 0: no slot is free (in flight) or nothing may be "
                    "published.",
                    total("commands_due"),
                ),
                number(
                    4,
                    "In flight",
                    "Commands without a result and without a timeout yet. Bounded by GOODWE__MAX_IN_FLIGHT; at the "
                    "bound, GoodWe's answers set the pace.",
                    total("commands_in_flight"),
                ),
                number(
                    4,
                    "Results that are success",
                    "Of the results just now, without those of devices that are offline. busy is retried inside the "
                    "window; the rest are refusals: see results by code. Empty while no result comes.",
                    f"({or_zero(pace('results', matchers=_SUCCESS))}) / ({pace('results', matchers=_ANSWERED)} > 0)",
                    unit="percentunit",
                    decimals=1,
                    steps=((None, RED), (0.9, YELLOW), (0.99, GREEN)),
                    runbook="VppDispatchResultsFailing",
                ),
                number(
                    4,
                    "Batches unknown",
                    "Batches in this range of time that GoodWe's cluster did not acknowledge: published, and nobody "
                    "knows. They equal nothing and are sent again (R21). Above 0: look at GoodWe's cluster.",
                    grown("publish_failures", window="$__range"),
                    steps=GOOD_BELOW_1,
                    decimals=0,
                    runbook="VppDispatchBatchesUnknown",
                ),
            ),
            height=4,
        ),
        Row(
            "Latency",
            (
                heat(
                    8,
                    "Given to GoodWe's cluster until acknowledged",
                    "Commands per second by how long their batch took. Waiting for a slot or the pace is not in it: "
                    "that is due. A band that moves up: GoodWe's cluster is slow to acknowledge, or the way to it.",
                    "publish_latency_seconds",
                    runbook="VppDispatchPublishSlow",
                ),
                lines(
                    4,
                    "Publish latency",
                    "The same as quantiles, in seconds. Above 2 s it spends the error budget. Empty without commands.",
                    quantiles("publish_latency_seconds"),
                    unit="s",
                    colours=_SPEED,
                    runbook="VppDispatchPublishSlow",
                ),
                heat(
                    8,
                    "Acknowledged until the result",
                    "Setpoints per second by how long GoodWe and the inverter took, without releases and queries. "
                    "Two bands are two ways through GoodWe's cloud, or inverters that are slow to answer. At 300 s a "
                    "command times out by default.",
                    "result_latency_seconds",
                    runbook="VppDispatchResultsSlow",
                ),
                lines(
                    4,
                    "Result latency",
                    "The same as quantiles. Near GOODWE__RESULT_TIMEOUT_S commands are sent again needlessly. Empty "
                    "without results of setpoints.",
                    quantiles("result_latency_seconds"),
                    unit="s",
                    colours=_SPEED,
                    runbook="VppDispatchResultsSlow",
                ),
            ),
        ),
        Row(
            "Out and back",
            (
                lines(
                    8,
                    "Commands published",
                    "By role of the topic and purpose. Releases follow sets when events end; queries read defaults and "
                    "read back. Sets while no event runs are assertions after doubt.",
                    [Query(or_none(pace("commands_published", "role, purpose"), "purpose"), "{{purpose}} {{role}}")],
                    unit="ops",
                    stacked=True,
                ),
                lines(
                    8,
                    "Results by code",
                    "What GoodWe's code means. unauthorized: consent was withdrawn between our reading and theirs. "
                    "value and unsupported: the registry or the profile is wrong about the device. busy: GoodWe asks "
                    "for less.",
                    [Query(or_none(pace("results", "code"), "code"), "{{code}}")],
                    unit="ops",
                    stacked=True,
                    colours=_RESULTS,
                    runbook="VppDispatchResultsFailing",
                ),
                lines(
                    8,
                    "Due and in flight",
                    "Due falls as slots come free. Due high and in flight low: the pace (GOODWE__MAX_PER_S) or a lost "
                    "lease holds back. In flight high and flat: answers are missing.",
                    [
                        Query(total("commands_due"), "due"),
                        Query(total("commands_in_flight"), "in flight"),
                    ],
                    colours={"due": ORANGE, "in flight": BLUE},
                ),
            ),
        ),
        Row(
            "What does not fit",
            (
                lines(
                    6,
                    "Retries",
                    "Second and later attempts in each bar. They follow offline, busy and timeouts; many at "
                    "once mean one of these for many devices.",
                    [Query(grown("commands_retried"), "retried")],
                    bars=True,
                    colours={"retried": ORANGE},
                ),
                lines(
                    6,
                    "Results without a match",
                    "Orphan: of no command of ours; kept as a dead letter. Duplicate: had come before. Late: of an "
                    "older attempt or setpoint. Orphans that grow: somebody else commands the fleet, or correlation is "
                    "broken.",
                    [
                        Query(grown("results_orphan"), "orphan"),
                        Query(grown("results_duplicate"), "duplicate"),
                        Query(grown("results_late"), "late"),
                    ],
                    bars=True,
                    colours={"orphan": RED, "duplicate": BLUE, "late": YELLOW},
                    runbook="VppDispatchDeadLetters",
                ),
                lines(
                    6,
                    "Batches to GoodWe's cluster",
                    "acknowledged, or unknown: the cluster did not say, so the commands count as unknown and are sent "
                    "again. Any unknown: look at GoodWe's cluster and the network.",
                    [Query(or_none(pace("link_batches", "outcome"), "outcome"), "{{outcome}}")],
                    unit="ops",
                    stacked=True,
                    colours={"acknowledged": GREEN, "unknown": RED},
                    runbook="VppDispatchBatchesUnknown",
                ),
                lines(
                    6,
                    "Silence by worker",
                    "Time since anything came back while something is unanswered. One worker alone: its consumer or "
                    "its network. All: GoodWe.",
                    [Query(f"max by (pod, instance) ({of('silence_seconds')})", "{{pod}} {{instance}}")],
                    unit="s",
                    runbook="VppDispatchGoodweSilent",
                ),
            ),
        ),
    ),
)

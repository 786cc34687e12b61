"""Fleet and authorization: whom the service may command, and how fresh what it knows is."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.boards import Board, Row
from deploy.grafana.panels import BLUE, GREEN, ORANGE, RED, YELLOW, lines, number
from deploy.grafana.queries import Query, grown, of, or_none, or_zero, pace, total, worst

_OUTCOMES: Final = {
    "ok": GREEN,
    "rate_limited": YELLOW,
    "unauthorized": RED,
    "external_fault": ORANGE,
    "not_reachable": "#c4162a",
    "cut_off": "#8e8e8e",
}

_OK, _OPEN, _PROBING = 'outcome="ok"', 'state="open"', 'state="probing"'

FLEET: Final = Board(
    uid="vpp-dispatch-fleet",
    title="VPP dispatch: fleet and authorization",
    description="Registry and consent, the two keys to every device, and the Real-Time Data API that tells facts.",
    since="6h",
    refresh="30s",
    variables=(
        dashboard.TextBoxVariable("consent_max_age_s").label("FLEET__CONSENT_MAX_AGE_S").default_value("3600"),
        dashboard.TextBoxVariable("telemetry_max_age_s").label("FLEET__TELEMETRY_MAX_AGE_S").default_value("900"),
    ),
    rows=(
        Row(
            "May we command the fleet?",
            (
                number(
                    4,
                    "Registered",
                    "Devices in the registry, over all workers. A drop that nobody ordered: look at registry records; "
                    "tombstones take devices out.",
                    total("devices_registered"),
                ),
                number(
                    4,
                    "Authorized",
                    "Registered devices whose owner's consent is current (R16). Only these can be set; 0 with devices "
                    "registered means that consent was never read.",
                    total("devices_authorized"),
                ),
                number(
                    4,
                    "Share authorized",
                    "Authorized of registered. Changes by single owners are normal; a step down is an account or a "
                    "list that was read short.",
                    f"{total('devices_authorized')} / ({total('devices_registered')} > 0)",
                    unit="percentunit",
                    decimals=1,
                    steps=((None, RED), (0.5, YELLOW), (0.9, GREEN)),
                ),
                number(
                    4,
                    "Age of consent",
                    "Of the oldest list of authorized SNs that a worker goes by. Above FLEET__CONSENT_MAX_AGE_S "
                    "nothing new starts (consent_stale); events that run go on.",
                    worst("consent_age_seconds"),
                    unit="s",
                    steps=((None, GREEN), (1800, YELLOW), (3600, RED)),
                    runbook="VppDispatchConsentStale",
                ),
                number(
                    4,
                    "Circuit to the API",
                    "The worst over the workers. open: five calls in a row failed, and none is made for 30 s; facts "
                    "grow old meanwhile. Look at calls by outcome for the reason.",
                    f"{worst('realtime_circuit', matchers=_OPEN)} * 2 + {worst('realtime_circuit', matchers=_PROBING)}",
                    words={
                        "0": ("closed", GREEN),
                        "1": ("probing", YELLOW),
                        "2": ("OPEN", RED),
                        "3": ("OPEN", RED),
                    },
                    runbook="VppDispatchRealtimeCircuitOpen",
                ),
                number(
                    4,
                    "Calls answered",
                    "Share of calls of the Real-Time Data API that were answered. Below 1: calls by outcome says "
                    "whether it is the rate, the account or the network. Empty while no call is made.",
                    f"({or_zero(pace('realtime_calls', matchers=_OK))}) / ({pace('realtime_calls')} > 0)",
                    unit="percentunit",
                    decimals=1,
                    steps=((None, RED), (0.9, YELLOW), (0.99, GREEN)),
                    runbook="VppDispatchRealtimeRefused",
                ),
            ),
            height=4,
        ),
        Row(
            "Fleet",
            (
                lines(
                    8,
                    "Registered and authorized",
                    "The gap are owners without current consent. Both fall together while shards move between workers "
                    "and come back within a minute.",
                    [
                        Query(total("devices_registered"), "registered"),
                        Query(total("devices_authorized"), "authorized"),
                    ],
                    stepped=True,
                    colours={"registered": BLUE, "authorized": GREEN},
                ),
                lines(
                    8,
                    "Registry records",
                    "Registry records read, tombstones among them, in each bar. A burst is an import, or a "
                    "worker that reads the registry from its beginning after it took over.",
                    [Query(grown("registry_records"), "records")],
                    bars=True,
                ),
                lines(
                    8,
                    "Actuators made suspect",
                    "A late answer to an older setpoint made it uncertain what stands on the device; the newest value "
                    "is asserted again (R22). A few under load are normal; many mean that GoodWe answers later than "
                    "the result timeout.",
                    [Query(grown("suspect"), "suspect")],
                    bars=True,
                    colours={"suspect": ORANGE},
                ),
            ),
        ),
        Row(
            "Age of what is known",
            (
                lines(
                    12,
                    "Age of consent",
                    "Measured: the oldest list that a worker goes by. Possible: as old as it gets without any fault, "
                    "by the API's rate and the size of the fleet. Measured above possible is a fault; possible above "
                    "the limit is a limit that cannot be kept: raise it, or the rate. 0 possible = not known yet.",
                    [
                        Query(worst("consent_age_seconds"), "measured"),
                        Query(worst("consent_age_possible_seconds"), "possible"),
                        Query("vector($consent_max_age_s)", "limit"),
                    ],
                    unit="s",
                    colours={"measured": BLUE, "possible": "#8e8e8e", "limit": RED},
                    dashed=("possible", "limit"),
                    runbook="VppDispatchConsentStale",
                ),
                lines(
                    12,
                    "Age of telemetry",
                    "Of the device whose telemetry is oldest. Above the limit a sample proves nothing (R18), and "
                    "measured power is that old too. Possible is absent where no telemetry is read at all.",
                    [
                        Query(worst("telemetry_age_seconds"), "measured"),
                        Query(f"{worst('telemetry_age_possible_seconds')} < +Inf", "possible"),
                        Query("vector($telemetry_max_age_s)", "limit"),
                    ],
                    unit="s",
                    colours={"measured": BLUE, "possible": "#8e8e8e", "limit": RED},
                    dashed=("possible", "limit"),
                    runbook="VppDispatchTelemetryStale",
                ),
            ),
        ),
        Row(
            "Real-Time Data API",
            (
                lines(
                    8,
                    "Calls by outcome",
                    "rate_limited: we ask faster than GoodWe allows; lower GOODWE__REALTIME__MAX_CALLS_PER_S. "
                    "unauthorized: account or password. not_reachable and external_fault: their side or the network "
                    "between.",
                    [Query(or_none(pace("realtime_calls", "outcome"), "outcome"), "{{outcome}}")],
                    unit="ops",
                    stacked=True,
                    colours=_OUTCOMES,
                    runbook="VppDispatchRealtimeRefused",
                ),
                lines(
                    8,
                    "Calls by interface",
                    "authorized reads consent, operation reads telemetry. An interface that stopped is a fact that "
                    "grows old.",
                    [Query(or_none(pace("realtime_calls", "interface"), "interface"), "{{interface}}")],
                    unit="ops",
                ),
                lines(
                    8,
                    "Circuit by state",
                    "Workers whose circuit is open or probing. Only one that synchronises makes calls.",
                    [
                        Query(f"sum by (state) ({of('realtime_circuit')})", "{{state}}"),
                    ],
                    stepped=True,
                    stacked=True,
                    colours={"closed": GREEN, "probing": YELLOW, "open": RED},
                    runbook="VppDispatchRealtimeCircuitOpen",
                ),
            ),
        ),
    ),
)

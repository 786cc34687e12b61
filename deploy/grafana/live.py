"""Live dispatch: what is asked, what is set, what is owed, what the operators were told."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import Board, Row
from deploy.grafana.panels import (
    BLUE,
    GOOD_BELOW_1,
    GREEN,
    GREY,
    ORANGE,
    PLAIN,
    RED,
    WARN_FROM_1,
    YELLOW,
    Panel,
    lines,
    number,
)
from deploy.grafana.queries import Query, grown, of, or_none, or_zero, pace, total, worst

STATES: Final = {
    "skipped": GREY,
    "unused": "#c7c7c7",
    "pending": "#b7dbff",
    "published": "#5794f2",
    "accepted": "#1f60c4",
    "applied": "#73bf69",
    "verified": "#37872d",
    "rejected": RED,
    "unconfirmed": ORANGE,
}
"""Of a device in an event (R24): grey = not asked, blue = on the way, green = set, red and orange = not."""
CODES: Final = {
    "1": "1 received",
    "2": "2 started",
    "3": "3 completed",
    "6": "6 cancelled",
    "7": "7 superseded",
    "8": "8 completed_partially",
    "10": "10 no_participation",
    "252": "252 not_applicable",
    "253": "253 invalid",
    "254": "254 expired",
}
_CODE_COLOURS: Final = {
    "1": "#8ab8ff",
    "2": BLUE,
    "3": GREEN,
    "6": "#b877d9",
    "7": "#8e8e8e",
    "8": YELLOW,
    "10": ORANGE,
    "252": "#ffa6b0",
    "253": RED,
    "254": "#c4162a",
}
_KINDS: Final = {"requested": "text", "allocated": BLUE, "acknowledged": "#b877d9", "measured": GREEN}


def _power(width: int, title: str, control: str, words: str) -> Panel:
    return lines(
        width,
        title,
        f"{words} Requested: of all targeted devices. Allocated: of those that hold. Acknowledged: GoodWe says they "
        "are set. Measured: by their telemetry, as old as that is. A gap between requested and allocated is devices "
        "that were skipped (see devices by state); between allocated and acknowledged, commands on the way or refused "
        "(see Command path); between acknowledged and measured for longer than telemetry is old, inverters that do not "
        "do as they say.",
        [Query(total("power_watts", "kind", f'control="{control}"'), "{{kind}}")],
        unit="watt",
        colours=_KINDS,
        dashed=("requested",),
    )


LIVE: Final = Board(
    uid="vpp-dispatch-live",
    title="VPP dispatch: live dispatch",
    description="What grid operators asked for, what stands on the inverters, and what is still owed to them.",
    since="1h",
    refresh="15s",
    rows=(
        Row(
            "Is anything set that should not be?",
            (
                number(
                    3,
                    "Events running",
                    "Events that are active or ending. 0 with devices held means that releases are still owed.",
                    total("events", matchers='state=~"active|ending"'),
                ),
                number(
                    3,
                    "Actuators held",
                    "Actuators of devices that an event holds now. Must go to 0 when no event runs.",
                    total("held_devices"),
                ),
                number(
                    3,
                    "Held past window",
                    "Devices that are set although no event holds them any more. It rises when an event ends and must "
                    "fall again within minutes. If it stands still, somebody's inverter goes on as it was told: see "
                    "debts.",
                    total("held_past_window_devices"),
                    steps=WARN_FROM_1,
                    runbook="VppDispatchHeldPastWindow",
                ),
                number(
                    3,
                    "Releases owed",
                    "Releases that are owed and not confirmed (R19). Falls by itself as devices answer; what stays is "
                    "offline or refuses. `vpp-dispatch debts` lists the devices.",
                    total("debts"),
                    steps=WARN_FROM_1,
                    runbook="VppDispatchDebtsGrowing",
                ),
                number(
                    3,
                    "Releases refused",
                    "Debts whose newest answer is a refusal by a reachable device. Nothing will change by itself: "
                    "above 0 a person has to act, now.",
                    total("debts_refused"),
                    steps=GOOD_BELOW_1,
                    runbook="VppDispatchReleaseRefused",
                ),
                number(
                    3,
                    "Oldest debt",
                    "Age of the oldest release that is owed; 0 = none. Minutes are normal while a device is offline; "
                    "an hour is a house that does what it should not for an hour.",
                    worst("oldest_debt_seconds"),
                    unit="s",
                    steps=((None, GREEN), (900, YELLOW), (14400, RED)),
                    runbook="VppDispatchDebtOld",
                ),
                number(
                    3,
                    "Shards counted",
                    "Shards that some worker owns, of 64. Below 64 every sum on this page is only a part of the fleet: "
                    "a worker died or shards move. Must be 64 again within a minute; if not, see Kafka and workers.",
                    total("owned_shards"),
                    steps=((None, RED), (64, GREEN)),
                    runbook="VppDispatchShardsWithoutOwner",
                ),
                number(
                    3,
                    "Switches",
                    "Both off in normal operation. releases_only is the kill switch: nothing is set, only released "
                    "(R36). drain takes no new events. Somebody turned it on by hand: `vpp-dispatch switch show` says "
                    "who and why.",
                    worst("switches", "switch"),
                    legend="{{switch}}",
                    words={"0": ("off", GREEN), "1": ("ON", RED)},
                    runbook="VppDispatchKillSwitchOn",
                ),
            ),
            height=4,
        ),
        Row(
            "Power",
            (
                _power(5, "Charge", "charge", "Power into batteries."),
                _power(5, "Discharge", "discharge", "Power out of batteries."),
                _power(
                    5,
                    "Export limit",
                    "export_limit",
                    "An upper bound of what sites give to the grid: measured should stay at or below acknowledged.",
                ),
                _power(5, "Import target", "import_target", "What sites shall take from the grid."),
                _power(4, "Export target", "export_target", "What sites shall give to the grid."),
            ),
        ),
        Row(
            "Events and devices",
            (
                lines(
                    8,
                    "Events by state",
                    "Known events that are not closed. An event that stays in ending waits for answers or releases: "
                    "look at releases owed. Scheduled events that should have started: look at the workers' last tick.",
                    [Query(total("events", "state"), "{{state}}")],
                    stepped=True,
                    stacked=True,
                    colours={"scheduled": "#8ab8ff", "active": GREEN, "ending": YELLOW},
                ),
                lines(
                    8,
                    "Devices by state",
                    "Where the devices of open events stand (R24); one that two events target counts twice. Blue is on "
                    "the way, green is set. Red (rejected) or orange (unconfirmed) growing: see results by code on "
                    "Command path.",
                    [Query(total("devices", "state"), "{{state}}")],
                    stacked=True,
                    stepped=True,
                    colours=STATES,
                ),
                lines(
                    8,
                    "Held devices by actuator",
                    "Devices whose actuator an event holds. Up when events start, and to 0 when the last one ends.",
                    [Query(total("held_devices", "actuator"), "{{actuator}}")],
                    stepped=True,
                ),
            ),
        ),
        Row(
            "Releases that are owed",
            (
                lines(
                    8,
                    "Debts by actuator",
                    "A peak at the end of each event that drains within minutes is normal. A floor that stays are "
                    "devices that are offline or refuse: `vpp-dispatch debts`, then `vpp-dispatch release`.",
                    [Query(total("debts", "actuator"), "{{actuator}}")],
                    stacked=True,
                    stepped=True,
                    runbook="VppDispatchDebtsGrowing",
                ),
                lines(
                    8,
                    "Held past window, and refused",
                    "Both must come back to 0. Refused debts are counted in held past window too, and need a person.",
                    [
                        Query(total("held_past_window_devices"), "held past window"),
                        Query(total("debts_refused"), "refused"),
                    ],
                    stepped=True,
                    colours={"held past window": ORANGE, "refused": RED},
                    runbook="VppDispatchHeldPastWindow",
                ),
                lines(
                    8,
                    "Age of the oldest hold and debt",
                    "A saw's teeth: each falls when the oldest is gone. A debt that grows as fast as time passes is "
                    "one device that does not answer. A hold older than the longest event means a clock or a "
                    "coordinator fault.",
                    [
                        Query(worst("oldest_hold_seconds"), "oldest hold"),
                        Query(worst("oldest_debt_seconds"), "oldest debt"),
                    ],
                    unit="s",
                    colours={"oldest hold": BLUE, "oldest debt": ORANGE},
                    runbook="VppDispatchDebtOld",
                ),
            ),
        ),
        Row(
            "Towards the operators",
            (
                lines(
                    7,
                    "Signals by verdict",
                    "Signals in each bar by what was decided: accepted, repeated, or the reason of the "
                    "refusal. Refusals that grow come from one operator's change: tell them the reason and the time.",
                    [Query(or_none(grown("signals", "action, verdict"), "verdict"), "{{action}} {{verdict}}")],
                    bars=True,
                    runbook="VppDispatchDeadLetters",
                ),
                lines(
                    7,
                    "Responses by code",
                    "Responses in each bar. Every started event must end in one of 3, 6, 7, 8, 10; the "
                    "operator's guide says why each is sent. Many 8 or 10: look at devices by state and at consent.",
                    [Query(or_none(grown("responses", "code"), "code"), "{{code}}")],
                    bars=True,
                    names=CODES,
                    colours=_CODE_COLOURS,
                ),
                lines(
                    6,
                    "Reports and outcome rows",
                    "Written to the operators per second. While devices change there are reports every second; none at "
                    "all with an event active means that the coordinator or a shard's owner is away.",
                    [
                        Query(or_zero(pace("reports")), "reports"),
                        Query(or_zero(pace("outcome_rows")), "outcome rows"),
                    ],
                    unit="ops",
                ),
                number(
                    4,
                    "Since the newest signal",
                    "Time since any operator sent anything. Compare with how often yours send; silence for longer is a "
                    "broken feed. What is scheduled still runs to its end and is released (R35). Empty until one came.",
                    f"time() - max({of('last_signal_timestamp_seconds')} > 0)",
                    unit="s",
                    steps=PLAIN,
                    runbook="VppDispatchFeedSilent",
                ),
            ),
        ),
    ),
)

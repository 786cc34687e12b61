"""Kafka and workers: who owns what, what waits, what is written, and whether each worker is well."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards import Board, Row
from deploy.grafana.panels import BLUE, GOOD_BELOW_1, GREEN, ORANGE, RED, WARN_FROM_1, YELLOW, lines, number
from deploy.grafana.queries import (
    PER_WORKER,
    Query,
    grown,
    of,
    or_none,
    or_zero,
    pace,
    process,
    quantiles,
    rare_quantiles,
    total,
)


def _per_worker(expr: str, how: str = "sum") -> list[Query]:
    return [Query(f"{how} by (pod, instance) ({expr})", PER_WORKER)]


WORKERS: Final = Board(
    uid="vpp-dispatch-workers",
    title="VPP dispatch: Kafka and workers",
    description="Shards and their owners, lag, leases, checkpoints and commits, clocks, and the processes themselves.",
    since="3h",
    refresh="30s",
    rows=(
        Row(
            "Can the workers work?",
            (
                number(
                    3,
                    "Workers",
                    "Workers that Prometheus reads. Fewer than you run: one is down, or cannot be reached.",
                    f"count({of('owned_shards')})",
                    steps=((None, RED), (1, GREEN)),
                    runbook="VppDispatchWorkerDown",
                ),
                number(
                    3,
                    "Shards owned",
                    "Of 64. Below: those shards' devices are not looked after until a worker takes them over. Above "
                    "for a moment: two scrapes around a handover.",
                    total("owned_shards"),
                    steps=((None, RED), (64, GREEN)),
                    runbook="VppDispatchShardsWithoutOwner",
                ),
                number(
                    3,
                    "Oldest tick",
                    "Time since the slowest worker swept over its shards. Below 5 s. Above: that worker does not "
                    "start, end or release anything; its loop is stuck or it is starved of CPU.",
                    f"time() - min({of('last_tick_timestamp_seconds')} > 0)",
                    unit="s",
                    steps=((None, GREEN), (5, YELLOW), (120, RED)),
                    runbook="VppDispatchTickStalled",
                ),
                number(
                    3,
                    "Clock skew",
                    "Largest difference between a worker's clock and the broker's append times, either way. From 1 s "
                    "on look at NTP; above 5 s the worker only releases (R7).",
                    f"max(abs({of('clock_skew_seconds')}))",
                    unit="s",
                    decimals=2,
                    steps=((None, GREEN), (1, YELLOW), (5, RED)),
                    runbook="VppDispatchClockSkew",
                ),
                number(
                    3,
                    "Lease lapses",
                    "In this range of time. A lease that runs out stops publishing at once (R39), so nothing goes "
                    "wrong; but the worker could not commit for that long: our Kafka, or a starved loop.",
                    grown("lease_lapses", window="$__range"),
                    steps=WARN_FROM_1,
                    decimals=0,
                    runbook="VppDispatchLeaseLost",
                ),
                number(
                    3,
                    "Dead letters",
                    "In this range of time, with their bytes, origin and reason on the dead letter topic.",
                    or_zero(grown("dead_letters", window="$__range")),
                    steps=WARN_FROM_1,
                    decimals=0,
                    runbook="VppDispatchDeadLetters",
                ),
                number(
                    3,
                    "Break-glass failures",
                    "In this range of time: writes to a break-glass file that the disk did not take (R36). Without the "
                    "file nobody can release by hand if our Kafka is lost: look at the volume now.",
                    grown("break_glass_failures", window="$__range"),
                    steps=GOOD_BELOW_1,
                    decimals=0,
                    runbook="VppDispatchBreakGlassNotWritten",
                ),
                number(
                    3,
                    "Versions",
                    "How many workers run each version. Two versions for longer than a roll-out: it is stuck.",
                    f"count by (version) ({of('build_info')})",
                    legend="{{version}}",
                ),
            ),
            height=4,
        ),
        Row(
            "Kafka",
            (
                lines(
                    6,
                    "Owned shards",
                    "Stacked, so that the top is 64. A notch is a handover. Uneven: a worker has just joined, or has "
                    "another version of the assignment.",
                    _per_worker(of("owned_shards")),
                    stacked=True,
                    stepped=True,
                    runbook="VppDispatchShardsWithoutOwner",
                ),
                lines(
                    6,
                    "Consumer lag by topic",
                    "Records that wait to be read. results: GoodWe answers faster than we fold. signals: an operator's "
                    "message waits. A line that only rises: more workers, or a worker that hangs (see oldest tick).",
                    [Query(total("consumer_lag", "topic"), "{{topic}}")],
                    runbook="VppDispatchConsumerLag",
                ),
                lines(
                    6,
                    "Rebalances and lease lapses",
                    "In each bar. A worker that comes or goes makes one or two per worker. Again and again "
                    "without that: workers miss their heartbeats.",
                    [
                        Query(grown("rebalances"), "rebalances"),
                        Query(grown("lease_lapses"), "lease lapses"),
                    ],
                    bars=True,
                    colours={"rebalances": BLUE, "lease lapses": RED},
                    runbook="VppDispatchRebalanceStorm",
                ),
                lines(
                    6,
                    "Recovery after an assignment",
                    "How long shards are nobody's while their pages are read up. It grows with the fleet; far above a "
                    "minute: the changelog is not compacted. Empty without a rebalance.",
                    rare_quantiles("recovery_seconds"),
                    unit="s",
                    colours={"half within": GREEN, "all within": YELLOW},
                    sparse=True,
                ),
            ),
        ),
        Row(
            "What is written",
            (
                lines(
                    6,
                    "Commits",
                    "Of inbox offsets. failed: the group moved on without this worker, or our Kafka did not answer; "
                    "what follows is read again, nothing is lost.",
                    [Query(pace("commits", "outcome"), "{{outcome}}")],
                    unit="ops",
                    stacked=True,
                    colours={"committed": GREEN, "failed": RED},
                    runbook="VppDispatchCommitsFailing",
                ),
                lines(
                    6,
                    "Checkpoint time",
                    "From snapshot to commit. It holds back answers to operators: above 1 s look at our Kafka's disks.",
                    quantiles("checkpoint_seconds"),
                    unit="s",
                    colours={"half within": GREEN, "95 % within": YELLOW, "99 % within": RED},
                ),
                lines(
                    6,
                    "Pages written",
                    "By checkpoints, per second. A page is written when a device on it changed: it follows the "
                    "commands.",
                    [Query(pace("checkpoint_pages"), "pages")],
                    unit="ops",
                ),
                lines(
                    6,
                    "Bytes written",
                    "Of these pages. What the pages' changelog takes of our Kafka before compaction.",
                    [Query(pace("checkpoint_bytes"), "bytes")],
                    unit="Bps",
                ),
            ),
        ),
        Row(
            "What comes in",
            (
                lines(
                    8,
                    "Inbox messages by kind",
                    "Folded per second. results follow commands, facts follow the synchroniser; none of any kind with "
                    "events running means that shards are not read.",
                    [Query(pace("inbox_messages", "kind"), "{{kind}}")],
                    unit="ops",
                    stacked=True,
                ),
                lines(
                    8,
                    "Dead letters by origin and reason",
                    "In each bar. signals: tell the operator. registry: mend the supplier's export. results: "
                    "GoodWe changed a message, or somebody else uses its topics.",
                    [Query(or_none(grown("dead_letters", "origin, reason"), "reason"), "{{origin}} {{reason}}")],
                    bars=True,
                    runbook="VppDispatchDeadLetters",
                ),
                lines(
                    8,
                    "Age of the last tick",
                    "Per worker, below 5 s. One that grows is a worker whose loop stands still; /livez fails after 60 "
                    "s and Kubernetes restarts it.",
                    [Query(f"time() - max by (pod, instance) ({of('last_tick_timestamp_seconds')} > 0)", PER_WORKER)],
                    unit="s",
                    limit=(5, RED),
                    runbook="VppDispatchTickStalled",
                ),
            ),
        ),
        Row(
            "Processes",
            (
                lines(
                    6,
                    "CPU",
                    "Cores that each worker uses; a worker cannot use more than about one. At one for minutes: more "
                    "workers.",
                    _per_worker(f"rate({process('cpu_seconds_total')}[$__rate_interval])"),
                    unit="none",
                ),
                lines(
                    6,
                    "Memory",
                    "Resident. Grows with the devices of the owned shards, so also when a worker takes over another's.",
                    _per_worker(process("resident_memory_bytes")),
                    unit="bytes",
                ),
                lines(
                    6,
                    "Open files",
                    "Connections to brokers and the API. A line that only rises is a leak: report it and restart the "
                    "worker.",
                    _per_worker(process("open_fds")),
                ),
                lines(
                    6,
                    "Clock skew",
                    "This worker's clock minus the broker's append time, without sign. One worker alone: its node's "
                    "NTP; all together: the broker's.",
                    _per_worker(f"abs({of('clock_skew_seconds')})", "max"),
                    unit="s",
                    limit=(1, ORANGE),
                    runbook="VppDispatchClockSkew",
                ),
            ),
        ),
    ),
)

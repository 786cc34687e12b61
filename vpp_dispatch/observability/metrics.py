"""The one catalogue of metrics: name, labels with their values, unit, meaning. Also the only home of prometheus_client.

Names start with `vpp_dispatch_`, units are base units, labels are bounded; never a serial number or an event id. A
field of `Metrics` is the metric of the same name without the prefix. Nothing is created at import: each `Metrics()` has
a registry of its own. `python -m vpp_dispatch.observability.metrics --write` writes docs/metrics.md from here,
`--check` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

PREFIX = "vpp_dispatch_"

# Seconds. A publish takes milliseconds or an outage; a result takes minutes through GoodWe's cloud.
PUBLISH_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
RESULT_BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 1800.0)
SHORT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)

# Values of labels that stand under several metrics.
_ACTUATORS = "ems, export, active, reactive"
_STATES = "skipped, unused, pending, published, accepted, applied, verified, rejected, unconfirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One entry of the catalogue.

    `name` is without the prefix, and for a counter without `_total`; `labels` maps a label to the values it may take,
    in words; `unit` is `1` for counts.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: tuple[tuple[str, str], ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as Prometheus shows it."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


def _counter(name: str, meaning: str, *, unit: str = "1", **labels: str) -> Metric:
    return Metric(name=name, kind="counter", unit=unit, meaning=meaning, labels=tuple(labels.items()))


def _gauge(name: str, meaning: str, *, unit: str = "1", **labels: str) -> Metric:
    return Metric(name=name, kind="gauge", unit=unit, meaning=meaning, labels=tuple(labels.items()))


def _histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind="histogram", unit="s", meaning=meaning, buckets=buckets)


CATALOGUE: dict[str, tuple[Metric, ...]] = {
    "Operators": (
        _counter(
            "signals",
            "Signals decided by the coordinator (R1-R9).",
            source="a configured source, or *",
            action="dispatch, cancel, release, unknown",
            verdict="accepted, repeated, or the reason of the refusal or drop",
        ),
        _counter(
            "dead_letters",
            "Messages put on the dead letter topic (R8, R26).",
            origin="signals, registry, results",
            reason="the fixed vocabulary of reasons",
        ),
        _counter(
            "responses", "Responses sent to operators (R33).", code="a 2030.5 code: 1, 2, 3, 6, 7, 8, 10, 252-254"
        ),
        _gauge(
            "last_signal_timestamp_seconds",
            "Unix time at which the newest signal arrived; 0 = none yet, or another worker coordinates.",
            unit="s",
        ),
        _gauge("events", "Events that are known and not closed.", state="scheduled, active, ending"),
        _counter("reports", "Reports sent to operators (R34).", final="true, false"),
        _counter("outcome_rows", "Rows on the outcomes topic, corrections among them.", state=_STATES),
    ),
    "Devices": (
        _gauge(
            "power_watts",
            "Power of the running events in the control's direction: asked of all targeted, of those that hold, "
            "acknowledged by GoodWe, and measured by telemetry at those that hold (as old as telemetry is).",
            unit="W",
            control="charge, discharge, import_target, export_target, export_limit",
            kind="requested, allocated, acknowledged, measured",
        ),
        _gauge(
            "devices", "Devices of open events in the shards of this worker, by their state now (R24).", state=_STATES
        ),
        _gauge("held_devices", "Devices whose actuator is held by an event.", actuator=_ACTUATORS),
        _gauge("debts", "Releases that are owed and not confirmed (R19).", actuator=_ACTUATORS),
        _gauge(
            "debts_refused",
            "Debts whose newest answer is a refusal by a reachable device. Above 0 a person has to act.",
            actuator=_ACTUATORS,
        ),
        _gauge("oldest_hold_seconds", "Age of the oldest hold; 0 = none.", unit="s"),
        _gauge("oldest_debt_seconds", "Age of the oldest debt; 0 = none.", unit="s"),
        _gauge(
            "held_past_window_devices", "Devices set although no event holds them any more. Falls as debts are paid."
        ),
        _counter("break_glass_failures", "Writes to a break-glass file that the disk did not take (R36)."),
        _gauge("switches", "1 while a switch is on (R36).", switch="releases_only, drain"),
        _gauge("devices_registered", "Devices in the registry, in the shards of this worker."),
        _gauge("devices_authorized", "Registered devices whose owner's consent is current (R16)."),
        _counter("registry_records", "Registry records read, tombstones among them."),
        _counter("suspect", "Actuators made suspect by a late answer to an older setpoint (R22)."),
    ),
    "Commands": (
        _counter(
            "commands_published",
            "Commands that GoodWe's cluster acknowledged.",
            role="single, multi, query",
            purpose="set, release, query",
        ),
        _counter("commands_retried", "Commands that were a second or later attempt (R25)."),
        _counter("publish_failures", "Batches that GoodWe's cluster did not acknowledge: published and unknown."),
        _gauge("commands_in_flight", "Commands without a result and without a timeout yet (R40)."),
        _gauge("commands_due", "Work that is due and not published yet."),
        _counter(
            "results",
            "Results that were joined to their command, by what GoodWe's code means.",
            code="success, offline, unauthorized, busy, value, unsupported, failed, partial, unknown_code",
        ),
        _counter("results_orphan", "Results that belong to no command of ours (R26)."),
        _counter("results_duplicate", "Results that had come before (R26)."),
        _counter("results_late", "Results of an attempt or setpoint that is not the newest any more."),
        _histogram(
            "publish_latency_seconds",
            "From a batch given to GoodWe's cluster to its acknowledgement, once for each command.",
            PUBLISH_BUCKETS_S,
        ),
        _histogram(
            "result_latency_seconds",
            "From acknowledged by GoodWe's cluster to the result, of setpoints that an event holds.",
            RESULT_BUCKETS_S,
        ),
        _counter("link_batches", "Batches given to GoodWe's cluster.", outcome="acknowledged, unknown"),
        _gauge("link_reachable", "1 if GoodWe's cluster answered last, else 0."),
        _gauge(
            "silence_seconds", "Time since anything came back while something is unanswered; 0 = nothing is.", unit="s"
        ),
    ),
    "Shards": (
        _gauge(
            "consumer_lag",
            "Records that wait in the partitions of this worker, by the last fetch.",
            topic="signals, registry, event_inbox, shard_inbox, results",
        ),
        _counter(
            "inbox_messages",
            "Messages folded from the inboxes.",
            kind="the inbox's kinds of message: controls, results, registry, facts, switches, ...",
        ),
        _histogram("checkpoint_seconds", "One checkpoint, from its snapshot to the commit.", SHORT_BUCKETS_S),
        _counter("checkpoint_pages", "Pages written by checkpoints."),
        _counter("checkpoint_bytes", "Bytes of the pages written by checkpoints.", unit="bytes"),
        _counter("commits", "Commits of inbox offsets.", outcome="committed, failed"),
        _counter("lease_lapses", "Times the lease ran out and publishing stopped (R39)."),
        _gauge("owned_shards", "Shards this worker owns."),
        _gauge(
            "coordinates", "1 while this worker coordinates: it owns the event inbox and has read the events' rows."
        ),
        _counter("rebalances", "Times the partitions were assigned anew."),
        _histogram("recovery_seconds", "From an assignment to its shards being read up.", LONG_BUCKETS_S),
        _gauge("last_tick_timestamp_seconds", "Unix time of the last sweep over the owned shards.", unit="s"),
        _gauge(
            "clock_skew_seconds", "This clock minus the broker's append time; above 5 s only releases (R7).", unit="s"
        ),
    ),
    "Facts": (
        _gauge(
            "consent_age_seconds", "Age of the list of authorized SNs; stale above FLEET__CONSENT_MAX_AGE_S.", unit="s"
        ),
        _gauge(
            "consent_age_possible_seconds",
            "How old the list gets at most, by the API's rate and the size of the fleet; 0 = not known yet.",
            unit="s",
        ),
        _gauge(
            "telemetry_age_seconds",
            "Age of the oldest telemetry among the devices of this worker; grows while none can be read.",
            unit="s",
        ),
        _gauge(
            "telemetry_age_possible_seconds",
            "How old telemetry gets at most, by the rate and the size of the fleet; +Inf = none is read.",
            unit="s",
        ),
        _counter(
            "realtime_calls",
            "HTTP calls of the Real-Time Data API that left this worker, log-ins and retries among them.",
            interface="token, authorized, operation, grid_status, bms",
            outcome="ok, rate_limited, unauthorized, external_fault, not_reachable, cut_off",
        ),
        _gauge(
            "realtime_circuit",
            "1 at where this worker's circuit to the API stands: open = it failed 5 times in a row, no call for 30 s.",
            state="closed, open, probing",
        ),
    ),
    "Worker": (_gauge("build_info", "1, by the version that runs.", version="of the package"),),
}


class LabelledCounter:
    """A counter; `add` is the only way to change it."""

    __slots__ = ("_labels", "_metric")

    def __init__(self, metric: Counter, labels: tuple[str, ...]) -> None:
        self._metric = metric
        self._labels = labels

    def add(self, n: float = 1, **labels: str) -> None:
        """Adds `n` >= 0 in the metric's unit."""
        (self._metric.labels(**labels) if self._labels else self._metric).inc(n)


class LabelledGauge:
    """A gauge; `set` gives it its value, `set_all` all its values at once."""

    __slots__ = ("_labels", "_metric")

    def __init__(self, metric: Gauge, labels: tuple[str, ...]) -> None:
        self._metric = metric
        self._labels = labels

    def set(self, value: float, **labels: str) -> None:
        """Sets the value in the metric's unit."""
        (self._metric.labels(**labels) if self._labels else self._metric).set(value)

    def set_all(self, values: dict[str, float]) -> None:
        """Sets each value of the metric's only label; what was there and is not named becomes 0, never stale."""
        (label,) = self._labels
        named = {sample.labels[label] for family in self._metric.collect() for sample in family.samples}
        for name in named | values.keys():
            self._metric.labels(**{label: name}).set(values.get(name, 0))


class BulkHistogram:
    """A histogram that takes many values at once: a hundred thousand latencies cost no hundred thousand calls."""

    __slots__ = ("_bounds", "_metric")

    def __init__(self, metric: Histogram, bounds: tuple[float, ...]) -> None:
        self._metric = metric
        self._bounds = np.array(bounds)

    def observe(self, value: float) -> None:
        """One value, in seconds."""
        self._metric.observe(value)

    def observe_many(self, values: npt.ArrayLike) -> None:
        """Many values: float, shape (n,), in seconds."""
        array = np.asarray(values, dtype=np.float64)
        if not array.size:
            return
        counts = np.bincount(np.searchsorted(self._bounds, array, side="left"), minlength=len(self._bounds) + 1)
        self.add_counts(counts.tolist(), float(array.sum()))

    def add_counts(self, counts: Iterable[int], total: float) -> None:
        """Counts that were made elsewhere with the same bounds.

        Args:
            counts: per bucket (not cumulative), the last one above all bounds; length = bounds + 1.
            total: sum of the values in seconds.

        Raises:
            ValueError: the number of counts does not fit the bounds.
        """
        counts = list(counts)
        if len(counts) != len(self._bounds) + 1:
            raise ValueError(f"{len(counts)} counts for {len(self._bounds)} bounds: give one more than bounds")
        # prometheus_client has no public way; test_metrics holds that these two attributes mean what is used here.
        for bucket, count in zip(self._metric._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._metric._sum.inc(total)


class Metrics:
    """All metrics of one worker, in a registry of its own. A field per catalogue entry, of the entry's name."""

    signals: LabelledCounter
    last_signal_timestamp_seconds: LabelledGauge
    power_watts: LabelledGauge
    consumer_lag: LabelledGauge
    build_info: LabelledGauge
    dead_letters: LabelledCounter
    responses: LabelledCounter
    events: LabelledGauge
    reports: LabelledCounter
    outcome_rows: LabelledCounter
    devices: LabelledGauge
    held_devices: LabelledGauge
    debts: LabelledGauge
    debts_refused: LabelledGauge
    oldest_hold_seconds: LabelledGauge
    oldest_debt_seconds: LabelledGauge
    held_past_window_devices: LabelledGauge
    switches: LabelledGauge
    break_glass_failures: LabelledCounter
    devices_registered: LabelledGauge
    devices_authorized: LabelledGauge
    registry_records: LabelledCounter
    suspect: LabelledCounter
    commands_published: LabelledCounter
    commands_retried: LabelledCounter
    publish_failures: LabelledCounter
    commands_in_flight: LabelledGauge
    commands_due: LabelledGauge
    results: LabelledCounter
    results_orphan: LabelledCounter
    results_duplicate: LabelledCounter
    results_late: LabelledCounter
    publish_latency_seconds: BulkHistogram
    result_latency_seconds: BulkHistogram
    link_batches: LabelledCounter
    link_reachable: LabelledGauge
    silence_seconds: LabelledGauge
    inbox_messages: LabelledCounter
    checkpoint_seconds: BulkHistogram
    checkpoint_pages: LabelledCounter
    checkpoint_bytes: LabelledCounter
    commits: LabelledCounter
    lease_lapses: LabelledCounter
    owned_shards: LabelledGauge
    coordinates: LabelledGauge
    rebalances: LabelledCounter
    recovery_seconds: BulkHistogram
    last_tick_timestamp_seconds: LabelledGauge
    clock_skew_seconds: LabelledGauge
    consent_age_seconds: LabelledGauge
    consent_age_possible_seconds: LabelledGauge
    telemetry_age_seconds: LabelledGauge
    telemetry_age_possible_seconds: LabelledGauge
    realtime_calls: LabelledCounter
    realtime_circuit: LabelledGauge

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        for entry in (entry for entries in CATALOGUE.values() for entry in entries):
            names = tuple(name for name, _ in entry.labels)
            full = PREFIX + entry.name
            if entry.kind == "counter":
                counter = Counter(full, entry.meaning, names, registry=self._registry)
                setattr(self, entry.name, LabelledCounter(counter, names))
            elif entry.kind == "gauge":
                gauge = Gauge(full, entry.meaning, names, registry=self._registry)
                setattr(self, entry.name, LabelledGauge(gauge, names))
            else:
                histogram = Histogram(full, entry.meaning, registry=self._registry, buckets=entry.buckets)
                setattr(self, entry.name, BulkHistogram(histogram, entry.buckets))

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format; its content type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def value(self, full_name: str, **labels: str) -> float | None:
        """One sample by its shown name (`vpp_dispatch_suspect_total`); None = never touched."""
        return self._registry.get_sample_value(full_name, labels)


def page() -> str:
    """The content of docs/metrics.md."""
    out = [
        "# Metrics",
        "",
        "Written from `vpp_dispatch/observability/metrics.py` by "
        "`python -m vpp_dispatch.observability.metrics --write`: change it there.",
        "",
        "Every worker shows its own on `/metrics`; gauges of devices, debts and shards are of the shards it owns, so "
        "the fleet's number is the sum over the workers. No label ever holds a serial number or an event id. Beside "
        "these stand the `process_...` metrics that Prometheus' own clients show (CPU, memory, open files).",
    ]
    for title, entries in CATALOGUE.items():
        out += ["", f"## {title}", "", "| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
        for entry in entries:
            labels = "; ".join(f"`{name}`: {values}" for name, values in entry.labels)
            out.append(f"| `{entry.full_name}` | {entry.kind} | {entry.unit} | {labels} | {entry.meaning} |")
    return "\n".join(out) + "\n"


def main(arguments: list[str]) -> int:
    """Writes or checks docs/metrics.md of the checkout that this file is in."""
    file = Path(__file__).parents[2] / "docs" / "metrics.md"
    if arguments == ["--write"]:
        file.write_text(page(), encoding="utf-8")
        return 0
    if arguments != ["--check"]:
        print("Usage: python -m vpp_dispatch.observability.metrics --write | --check", file=sys.stderr)
        return 2
    if file.is_file() and file.read_text(encoding="utf-8") == page():
        return 0
    print("docs/metrics.md differs: run `python -m vpp_dispatch.observability.metrics --write`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

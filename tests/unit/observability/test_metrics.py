"""The catalogue: names, units, bounded labels, and bulk observation that equals one by one."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from vpp_dispatch.observability import metrics
from vpp_dispatch.observability.metrics import CATALOGUE, BulkHistogram, LabelledCounter, LabelledGauge, Metrics

ENTRIES = [entry for entries in CATALOGUE.values() for entry in entries]
UNIT_SUFFIX = {"s": "_seconds", "bytes": "_bytes", "W": "_watts"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_entry_keeps_the_rules(entry: metrics.Metric) -> None:
    assert entry.meaning.endswith(".")
    if entry.unit != "1":
        assert entry.name.endswith(UNIT_SUFFIX[entry.unit])
    assert not {name for name, _ in entry.labels} & {"sn", "device", "event", "event_id", "correlation_id"}
    assert all(values for _, values in entry.labels)


def test_fields_and_catalogue_are_the_same() -> None:
    kinds = {"counter": LabelledCounter, "gauge": LabelledGauge, "histogram": BulkHistogram}
    hints = {name: kind for name, kind in get_type_hints(Metrics).items() if name != "CONTENT_TYPE"}
    assert hints == {entry.name: kinds[entry.kind] for entry in ENTRIES}


def test_counters_and_gauges_show_under_their_full_names() -> None:
    m = Metrics()
    m.commands_published.add(3, role="multi", purpose="set")
    m.suspect.add()
    m.owned_shards.set(64)
    m.held_devices.set(2, actuator="ems")
    assert m.value("vpp_dispatch_commands_published_total", role="multi", purpose="set") == 3
    text = m.exposition().decode()
    assert "vpp_dispatch_suspect_total 1.0\n" in text
    assert "vpp_dispatch_owned_shards 64.0\n" in text
    assert 'vpp_dispatch_held_devices{actuator="ems"} 2.0\n' in text
    for entry in ENTRIES:
        assert f"# TYPE {entry.full_name} {entry.kind}\n" in text


def test_set_all_leaves_no_old_value() -> None:
    m = Metrics()
    m.devices.set_all({"applied": 5, "pending": 2})
    m.devices.set_all({"applied": 7})
    assert m.value("vpp_dispatch_devices", state="applied") == 7
    assert m.value("vpp_dispatch_devices", state="pending") == 0


def test_each_instance_is_its_own() -> None:
    one, other = Metrics(), Metrics()
    one.suspect.add()
    assert other.value("vpp_dispatch_suspect_total") == 0


def test_labels_that_are_not_in_the_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match="label"):
        Metrics().held_devices.set(1, sn="9010KETU000W0001")


def test_many_at_once_equals_one_by_one() -> None:
    bounds = list(metrics.PUBLISH_BUCKETS_S)
    values = np.concatenate([np.random.default_rng(1).exponential(2.0, 1000), bounds, [0.0, 1e6]])
    many, single = Metrics(), Metrics()
    many.publish_latency_seconds.observe_many(values)
    for value in values:
        single.publish_latency_seconds.observe(float(value))

    def samples(m: Metrics) -> dict[str, float]:
        lines = [line for line in m.exposition().decode().splitlines() if "publish_latency" in line and line[0] != "#"]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines) if "_created" not in name}

    assert samples(many) == pytest.approx(samples(single))
    assert samples(many)["vpp_dispatch_publish_latency_seconds_count"] == len(values)


def test_counts_made_elsewhere() -> None:
    m = Metrics()
    m.result_latency_seconds.add_counts([1] * (len(metrics.RESULT_BUCKETS_S) + 1), 4.5)
    assert m.value("vpp_dispatch_result_latency_seconds_bucket", le="0.5") == 2
    assert m.value("vpp_dispatch_result_latency_seconds_sum") == 4.5
    with pytest.raises(ValueError, match="one more than bounds"):
        m.result_latency_seconds.add_counts([1, 2], 0.0)


def test_nothing_to_observe() -> None:
    m = Metrics()
    m.result_latency_seconds.observe_many([])
    assert m.value("vpp_dispatch_result_latency_seconds_count") == 0


def test_the_document_is_up_to_date() -> None:
    assert metrics.main(["--check"]) == 0, "run python -m vpp_dispatch.observability.metrics --write"


def test_every_metric_of_the_catalogue_is_set_somewhere() -> None:
    package = Path(metrics.__file__).parents[1]
    code = "\n".join(p.read_text() for p in package.rglob("*.py") if p.name != "metrics.py")
    unused = [entry.name for entries in CATALOGUE.values() for entry in entries if f"etrics.{entry.name}" not in code]
    assert unused == []

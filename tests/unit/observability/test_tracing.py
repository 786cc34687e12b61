"""Traces: ids that follow from an event's name, links, sampling, and what is never told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.observability import tracing
from vpp_dispatch.observability.tracing import MAX_LINKS, Tracing

EVENT = ("gridco-west/e-1", 3)
THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept:
    """A tracing whose spans are kept here."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = tracing.tracing(self.exporter, sample_ratio=sample_ratio, service="vpp-dispatch")

    def spans(self) -> Sequence[ReadableSpan]:
        self.tracing.close()
        return self.exporter.get_finished_spans()


def test_off_makes_no_span_and_needs_nothing() -> None:
    off = tracing.tracing_to("", sample_ratio=1, headers={}, ca_file=None, service="x")
    assert not off.on
    with off.span("commands.publish", [EVENT], n=1), off.decision(EVENT, THEIRS):
        pass
    off.close()


def test_a_revision_has_one_trace_on_whichever_worker_its_work_is_done() -> None:
    one, other = Kept(), Kept()
    with one.tracing.decision(EVENT, THEIRS, **{"vpp.action": "dispatch"}):
        pass
    with other.tracing.span("commands.publish", [EVENT], **{"vpp.commands": 7}):
        pass
    with other.tracing.span("commands.publish", [("gridco-west/e-1", 4)]):
        pass
    (first,), (second, third) = one.spans(), other.spans()
    assert first.context.trace_id == second.context.trace_id != third.context.trace_id
    assert first.parent is None and second.parent is not None and second.parent.span_id == first.context.span_id
    assert second.context.span_id != first.context.span_id
    assert dict(first.attributes or {}) == {"vpp.event": EVENT[0], "vpp.revision": 3, "vpp.action": "dispatch"}
    assert (second.attributes or {})["vpp.commands"] == 7
    (link,) = first.links
    assert format(link.context.trace_id, "032x") == THEIRS.split("-")[1]


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_without_a_trace_of_the_operator_there_is_no_link(traceparent: str | None) -> None:
    kept = Kept()
    with kept.tracing.decision(EVENT, traceparent):
        pass
    (span,) = kept.spans()
    assert not span.links


def test_a_signal_that_is_decided_twice_names_the_same_span_and_the_next_one_another() -> None:
    kept = Kept()
    for event in (EVENT, EVENT, ("gridco-west/e-2", 1)):
        with kept.tracing.decision(event, None):
            pass
    first, again, other = (span.context.span_id for span in kept.spans())
    assert first == again != other


def test_work_for_several_events_is_a_trace_of_its_own_with_links() -> None:
    kept = Kept()
    events = [(f"gridco-west/e-{n}", 1) for n in range(MAX_LINKS + 8)]
    with kept.tracing.span("commands.publish", events):
        pass
    with kept.tracing.span("commands.publish"):
        pass
    many, none = kept.spans()
    assert many.parent is None and len(many.links) == MAX_LINKS and (many.attributes or {})["vpp.events"] == 40
    assert (many.links[0].attributes or {})["vpp.event"] == "gridco-west/e-0"
    assert none.parent is None and not none.links


def test_an_event_is_sampled_wholly_or_not_at_all() -> None:
    kept = Kept(sample_ratio=0.5)
    events = [(f"gridco-west/e-{n}", 1) for n in range(200)]
    for event in events:
        with kept.tracing.decision(event, None):
            pass
        with kept.tracing.span("event.report", [event]):
            pass
    by_trace: dict[int, int] = {}
    for span in kept.spans():
        by_trace[span.context.trace_id] = by_trace.get(span.context.trace_id, 0) + 1
    assert set(by_trace.values()) == {2} and 60 < len(by_trace) < 140


def test_of_a_fault_only_its_kind_is_told() -> None:
    kept = Kept()
    with contextlib.suppress(RuntimeError), kept.tracing.span("commands.publish", [EVENT]):
        raise RuntimeError("the password is swordfish")
    (span,) = kept.spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "RuntimeError")
    assert "swordfish" not in span.to_json()


def test_an_address_without_the_packages_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"vpp-dispatch\[tracing\]"):
        tracing.tracing_to("http://127.0.0.1:9", sample_ratio=1, headers={}, ca_file=None, service="x")


def test_a_collector_that_is_away_stops_nothing() -> None:
    made: Tracing = tracing.tracing_to(
        "http://127.0.0.1:9/v1/traces", sample_ratio=1, headers={}, ca_file=None, service="x"
    )
    with made.span("commands.publish", [EVENT]):
        pass
    made.close()

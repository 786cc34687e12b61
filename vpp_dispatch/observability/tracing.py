"""Traces, off unless an address is set: one span per unit of work, never per device. The only home of opentelemetry.

A revision of an event has a trace of its own, whose ids follow from its name: a worker that took over, or another one,
adds to the same trace without being told, and work that is done twice after a death names the same span. The
operator's own trace, if the signal named one, is linked from its first span. Work for several events at once (a batch,
a fetch of results) is a trace by itself with a link to each.

    signal.decide     a signal, from the coordinator's inbox to its rows, responses and messages to the shards
    controls.send     messages of an event to its shards: start, cancel, close
    commands.publish  a batch of commands, until GoodWe's cluster has acknowledged it
    results.join      the results that all shards of a worker joined in a second
    event.report      a report
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpp_dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

Revision = tuple[str, int]
"""`source/event_id` and the revision."""

MAX_LINKS = 32
"""Events that a span names at most; how many there were stands beside them."""

EXPORT_TIMEOUT_S = 5
NOTHING = contextlib.nullcontext()


class Tracing:
    """Spans of one worker. `Tracing()` is off, and costs nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("vpp_dispatch", version("vpp-dispatch")) if provider else None

    @property
    def on(self) -> bool:
        """Whether spans are kept: ask before making what only a span needs."""
        return self._tracer is not None

    def decision(
        self, event: Revision, traceparent: str | None, **attributes: Any
    ) -> contextlib.AbstractContextManager[Any]:
        """The first span of a revision's trace, linked to the operator's trace."""
        if self._tracer is None:
            return NOTHING
        return self._decision(event, traceparent, attributes)

    def span(
        self, name: str, events: Iterable[Revision] = (), *, since: float | None = None, **attributes: Any
    ) -> contextlib.AbstractContextManager[Any]:
        """A span of work for these events: in its trace if it is one, with links if they are several.

        `since`: when the work began, in epoch seconds; now, if it is not given.
        """
        if self._tracer is None:
            return NOTHING
        return self._span(name, list(events), since, attributes)

    def close(self) -> None:
        """Sends what is left, for a few seconds at most; blocks."""
        if self._provider is not None:
            self._provider.shutdown()

    # ------------------------------------------------------------------ inside

    @contextlib.contextmanager
    def _decision(self, event: Revision, traceparent: str | None, attributes: dict[str, Any]) -> Iterator[None]:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, SpanKind, get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert self._tracer is not None and self._provider is not None
        theirs = TraceContextTextMapPropagator().extract({"traceparent": traceparent or ""}, context=Context())
        asked_by = get_current_span(theirs).get_span_context()
        links = [Link(asked_by)] if asked_by.is_valid else []
        ids: Any = self._provider.id_generator
        ids.preset = _ids(event)
        span = self._tracer.start_span(
            "signal.decide",
            context=Context(),
            kind=SpanKind.CONSUMER,
            links=links,
            attributes=_named(event) | attributes,
        )
        ids.preset = None
        with _ended(span):
            yield

    @contextlib.contextmanager
    def _span(
        self, name: str, events: list[Revision], since: float | None, attributes: dict[str, Any]
    ) -> Iterator[None]:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, NonRecordingSpan, set_span_in_context

        assert self._tracer is not None
        context, links = Context(), list[Link]()
        if len(events) == 1:
            context = set_span_in_context(NonRecordingSpan(_context(events[0])), context)
            attributes = _named(events[0]) | attributes
        elif events:
            links = [Link(_context(event), _named(event)) for event in events[:MAX_LINKS]]
            attributes = attributes | {"vpp.events": len(events)}
        begun = None if since is None else int(since * 1e9)
        span = self._tracer.start_span(name, context=context, links=links, attributes=attributes, start_time=begun)
        with _ended(span):
            yield


@contextlib.contextmanager
def _ended(span: Any) -> Iterator[None]:
    """Ends a span. Of a fault only its kind is told: a message may hold what nobody else should read."""
    from opentelemetry.trace import Status, StatusCode

    try:
        yield
    except BaseException as fault:
        span.set_status(Status(StatusCode.ERROR, type(fault).__name__))
        raise
    finally:
        span.end()


def _generator() -> Any:
    """Random ids, but for the span whose ids were set beforehand."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        preset: tuple[int, int] | None = None

        def generate_trace_id(self) -> int:
            return self.preset[0] if self.preset else super().generate_trace_id()

        def generate_span_id(self) -> int:
            return self.preset[1] if self.preset else super().generate_span_id()

    return Ids()


def _named(event: Revision) -> dict[str, Any]:
    return {"vpp.event": event[0], "vpp.revision": event[1]}


def _ids(event: Revision) -> tuple[int, int]:
    """Trace and span id of a revision's first span; never 0, which would be no id."""
    digest = hashlib.blake2b(f"{event[0]}\0{event[1]}".encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1


def _context(event: Revision) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    trace_id, span_id = _ids(event)
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def tracing(exporter: SpanExporter, *, sample_ratio: float, service: str) -> Tracing:
    """Tracing into an exporter. `sample_ratio` of the revisions are traced, each wholly or not at all."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    provider = TracerProvider(
        # By the trace id alone, which all workers derive alike; a parent's flag is our own guess.
        sampler=TraceIdRatioBased(sample_ratio),
        resource=Resource.create(
            {
                "service.name": service,
                "service.version": version("vpp-dispatch"),
                "service.instance.id": socket.gethostname(),
            }
        ),
        id_generator=_generator(),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, export_timeout_millis=EXPORT_TIMEOUT_S * 1000))
    return Tracing(provider)


def tracing_to(
    endpoint: str, *, sample_ratio: float, headers: dict[str, str], ca_file: Path | None, service: str
) -> Tracing:
    """Tracing to an OTLP/HTTP address; "" = off.

    Raises:
        ConfigurationError: the packages for it are not installed.
    """
    if not endpoint:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigurationError(
            "VPP_DISPATCH_TRACING__ENDPOINT is set, and the packages for traces are not installed: "
            "install vpp-dispatch[tracing], or remove the setting."
        ) from error
    exporter = OTLPSpanExporter(
        endpoint=endpoint,
        headers=headers,
        timeout=EXPORT_TIMEOUT_S,
        certificate_file=str(ca_file) if ca_file else None,
    )
    return tracing(exporter, sample_ratio=sample_ratio, service=service)

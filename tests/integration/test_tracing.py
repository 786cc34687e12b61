"""From signal to result as spans, at a real OTLP/HTTP address."""

from __future__ import annotations

import time
from collections import Counter

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.auditing import audited
from tests.waiting import eventually
from vpp_dispatch.demo.stack import Stack

THEIRS = "0af7651916cd43dd8448eb211c80319c"
HEADER = "swordfish"


class Collector:
    """Takes spans as a collector does, from those who show the header."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.strangers = 0

    async def take(self, request: web.Request) -> web.Response:
        if request.headers.get("x-token") != HEADER:
            self.strangers += 1
            return web.Response(status=401)
        sent = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [span for r in sent.resource_spans for scope in r.scope_spans for span in scope.spans]
        return web.Response()

    def of(self, trace: str) -> Counter[str]:
        return Counter(span.name for span in self.spans if span.trace_id.hex() == trace)

    def has_final_report(self, trace: str) -> bool:
        reports = [span for span in self.spans if span.name == "event.report" and span.trace_id.hex() == trace]
        return any(a.key == "vpp.final" and a.value.bool_value for span in reports for a in span.attributes)


async def test_an_event_is_one_trace_from_the_operators_to_its_report(stack: Stack) -> None:
    collector = Collector()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        headers = stack.folder / "headers"
        headers.write_text(f"X-Token: {HEADER}\n")
        stack.settings |= {
            "TRACING__ENDPOINT": str(server.make_url("/v1/traces")),
            "TRACING__HEADERS_FILE": str(headers),
        }
        await stack.start(inverters=120, simulator=["--series", "ETU"])
        workers = [stack.start_worker(), stack.start_worker()]
        await stack.until_ready(*workers, registered=120)
        signal = stack.signal(
            "traced",
            end_at=time.time() + 8,
            targets={"all": True},
            controls=[{"kind": "charge", "each_w": 1000}],
        )
        parent = f"00-{THEIRS}-b7ad6b7169203331-01".encode()
        await stack.send(signal, headers=[("traceparent", parent)])
        report = await stack.until_closed("traced", 60)
        assert report["devices"]["applied"] + report["devices"]["verified"] == 120

        def ours() -> str | None:
            """The trace of the event: that whose first span is linked from the operator's."""
            firsts = [s for s in collector.spans if s.name == "signal.decide"]
            return next((s.trace_id.hex() for s in firsts if [x.trace_id.hex() for x in s.links] == [THEIRS]), None)

        trace = await eventually(ours, 20, "the first span")
        await eventually(lambda: collector.has_final_report(trace), 20, "the final report's span")
        names = collector.of(trace)
        assert names["controls.send"] == 2  # start and close
        assert names["commands.publish"] >= 2, "each worker publishes its own shards'"
        assert names["results.join"] >= 2
        # Units of work, not devices: 120 inverters were read, set, released and read back.
        assert len(collector.spans) < 120
        # A decision that was not acknowledged is made again, and is the same span.
        decided = [s for s in collector.spans if s.name == "signal.decide" and s.trace_id.hex() == trace]
        first = decided[-1]
        assert {s.span_id for s in decided} == {first.span_id} and not first.status.code
        others = [s for s in collector.spans if s.trace_id == first.trace_id and s.span_id != first.span_id]
        assert {s.parent_span_id for s in others} == {first.span_id}
        sns = set((await stack.ask("/sim/dump"))["devices"])
        told = "\n".join(str(span) for span in collector.spans)
        assert sns and not any(sn in told for sn in sns)
        assert collector.strangers == 0
        assert all(HEADER not in worker.out.read_text() for worker in workers)
        await audited(stack, events=1)

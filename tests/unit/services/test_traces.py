"""Spans of decisions: which requests are sampled, whose trace a span continues, what it says, and its export."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sidecar.domain.bucket import Taken
from sidecar.services.decider import Decider
from sidecar.services.traces import DecisionTraces, TracedBuckets, exporter_to, parent_of, provider_of
from sidecar.stores.protocols import StoreFault
from tests.building import (
    NOW_US,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_request,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
ADMITTED = Taken(1, 59, 0, NOW_US + 1_000_000)
TIMEOUT_S = 60


class Traced:
    """A decider that makes spans, a store that the test answers, and the spans."""

    def __init__(self, sample_ratio: float = 0.0, draw: float = 0.5) -> None:
        """Sample *sample_ratio* of requests without a trace, by the random number *draw*."""
        self.key = make_key()
        self.store = RecordingStore()
        self.clock = ManualClock()
        self._exporter = InMemorySpanExporter()
        buckets = TracedBuckets(self.store, self.now_ns)
        tracer = provider_of(SimpleSpanProcessor(self._exporter), "1.0", "here").get_tracer("test")
        self.decider: Decider = make_decider(make_integration(self.key), store=buckets)
        traces = DecisionTraces(tracer, buckets, sample_ratio, self.now_ns, lambda: draw)
        self.decider.on_decided = traces.note

    def now_ns(self) -> int:
        """The time by the test's clock."""
        return self.clock() * 1_000

    def decide(self, api_key: str | None = None, **headers: str) -> None:
        """Ask for a decision with these headers; the store does not answer yet."""
        key = self.key.api_key if api_key is None else api_key
        self.decider.decide(make_request(key, headers=headers), None, lambda *decided: None, None)

    def spans(self) -> list[ReadableSpan]:
        """The spans that ended so far, in this order."""
        return list(self._exporter.get_finished_spans())


def test_span__continues_the_proxys_trace_and_has_the_trip_as_its_child() -> None:
    """Same trace, the proxy's span as parent; the child lasts as long as the store took."""
    traced = Traced()
    traced.decide(traceparent=SAMPLED)
    traced.clock.advance(4)
    traced.store.answer(ADMITTED)
    take, decide = traced.spans()
    assert (take.name, decide.name) == ("take", "decide")
    assert decide.parent is not None and take.parent is not None and decide.context is not None
    assert f"{decide.context.trace_id:032x}-{decide.parent.span_id:016x}" == f"{TRACE}-{SPAN}"
    assert take.parent.span_id == decide.context.span_id
    assert take.start_time is not None and take.end_time is not None
    assert take.end_time - take.start_time == 4_000_000_000
    attributes = dict(decide.attributes or {})
    assert attributes["sidecar.integration"] == "acme"
    assert attributes["sidecar.reason"] == "ok"
    assert decide.status.status_code is StatusCode.UNSET


def test_span__of_a_failing_store_is_an_error() -> None:
    """A tracing tool finds the decisions that the store failed."""
    traced = Traced()
    traced.decide(traceparent=SAMPLED)
    traced.store.answer(StoreFault.TIMEOUT)
    decide = traced.spans()[-1]
    assert (decide.status.status_code, decide.status.description) == (StatusCode.ERROR, "store_unavailable")


@pytest.mark.parametrize(
    ("sample_ratio", "headers", "spans"),
    [
        (1.0, {"traceparent": NOT_SAMPLED}, 0),
        (1.0, {"traceparent": "nonsense"}, 0),
        (0.6, {}, 1),
        (0.4, {}, 0),
    ],
)
def test_sampling__the_proxy_decides_and_the_ratio_without_it(
    sample_ratio: float, headers: dict[str, str], spans: int
) -> None:
    """A denial at once has no trip, and no API key gets into a span."""
    traced = Traced(sample_ratio, draw=0.5)
    traced.decide("sck_unknown", **headers)
    assert len(traced.spans()) == spans
    for span in traced.spans():
        assert "sck_unknown" not in span.to_json()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
    ],
)
def test_traceparent__invalid_ones_are_ignored(traceparent: str) -> None:
    """Rules of W3C Trace Context 3.2.2: version ff, zero ids and capitals are invalid."""
    assert parent_of(traceparent) is None


class Receiver(TraceServiceServicer):
    """An OTLP receiver for gRPC; `received` has each export."""

    def __init__(self) -> None:
        """Nothing was received yet."""
        self.received: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        """Keep *request*."""
        self.received.put(request)
        return ExportTraceServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A running receiver and its address."""
    servicer = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait(TIMEOUT_S)


def test_export__reaches_an_otlp_receiver(receiver: tuple[Receiver, str]) -> None:
    """The last spans are exported when the provider ends."""
    servicer, endpoint = receiver
    provider = provider_of(exporter_to(endpoint), "1.0", "host:1:ab")
    provider.get_tracer("sidecar").start_span("decide").end()
    provider.shutdown()
    (spans,) = servicer.received.get(timeout=TIMEOUT_S).resource_spans
    resource = {attribute.key: attribute.value.string_value for attribute in spans.resource.attributes}
    assert resource["service.name"] == "sidecar"
    assert resource["service.instance.id"] == "host:1:ab"
    assert [span.name for span in spans.scope_spans[0].spans] == ["decide"]

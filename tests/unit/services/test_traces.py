"""Spans of decisions: which are sampled, whose trace a span continues, what it says, and its export."""

from __future__ import annotations

import asyncio
import socket

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sidecar.domain.bucket import Taken
from sidecar.process.settings import TraceSettings
from sidecar.process.tracing import Tracing
from sidecar.services.decider import Decider
from sidecar.services.traces import DecisionTraces, TracedBuckets, exporter_to, parent_of, provider_of
from sidecar.stores.protocols import StoreFault
from tests.building import (
    NOW_US,
    FixedStore,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_request,
)
from tests.unit.services.otlp import receiving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
ADMITTED = Taken(1, 59, 0, NOW_US + 1_000_000)


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
        self.decider.add_observer(traces.note)

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


def test_export__reaches_an_otlp_receiver() -> None:
    """The last spans are exported when the provider ends."""
    with receiving() as (receiver, endpoint):
        provider = provider_of(exporter_to(endpoint), "1.0", "host:1:ab")
        provider.get_tracer("sidecar").start_span("decide").end()
        provider.shutdown()
        exported = receiver.resource_spans()
    attributes = exported["resource"]["attributes"]
    resource = {attribute["key"]: attribute["value"]["stringValue"] for attribute in attributes}
    assert resource["service.name"] == "sidecar"
    assert resource["service.instance.id"] == "host:1:ab"
    assert [span["name"] for span in exported["scopeSpans"][0]["spans"]] == ["decide"]


def test_close__does_not_wait_for_a_receiver_that_does_not_answer() -> None:
    """A socket that accepts and says nothing: the end of the process waits for its bound only."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = TraceSettings(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", sample_ratio=1.0)
        store = FixedStore(ADMITTED)
        tracing = Tracing(settings, store, "host:1:ab")
        key = make_key()
        decider = make_decider(make_integration(key), store=tracing.buckets)
        tracing.connect(decider)
        assert decider.decide(make_request(key.api_key), None, lambda *decided: None, None) is not None
        asyncio.run(tracing.close(timeout_s=0.01))
    assert store.takes == 1

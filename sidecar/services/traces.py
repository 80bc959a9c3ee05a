"""
Traces of sampled decisions for OpenTelemetry: one span a decision, with a child for the trip to the store.

A span continues the proxy's trace (W3C Trace Context, header `traceparent`) if the proxy sampled it; requests
without a trace are sampled by `sample_ratio`. Spans wait in a bounded queue and are exported by a thread of
OpenTelemetry. Needs the extra `traces`; without `traces.endpoint` nothing of this is imported or called.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from time import time_ns
from typing import TYPE_CHECKING

from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from sidecar.domain.answers import Decision
from sidecar.domain.bucket import BucketSet, Taken
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest
from sidecar.stores.protocols import BucketStore, StoreFault, TakeDone

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

SPANS_MAX = 2_048
"""Spans that wait for their export; more are dropped."""
EXPORT_TIMEOUT_S = 5.0
"""How long one export, and the last one at the end of the process, may take."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_FAILED = (Reason.STORE_UNAVAILABLE, Reason.OVERLOADED)


class TracedBuckets:
    """
    A bucket store that remembers the trip to the store during the decision that waited for it.

    `trip` is the start and the end of the trip, in ns since the epoch; None = no trip.
    """

    def __init__(self, store: BucketStore, clock_ns: Callable[[], int] = time_ns) -> None:
        """Pass every take on to *store*."""
        self._store = store
        self._clock_ns = clock_ns
        self.take_now = store.take_now
        self.trip: tuple[int, int] | None = None

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Take, and measure the time until *done* is called; see `BucketStore`."""
        started_ns = self._clock_ns()

        def done_with_trip(outcome: Taken | StoreFault) -> None:
            self.trip = started_ns, self._clock_ns()
            try:
                done(outcome)
            finally:
                self.trip = None

        self._store.take_later(buckets, asked, timeout_s, done_with_trip)


class DecisionTraces:
    """Makes the spans of decisions, in the deciding thread and only for sampled requests."""

    def __init__(
        self,
        tracer: Tracer,
        buckets: TracedBuckets,
        sample_ratio: float,
        clock_ns: Callable[[], int] = time_ns,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """
        Make spans with *tracer*, whose provider must sample everything.

        Args:
            buckets: the store of the decider.
            sample_ratio: the share of requests without a trace that get one, 0 ... 1.
            clock_ns: the time since the epoch.
            draw: returns a random number, 0 ... 1.
        """
        self._tracer = tracer
        self._buckets = buckets
        self._sample_ratio = sample_ratio
        self._clock_ns = clock_ns
        self._draw = draw

    def note(self, request: AccessRequest | None, decision: Decision, elapsed_ns: int) -> None:
        """Make the span of a decision that took *elapsed_ns*, if its request is sampled."""
        if request is None:
            return
        traceparent = request.header("traceparent")
        if traceparent is None:
            if self._draw() < self._sample_ratio:
                self._make_span(None, request, decision, elapsed_ns)
            return
        parent = parent_of(traceparent)
        if parent is not None and parent.trace_flags & TraceFlags.SAMPLED:
            context = set_span_in_context(NonRecordingSpan(parent))
            self._make_span(context, request, decision, elapsed_ns)

    def _make_span(
        self, context: Context | None, request: AccessRequest, decision: Decision, elapsed_ns: int
    ) -> None:
        ended_ns = self._clock_ns()
        evaluation = decision.evaluation
        integration, credential = evaluation.integration, evaluation.credential
        span = self._tracer.start_span(
            "decide",
            context,
            SpanKind.SERVER,
            {
                "http.request.method": request.method,
                "url.path": request.path.partition("?")[0],
                "sidecar.decision_id": decision.id,
                "sidecar.verdict": decision.reason.verdict.value,
                "sidecar.reason": decision.reason.label,
                "sidecar.integration": integration.id if integration else "",
                "sidecar.credential": credential.id if credential else "",
                "sidecar.scope": str(evaluation.scope or ""),
            },
            start_time=ended_ns - elapsed_ns,
        )
        if decision.reason in _FAILED:
            span.set_status(Status(StatusCode.ERROR, decision.reason.label))
        if self._buckets.trip is not None:
            began_ns, arrived_ns = self._buckets.trip
            child = self._tracer.start_span(
                "take", set_span_in_context(span), SpanKind.CLIENT, start_time=began_ns
            )
            child.end(arrived_ns)
        span.end(ended_ns)


def parent_of(traceparent: str) -> SpanContext | None:
    """
    Return the caller's span; None = the header is invalid (W3C Trace Context 3.2.2).

    >>> context = parent_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    >>> hex(context.span_id), int(context.trace_flags)
    ('0xf067aa0ba902b7', 1)
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or traceparent.startswith("ff"):
        return None
    trace_id, span_id, flags = (int(field, 16) for field in match.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


def exporter_to(endpoint: str) -> SpanProcessor:
    """Return what exports spans to *endpoint*, an OTLP receiver for HTTP such as 'http://127.0.0.1:4318'."""
    from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(
        OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S), max_queue_size=SPANS_MAX
    )


def provider_of(processor: SpanProcessor, version: str, instance: str) -> TracerProvider:
    """Return a provider whose spans go to *processor*; *instance* is this process's name in the fleet."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    attributes = {"service.name": "sidecar", "service.version": version, "service.instance.id": instance}
    provider = TracerProvider(resource=Resource(attributes), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider

"""An OTLP receiver for gRPC, which keeps the traces that it receives."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

TIMEOUT_S = 60


class Receiver(TraceServiceServicer):
    """The receiver's service."""

    def __init__(self) -> None:
        """Nothing was received yet."""
        self._received: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        """Keep *request*."""
        self._received.put(request)
        return ExportTraceServiceResponse()

    def resource_spans(self) -> ResourceSpans:
        """Wait for the next export, which is of one process."""
        (spans,) = self._received.get(timeout=TIMEOUT_S).resource_spans
        return spans

    def spans(self) -> list[Span]:
        """Wait for the next export, and return its spans."""
        return [span for scope in self.resource_spans().scope_spans for span in scope.spans]


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """Run a receiver; yield it and its address for `traces.endpoint`."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield receiver, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait(TIMEOUT_S)

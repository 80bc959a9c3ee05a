"""Traces from a real sidecar to a real OTLP receiver."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc

from sidecar.services.ext_authz import CHECK
from sidecar.services.ext_authz_client import check_request
from tests.redis_servers import shared
from tests.unit.process.running import Configured
from tests.unit.services.otlp import TIMEOUT_S, receiving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_traces__the_span_of_a_sampled_request_arrives_with_its_trip_to_redis(tmp_path: Path) -> None:
    """The span continues the proxy's trace; a request that the proxy did not sample has none."""
    with receiving() as (receiver, endpoint):
        store = f"{shared().standalone.url}?prefix=traces:"
        configured = Configured(tmp_path, store=store, traces={"endpoint": endpoint})
        with configured.serve() as running:
            [target] = running.event("serving")["grpc"]
            with grpc.insecure_channel(target) as channel:
                check = channel.unary_unary(CHECK)
                for flags in ("00", "01"):
                    headers = {
                        "x-api-key": configured.key.api_key,
                        "traceparent": f"00-{TRACE}-{SPAN}-{flags}",
                    }
                    check(check_request("GET", "/v1/a", headers, "192.0.2.1"), timeout=TIMEOUT_S)
            running.signal(signal.SIGTERM)
            assert running.wait() == 0
        spans = {span["name"]: span for span in receiver.spans()}
    assert sorted(spans) == ["decide", "take"]
    assert spans["decide"]["traceId"] == TRACE
    assert spans["decide"]["parentSpanId"] == SPAN
    assert spans["take"]["parentSpanId"] == spans["decide"]["spanId"]

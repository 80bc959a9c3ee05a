"""The one table of metrics. docs/metrics.md describes each row; a test holds the two together."""

from __future__ import annotations

from sidecar.observe.metrics import Kind, MetricSpec, MetricTable

CLOSE_REASONS = (
    "peer",            # the client closed it, or its connection broke
    "drain",           # the sidecar is stopping
    "max_age",         # older than max_connection_age_s
    "idle",            # no stream for idle_timeout_s
    "keepalive",       # no byte within keepalive_timeout_s after our PING
    "handshake",       # preface, SETTINGS or SETTINGS ACK not there in time; ALPN is not h2
    "header_timeout",  # a header block that never ends
    "protocol_error",  # RFC 9113 connection error
    "flood",           # any flood class
    "slow_reader",     # the peer does not read our answers
    "too_many_pings",  # gRPC proposal A8
    "connection_limit",
    "memory_limit",
    "internal",        # a fault of our own
)  # fmt: skip

GRPC_CODES = tuple(str(code) for code in range(17))

TRANSPORT_METRICS = (
    MetricSpec("sidecar_connections_open", Kind.GAUGE, "Client connections open now."),
    MetricSpec("sidecar_connections_accepted_total", Kind.COUNTER, "Client connections accepted."),
    MetricSpec(
        "sidecar_connections_closed_total",
        Kind.COUNTER,
        "Client connections closed, by why.",
        labels=(("reason", CLOSE_REASONS),),
    ),
    MetricSpec("sidecar_calls_running", Kind.GAUGE, "Calls whose handler has not ended."),
    MetricSpec(
        "sidecar_calls_total",
        Kind.COUNTER,
        "gRPC calls ended, by status code (0 = OK, also for denials).",
        labels=(("grpc_code", GRPC_CODES),),
    ),
)

TABLE = MetricTable((*TRANSPORT_METRICS,))
"""Every metric of the program."""

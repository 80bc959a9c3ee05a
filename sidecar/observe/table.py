"""The one table of metrics. docs/metrics.md describes each row; a test holds the two together."""

from __future__ import annotations

from sidecar.domain.decisions import Reason, Verdict
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
    MetricSpec(
        "sidecar_accept_pauses_total",
        Kind.COUNTER,
        "Times that accepting paused for want of file descriptors or memory.",
    ),
    MetricSpec(
        "sidecar_tls_reloads_total",
        Kind.COUNTER,
        "TLS files that changed and were loaded again; failed = the former ones stay in use.",
        labels=(("result", ("ok", "failed")),),
    ),
)

DECISION_METRICS = (
    MetricSpec(
        "sidecar_decisions_total",
        Kind.COUNTER,
        "Decisions made, by verdict and reason.",
        labels=(
            ("verdict", tuple(verdict.value for verdict in Verdict)),
            ("reason", tuple(reason.word for reason in Reason)),
        ),
        only=tuple((reason.verdict.value, reason.word) for reason in Reason),
    ),
    MetricSpec(
        "sidecar_decision_duration_seconds",
        Kind.HISTOGRAM,
        "Time from a parsed request to its decision, a trip to the store included.",
        buckets_ns=(
            5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
            5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000,
        ),
    ),
)  # fmt: skip

TABLE = MetricTable(
    (
        *DECISION_METRICS,
        *TRANSPORT_METRICS,
    )
)
"""Every metric of the program."""

"""The metrics of connections and calls, a part of the table of all metrics."""

from __future__ import annotations

from sidecar.observe.metrics import MetricSpec

CLOSE_REASONS = (
    "peer",            # the client closed it, or its connection broke
    "drain",           # the sidecar is stopping
    "max_age",         # older than max_connection_age_s
    "idle",            # no stream for idle_timeout_s
    "keepalive",       # no byte within keepalive_timeout_s after our PING
    "handshake",       # preface, SETTINGS or SETTINGS ACK not received in time; ALPN is not h2
    "header_timeout",  # an incomplete header block
    "protocol_error",  # RFC 9113 connection error
    "flood",           # any flood class
    "slow_reader",     # the peer does not read our answers
    "too_many_pings",  # gRPC proposal A8
    "connection_limit",
    "memory_limit",    # the peer has too many unread answers or incomplete requests
    "internal",        # a bug
)  # fmt: skip

GRPC_CODES = tuple(str(code) for code in range(17))

_REQUEST_BUCKETS_NS = (
    25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000,
    50_000_000, 100_000_000, 250_000_000, 500_000_000, 1_000_000_000,
)  # fmt: skip

TRANSPORT_METRICS = (
    MetricSpec("sidecar_connections_open", "Client connections open now."),
    MetricSpec("sidecar_connections_accepted_total", "Client connections accepted."),
    MetricSpec(
        "sidecar_connections_closed_total",
        "Client connections closed, by reason.",
        labels=(("reason", CLOSE_REASONS),),
    ),
    MetricSpec(
        "sidecar_unsent_bytes", "Memory of answers that peers have not read and of incomplete requests."
    ),
    MetricSpec(
        "sidecar_reads_postponed_total",
        "Reads postponed to a later turn of the event loop, because the turn was full.",
    ),
    MetricSpec("sidecar_calls_running", "Calls in flight."),
    MetricSpec(
        "sidecar_request_duration_seconds",
        "Time from reading the first byte of a gRPC call or forward-auth request to writing its answer.",
        labels=(("protocol", ("grpc", "http")),),
        buckets_ns=_REQUEST_BUCKETS_NS,
    ),
    MetricSpec(
        "sidecar_calls_total",
        "gRPC calls ended, by status code (0 = OK, also for denials).",
        labels=(("grpc_code", GRPC_CODES),),
    ),
    MetricSpec("sidecar_key_floods_total", "Times that a source began to send too many invalid API keys."),
    MetricSpec(
        "sidecar_accept_pauses_total",
        "Times that accepting connections paused for lack of file descriptors or memory.",
    ),
    MetricSpec(
        "sidecar_tls_certificate_expires_timestamp_seconds",
        "Unix time at which the certificate of a listener expires; 0 = no TLS.",
        labels=(("listener", ("grpc", "http", "admin", "metrics")),),
    ),
    MetricSpec(
        "sidecar_tls_reloads_total",
        "Reloads of changed TLS files; failed = the former files stay in use.",
        labels=(("result", ("ok", "failed")),),
    ),
)

HTTP_CLOSE_REASONS = (
    "peer",             # the client closed it, or its connection broke
    "served",           # after an answer, because the client requested it or its request was not read fully
    "drain",            # the sidecar is stopping, or its TLS files have changed
    "no_request",       # no byte within 10 s of the connection
    "idle",             # no request for 80 s
    "body_timeout",     # the body was not received within 20 s
    "slow_reader",      # the answer was not read within 20 s
    "handshake",        # TLS
    "bad_request",      # a request that cannot be served, see sidecar_http_requests_refused_total
    "evicted",          # the longest idle connection, closed at the limit for a new one
    "connection_limit", # at the limit, with no idle connection
    "memory_limit",     # unread answers reached the memory limit
    "internal",         # a bug
)  # fmt: skip

HTTP_REFUSALS = ("400", "408", "413", "414", "417", "431", "501", "503", "505")

HTTP_METRICS = (
    MetricSpec("sidecar_http_requests_running", "Requests to HTTP listeners in flight."),
    MetricSpec("sidecar_http_connections_open", "Connections to HTTP listeners open now."),
    MetricSpec(
        "sidecar_http_connections_closed_total",
        "Connections to HTTP listeners closed, by reason.",
        labels=(("reason", HTTP_CLOSE_REASONS),),
    ),
    MetricSpec(
        "sidecar_http_requests_refused_total",
        "HTTP requests refused before a handler ran, by status.",
        labels=(("status", HTTP_REFUSALS),),
    ),
)

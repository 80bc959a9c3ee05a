"""The table of all metrics. docs/reference/metrics.md describes each row, which a test checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sidecar.domain.decisions import Reason, Verdict
from sidecar.domain.enforcement import RULE_OF
from sidecar.domain.fail_policy import FALLBACK_VERDICTS, FailPolicy
from sidecar.observe.file_reading import FILE_KINDS
from sidecar.observe.integration_rows import RESULTS
from sidecar.observe.metrics import MetricSpec, MetricTable
from sidecar.observe.transport_metrics import HTTP_METRICS, TRANSPORT_METRICS

DECISION_METRICS = (
    MetricSpec(
        "sidecar_decisions_total", "Decisions made, by verdict and reason.",
        labels=(
            ("verdict", tuple(verdict.value for verdict in Verdict)),
            ("reason", tuple(reason.label for reason in Reason)),
        ),
        only=tuple((reason.verdict.value, reason.label) for reason in Reason),
    ),
    MetricSpec(
        "sidecar_shadow_denials_total",
        "Requests allowed that would be denied if no rule was in shadow, by reason.",
        labels=(("reason", tuple(reason.label for reason in RULE_OF)),),
    ),
    MetricSpec(
        "sidecar_decision_duration_seconds",
        "Time from a parsed request to its decision, including the round trip to the store.",
        buckets_ns=(
            5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
            5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000,
        ),
    ),
)  # fmt: skip

_INTEGRATION = ("integration",)

INTEGRATION_METRICS = (
    MetricSpec(
        "sidecar_integration_decisions_total",
        "Decisions by integration, for the integrations with the most traffic.",
        labels=(("result", RESULTS),),
        row_labels=_INTEGRATION,
    ),
    MetricSpec(
        "sidecar_integration_limit_rpm",
        "Limit of an integration in requests per minute.",
        row_labels=_INTEGRATION,
    ),
    MetricSpec(
        "sidecar_integration_burst",
        "Burst of an integration: requests that it may send at once after a pause.",
        row_labels=_INTEGRATION,
    ),
    MetricSpec(
        "sidecar_integration_admitted_ratio",
        "Requests of an integration that were allowed in the worst span of the last minute, as a share of"
        " burst + limit x time; more than 1 = over-admission.",
        row_labels=_INTEGRATION,
    ),
    MetricSpec(
        "sidecar_integration_remaining_ratio",
        "Share of an integration's burst that is left now; 0 = the next request is refused.",
        row_labels=_INTEGRATION,
    ),
    MetricSpec(
        "sidecar_integration_used_ratio",
        "Requests of an integration that were allowed in the last minute, as a share of its limit.",
        row_labels=_INTEGRATION,
    ),
    MetricSpec(
        "sidecar_integration_limited_since_timestamp_seconds",
        "Unix time since which requests of an integration are over its limit; 0 = not in the last minute.",
        row_labels=_INTEGRATION,
    ),
)

EXPIRING_WITHIN = ("7d", "30d")

PROCESS_METRICS = (
    MetricSpec("sidecar_ready", "1 while /readyz answers 200, else 0."),
    MetricSpec(
        "sidecar_draining", "Processes that drain: they finish running calls and take no new connections."
    ),
    MetricSpec("sidecar_registry_integrations", "Integrations in the registry in force."),
    MetricSpec("sidecar_registry_credentials", "Credentials in the registry in force."),
    MetricSpec(
        "sidecar_credentials_expiring",
        "Credentials in the registry in force that expire soon, by how soon; counted every minute.",
        labels=(("within", EXPIRING_WITHIN),),
    ),
    MetricSpec(
        "sidecar_registry_loaded_timestamp_seconds", "Unix time at which the registry in force was loaded."
    ),
    MetricSpec(
        "sidecar_registry_reloads_total",
        "Reloads of registry files; failed = the former registry stays in force.",
        labels=(("result", ("ok", "unchanged", "failed")),),
    ),
    MetricSpec(
        "sidecar_event_loop_lag_seconds",
        "How late a timer of the event loop ran, sampled four times a second in each deciding process.",
        buckets_ns=(
            1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000,
            500_000_000, 1_000_000_000, 2_500_000_000, 10_000_000_000,
        ),
    ),
    MetricSpec(
        "sidecar_files_unreadable",
        "Files that cannot be read now; their last content stays in force.",
        labels=(("file", FILE_KINDS),),
    ),
    MetricSpec("sidecar_log_lines_dropped_total", "Log lines dropped: too many, or not read."),
)  # fmt: skip

STORE_ERROR_CODES = (
    "NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING", "BUSY",
    "NOREPLICAS", "MISCONF", "OOM", "NOAUTH", "NOPERM", "WRONGPASS", "other",
)  # fmt: skip

STORE_METRICS = (
    MetricSpec("sidecar_store_takes_total", "Takes and peeks sent to the shared store."),
    MetricSpec(
        "sidecar_store_takes_merged_total",
        "Takes sent that were merged with an equal take of their batch.",
    ),
    MetricSpec("sidecar_store_batches_total", "Batches of takes sent to a node of the store."),
    MetricSpec(
        "sidecar_store_calls_total",
        "Script calls sent: one per batch, in a Cluster one per partition of a batch.",
    ),
    MetricSpec(
        "sidecar_store_trip_duration_seconds", "Time from sending a batch to its last reply.",
        buckets_ns=(
            50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
            25_000_000, 50_000_000, 100_000_000, 250_000_000, 500_000_000,
        ),
    ),
    MetricSpec(
        "sidecar_store_faults_total", "Takes without an outcome, by fault.",
        labels=(("fault", ("unavailable", "timeout", "overloaded", "superseded")),),
    ),
    MetricSpec(
        "sidecar_store_error_replies_total", "Error replies of the store, by code.",
        labels=(("code", STORE_ERROR_CODES),),
    ),
    MetricSpec(
        "sidecar_store_denials_from_memory_total",
        "Takes refused without a round trip, because their bucket was known to be empty.",
    ),
    MetricSpec(
        "sidecar_store_breakers_open",
        "Nodes of the store that get no takes now: not connected, or failing.",
    ),
    MetricSpec("sidecar_store_breaker_trips_total", "Times a node's breaker opened."),
    MetricSpec("sidecar_store_connections_open", "Connections to the store in use."),
    MetricSpec(
        "sidecar_store_connects_total", "Attempts to connect to a node of the store.",
        labels=(("result", ("ok", "failed")),),
    ),
    MetricSpec(
        "sidecar_store_may_evict",
        "Servers of the store whose maxmemory-policy may remove keys; it must be noeviction.",
    ),
    MetricSpec(
        "sidecar_store_script_loads_total",
        "Times that the store had lost a script and it was loaded again.",
    ),
    MetricSpec(
        "sidecar_store_topology_changes_total",
        "Times that partitions of a Cluster moved to other nodes.",
    ),
    MetricSpec(
        "sidecar_store_partitions_unserved",
        "Partitions of a Cluster that no reachable node serves now.",
    ),
    MetricSpec(
        "sidecar_store_redirects_total",
        "Script calls that a node of a Cluster redirected, by whether another node executed them.",
        labels=(("result", ("ok", "failed")),),
    ),
    MetricSpec(
        "sidecar_store_primary_changes_total",
        "Times that the Sentinels named another primary while the former one was in use.",
    ),
    MetricSpec(
        "sidecar_store_sentinels_followed",
        "Sentinels of the store URL to which the sidecar is subscribed now.",
    ),
)  # fmt: skip

FALLBACK_METRICS = (
    MetricSpec(
        "sidecar_store_fallbacks_total",
        "Decisions made by on_store_error because the shared store failed, by policy and verdict.",
        labels=(
            ("policy", tuple(policy.value for policy in FailPolicy)),
            ("verdict", tuple(verdict.value for verdict in Verdict)),
        ),
        only=tuple((policy.value, verdict.value) for policy, verdict in FALLBACK_VERDICTS),
    ),
    MetricSpec(
        "sidecar_store_live_sidecars",
        "Sidecar processes that share the store, as last counted; each gets an equal local share.",
    ),
    MetricSpec(
        "sidecar_store_clock_difference_seconds",
        "The store's clock, by which credentials expire, minus this machine's clock, in whole seconds.",
    ),
)

REGISTRY_METRICS = (
    MetricSpec(
        "sidecar_registry_in_touch",
        "1 = the last access to the shared registry succeeded; 0 = the registry in force may be outdated.",
    ),
    MetricSpec(
        "sidecar_registry_confirmed_timestamp_seconds",
        "Unix time at which the registry in force was last known to be the newest; 0 = never.",
    ),
    MetricSpec("sidecar_registry_loads_total", "Complete loads of the shared registry."),
    MetricSpec(
        "sidecar_registry_changes_total",
        "Changes of single integrations of the shared registry that were put into force.",
    ),
    MetricSpec(
        "sidecar_registry_follow_failures_total",
        "Failed accesses to the shared registry; the registry in force stays in use.",
    ),
    MetricSpec(
        "sidecar_registry_replaced",
        "1 = the store has another registry than this sidecar follows, none, or an older state of it.",
    ),
    MetricSpec(
        "sidecar_registry_refreshes_total",
        "Integrations read at once because a take found that their record had changed.",
        labels=(("result", ("ok", "failed")),),
    ),
    MetricSpec(
        "sidecar_registry_single_person_integrations",
        "Integrations whose suspending and reactivating administrators may be the same person.",
    ),
    MetricSpec(
        "sidecar_credential_uses_written_total",
        "Uses of credentials written to the registry: latest time, by credential and address.",
    ),
    MetricSpec(
        "sidecar_credential_uses_dropped_total",
        "Uses of credentials dropped, because too many credentials and addresses waited to be written.",
    ),
)

RATE_LIMIT_RULES_MAX = 1_024
"""Rules that have counts of their own; further ones share one."""

RATE_LIMIT_METRICS = (
    MetricSpec(
        "sidecar_rate_limit_calls_total", "Calls of Envoy's rate-limit service, by result.",
        labels=(("result", ("ok", "over_limit", "invalid", "unavailable")),),
    ),
    MetricSpec(
        "sidecar_rate_limit_hits_total",
        "Hits that the rate-limit service was asked for, by configured domain and rule.",
        labels=(("result", ("within_limit", "over_limit", "shadow")),),
        row_labels=("domain", "rule"),
        rows_max=RATE_LIMIT_RULES_MAX,
    ),
    MetricSpec(
        "sidecar_rate_limit_duration_seconds", "Time from a call of the rate-limit service to its answer.",
        buckets_ns=(
            50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 20_000_000,
            50_000_000, 100_000_000,
        ),
    ),
    MetricSpec(
        "sidecar_rate_limit_reloads_total",
        "Reloads of the rate-limit files; failed = the former rules stay in force.",
        labels=(("result", ("ok", "unchanged", "failed")),),
    ),
)  # fmt: skip

RESTART_REASONS = (
    "rolling",         # replaced by its successor (SIGHUP)
    "crashed",         # ended by a signal or an error code without a stop request
    "exited",          # ended with code 0 without a stop request
    "start_failed",    # ended before it served
    "start_timeout",   # did not serve, or as a successor was not ready, in time; killed
    "unresponsive",    # its event loop was blocked; killed
)  # fmt: skip

WORKER_METRICS = (
    MetricSpec("sidecar_workers_wanted", "Configured number of worker processes; 0 = no supervisor."),
    MetricSpec("sidecar_workers_running", "Worker processes that serve now."),
    MetricSpec("sidecar_workers_ready", "Worker processes that are ready for traffic."),
    MetricSpec(
        "sidecar_worker_restarts_total",
        "Worker processes that ended or were replaced, by reason.",
        labels=(("reason", RESTART_REASONS),),
    ),
    MetricSpec(
        "sidecar_rolling_restarts_total",
        "Finished rolling restarts; failed = at least one worker was not replaced.",
        labels=(("result", ("ok", "failed")),),
    ),
)

OTHER = "other"

ADMIN_CALLS = (
    ("administrators", "DELETE"), ("administrators", "GET"), ("administrators", "POST"),
    ("allowlist", "POST"),
    ("audit", "GET"),
    ("changes", "POST"),
    ("credentials", "GET"), ("credentials", "POST"),
    ("decisions", "GET"), ("decisions", "POST"),
    ("document", "GET"),
    ("integrations", "DELETE"), ("integrations", "GET"), ("integrations", "PATCH"), ("integrations", "POST"),
    ("limit", "POST"),
    ("review", "GET"),
    ("scopes", "GET"), ("scopes", "POST"),
    ("sidecars", "GET"),
    ("standing", "POST"),
    ("webhook_secrets", "POST"),
    (OTHER, OTHER),
)  # fmt: skip
"""Groups of endpoints and their methods; other = refused before the endpoint was known."""
ADMIN_STATUSES = (
    "200", "201", "400", "401", "403", "404", "405", "406", "408", "409", "412", "413", "415", "422",
    "429", "500", "503", "504", OTHER,
)  # fmt: skip

DECISION_LOG_METRICS = (
    MetricSpec(
        "sidecar_decision_log_rows_total",
        "Rows of the decision log, by what became of them.",
        labels=(("result", ("written", "dropped", "lost", "sampled", "stdout_dropped")),),
    ),
    MetricSpec(
        "sidecar_decision_log_writer_running",
        "1 while the process that writes the decision log runs, else 0.",
    ),
    MetricSpec(
        "sidecar_decision_log_writer_restarts_total",
        "Times that the process that writes the decision log ended and was started again.",
    ),
    MetricSpec(
        "sidecar_decision_log_failing",
        "1 while rows cannot be written, for instance because the disk is full, else 0.",
    ),
    MetricSpec(
        "sidecar_decision_log_bytes", "Size of the files with this sidecar's rows, measured every 20 s."
    ),
)

ADMIN_METRICS = (
    MetricSpec(
        "sidecar_admin_requests_total", "Calls of the admin API, by group of endpoints, method and status.",
        labels=(
            ("route", tuple(dict.fromkeys(route for route, _ in ADMIN_CALLS))),
            ("method", tuple(dict.fromkeys(method for _, method in ADMIN_CALLS))),
            ("status", ADMIN_STATUSES),
        ),
        only=tuple((*call, status) for call in ADMIN_CALLS for status in ADMIN_STATUSES),
    ),
    MetricSpec(
        "sidecar_admin_request_duration_seconds",
        "Time of a call of the admin API, without waiting for other sidecars to confirm.",
        labels=(("kind", ("read", "change")),),
        buckets_ns=(
            1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000,
            500_000_000, 1_000_000_000, 2_500_000_000, 10_000_000_000,
        ),
    ),
    MetricSpec(
        "sidecar_admin_failed_attempts_total",
        "Calls of the admin API without a valid token; 429 = too many from one address.",
        labels=(("status", ("401", "429")),),
    ),
    MetricSpec(
        "sidecar_admin_live_administrators",
        "Administrators with the role admin and a valid token; 0 = none, or no admin API in this process.",
    ),
    MetricSpec(
        "sidecar_admin_tokens_expiring",
        "Tokens of administrators, of any role, that expire soon, by how soon.",
        labels=(("within", EXPIRING_WITHIN),),
    ),
    MetricSpec(
        "sidecar_admin_access_ends_timestamp_seconds",
        "Unix time at which the last valid token with the role admin expires; 0 = none, or no admin API.",
    ),
)  # fmt: skip

TABLE = MetricTable(
    (
        *DECISION_METRICS,
        *INTEGRATION_METRICS,
        *STORE_METRICS,
        *FALLBACK_METRICS,
        *TRANSPORT_METRICS,
        *HTTP_METRICS,
        *PROCESS_METRICS,
        *REGISTRY_METRICS,
        *RATE_LIMIT_METRICS,
        *WORKER_METRICS,
        *DECISION_LOG_METRICS,
        *ADMIN_METRICS,
    )
)
"""All metrics."""


def _least_known(values: Sequence[int]) -> int:
    """The lowest value, ignoring processes that have not set theirs."""
    return min(filter(None, values), default=0)


def _furthest_from_zero(values: Sequence[int]) -> int:
    """The value of the largest magnitude, with its sign."""
    return max(values, key=abs, default=0)


WORKER_GAUGE_RULES: Mapping[str, Callable[[Sequence[int]], int]] = {
    "sidecar_ready": max,
    "sidecar_registry_in_touch": min,
    "sidecar_registry_replaced": max,
    "sidecar_registry_integrations": max,
    "sidecar_registry_credentials": max,
    "sidecar_credentials_expiring": max,
    "sidecar_tls_certificate_expires_timestamp_seconds": _least_known,
    "sidecar_registry_single_person_integrations": max,
    "sidecar_registry_loaded_timestamp_seconds": _least_known,
    "sidecar_registry_confirmed_timestamp_seconds": _least_known,
    "sidecar_store_live_sidecars": max,
    "sidecar_store_may_evict": max,
    "sidecar_store_sentinels_followed": min,
    "sidecar_store_clock_difference_seconds": _furthest_from_zero,
    "sidecar_store_partitions_unserved": max,
}
"""How the values of all workers are combined, for gauges that must not be added up."""

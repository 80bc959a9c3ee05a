"""The slots of the store's metrics, looked up once."""

from __future__ import annotations

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import STORE_ERROR_CODES
from sidecar.stores.protocols import StoreFault


class StoreCounts:
    """Slots of the store's metrics; hot paths use `values[counts.takes] += 1`."""

    __slots__ = (
        "batches", "breaker_trips", "breakers_open", "calls", "connects", "denials", "errors",
        "failed_connects", "faults", "links", "may_evict", "merged", "primary_changes", "redirects",
        "script_loads", "sentinels", "takes", "topology_changes", "trip", "unserved", "values",
    )  # fmt: skip

    def __init__(self, metrics: Metrics) -> None:
        """Look up every slot."""
        self.values = metrics.values
        self.takes = metrics.slot("sidecar_store_takes_total")
        self.merged = metrics.slot("sidecar_store_takes_merged_total")
        self.batches = metrics.slot("sidecar_store_batches_total")
        self.calls = metrics.slot("sidecar_store_calls_total")
        self.script_loads = metrics.slot("sidecar_store_script_loads_total")
        self.denials = metrics.slot("sidecar_store_denials_from_memory_total")
        self.breakers_open = metrics.slot("sidecar_store_breakers_open")
        self.breaker_trips = metrics.slot("sidecar_store_breaker_trips_total")
        self.links = metrics.slot("sidecar_store_connections_open")
        self.connects = metrics.slot("sidecar_store_connects_total", "ok")
        self.failed_connects = metrics.slot("sidecar_store_connects_total", "failed")
        self.may_evict = metrics.slot("sidecar_store_may_evict")
        self.topology_changes = metrics.slot("sidecar_store_topology_changes_total")
        self.primary_changes = metrics.slot("sidecar_store_primary_changes_total")
        self.sentinels = metrics.slot("sidecar_store_sentinels_followed")
        self.redirects = {
            result: metrics.slot("sidecar_store_redirects_total", result) for result in ("ok", "failed")
        }
        self.unserved = metrics.slot("sidecar_store_partitions_unserved")
        self.faults = {fault: metrics.slot("sidecar_store_faults_total", fault.value) for fault in StoreFault}
        self.errors = {
            code: metrics.slot("sidecar_store_error_replies_total", code) for code in STORE_ERROR_CODES
        }
        self.trip = metrics.histogram("sidecar_store_trip_duration_seconds")

    def error(self, code: str) -> None:
        """Count one error reply; unknown codes count as other."""
        self.values[self.errors.get(code, self.errors["other"])] += 1

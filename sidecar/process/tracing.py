"""Connects the traces of decisions to a decider: `traces.endpoint`. Imported only if that is set."""

from __future__ import annotations

import asyncio
import threading

from sidecar.observe.build import VERSION
from sidecar.process.settings import TraceSettings
from sidecar.services.decider import Decider
from sidecar.services.traces import EXPORT_TIMEOUT_S, DecisionTraces, TracedBuckets, exporter_to, provider_of
from sidecar.stores.protocols import BucketStore


class Tracing:
    """
    The traces of one process.

    `buckets` is the store for the decider, which measures the trips of decisions.
    """

    def __init__(self, settings: TraceSettings, store: BucketStore, instance: str) -> None:
        """Export to the endpoint of *settings*; *instance* is this process's name in the fleet."""
        assert settings.endpoint is not None
        self.buckets = TracedBuckets(store)
        self._sample_ratio = settings.sample_ratio
        self._provider = provider_of(exporter_to(settings.endpoint), VERSION, instance)

    def connect(self, decider: Decider) -> None:
        """Make the spans of *decider*, which has `buckets`."""
        tracer = self._provider.get_tracer("sidecar", VERSION)
        decider.add_observer(DecisionTraces(tracer, self.buckets, self._sample_ratio).note)

    async def close(self, timeout_s: float = EXPORT_TIMEOUT_S) -> None:
        """Export the waiting spans within *timeout_s*; afterwards they are lost."""
        # A daemon: an export that hangs must not delay the end of the process.
        ending = threading.Thread(target=self._provider.shutdown, name="last export", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, timeout_s)

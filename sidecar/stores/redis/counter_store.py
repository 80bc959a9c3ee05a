"""The counters of the rate-limit service in Redis, on the pipelines of the bucket store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sidecar.domain.rate_limits.counters import CounterTake
from sidecar.stores.protocols import CountersDone
from sidecar.stores.redis.count_call import CounterCall
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.node_pipeline import NodePipeline


class RedisCounterStore:
    """A `CounterStore`: its calls leave with the takes from buckets, in one trip."""

    def __init__(self, keys: KeySpace, pipelines: Callable[[], Sequence[NodePipeline]]) -> None:
        """*pipelines* gives the pipeline of each partition."""
        self._keys = keys
        self._pipelines = pipelines

    def take_now(self, domain: str, takes: Sequence[CounterTake]) -> None:
        """See `CounterStore.take_now`: every call needs a trip."""

    def take_later(
        self, domain: str, takes: Sequence[CounterTake], timeout_s: float, done: CountersDone
    ) -> None:
        """Take with the next batch. See `CounterStore.take_later`."""
        call = CounterCall(domain, takes, self._keys)
        self._pipelines()[call.partition].add(call, 1, timeout_s, done)

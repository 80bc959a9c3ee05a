"""
A sidecar's share of every limit, in its own memory, used while the shared store is unavailable.

With n live sidecars each gets 1/n of every rate and burst: together about the limit, if requests are
spread evenly. A share of 1/n is a bucket of the full quota in which every take costs n tokens: exact
for every n, also where limit / n is not a whole number. A share of the burst is at least one take,
so a fleet of n may admit up to n takes of a burst smaller than n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.domain.bucket import BURST_MAX, BucketSet, Quota, Taken
from sidecar.stores.clocks import steady_clock_us
from sidecar.stores.embedded import BUCKETS_MAX, EmbeddedBucketStore
from sidecar.stores.protocols import StoreFault

SHARES_MAX: Final = 65_536
"""Maximum number of bucket sets whose share is cached."""

FORGET_AFTER_US: Final = 60_000_000
"""
How long the store must have answered before local usage is dropped.

Otherwise an unstable store would give the fleet a fresh burst of every bucket at each failure.
"""


class LocalShare:
    """
    Buckets of one sidecar at 1/n of every quota; n = `live_sidecars`, which may change at any time.

    Used tokens stay used when n changes. The buckets are full when the store fails, so a failure gives
    the fleet up to one more burst of every bucket. `forget_unused` drops them once the store has been
    back for `FORGET_AFTER_US`, so that the next failure starts with full buckets again.
    """

    def __init__(
        self,
        clock_us: Callable[[], int] = steady_clock_us,
        live_sidecars: int = 1,
        wall_us: Callable[[], int] | None = None,
        buckets_max: int = BUCKETS_MAX,
    ) -> None:
        """Share among *live_sidecars*, this one included; for the rest see `EmbeddedBucketStore`."""
        self._clock_us = clock_us
        self._wall_us = wall_us
        self._buckets_max = buckets_max
        self._store = EmbeddedBucketStore(clock_us, buckets_max, wall_us)
        self._live_sidecars = max(1, live_sidecars)
        self._shares: dict[BucketSet, BucketSet] = {}
        self._used_at_us = 0

    def __len__(self) -> int:
        return len(self._store)

    @property
    def live_sidecars(self) -> int:
        """Number of sidecars that share the limits."""
        return self._live_sidecars

    @live_sidecars.setter
    def live_sidecars(self, count: int) -> None:
        if count != self._live_sidecars:
            self._live_sidecars = max(1, count)
            self._shares.clear()

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault:
        """Take from this sidecar's share; the result describes the share. See `BucketStore.take_now`."""
        self._used_at_us = self._clock_us()
        share = self._shares.get(buckets)
        if share is None:
            share = self._share(buckets)
        outcome = self._store.take_now(share, asked)
        if isinstance(outcome, Taken):
            remaining = outcome.remaining * buckets.cost // share.cost
            return Taken(
                outcome.admitted, remaining, outcome.retry_after_us, outcome.reset_at_us, outcome.at_us
            )
        return outcome or StoreFault.OVERLOADED

    def forget_unused(self) -> None:
        """Drop all buckets if none was used for `FORGET_AFTER_US`; call this while the store answers."""
        is_used = len(self._store) > 0 or len(self._shares) > 0
        if is_used and self._clock_us() - self._used_at_us >= FORGET_AFTER_US:
            self._store = EmbeddedBucketStore(self._clock_us, self._buckets_max, self._wall_us)
            self._shares.clear()

    def _share(self, buckets: BucketSet) -> BucketSet:
        if len(self._shares) >= SHARES_MAX:
            self._shares.clear()
        cost = min(buckets.cost * self._live_sidecars, BURST_MAX)
        quotas = []
        for quota in buckets.quotas:
            # A take that fits the whole bucket must fit its share; one that exceeds the burst must not.
            fits = buckets.cost <= quota.burst
            quotas.append(Quota(quota.interval_us, max(quota.burst, cost)) if fits else quota)
        share = BucketSet(buckets.owner, buckets.generation, buckets.keys, quotas, cost)
        self._shares[buckets] = share
        return share

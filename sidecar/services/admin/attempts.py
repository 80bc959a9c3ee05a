"""Limits failed authentications by source address."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.domain.bucket import BucketSet, Quota
from sidecar.domain.client_address import network_of
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import StoreFault

ATTEMPTS_PER_MINUTE = 10
ATTEMPTS_BURST = 10
SOURCES_MAX = 10_000
TABLE_FULL_RETRY_S = 60

_QUOTA = Quota.per_minute(ATTEMPTS_PER_MINUTE, ATTEMPTS_BURST)


class FailedAttempts:
    """
    One bucket per source of failed attempts; at most *sources_max* sources at the same time.

    When the table is full, attempts from further sources count as limited. That delays nobody with a valid
    token, because only failed attempts are counted.
    """

    __slots__ = ("_buckets",)

    def __init__(self, clock_us: Callable[[], int], sources_max: int = SOURCES_MAX) -> None:
        """Read the time from *clock_us*."""
        self._buckets = EmbeddedBucketStore(clock_us, sources_max)

    def note(self, source: str) -> int:
        """
        Record a failed attempt of *source*.

        Returns:
            0 = within the limit; else the seconds until another attempt is within it.
        """
        key = network_of(source)
        taken = self._buckets.take_now(BucketSet(key, 1, (key,), (_QUOTA,)), 1)
        if taken is None or isinstance(taken, StoreFault):
            return TABLE_FULL_RETRY_S
        return 0 if taken.admitted else max(1, -(-taken.retry_after_us // 1_000_000))

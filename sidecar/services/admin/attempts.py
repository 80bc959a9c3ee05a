"""Failed attempts to authenticate, limited by where they come from."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from sidecar.domain.bucket import BucketSet, Quota
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import StoreFault

ATTEMPTS_PER_MINUTE = 10
ATTEMPTS_BURST = 10
SOURCES_MAX = 10_000
IPV6_NETWORK_BITS = 64
"""Whoever has one IPv6 address has its /64 (RFC 6177), so that is what counts as one source."""
TABLE_FULL_RETRY_S = 60

_QUOTA = Quota.per_minute(ATTEMPTS_PER_MINUTE, ATTEMPTS_BURST)


class FailedAttempts:
    """
    One bucket for each source of failed attempts; at most *sources_max* that are not full again.

    When the table is full, attempts of further sources count as limited: that delays nobody whose token
    is valid, because only failed attempts come here.
    """

    __slots__ = ("_buckets",)

    def __init__(self, clock_us: Callable[[], int], sources_max: int = SOURCES_MAX) -> None:
        """Read the time from *clock_us*."""
        self._buckets = EmbeddedBucketStore(clock_us, sources_max)

    def note(self, source: str) -> int:
        """
        Note one failed attempt of *source*.

        Returns:
            0 = it is within the limit; else the seconds until the next one would be.
        """
        key = network_of(source)
        taken = self._buckets.take_now(BucketSet(key, 1, (key,), (_QUOTA,)), 1)
        if taken is None or isinstance(taken, StoreFault):
            return TABLE_FULL_RETRY_S
        return 0 if taken.admitted else max(1, -(-taken.retry_after_us // 1_000_000))


def network_of(source: str) -> str:
    """
    What counts as one source: an IPv4 address, an IPv6 /64, or what is no address as it is.

    >>> network_of("2001:db8::1:2:3:4"), network_of("::ffff:192.0.2.1"), network_of("local")
    ('2001:db8::', '192.0.2.1', 'local')
    """
    try:
        address = ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS))
    return str(address)

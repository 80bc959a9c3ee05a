"""
Limits how many invalid API keys one source may try: an address, and the network around it.

A source has a token bucket, as an integration has (GCRA over one integer, see `bucket`); it fills within a
minute. Only keys that no integration owns cost tokens. A valid key is never refused here, whatever its
neighbors try.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.domain.cidr import Address, block_of, format_address

MINUTE_US: Final = 60_000_000
SOURCES_MAX: Final = 65_536
"""Sources with spent tokens that are kept; past it the one that was seen least recently is forgotten."""
EPISODES_MAX: Final = 1_024
"""Floods that are reported once each; past it the oldest may be reported again."""
NETWORK_FACTOR: Final = 4
"""A network may try as many times what one address may."""
IPV4_NETWORK_BITS: Final = 24
IPV6_BITS: Final = 64
"""IPv6 addresses are counted by /64, which one customer has, and by no larger network."""


class KeyFloodLimiter:
    """Counts invalid keys by source, in bounded memory; for one process."""

    __slots__ = ("_burst_us", "_episodes", "_interval_us", "_tat_us", "on_flood")

    def __init__(self, per_minute: int) -> None:
        """Admit *per_minute* invalid keys of one address, 1 to 1,000,000, and no more than that at once."""
        if not 1 <= per_minute <= 1_000_000:
            raise ValueError(f"per_minute is {per_minute}; it must be 1 to 1000000")
        self._interval_us = -(-MINUTE_US // per_minute)
        self._burst_us = self._interval_us * per_minute
        self._tat_us: dict[tuple[bytes, int], int] = {}
        self._episodes: dict[tuple[bytes, int], int] = {}
        self.on_flood: Callable[[str], None] | None = None
        """Receives the prefix of a source, in CIDR notation, when its invalid keys begin to be refused."""

    def __len__(self) -> int:
        """Return how many sources are kept."""
        return len(self._tat_us)

    def admits(self, address: Address, now_us: int) -> bool:
        """Count an invalid key from *address*; False = this address or its network has sent too many."""
        if len(address) == 16:
            return self._take((block_of(address, IPV6_BITS).network, IPV6_BITS), self._interval_us, now_us)
        network = block_of(address, IPV4_NETWORK_BITS).network, IPV4_NETWORK_BITS
        # Both are charged, so that a network cannot hide behind its many addresses.
        is_host_admitted = self._take((address, 32), self._interval_us, now_us)
        return self._take(network, max(1, self._interval_us // NETWORK_FACTOR), now_us) and is_host_admitted

    def _take(self, source: tuple[bytes, int], interval_us: int, now_us: int) -> bool:
        tat_us = max(self._tat_us.pop(source, now_us), now_us)
        is_admitted = tat_us + interval_us - now_us <= self._burst_us
        self._tat_us[source] = tat_us + interval_us if is_admitted else tat_us
        if len(self._tat_us) > SOURCES_MAX:
            del self._tat_us[next(iter(self._tat_us))]
        if not is_admitted:
            self._report(source, now_us)
        return is_admitted

    def _report(self, source: tuple[bytes, int], now_us: int) -> None:
        """Report a flood when it begins; it ends with a minute without a refusal."""
        before_us = self._episodes.pop(source, None)
        self._episodes[source] = now_us
        if len(self._episodes) > EPISODES_MAX:
            del self._episodes[next(iter(self._episodes))]
        if self.on_flood is not None and (before_us is None or now_us - before_us > MINUTE_US):
            self.on_flood(f"{format_address(source[0])}/{source[1]}")

"""The embedded store of the rate-limit service: counters in memory, for a sidecar of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sidecar.domain.rate_limits.counters import Counter, CountersTaken, CounterTake, is_unused, take_counters
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.protocols import CountersDone, StoreFault

COUNTERS_MAX: Final = 100_000
"""Counters of one domain; their keys come from callers."""

SEARCH_INTERVAL_US: Final = 1_000_000
"""How often a domain without room is searched for counters that are of no use any more."""


class _DomainCounters:
    """The counters of one domain, each with its unit."""

    __slots__ = ("counters", "search_at_us", "units_s")

    def __init__(self) -> None:
        self.counters: dict[str, Counter] = {}
        self.units_s: dict[str, int] = {}
        self.search_at_us = 0

    def drop_unused(self, now_us: int) -> None:
        """Drop windows that are over and buckets that are full: a new one equals them."""
        units_s = self.units_s
        unused = [key for key, counter in self.counters.items() if is_unused(counter, units_s[key], now_us)]
        for key in unused:
            del self.counters[key], units_s[key]


class EmbeddedCounterStore:
    """
    Counters of one process, at most *counters_max* of each domain.

    When a further one needs a place, those that are of no use any more are dropped. Where that makes no
    room the call is refused as overloaded and takes nothing: dropping a counter in use would hand out its
    hits again.
    """

    def __init__(self, clock_us: Callable[[], int] = wall_clock_us, counters_max: int = COUNTERS_MAX) -> None:
        """Count by *clock_us*, which is read once a call."""
        self._clock_us = clock_us
        self._counters_max = counters_max
        self._domains: dict[str, _DomainCounters] = {}

    def __len__(self) -> int:
        """Counters that are kept now."""
        return sum(len(domain.counters) for domain in self._domains.values())

    def take_now(self, domain: str, takes: Sequence[CounterTake]) -> CountersTaken | StoreFault:
        """Take at once. See `CounterStore.take_now`."""
        found = self._domains.get(domain)
        if found is None:
            found = self._domains[domain] = _DomainCounters()
        now_us = self._clock_us()
        counters = found.counters
        taken, kept = take_counters(takes, counters.get, now_us)
        if len(counters) + len(kept) > self._counters_max and not self._has_room(found, kept, now_us):
            return StoreFault.OVERLOADED
        counters.update(kept)
        for take in takes:
            if take.key in kept:
                found.units_s[take.key] = take.unit_s
        return taken

    def take_later(
        self, domain: str, takes: Sequence[CounterTake], timeout_s: float, done: CountersDone
    ) -> None:
        """Not needed: `take_now` always answers."""
        raise NotImplementedError("the embedded store answers every call at once")

    def _has_room(self, domain: _DomainCounters, kept: dict[str, Counter], now_us: int) -> bool:
        if self._fits(domain, kept):
            return True
        if not domain.search_at_us - SEARCH_INTERVAL_US <= now_us < domain.search_at_us:
            domain.search_at_us = now_us + SEARCH_INTERVAL_US
            domain.drop_unused(now_us)
        return self._fits(domain, kept)

    def _fits(self, domain: _DomainCounters, kept: dict[str, Counter]) -> bool:
        new = sum(key not in domain.counters for key in kept)
        return not new or len(domain.counters) + new <= self._counters_max

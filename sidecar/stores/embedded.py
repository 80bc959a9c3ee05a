"""The embedded bucket store: levels in memory, for a sidecar of one process. No trip, no wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sidecar.domain.bucket import BucketSet, Level, Taken, draw, draw_all
from sidecar.stores.protocols import StoreFault, TakeDone

BUCKETS_MAX = 1_000_000


def wall_clock_us() -> int:
    """Microseconds since the epoch, by the system's clock."""
    return time.time_ns() // 1_000


class EmbeddedBucketStore:
    """
    Buckets of one process.

    At most *buckets_max* are kept. When a further one needs a place, those that are full again and owe
    nothing are dropped; when there is none, its takes are refused as overloaded: dropping a used bucket
    would hand out its tokens again. Looking for full ones walks over all, so it is not done again before
    the first of them can have become full.
    """

    __slots__ = ("_buckets_max", "_clock_us", "_full_at_us", "_levels", "_searched_at_us")

    def __init__(self, clock_us: Callable[[], int] = wall_clock_us, buckets_max: int = BUCKETS_MAX) -> None:
        """Read the time from *clock_us*, once a take."""
        self._clock_us = clock_us
        self._buckets_max = buckets_max
        self._levels: dict[str, Level] = {}
        self._searched_at_us = 0  # the last search for full buckets, and when it found
        self._full_at_us = 0  # that the first of those in use would be full

    def __len__(self) -> int:
        """Buckets that are kept now."""
        return len(self._levels)

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """Take at once; never None. See `BucketStore.take_now`."""
        if len(buckets.keys) > 1 or buckets.cost != 1:
            return self._take_several(buckets, asked)
        key = buckets.keys[0]
        levels = self._levels
        now_us = self._clock_us()
        taken, level = draw(levels.get(key), buckets.quotas[0], asked, now_us)
        if level is not None:
            if len(levels) >= self._buckets_max and not self._has_room(buckets.keys, now_us):
                return StoreFault.OVERLOADED
            levels[key] = level
        return taken

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Not needed: `take_now` always answers."""
        raise NotImplementedError("the embedded store answers every take at once")

    def _take_several(self, buckets: BucketSet, asked: int) -> Taken | StoreFault:
        now_us = self._clock_us()
        levels = [self._levels.get(key) for key in buckets.keys]
        taken, drawn = draw_all(levels, buckets.quotas, asked, buckets.cost, now_us)
        if drawn is not None:
            if not self._has_room(buckets.keys, now_us):
                return StoreFault.OVERLOADED
            self._levels.update(zip(buckets.keys, drawn, strict=True))
        return taken

    def _has_room(self, keys: Sequence[str], now_us: int) -> bool:
        """Whether the buckets *keys* can be kept, after full ones have given way if need be."""
        if self._fit(keys):
            return True
        if not self._searched_at_us <= now_us < self._full_at_us:
            self._drop_full(now_us)
        return self._fit(keys)

    def _fit(self, keys: Sequence[str]) -> bool:
        new = sum(key not in self._levels for key in keys)
        return len(self._levels) + new <= self._buckets_max

    def _drop_full(self, now_us: int) -> None:
        levels = self._levels
        for key in [key for key, level in levels.items() if level.forgotten_at_us <= now_us]:
            del levels[key]
        self._searched_at_us = now_us
        self._full_at_us = min((level.forgotten_at_us for level in levels.values()), default=0)

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
    Buckets of one process. A full bucket is not stored, so what is kept is what is in use.

    At most *buckets_max* are kept. When that many are in use, full ones are dropped; when none is
    full, takes from further buckets are refused as overloaded: dropping a used bucket would hand
    out its tokens again.
    """

    __slots__ = ("_buckets_max", "_clock_us", "_levels")

    def __init__(self, clock_us: Callable[[], int] = wall_clock_us, buckets_max: int = BUCKETS_MAX) -> None:
        """Read the time from *clock_us*, once a take."""
        self._clock_us = clock_us
        self._buckets_max = buckets_max
        self._levels: dict[str, Level] = {}

    def __len__(self) -> int:
        """Buckets that are kept now."""
        return len(self._levels)

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """Take at once; never None. See `BucketStore.take_now`."""
        if len(buckets.keys) > 1 or buckets.cost != 1:
            return self._take_several(buckets, asked)
        key = buckets.keys[0]
        levels = self._levels
        taken, level = draw(levels.get(key), buckets.quotas[0], asked, self._clock_us())
        if level is not None:
            if key not in levels and len(levels) >= self._buckets_max and not self._make_room(1):
                return StoreFault.OVERLOADED
            levels[key] = level
        return taken

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Not needed: `take_now` always answers."""
        raise NotImplementedError("the embedded store answers every take at once")

    def _take_several(self, buckets: BucketSet, asked: int) -> Taken | StoreFault:
        levels = [self._levels.get(key) for key in buckets.keys]
        taken, drawn = draw_all(levels, buckets.quotas, asked, buckets.cost, self._clock_us())
        if drawn is not None:
            return taken if self._store(buckets.keys, drawn) else StoreFault.OVERLOADED
        return taken

    def _store(self, keys: Sequence[str], drawn: Sequence[Level]) -> bool:
        new = sum(key not in self._levels for key in keys)
        if len(self._levels) + new > self._buckets_max and not self._make_room(new):
            return False
        self._levels.update(zip(keys, drawn, strict=True))
        return True

    def _make_room(self, wanted: int) -> bool:
        """Drop the buckets that are full again; say whether *wanted* more fit now."""
        now_us = self._clock_us()
        self._levels = {key: level for key, level in self._levels.items() if level.tat_us > now_us}
        return len(self._levels) + wanted <= self._buckets_max

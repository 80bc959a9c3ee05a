"""The embedded bucket store: bucket levels in the memory of one sidecar process; no round trip, no wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sidecar.domain.bucket import BucketSet, Level, Taken, draw, draw_all
from sidecar.stores.clocks import steady_clock_us
from sidecar.stores.protocols import StoreFault, TakeDone

BUCKETS_MAX: Final = 1_000_000

COMPARE_CLOCKS_US: Final = 1_000_000
"""How often the two clocks are compared."""

TOLERANCE_US: Final = 1_000
"""A smaller difference between the clocks is ignored: reading two clocks takes time."""

_NEVER_US: Final = 2**63


class EmbeddedBucketStore:
    """
    Buckets of one process.

    At most *buckets_max* are kept. At that limit the store drops buckets that are full again and have no
    debt; if there are none, it refuses takes of new buckets as overloaded, because dropping a used bucket
    would hand out its tokens again. The search for full buckets reads all of them, so it is repeated only
    when the next bucket can have become full.

    `levels` has the state of each bucket by key; a bucket without a state is full.
    """

    __slots__ = (
        "_ahead_us", "_buckets_max", "_clock_us", "_compare_at_us", "_convert_from_us",
        "_full_at_us", "_searched_at_us", "_wall_us", "levels",
    )  # fmt: skip

    def __init__(
        self,
        clock_us: Callable[[], int] = steady_clock_us,
        buckets_max: int = BUCKETS_MAX,
        wall_us: Callable[[], int] | None = None,
    ) -> None:
        """
        Refill buckets by *clock_us*, read once per take, and report times by *wall_us*.

        The store compares the two clocks once per second. *wall_us* None = report by *clock_us*, too.
        """
        self._clock_us = clock_us
        self._wall_us = wall_us
        self._compare_at_us = 0 if wall_us is not None else _NEVER_US
        self._ahead_us = 0  # wall_us - clock_us
        self._convert_from_us = self._compare_at_us  # from then on results need `_to_wall_clock`
        self._buckets_max = buckets_max
        self.levels: dict[str, Level] = {}
        self._searched_at_us = 0  # when full buckets were last searched for
        self._full_at_us = 0  # when the first of the remaining buckets is full

    def __len__(self) -> int:
        return len(self.levels)

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """Take at once; never None. See `BucketStore.take_now`."""
        if len(buckets.keys) > 1 or buckets.cost != 1:
            return self._take_several(buckets, asked)
        key = buckets.keys[0]
        levels = self.levels
        now_us = self._clock_us()
        taken, level = draw(levels.get(key), buckets.quotas[0], asked, now_us)
        if level is not None:
            if len(levels) >= self._buckets_max and not self._has_room(buckets.keys, now_us):
                return StoreFault.OVERLOADED
            levels[key] = level
        return taken if now_us < self._convert_from_us else self._to_wall_clock(taken, now_us)

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Not supported: `take_now` always answers."""
        raise NotImplementedError("the embedded store answers every take at once")

    def _take_several(self, buckets: BucketSet, asked: int) -> Taken | StoreFault:
        now_us = self._clock_us()
        levels = [self.levels.get(key) for key in buckets.keys]
        taken, drawn = draw_all(levels, buckets.quotas, asked, buckets.cost, now_us)
        if drawn is not None:
            if not self._has_room(buckets.keys, now_us):
                return StoreFault.OVERLOADED
            self.levels.update(zip(buckets.keys, drawn, strict=True))
        return taken if now_us < self._convert_from_us else self._to_wall_clock(taken, now_us)

    def _to_wall_clock(self, taken: Taken, now_us: int) -> Taken:
        """Return *taken* with its times by the wall clock; compare the two clocks when that is due."""
        if now_us >= self._compare_at_us:
            assert self._wall_us is not None  # without a wall clock the comparison is never due
            ahead_us = self._wall_us() - now_us
            self._ahead_us = ahead_us if abs(ahead_us) >= TOLERANCE_US else 0
            self._compare_at_us = now_us + COMPARE_CLOCKS_US
            self._convert_from_us = 0 if self._ahead_us else self._compare_at_us
        if not self._ahead_us:
            return taken
        reset_at_us = taken.reset_at_us + self._ahead_us
        at_us = now_us + self._ahead_us
        return Taken(taken.admitted, taken.remaining, taken.retry_after_us, reset_at_us, at_us)

    def _has_room(self, keys: Sequence[str], now_us: int) -> bool:
        """Whether the buckets *keys* fit in memory, after dropping full buckets if necessary."""
        if self._fit(keys):
            return True
        if not self._searched_at_us <= now_us < self._full_at_us:
            self._drop_full(now_us)
        return self._fit(keys)

    def _fit(self, keys: Sequence[str]) -> bool:
        new = sum(key not in self.levels for key in keys)
        return len(self.levels) + new <= self._buckets_max

    def _drop_full(self, now_us: int) -> None:
        levels = self.levels
        for key in [key for key, level in levels.items() if level.full_at_us <= now_us]:
            del levels[key]
        self._searched_at_us = now_us
        self._full_at_us = min((level.full_at_us for level in levels.values()), default=0)

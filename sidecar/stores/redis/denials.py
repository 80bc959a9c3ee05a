"""
Cache of refusals: takes of a bucket that is empty until T are refused without a round trip until T.

The cache is exact: until T no sidecar can be admitted a take of that bucket, and the cached answer holds the
figures that the server would return. The server read its clock at some time between sending and receiving;
the cache uses the earliest possible T, so it never refuses longer than the server. It never admits.
"""

from __future__ import annotations

from typing import Final, final

from sidecar.domain.bucket import BucketSet, Taken

DRIFT: Final = 1_000
"""Divisor for the drift between the clocks of two machines: NTP slews each by up to 1/2000."""


@final
class Denial:
    """A bucket known to be empty; times are on the monotonic clock."""

    __slots__ = ("received_s", "taken", "until_s")

    def __init__(self, until_s: float, received_s: float, taken: Taken) -> None:
        """*taken* is the answer at *received_s*."""
        self.until_s = until_s
        self.received_s = received_s
        self.taken = taken


class Denials:
    """
    Empty buckets by their bucket set: a set with another quota or generation is another key.

    Only sets of one bucket are cached: with several, the others may change while the tightest stays empty.
    `entries` is public so that a take that is not refused costs one look-up.
    """

    __slots__ = ("_seconds_max", "_size_max", "entries")

    def __init__(self, size_max: int, seconds_max: float) -> None:
        """Keep at most *size_max* denials, each for at most *seconds_max*."""
        self._size_max = size_max
        self._seconds_max = seconds_max
        self.entries: dict[BucketSet, Denial] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, buckets: BucketSet, taken: Taken, now_us: int, sent_s: float, received_s: float) -> None:
        """Record that *taken* left no token at *now_us* of the server, between *sent_s* and *received_s*."""
        quota = buckets.quotas[0]
        wait_us = taken.reset_at_us + quota.interval_us - quota.span_us - now_us
        wait_us -= -(-wait_us // DRIFT)
        until_s = sent_s + min(wait_us / 1e6, self._seconds_max)
        if until_s <= received_s:
            return
        if buckets not in self.entries and len(self.entries) >= self._size_max:
            self._make_room(received_s)
        self.entries[buckets] = Denial(
            until_s, received_s, Taken(0, taken.remaining, taken.retry_after_us, taken.reset_at_us, now_us)
        )

    def find(self, buckets: BucketSet, now_s: float) -> Taken | None:
        """Return the cached refusal of a take or peek at *now_s*; None = ask the server."""
        denial = self.entries.get(buckets)
        if denial is None:
            return None
        if denial.until_s <= now_s:
            del self.entries[buckets]
            return None
        taken = denial.taken
        elapsed_us = int((now_s - denial.received_s) * 1e6)
        wait_us = taken.retry_after_us
        left_us = wait_us if wait_us < 0 else max(1, wait_us - elapsed_us)
        at_us = taken.at_us + elapsed_us
        return Taken(taken.admitted, taken.remaining, left_us, taken.reset_at_us, at_us)

    def forget(self, buckets: BucketSet) -> None:
        """Drop the denial of *buckets*."""
        self.entries.pop(buckets, None)

    def forget_owner(self, owner: str) -> None:
        """Drop the denials of one integration, whose buckets were reset; O(number of denials)."""
        self.entries = {buckets: denial for buckets, denial in self.entries.items() if buckets.owner != owner}

    def clear(self) -> None:
        """Drop all denials, because the server may have changed."""
        self.entries.clear()

    def _make_room(self, now_s: float) -> None:
        """Drop expired denials, or else the oldest half. A dropped denial only costs a round trip."""
        kept = [(buckets, denial) for buckets, denial in self.entries.items() if denial.until_s > now_s]
        if len(kept) >= self._size_max:
            kept = kept[len(kept) // 2 + 1 :]
        self.entries = dict(kept)

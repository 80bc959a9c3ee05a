"""
Refusals from memory: a bucket that is empty until T is refused without a trip until T.

Exact: until T no take of that bucket can be admitted anywhere, whoever else takes from it, and every
figure of the answer is what the server would say. T is on the server's clock, which we only know to
lie between sending and receiving; we stop at the earliest time T can be, so nobody is refused longer
than by the server. Nothing is ever admitted from memory.
"""

from __future__ import annotations

from typing import final

from sidecar.domain.bucket import BucketSet, Taken

DRIFT = 1_000
"""Clocks of two machines may run apart by that part of the time: NTP slews by up to 1/2000 on each."""


@final
class Denial:
    """A bucket known to be empty; times on our monotonic clock."""

    __slots__ = ("learnt_s", "taken", "until_s")

    def __init__(self, until_s: float, learnt_s: float, taken: Taken) -> None:
        """See the class; *taken* is what is answered when it was just learnt."""
        self.until_s = until_s
        self.learnt_s = learnt_s
        self.taken = taken


class Denials:
    """
    Empty buckets by their compiled set: another quota or generation is another set, so it is not found.

    Only sets of one bucket: with several, the others may change while the tightest stays empty. `entries`
    is open so that a take which is not denied costs one look-up.
    """

    __slots__ = ("_seconds_max", "_size_max", "entries")

    def __init__(self, size_max: int, seconds_max: float) -> None:
        """Keep *size_max* denials, none longer than *seconds_max*."""
        self._size_max = size_max
        self._seconds_max = seconds_max
        self.entries: dict[BucketSet, Denial] = {}

    def __len__(self) -> int:
        """How many are kept."""
        return len(self.entries)

    def learn(self, buckets: BucketSet, taken: Taken, now_us: int, sent_s: float, learnt_s: float) -> None:
        """
        *taken* has no token left at *now_us* of the server, which was between *sent_s* and *learnt_s*.
        """
        quota = buckets.quotas[0]
        wait_us = taken.reset_at_us + quota.interval_us - quota.span_us - now_us
        wait_us -= -(-wait_us // DRIFT)
        until_s = sent_s + min(wait_us / 1e6, self._seconds_max)
        if until_s <= learnt_s:
            return
        if buckets not in self.entries and len(self.entries) >= self._size_max:
            self._make_room(learnt_s)
        self.entries[buckets] = Denial(
            until_s, learnt_s, Taken(0, taken.remaining, taken.retry_after_us, taken.reset_at_us)
        )

    def find(self, buckets: BucketSet, now_s: float) -> Taken | None:
        """The refusal of a take or peek at *now_s*; None = it needs a trip."""
        denial = self.entries.get(buckets)
        if denial is None:
            return None
        if denial.until_s <= now_s:
            del self.entries[buckets]
            return None
        taken = denial.taken
        if taken.retry_after_us < 0:
            return taken
        left_us = taken.retry_after_us - int((now_s - denial.learnt_s) * 1e6)
        return Taken(taken.admitted, taken.remaining, max(1, left_us), taken.reset_at_us)

    def forget(self, buckets: BucketSet) -> None:
        """A take of *buckets* must ask the server again."""
        self.entries.pop(buckets, None)

    def forget_owner(self, owner: str) -> None:
        """Everything about one integration: its buckets were reset. O(kept)."""
        self.entries = {buckets: denial for buckets, denial in self.entries.items() if buckets.owner != owner}

    def clear(self) -> None:
        """Everything: the server is another one."""
        self.entries.clear()

    def _make_room(self, now_s: float) -> None:
        """Drop what is over; when nothing is, the oldest half. Dropping costs a trip, never a token."""
        kept = [(buckets, denial) for buckets, denial in self.entries.items() if denial.until_s > now_s]
        if len(kept) >= self._size_max:
            kept = kept[len(kept) // 2 + 1 :]
        self.entries = dict(kept)

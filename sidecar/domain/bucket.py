"""
The token bucket: GCRA over one integer per bucket, the specification that take.lua mirrors.

A bucket is its theoretical arrival time (TAT), integer microseconds since the epoch: the time at
which it is full again. All arithmetic is on integers, so nothing is lost at a refill, and a bucket
with a limit of L a minute and a burst of B admits at most B + L*T/60 takes in any T seconds.

Source: the generic cell rate algorithm, virtual scheduling (ITU-T I.371); docs/adr/0002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

US_PER_MINUTE = 60_000_000
LIMIT_RPM_MAX = 10_000
BURST_MAX = 1_000_000
ASKED_MAX = 2**31 - 1


class QuotaError(ValueError):
    """A limit, a burst or a cost is outside its range."""


@dataclass(frozen=True, slots=True)
class Quota:
    """
    How fast a bucket refills and how much it holds.

    `interval_us` is the time one token takes to come back, 6_000 ... 60_000_000; `burst` is the
    capacity in tokens, 1 ... 1_000_000. Their product stays below 2**53, so Lua computes the same.
    """

    interval_us: int
    burst: int

    def __post_init__(self) -> None:
        """Refuse what the arithmetic does not hold for."""
        if not 6_000 <= self.interval_us <= US_PER_MINUTE:
            raise QuotaError(f"interval_us must be 6000..{US_PER_MINUTE}, not {self.interval_us}")
        if not 1 <= self.burst <= BURST_MAX:
            raise QuotaError(f"burst must be 1..{BURST_MAX} tokens, not {self.burst}")

    @classmethod
    def per_minute(cls, limit_rpm: int, burst: int | None = None) -> Quota:
        """
        The quota of *limit_rpm* requests per minute; *burst* None = the limit.

        The interval is rounded up: at most 0.017 % strict, never lax.

        >>> Quota.per_minute(600)
        Quota(interval_us=100000, burst=600)
        """
        if not 1 <= limit_rpm <= LIMIT_RPM_MAX:
            raise QuotaError(f"a rate limit must be 1..{LIMIT_RPM_MAX} requests per minute, not {limit_rpm}")
        return cls(interval_us=-(-US_PER_MINUTE // limit_rpm), burst=limit_rpm if burst is None else burst)

    @property
    def span_us(self) -> int:
        """The time an empty bucket takes to fill: burst * interval."""
        return self.burst * self.interval_us


class Level(NamedTuple):
    """
    What is stored of a bucket: its TAT and the interval it was written under.

    The interval is kept so that a change of the limit keeps the tokens that were used.
    """

    tat_us: int
    interval_us: int


@final
class Taken(NamedTuple):
    """What a take found and left behind, over one bucket or over several taken all or none."""

    admitted: int
    """Takes admitted, 0 ... asked."""
    remaining: int
    """Whole tokens left after it; over several buckets the least."""
    retry_after_us: int
    """Wait until one more take passes; 0 = it would pass now, -1 = never (cost above a burst)."""
    reset_at_us: int
    """When every bucket is full again, µs since the epoch."""


def draw(level: Level | None, quota: Quota, asked: int, now_us: int) -> tuple[Taken, Level | None]:
    """
    Admit as many of *asked* one-token takes as fit; the rest change nothing.

    >>> draw(None, Quota(interval_us=1_000_000, burst=3), asked=5, now_us=5_000_000)[0]
    Taken(admitted=3, remaining=0, retry_after_us=1000000, reset_at_us=8000000)

    Args:
        level: what is stored; None = a full bucket.
        quota: the bucket's refill and capacity.
        asked: 0 ... 2**31 - 1; 0 is a peek and never stores.
        now_us: the store's clock, read once per decision.

    Returns:
        The outcome, and the level to store; None = store nothing. A refused take changes no bucket. It
        stores one only to rebase it: a level of another interval, or further ahead than an empty
        bucket, is put in terms of this quota, else it would go on refilling by the terms it was
        written in and the wait told here would not be enough.

    This is `draw_all` for one bucket and a cost of 1, and the whole of the embedded hot path.
    """
    interval_us, burst = quota.interval_us, quota.burst
    span_us = burst * interval_us
    start_us = now_us
    if level is not None:
        tat_us, written_us = level
        if tat_us > now_us:
            # Nearly every level stands in the terms of its quota, and needs no call.
            is_plain = written_us == interval_us and tat_us - now_us <= span_us
            start_us = tat_us if is_plain else _start(level, quota, now_us)
    room = (now_us + span_us - start_us) // interval_us
    admitted = asked if asked < room else room
    reset_at_us = start_us + admitted * interval_us
    remaining = room - admitted
    retry_after_us = 0 if remaining else reset_at_us + interval_us - span_us - now_us
    # Called for every decision: a named tuple's own constructor takes three times as long.
    taken = tuple.__new__(Taken, (admitted, remaining, retry_after_us, reset_at_us))
    if admitted or (asked and level != (start_us, interval_us)):
        return taken, tuple.__new__(Level, (reset_at_us, interval_us))
    return taken, None


def draw_all(
    levels: Sequence[Level | None], quotas: Sequence[Quota], asked: int, cost: int, now_us: int
) -> tuple[Taken, list[Level] | None]:
    """
    Admit as many of *asked* takes of *cost* tokens as fit into **every** bucket, all or none each.

    Args:
        levels: what is stored of each bucket; None = full.
        quotas: one for each bucket, in the same order; at least one.
        asked: equal takes that met in one batch, 0 ... 2**31 - 1; 0 = peek.
        cost: tokens of one take, 1 ... 1_000_000.
        now_us: the store's clock, read once.

    Returns:
        The outcome in takes, `remaining` in tokens of the tightest bucket; and the levels to store,
        None = store nothing. For a refused take see `draw`.

    Raises:
        QuotaError: asked or cost is outside its range.

    Mirror: take.lua, same integers, same order.
    """
    if not 0 <= asked <= ASKED_MAX or not 1 <= cost <= BURST_MAX:
        raise QuotaError(f"asked must be 0..{ASKED_MAX} and cost 1..{BURST_MAX}, not {asked} and {cost}")
    starts = [_start(level, quota, now_us) for level, quota in zip(levels, quotas, strict=True)]
    rooms = [
        (now_us + quota.span_us - start) // quota.interval_us
        for start, quota in zip(starts, quotas, strict=True)
    ]
    admitted = min(asked, min(rooms) // cost)
    used = admitted * cost
    resets = [start + used * quota.interval_us for start, quota in zip(starts, quotas, strict=True)]
    waits = [_wait(reset, quota, cost, now_us) for reset, quota in zip(resets, quotas, strict=True)]
    retry_after_us = -1 if -1 in waits else max(waits)
    taken = Taken(admitted, min(rooms) - used, retry_after_us, max(resets))
    if admitted or (asked and _is_rebased(levels, resets, quotas, now_us)):
        return taken, [Level(reset, quota.interval_us) for reset, quota in zip(resets, quotas, strict=True)]
    return taken, None


def _start(level: Level | None, quota: Quota, now_us: int) -> int:
    """
    The TAT from which a take counts: never in the past, never further ahead than an empty bucket.

    A clock that stepped back or a lowered burst leaves the bucket at worst empty, never in debt. A
    level written under another interval keeps its used tokens, rounded up.
    """
    if level is None or level.tat_us <= now_us:
        return now_us
    ahead_us = level.tat_us - now_us
    if level.interval_us != quota.interval_us:
        ahead_us = -(-ahead_us // level.interval_us)
        ahead_us = min(ahead_us, quota.burst) * quota.interval_us
    return now_us + min(ahead_us, quota.span_us)


def _is_rebased(
    levels: Sequence[Level | None], starts: Sequence[int], quotas: Sequence[Quota], now_us: int
) -> bool:
    """True when some bucket in use is stored in other terms than *starts* and *quotas*."""
    return any(
        level is not None and level.tat_us > now_us and level != (start, quota.interval_us)
        for level, start, quota in zip(levels, starts, quotas, strict=True)
    )


def _wait(reset_at_us: int, quota: Quota, cost: int, now_us: int) -> int:
    if cost > quota.burst:
        return -1
    return max(0, reset_at_us + cost * quota.interval_us - quota.span_us - now_us)


class BucketSet:
    """
    The buckets that one decision takes from, all or none; compiled with the registry.

    `owner` is the integration's id and `generation` the number of the record it was compiled from:
    a shared store refuses the take when the record has changed since. `cost` is the tokens of one
    take in every bucket.
    """

    __slots__ = ("cost", "generation", "keys", "owner", "quotas")

    def __init__(
        self, owner: str, generation: int, keys: Sequence[str], quotas: Sequence[Quota], cost: int = 1
    ) -> None:
        """
        One key and one quota a bucket.

        Raises:
            QuotaError: no bucket, a different number of keys and quotas, a key that stands twice (its
                takes would be counted once) or a cost out of range.
        """
        if not keys or len(keys) != len(quotas) or len(set(keys)) != len(keys) or not 1 <= cost <= BURST_MAX:
            raise QuotaError(
                f"buckets of {owner!r} need one quota for each of their different keys and a cost of"
                f" 1..{BURST_MAX}; they have the keys {', '.join(keys)!r}, {len(quotas)} quotas and"
                f" the cost {cost}"
            )
        self.owner = owner
        self.generation = generation
        self.keys = tuple(keys)
        self.quotas = tuple(quotas)
        self.cost = cost

"""
The token bucket: GCRA over one integer per bucket. take.lua mirrors this specification.

A bucket is its theoretical arrival time (TAT): the time at which the bucket is full again, in integer
microseconds since the epoch. All arithmetic is on integers, so refills lose no fractions, and a bucket
with a limit of L per minute and a burst of B admits at most B + L*T/60 takes in any T seconds. If the
quota changes, L and B are the largest values within the T seconds.

Source: the generic cell rate algorithm, virtual scheduling (ITU-T I.371); docs/adr/0002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final, final

from sidecar.domain.values import Value

US_PER_MINUTE: Final = 60_000_000
LIMIT_RPM_MAX: Final = 10_000
BURST_MAX: Final = 1_000_000
ASKED_MAX: Final = 2**31 - 1


class QuotaError(ValueError):
    """A limit, a burst or a cost is out of range."""


def interval_us_of(limit_rpm: int) -> int:
    """The refill time of one token, rounded up, of a bucket with *limit_rpm* requests per minute."""
    return -(-US_PER_MINUTE // limit_rpm)


@dataclass(frozen=True, slots=True)
class Quota:
    """
    The refill rate and the capacity of a bucket.

    `interval_us` is the refill time of one token, 6_000 ... 60_000_000; `burst` is the capacity in tokens,
    1 ... 1_000_000. Their product is below 2**53, so that Lua computes exactly.
    """

    interval_us: int
    burst: int

    def __post_init__(self) -> None:
        """Reject values outside the range of the exact arithmetic."""
        if not 6_000 <= self.interval_us <= US_PER_MINUTE:
            raise QuotaError(f"interval_us is {self.interval_us}; it must be 6000 to {US_PER_MINUTE}")
        if not 1 <= self.burst <= BURST_MAX:
            raise QuotaError(f"burst is {self.burst}; it must be 1 to {BURST_MAX} tokens")

    @classmethod
    def per_minute(cls, limit_rpm: int, burst: int | None = None) -> Quota:
        """
        Return the quota of *limit_rpm* requests per minute; *burst* None = the limit.

        The interval is rounded up, so the bucket is up to 0.017 % stricter than the limit, never laxer.

        >>> Quota.per_minute(600)
        Quota(interval_us=100000, burst=600)
        """
        if not 1 <= limit_rpm <= LIMIT_RPM_MAX:
            raise QuotaError(
                f"rate limit is {limit_rpm}; it must be 1 to {LIMIT_RPM_MAX} requests per minute"
            )
        return cls(interval_us=interval_us_of(limit_rpm), burst=limit_rpm if burst is None else burst)

    @property
    def span_us(self) -> int:
        """The refill time of an empty bucket: burst * interval."""
        return self.burst * self.interval_us


@final
class Debt(Value):
    """
    The tokens that a bucket used under a larger burst and that exceed the current burst.

    `tat_us` is the time at which all used tokens are refilled; it is later than the level's own TAT.
    `burst` is the burst of the last take: under a larger burst, the debt counts as used again.
    """

    __slots__ = ("burst", "tat_us")

    def __init__(self, tat_us: int, burst: int) -> None:
        """See the class."""
        self.tat_us = tat_us
        self.burst = burst


@final
class Level(Value):
    """
    The stored state of a bucket: its TAT and the interval with which it was written.

    The interval is stored so that used tokens survive a change of the limit. `debt` None = no debt, as in
    every bucket whose burst was not lowered while tokens were in use.
    """

    __slots__ = ("debt", "interval_us", "tat_us")

    def __init__(self, tat_us: int, interval_us: int, debt: Debt | None = None) -> None:
        """See the class."""
        self.tat_us = tat_us
        self.interval_us = interval_us
        self.debt = debt

    @property
    def full_at_us(self) -> int:
        """When the bucket is full under every quota, so that its state can be deleted."""
        return self.tat_us if self.debt is None else self.debt.tat_us


@final
class Taken(Value):
    """
    The outcome of a take from one bucket, or from several buckets, all or none.

    `admitted` is the number of admitted takes, 0 ... asked; `remaining` is the whole tokens left, the least
    of several buckets. `retry_after_us` is the wait until the next take passes; 0 = now, -1 = never (the cost
    exceeds a burst). `reset_at_us` is when every bucket is full again, since the epoch. `at_us` is when the
    store took, by the same clock, 0 = unknown; it does not count in comparisons.
    """

    __slots__ = ("admitted", "at_us", "remaining", "reset_at_us", "retry_after_us")

    def __init__(
        self, admitted: int, remaining: int, retry_after_us: int, reset_at_us: int, at_us: int = 0
    ) -> None:
        """See the class."""
        self.admitted = admitted
        self.at_us = at_us
        self.remaining = remaining
        self.retry_after_us = retry_after_us
        self.reset_at_us = reset_at_us

    def __eq__(self, other: object) -> bool:
        """Whether both have the same outcome, whenever they were taken."""
        return (
            type(other) is Taken
            and self.admitted == other.admitted
            and self.remaining == other.remaining
            and self.retry_after_us == other.retry_after_us
            and self.reset_at_us == other.reset_at_us
        )


def draw(level: Level | None, quota: Quota, asked: int, now_us: int) -> tuple[Taken, Level | None]:
    """
    Admit as many of *asked* one-token takes as the bucket holds; refused takes change nothing.

    >>> draw(None, Quota(interval_us=1_000_000, burst=3), asked=5, now_us=5_000_000)[0]
    Taken(admitted=3, at_us=5000000, remaining=0, reset_at_us=8000000, retry_after_us=1000000)

    Args:
        level: the stored state; None = a full bucket.
        quota: the bucket's refill rate and capacity.
        asked: 0 ... 2**31 - 1; 0 is a peek and never stores.
        now_us: the store's clock, read once per decision.

    Returns:
        The outcome, and the level to store; None = store nothing. A refused take stores a level only to
        rebase it: a level with another interval or burst, or further ahead than an empty bucket, is
        converted to this quota. Otherwise it would refill by its old quota and `retry_after_us` would be
        too short.

    This is `draw_all` for one bucket and a cost of 1; it is the hot path of the embedded store.
    """
    interval_us, burst = quota.interval_us, quota.burst
    span_us = burst * interval_us
    start_us = now_us
    if level is not None:
        tat_us, debt = level.tat_us, level.debt
        if tat_us > now_us or debt is not None:
            # Nearly every level was written with the current quota and needs no conversion.
            if debt is not None or level.interval_us != interval_us or tat_us - now_us > span_us:
                taken, levels = draw_all((level,), (quota,), asked, 1, now_us)
                return taken, None if levels is None else levels[0]
            start_us = tat_us
    room = (now_us + span_us - start_us) // interval_us
    admitted = asked if asked < room else room
    reset_at_us = start_us + admitted * interval_us
    remaining = room - admitted
    retry_after_us = 0 if remaining else reset_at_us + interval_us - span_us - now_us
    taken = Taken(admitted, remaining, retry_after_us, reset_at_us, now_us)
    return taken, Level(reset_at_us, interval_us) if admitted else None


def draw_all(
    levels: Sequence[Level | None], quotas: Sequence[Quota], asked: int, cost: int, now_us: int
) -> tuple[Taken, list[Level] | None]:
    """
    Admit as many of *asked* takes of *cost* tokens as **every** bucket holds; each take is all or none.

    Args:
        levels: the stored state of each bucket; None = full.
        quotas: one for each bucket, in the same order; at least one.
        asked: equal takes that were merged in one batch, 0 ... 2**31 - 1; 0 = peek.
        cost: tokens of one take, 1 ... 1_000_000.
        now_us: the store's clock, read once.

    Returns:
        The outcome in takes, `remaining` in tokens of the tightest bucket; and the levels to store,
        None = store nothing. For a refused take see `draw`.

    Raises:
        QuotaError: asked or cost is out of range.

    Mirror: take.lua, same integers, same order.
    """
    if not 0 <= asked <= ASKED_MAX or not 1 <= cost <= BURST_MAX:
        raise QuotaError(
            f"asked is {asked} and cost is {cost}; they must be 0 to {ASKED_MAX} and 1 to {BURST_MAX}"
        )
    starts = [_start(level, quota, now_us) for level, quota in zip(levels, quotas, strict=True)]
    rooms = [
        (now_us + quota.span_us - start.tat_us) // quota.interval_us
        for start, quota in zip(starts, quotas, strict=True)
    ]
    admitted = min(asked, min(rooms) // cost)
    used = admitted * cost
    drawn = [_after(start, quota, used, now_us) for start, quota in zip(starts, quotas, strict=True)]
    resets = [level.tat_us for level in drawn]
    waits = [_wait(reset, quota, cost, now_us) for reset, quota in zip(resets, quotas, strict=True)]
    retry_after_us = -1 if -1 in waits else max(waits)
    taken = Taken(admitted, min(rooms) - used, retry_after_us, max(resets), now_us)
    if admitted or (asked and any(map(_is_rebased, levels, drawn, repeat(now_us)))):
        return taken, drawn
    return taken, None


@final
class _Start:
    """The TAT before a take, and the TAT that includes the debt, which is never earlier."""

    __slots__ = ("debt_us", "tat_us")

    def __init__(self, tat_us: int, debt_us: int) -> None:
        self.tat_us = tat_us
        self.debt_us = debt_us


def _start(level: Level | None, quota: Quota, now_us: int) -> _Start:
    """
    Return the TAT before a take: never in the past, nor further ahead than that of an empty bucket.

    A smaller burst limits the used tokens to the burst, so that no caller waits longer than the bucket takes
    to fill; the excess stays as debt and counts as used again under a larger burst. A level of another
    interval keeps its used tokens, rounded up. After a clock stepped back, the bucket is at worst empty.
    """
    if level is None or level.full_at_us <= now_us:
        return _Start(now_us, now_us)
    interval_us = quota.interval_us
    used_us, owed_us = max(0, level.tat_us - now_us), level.full_at_us - now_us
    if level.interval_us != interval_us:
        used_us = min(-(-used_us // level.interval_us), BURST_MAX) * interval_us
        owed_us = min(-(-owed_us // level.interval_us), BURST_MAX) * interval_us
    else:
        owed_us = min(owed_us, BURST_MAX * interval_us)
    if level.debt is not None and quota.burst > level.debt.burst:
        used_us = owed_us
    return _Start(now_us + min(used_us, quota.span_us), now_us + owed_us)


def _after(start: _Start, quota: Quota, used: int, now_us: int) -> Level:
    """Return the level after *used* tokens; the debt is at most BURST_MAX tokens."""
    used_us = used * quota.interval_us
    tat_us = start.tat_us + used_us
    debt_us = min(start.debt_us + used_us, now_us + BURST_MAX * quota.interval_us)
    return Level(tat_us, quota.interval_us, Debt(debt_us, quota.burst) if debt_us > tat_us else None)


def _is_rebased(level: Level | None, drawn: Level, now_us: int) -> bool:
    """Whether the bucket is in use and *drawn*, after no take, differs from the stored level."""
    if level is None or level.full_at_us <= now_us:
        return False
    return Level(max(level.tat_us, now_us), level.interval_us, level.debt) != drawn


def _wait(reset_at_us: int, quota: Quota, cost: int, now_us: int) -> int:
    if cost > quota.burst:
        return -1
    return max(0, reset_at_us + cost * quota.interval_us - quota.span_us - now_us)


class BucketSet:
    """
    The buckets that one decision takes from, all or none; compiled with the registry.

    `owner` is the integration's id and `generation` is that of the compiled record: a shared store refuses
    the take if the record has changed since. `cost` is the tokens of one take in every bucket.
    """

    __slots__ = ("cost", "generation", "keys", "owner", "quotas")

    def __init__(
        self, owner: str, generation: int, keys: Sequence[str], quotas: Sequence[Quota], cost: int = 1
    ) -> None:
        """
        Store one key and one quota per bucket.

        Raises:
            QuotaError: no bucket, different numbers of keys and quotas, a repeated key (its takes would be
                counted once) or a cost out of range.
        """
        if not keys or len(keys) != len(quotas) or len(set(keys)) != len(keys) or not 1 <= cost <= BURST_MAX:
            raise QuotaError(
                f"buckets of {owner!r} have the keys {', '.join(keys)!r}, {len(quotas)} quotas and the cost"
                f" {cost}; they must have distinct keys, one quota for each key and a cost of 1 to"
                f" {BURST_MAX}"
            )
        self.owner = owner
        self.generation = generation
        self.keys = tuple(keys)
        self.quotas = tuple(quotas)
        self.cost = cost

"""
Counters of the rate-limit service: fixed windows and token buckets, the specification that count.lua mirrors.

A fixed window counts hits since the last multiple of its unit. A token bucket holds as many tokens as the
limit, and *limit* tokens come back each unit: GCRA with a burst of one limit. Limits reach 2**32 - 1 and
units a year, so a token may come back every 0.2 ns: times in whole microseconds would be too coarse. The
stored time is therefore exact: whole units, whole tokens and a rest in 1 / unit_us of a token.

Source: docs/adr/0016; rate-limit semantics of envoyproxy/ratelimit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, TypeAlias, final

from sidecar.domain.values import Value

HITS_MAX: Final = 2**32 - 1
"""Of one descriptor in one call, and of `requests_per_unit`: they are 32-bit numbers of the protocol."""
COUNT_MAX: Final = 2**52
"""A window counts no further: far above every limit, and Lua's numbers are exact up to 2**53."""

US_PER_SECOND: Final = 1_000_000

Counter: TypeAlias = "tuple[int, int] | tuple[int, int, int, int]"
"""
What is stored: a window as (number of the unit, hits), or a bucket as (units, tokens, rest, limit).

A bucket's first three numbers are the time at which it is full again, in terms of its limit: *tokens*
refills of one token after *units* whole units since the epoch, and *rest* / unit_us of one refill more.
"""


class Algorithm(Enum):
    """How the hits of a limit are counted."""

    FIXED_WINDOW = "fixed_window"
    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - no secret

    __hash__ = object.__hash__


@final
class CounterTake(Value):
    """
    Hits that one descriptor takes from one counter.

    `unit_s` and `limit` are the limit; `hits` 0 = a peek. `is_quota` and `is_shadow` are the rule's modes.
    `counts_refused`: the hits count whatever becomes of the call, as envoyproxy/ratelimit does it; for
    fixed windows alone.
    """

    __slots__ = ("counts_refused", "hits", "is_bucket", "is_quota", "is_shadow", "key", "limit", "unit_s")

    def __init__(
        self,
        key: str,
        unit_s: int,
        limit: int,
        hits: int,
        *,
        is_bucket: bool = False,
        is_quota: bool = False,
        is_shadow: bool = False,
        counts_refused: bool = False,
    ) -> None:
        """See the class."""
        self.key = key
        self.unit_s = unit_s
        self.limit = limit
        self.hits = hits
        self.is_bucket = is_bucket
        self.is_quota = is_quota
        self.is_shadow = is_shadow
        self.counts_refused = counts_refused


@final
class Counted(Value):
    """
    What a counter says to one descriptor.

    `used` hits or tokens are in use after the call, and `rest` / unit_us of one more. `is_over` = the hits
    did not fit.
    """

    __slots__ = ("is_over", "rest", "used")

    def __init__(self, is_over: bool, used: int, rest: int = 0) -> None:
        """See the class."""
        self.is_over = is_over
        self.used = used
        self.rest = rest


@final
class CountersTaken(Value):
    """The outcome of a call: one `Counted` for each take, in order, and the store's time."""

    __slots__ = ("counted", "now_us")

    def __init__(self, now_us: int, counted: Sequence[Counted]) -> None:
        """See the class."""
        self.now_us = now_us
        self.counted = counted


def is_refused(takes: Sequence[CounterTake], counted: Sequence[Counted]) -> bool:
    """
    Whether a call is over limit: a plain rule is, or every quota rule of the call.

    A shadow rule is never over.
    """
    quotas = quotas_over = 0
    for take, found in zip(takes, counted, strict=True):
        is_over = found.is_over and not take.is_shadow
        if take.is_quota:
            quotas += 1
            quotas_over += is_over
        elif is_over:
            return True
    return quotas > 0 and quotas == quotas_over


def take_counters(
    takes: Sequence[CounterTake], stored: Callable[[str], Counter | None], now_us: int
) -> tuple[CountersTaken, dict[str, Counter]]:
    """
    Take the hits of one call, each from its counter, in order; return what to store, by key.

    Hits that do not fit are not taken. When the call is refused, nothing is, but for takes that count
    refused hits: those count each time.

    Args:
        takes: one for each limited descriptor; several may name one counter.
        stored: what is stored under a key; None = an unused counter.
        now_us: the store's clock, read once.

    Mirror: count.lua, same integers, same order.
    """
    if len(takes) == 1:
        return _take_one(takes[0], stored(takes[0].key), now_us)
    kept: dict[str, Counter] = {}
    before: list[Counted] = []
    tried: dict[str, Counted] = {}
    takers: dict[str, CounterTake] = {}  # the last take that took from a counter
    counted: list[Counted] = []
    for take in takes:
        key = take.key
        found = tried.get(key)
        if found is None:
            found, rebased = _read(take, stored(key), now_us)
            if rebased is not None and take.hits:
                kept[key] = rebased
        before.append(found)
        is_over = _is_over(take, found)
        if take.hits and (take.counts_refused or not is_over):
            found = Counted(False, min(found.used + take.hits, COUNT_MAX), found.rest)
            tried[key], takers[key] = found, take
        counted.append(Counted(is_over, found.used, found.rest))
    refused = is_refused(takes, counted)
    if refused:
        first: dict[str, Counted] = {}
        for index, take in enumerate(takes):
            start = first.setdefault(take.key, before[index])
            if not take.counts_refused:
                counted[index] = Counted(counted[index].is_over, start.used, start.rest)
    for key, take in takers.items():
        if take.counts_refused or not refused:
            kept[key] = _counter(take, tried[key], now_us)
    return CountersTaken(now_us, counted), kept


def _take_one(
    take: CounterTake, counter: Counter | None, now_us: int
) -> tuple[CountersTaken, dict[str, Counter]]:
    """`take_counters` for a single take: the usual call. Hits that do not fit are not taken in any case."""
    found, rebased = _read(take, counter, now_us)
    is_over = _is_over(take, found)
    if take.hits and (take.counts_refused or not is_over):
        found = Counted(is_over, min(found.used + take.hits, COUNT_MAX), found.rest)
        return CountersTaken(now_us, [found]), {take.key: _counter(take, found, now_us)}
    kept = {take.key: rebased} if rebased is not None and take.hits else {}
    return CountersTaken(now_us, [Counted(is_over, found.used, found.rest)]), kept


def _is_over(take: CounterTake, found: Counted) -> bool:
    """Whether the hits exceed the limit together with *found*; a peek of a bucket never does."""
    if not take.is_bucket:
        return found.used + take.hits > take.limit
    # A rest in use leaves room for one token less.
    return take.hits > 0 and found.used + take.hits + (found.rest > 0) > take.limit


def _read(take: CounterTake, counter: Counter | None, now_us: int) -> tuple[Counted, Counter | None]:
    """What of *counter* is in use, and the counter in terms of the take's limit where it is in others."""
    unit_us = take.unit_s * US_PER_SECOND
    if counter is None:
        return Counted(False, 0), None
    if len(counter) == 2:
        return Counted(False, counter[1] if counter[0] == now_us // unit_us else 0), None
    _, _, _, limit = counter
    used, rest = bucket_used(counter, unit_us, now_us)
    if limit == take.limit:
        return Counted(False, used, rest), None
    # Tokens that were used under another limit stay used, rounded up.
    found = Counted(False, min(used + (rest > 0), take.limit))
    return found, _counter(take, found, now_us) if found.used else None


def bucket_used(counter: tuple[int, int, int, int], unit_us: int, now_us: int) -> tuple[int, int]:
    """
    The tokens of a bucket that are in use: whole ones, and a rest in 1 / *unit_us* of a token.

    A clock that stepped back leaves the bucket at worst empty.
    """
    units, tokens, rest, limit = counter
    now_units, now_tokens, now_rest = _refills(limit, unit_us, now_us)
    used, rest = (units - now_units) * limit + tokens - now_tokens, rest - now_rest
    if rest < 0:
        used, rest = used - 1, rest + unit_us
    if used < 0:
        return 0, 0
    return (limit, 0) if used >= limit else (used, rest)


def _refills(limit: int, unit_us: int, now_us: int) -> tuple[int, int, int]:
    """How many tokens have come back since the epoch: whole units, tokens, and a rest in 1 / unit_us."""
    units, elapsed_us = divmod(now_us, unit_us)
    return units, *divmod(elapsed_us * limit, unit_us)


def _counter(take: CounterTake, found: Counted, now_us: int) -> Counter:
    """What is stored of a counter of which *found* is in use."""
    unit_us = take.unit_s * US_PER_SECOND
    if not take.is_bucket:
        return now_us // unit_us, found.used
    units, tokens, rest = _refills(take.limit, unit_us, now_us)
    tokens, rest = tokens + found.used, rest + found.rest
    if rest >= unit_us:
        tokens, rest = tokens + 1, rest - unit_us
    more, tokens = divmod(tokens, take.limit)
    return units + more, tokens, rest, take.limit


def is_unused(counter: Counter, unit_s: int, now_us: int) -> bool:
    """Whether nothing is left of *counter* to remember: its window is over, or its bucket is full."""
    unit_us = unit_s * US_PER_SECOND
    if len(counter) == 2:
        return counter[0] != now_us // unit_us
    return bucket_used(counter, unit_us, now_us) == (0, 0)


def remaining_of(take: CounterTake, counted: Counted) -> int:
    """Whole hits that are left; 0 beside a limit that is over."""
    return 0 if counted.is_over else max(0, take.limit - counted.used - (counted.rest > 0))


def reset_s_of(take: CounterTake, counted: Counted, now_us: int) -> int:
    """
    Seconds until the counter is reset, rounded up.

    That is the end of a window; for a bucket until it is full, or over limit until these hits would fit
    (at least 1; hits that never fit wait for a full bucket).
    """
    if not take.is_bucket:
        return take.unit_s - now_us // US_PER_SECOND % take.unit_s
    if not take.limit:
        return take.unit_s
    unit_us = take.unit_s * US_PER_SECOND
    tokens = counted.used
    if counted.is_over and take.hits <= take.limit:
        tokens += take.hits - take.limit
    wait_s = -(-(tokens * unit_us + counted.rest) // (take.limit * US_PER_SECOND))
    return max(1, wait_s) if counted.is_over else max(0, wait_s)

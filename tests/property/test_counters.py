"""The counters' integer specification against exact fractions: what is admitted, what comes back, when."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.rate_limits.counters import (
    HITS_MAX,
    Counted,
    Counter,
    CounterTake,
    is_unused,
    remaining_of,
    reset_s_of,
    take_counters,
)

SECOND_US = 1_000_000
UNITS_S = (1, 60, 3_600, 86_400, 604_800, 2_592_000, 31_536_000)
units_s = st.sampled_from(UNITS_S)
limits = st.one_of(st.integers(1, 20), st.sampled_from((999, 86_401, 4_000_000_000, HITS_MAX)))
steps = st.lists(
    st.tuples(st.one_of(st.integers(0, 10**6), st.integers(0, 4 * 10**13)), st.floats(0, 1.2)), max_size=30
)
NOW_US = 1_795_000_000_000_000


class Bucket:
    """One bucket, taken from by the specification."""

    def __init__(self, unit_s: int, limit: int) -> None:
        """A full one."""
        self.unit_s = unit_s
        self.limit = limit
        self.levels: dict[str, Counter] = {}

    def take(self, hits: int, now_us: int) -> tuple[CounterTake, Counted]:
        """Take; return what was asked and what came of it."""
        asked = CounterTake("b", self.unit_s, self.limit, hits, is_bucket=True)
        taken, kept = take_counters([asked], self.levels.get, now_us)
        self.levels.update(kept)
        return asked, taken.counted[0]


@given(units_s, limits, steps)
def test_bucket__is_the_exact_one(unit_s: int, limit: int, steps: list[tuple[int, float]]) -> None:
    """Nothing is lost and nothing won at any refill: a bucket in fractions admits exactly the same."""
    bucket, now_us, used = Bucket(unit_s, limit), NOW_US, Fraction(0)
    for wait_us, part in steps:
        now_us += wait_us
        used = max(Fraction(0), used - Fraction(wait_us * limit, unit_s * SECOND_US))
        hits = min(HITS_MAX, round(part * limit))
        asked, counted = bucket.take(hits, now_us)
        assert counted.is_over == (hits > 0 and used + hits > limit)
        if not counted.is_over:
            used += hits
        assert counted.used + Fraction(counted.rest, unit_s * SECOND_US) == used
        assert 0 <= counted.rest < unit_s * SECOND_US
        expected = 0 if counted.is_over else (limit - used) // 1
        assert remaining_of(asked, counted) == expected


@given(units_s, limits, st.integers(1, HITS_MAX), st.integers(0, 31_536_000_000_000))
def test_bucket__a_refused_call_fits_after_its_wait(
    unit_s: int, limit: int, hits: int, later_us: int
) -> None:
    """Anyone who waits as long as the answer says is admitted, if the hits can fit at all."""
    bucket = Bucket(unit_s, limit)
    bucket.take(limit, NOW_US)
    now_us = NOW_US + later_us % (unit_s * SECOND_US)
    asked, counted = bucket.take(hits, now_us)
    wait_s = reset_s_of(asked, counted, now_us)
    if counted.is_over:
        assert wait_s >= 1
        _, again = bucket.take(hits, now_us + wait_s * SECOND_US)
        assert again.is_over == (hits > limit)
    else:
        assert 0 <= wait_s <= unit_s
        assert is_unused(bucket.levels["b"], unit_s, now_us + wait_s * SECOND_US)


@given(limits, limits, st.integers(0, HITS_MAX))
def test_bucket__a_changed_limit_keeps_what_is_in_use(before: int, after: int, hits: int) -> None:
    """Tokens that were used stay used, at most as many as the bucket holds now."""
    bucket = Bucket(60, before)
    hits = min(hits, before)
    bucket.take(hits, NOW_US)
    bucket.limit = after
    _, counted = bucket.take(0, NOW_US)
    assert counted == Counted(False, min(hits, after))


@given(units_s, st.integers(0, 20), st.lists(st.integers(0, 6), max_size=12), st.integers(0, 10**15))
def test_window__counts_what_was_asked(unit_s: int, limit: int, hits: list[int], offset_us: int) -> None:
    """Within a window all hits add up; at its end the count is 0 again."""
    now_us, levels, total = NOW_US + offset_us, {}, 0
    for asked_hits in hits:
        asked = CounterTake("w", unit_s, limit, asked_hits, counts_refused=True)
        taken, kept = take_counters([asked], levels.get, now_us)
        levels.update(kept)
        total += asked_hits
        [counted] = taken.counted
        assert (counted.is_over, counted.used) == (total > limit, total)
        assert 1 <= reset_s_of(asked, counted, now_us) <= unit_s
    if levels:
        end_us = (now_us // (unit_s * SECOND_US) + 1) * unit_s * SECOND_US
        assert not is_unused(levels["w"], unit_s, end_us - 1)
        assert is_unused(levels["w"], unit_s, end_us)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.booleans()), min_size=1, max_size=6))
def test_all_or_none__a_refused_call_changes_nothing(asked: list[tuple[str, int, bool]]) -> None:
    """Without counting of refused hits a call takes all of its hits, or none."""
    takes = [
        CounterTake(f"{key}{is_bucket}", 60, 5, hits, is_bucket=is_bucket) for key, hits, is_bucket in asked
    ]
    levels: dict[str, Counter] = {}
    for _ in range(4):
        taken, kept = take_counters(takes, levels.get, NOW_US)
        if any(counted.is_over for counted in taken.counted):
            assert kept == {}
        levels.update(kept)

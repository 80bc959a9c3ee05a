"""The token bucket for every quota, level, clock and sequence of takes, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.bucket import (
    ASKED_MAX,
    BURST_MAX,
    LIMIT_RPM_MAX,
    US_PER_MINUTE,
    Debt,
    Level,
    Quota,
    Taken,
    draw,
    draw_all,
)
from tests.exact_bucket import Admissions, ExactBucket

NOW_US = 1_764_000_000_000_000
YEAR_2200_US = 7_258_118_400_000_000

Step = tuple[int, int]
"""Microseconds since the step before, and takes asked."""


limits_rpm = st.integers(1, LIMIT_RPM_MAX)
bursts = st.one_of(st.integers(1, 20), st.integers(1, BURST_MAX))
quotas = st.builds(Quota.per_minute, limits_rpm, bursts)
times_us = st.one_of(st.integers(NOW_US - 10**9, NOW_US + 10**9), st.integers(0, YEAR_2200_US))


@st.composite
def used_levels(draw: st.DrawFn) -> Level:
    """A level of any time and interval; in some the tokens used under a larger burst are owed."""
    tat_us, debt_us = sorted((draw(times_us), draw(times_us)))
    debt = draw(st.one_of(st.none(), st.builds(Debt, st.just(debt_us), bursts)))
    return Level(tat_us, draw(st.integers(6_000, US_PER_MINUTE)), debt if debt_us > tat_us else None)


levels = st.one_of(st.none(), used_levels())
costs = st.one_of(st.integers(1, 5), st.integers(1, BURST_MAX))
few_takes = st.integers(0, 40)


def steps(interval_us: int) -> st.SearchStrategy[list[Step]]:
    """Takes at times that fall on, just before and just after whole tokens, and anywhere else."""
    on_tokens = st.builds(
        lambda tokens, off_us: max(0, tokens * interval_us + off_us), st.integers(0, 5), st.integers(-1, 1)
    )
    waits_us = st.one_of(on_tokens, st.integers(0, 3 * interval_us))
    return st.lists(st.tuples(waits_us, few_takes), max_size=30)


def kept(before: Level | None, to_store: Level | None) -> Level | None:
    """What a store holds after a take."""
    return before if to_store is None else to_store


@given(st.data(), limits_rpm, bursts)
def test_draw__never_over_admits(data: st.DataObject, limit_rpm: int, burst: int) -> None:
    """In every window of T seconds at most B + L*T/60 takes are admitted, whatever is asked when."""
    quota = Quota.per_minute(limit_rpm, burst)
    waits_and_takes = data.draw(steps(quota.interval_us))
    times = list(accumulate((wait_us for wait_us, _ in waits_and_takes), initial=NOW_US))[1:]
    level: Level | None = None
    admitted = []
    for now_us, (_, asked) in zip(times, waits_and_takes, strict=True):
        taken, to_store = draw(level, quota, asked, now_us)
        level = kept(level, to_store)
        admitted.append(taken.admitted)
    for first in range(len(times)):
        for last in range(first, len(times)):
            allowed = burst + Fraction(limit_rpm * (times[last] - times[first]), US_PER_MINUTE)
            assert sum(admitted[first : last + 1]) <= allowed


@given(st.data(), quotas)
def test_draw__admits_exactly_what_the_interval_gives(data: st.DataObject, quota: Quota) -> None:
    """No fraction of a token is ever lost or won: every answer is that of the exact bucket."""
    now_us, level = NOW_US, None
    exact = ExactBucket(Fraction(1, quota.interval_us), quota.burst, now_us)
    for wait_us, asked in data.draw(steps(quota.interval_us)):
        now_us += wait_us
        taken, to_store = draw(level, quota, asked, now_us)
        level = kept(level, to_store)
        assert taken.admitted == min(asked, exact.at(now_us) // 1)
        exact.take(taken.admitted)
        tokens = quota.burst - exact.used
        assert taken.remaining == tokens // 1
        assert taken.reset_at_us == now_us + exact.used * quota.interval_us
        assert taken.retry_after_us == max(0, (1 - tokens) * quota.interval_us)


changed_quotas = st.lists(
    st.tuples(
        st.one_of(st.sampled_from((60, 600)), limits_rpm), st.one_of(st.sampled_from((1, 5, 40)), bursts)
    ),
    min_size=1,
    max_size=6,
)


@given(st.data(), changed_quotas)
def test_draw__a_quota_change_keeps_used_tokens(data: st.DataObject, changes: list[tuple[int, int]]) -> None:
    """From the first take under a new quota on, the bucket is the exact one with the used tokens kept."""
    now_us, level = NOW_US, None
    exact: ExactBucket | None = None
    for limit_rpm, burst in changes:
        quota = Quota.per_minute(limit_rpm, burst)
        rate = Fraction(1, quota.interval_us)
        for index, (wait_us, asked) in enumerate(data.draw(steps(quota.interval_us))):
            now_us += wait_us
            exact = exact or ExactBucket(rate, burst, now_us)
            exact.at(now_us)
            if index == 0:
                exact.change(rate, burst)
            taken, to_store = draw(level, quota, max(1, asked), now_us)
            level = kept(level, to_store)
            assert taken.admitted == min(max(1, asked), exact.at(now_us) // 1)
            exact.take(taken.admitted)
            assert level is None or (level.debt is None) == (exact.owed == exact.used)


class Attack(NamedTuple):
    """One step of a client and an administrator who try for more than the quotas allow."""

    quota_index: int
    wait_intervals: Fraction
    asked: int


attacks = st.lists(
    st.builds(
        Attack,
        st.integers(0, 2),
        st.one_of(st.just(Fraction(0)), st.fractions(0, 30, max_denominator=7)),
        st.one_of(st.just(ASKED_MAX), st.integers(0, 40)),
    ),
    max_size=20,
)
few_quotas = st.tuples(
    st.one_of(st.sampled_from((1, 60, 600)), limits_rpm),
    st.one_of(st.sampled_from((1, 40)), st.integers(1, 60)),
)


@settings(max_examples=200)
@given(st.lists(few_quotas, min_size=3, max_size=3), attacks)
def test_draw__never_over_admits_while_quotas_change(
    rules: list[tuple[int, int]], steps_taken: list[Attack]
) -> None:
    """
    In every window at most the largest burst + the largest limit * T/60, in force within it, pass.

    And whatever happens, nobody waits longer than the bucket in force takes to fill.
    """
    now_us, level = NOW_US, None
    admissions = Admissions()
    limit_rpm, burst = rules[0]
    for step in steps_taken:
        now_us += int(step.wait_intervals * Quota.per_minute(limit_rpm).interval_us)
        admissions.add(now_us, 0, Fraction(limit_rpm, US_PER_MINUTE), burst)
        limit_rpm, burst = rules[step.quota_index]
        quota = Quota.per_minute(limit_rpm, burst)
        taken, to_store = draw(level, quota, step.asked, now_us)
        level = kept(level, to_store)
        admissions.add(now_us, taken.admitted, Fraction(limit_rpm, US_PER_MINUTE), burst)
        assert taken.reset_at_us - now_us <= quota.span_us
    admissions.check()


@settings(max_examples=200)
@given(st.lists(few_quotas, min_size=3, max_size=3), attacks, attacks)
def test_draw_all__never_over_admits_while_quotas_change(
    rules: list[tuple[int, int]], shared_steps: list[Attack], single_steps: list[Attack]
) -> None:
    """The same of a bucket that is taken from alone and together with another, at a cost of 1 and of 2."""
    now_us = NOW_US
    held: list[Level | None] = [None, None]
    admissions = Admissions()
    limit_rpm, burst = rules[0]
    for shared, single in zip(shared_steps, single_steps, strict=False):
        now_us += int(shared.wait_intervals * Quota.per_minute(limit_rpm).interval_us)
        admissions.add(now_us, 0, Fraction(limit_rpm, US_PER_MINUTE), burst)
        limit_rpm, burst = rules[shared.quota_index]
        quota, other = Quota.per_minute(limit_rpm, burst), Quota.per_minute(*rules[single.quota_index])
        taken, drawn = draw_all(held, [quota, other], shared.asked, 2, now_us)
        held = held if drawn is None else list(drawn)
        admissions.add(now_us, 2 * taken.admitted, Fraction(limit_rpm, US_PER_MINUTE), burst)
        taken, to_store = draw(held[0], quota, single.asked, now_us)
        held[0] = kept(held[0], to_store)
        admissions.add(now_us, taken.admitted, Fraction(limit_rpm, US_PER_MINUTE), burst)
    admissions.check()


@given(st.data(), limits_rpm, bursts)
def test_draw__never_over_admits_while_the_clock_steps_back(
    data: st.DataObject, limit_rpm: int, burst: int
) -> None:
    """Measured on real time, a clock that steps back any number of times gives nothing away."""
    quota = Quota.per_minute(limit_rpm, burst)
    exact = ExactBucket(Fraction(limit_rpm, US_PER_MINUTE), burst, NOW_US)
    real_us, offset_us = NOW_US, 0
    level: Level | None = None
    step_backs = st.one_of(st.just(0), st.integers(0, 2 * quota.span_us))
    for wait_us, asked in data.draw(steps(quota.interval_us)):
        real_us += wait_us
        offset_us -= data.draw(step_backs)
        taken, to_store = draw(level, quota, asked, real_us + offset_us)
        level = kept(level, to_store)
        assert taken.admitted <= exact.at(real_us)
        exact.take(taken.admitted)


@given(levels, quotas, few_takes)
def test_draw__a_full_wait_passes(level: Level | None, quota: Quota, asked: int) -> None:
    """After any take, waiting `retry_after_us` lets one more pass, and a microsecond less does not."""
    taken, to_store = draw(level, quota, max(1, asked), NOW_US)
    level = kept(level, to_store)
    assert draw(level, quota, 1, NOW_US + taken.retry_after_us)[0].admitted == 1
    if taken.retry_after_us:
        assert draw(level, quota, 1, NOW_US + taken.retry_after_us - 1)[0].admitted == 0


@given(levels, quotas, few_takes)
def test_draw__the_whole_burst_is_there_at_reset(level: Level | None, quota: Quota, asked: int) -> None:
    """A client that waits for `reset_at_us` may use its whole burst; a microsecond earlier it may not."""
    taken, to_store = draw(level, quota, max(1, asked), NOW_US)
    level = kept(level, to_store)
    assert draw(level, quota, ASKED_MAX, taken.reset_at_us)[0].admitted == quota.burst
    if taken.reset_at_us > NOW_US:
        assert draw(level, quota, ASKED_MAX, taken.reset_at_us - 1)[0].admitted == quota.burst - 1


@given(levels, quotas, few_takes)
def test_draw__a_refusal_changes_nothing(level: Level | None, quota: Quota, asked: int) -> None:
    """A refused take leaves a bucket that answers every take at that time as if it had not been there."""
    taken, to_store = draw(level, quota, asked, NOW_US)
    if taken.admitted == 0:
        assert (
            draw(kept(level, to_store), quota, ASKED_MAX, NOW_US)[0]
            == draw(level, quota, ASKED_MAX, NOW_US)[0]
        )


@given(st.data(), quotas)
def test_draw__a_refusal_writes_nothing_under_one_quota(data: st.DataObject, quota: Quota) -> None:
    """As long as quota and clock behave, a refused take stores nothing at all."""
    now_us, level = NOW_US, None
    for wait_us, asked in data.draw(steps(quota.interval_us)):
        now_us += wait_us
        taken, to_store = draw(level, quota, asked, now_us)
        assert (to_store is None) == (taken.admitted == 0)
        level = kept(level, to_store)


@given(levels, quotas)
def test_draw__a_peek_sees_what_a_take_would_get(level: Level | None, quota: Quota) -> None:
    """A peek stores nothing and shows the tokens that takes at that time would get."""
    peeked, to_store = draw(level, quota, 0, NOW_US)
    assert to_store is None
    assert peeked.admitted == 0
    assert peeked.remaining == draw(level, quota, ASKED_MAX, NOW_US)[0].admitted


@given(levels, quotas, st.integers(1, 40))
def test_draw__merged_takes_are_takes_one_by_one(level: Level | None, quota: Quota, asked: int) -> None:
    """Equal takes that meet in a batch get together what they would get one after another."""
    merged, merged_level = draw(level, quota, asked, NOW_US)
    single_level, admitted = level, 0
    for _ in range(asked):
        single, to_store = draw(single_level, quota, 1, NOW_US)
        single_level = kept(single_level, to_store)
        admitted += single.admitted
    assert (merged.admitted, kept(level, merged_level)) == (admitted, single_level)
    assert Taken(single.admitted, merged.remaining, merged.retry_after_us, merged.reset_at_us) == single


@given(levels, quotas, st.one_of(few_takes, st.integers(0, ASKED_MAX)))
def test_draw__is_draw_all_of_one_bucket(level: Level | None, quota: Quota, asked: int) -> None:
    """The fast path of the embedded store and the general rule are one rule."""
    taken, to_store = draw(level, quota, asked, NOW_US)
    taken_all, all_to_store = draw_all([level], [quota], asked, 1, NOW_US)
    assert (taken, None if to_store is None else [to_store]) == (taken_all, all_to_store)


several = st.lists(st.tuples(levels, quotas), min_size=1, max_size=4)


@given(several, st.integers(0, 30), costs)
def test_draw_all__all_or_none(buckets: list[tuple[Level | None, Quota]], asked: int, cost: int) -> None:
    """As many takes pass as the tightest bucket alone would let pass, and every bucket pays for them."""
    held, rules = [level for level, _ in buckets], [quota for _, quota in buckets]
    taken, to_store = draw_all(held, rules, asked, cost, NOW_US)
    alone = [draw_all([level], [quota], asked, cost, NOW_US)[0] for level, quota in buckets]
    assert taken.admitted == min(result.admitted for result in alone)
    before = [draw(level, quota, 0, NOW_US)[0].remaining for level, quota in buckets]
    after_levels = held if to_store is None else to_store
    after = [
        draw(level, quota, 0, NOW_US)[0].remaining for level, quota in zip(after_levels, rules, strict=True)
    ]
    assert [b - a for b, a in zip(before, after, strict=True)] == [taken.admitted * cost] * len(buckets)
    assert taken.remaining == min(after)
    assert taken.reset_at_us == max(
        draw(level, quota, 0, NOW_US)[0].reset_at_us for level, quota in zip(after_levels, rules, strict=True)
    )


@given(several, st.integers(1, 30), costs)
def test_draw_all__merged_takes_are_takes_one_by_one(
    buckets: list[tuple[Level | None, Quota]], asked: int, cost: int
) -> None:
    """Equal takes over several buckets get together what they would get one after another."""
    held, rules = [level for level, _ in buckets], [quota for _, quota in buckets]
    merged, merged_levels = draw_all(held, rules, asked, cost, NOW_US)
    single_levels, admitted = list(held), 0
    for _ in range(asked):
        single, to_store = draw_all(single_levels, rules, 1, cost, NOW_US)
        single_levels = single_levels if to_store is None else list(to_store)
        admitted += single.admitted
    assert (merged.admitted, held if merged_levels is None else merged_levels) == (admitted, single_levels)
    assert Taken(single.admitted, merged.remaining, merged.retry_after_us, merged.reset_at_us) == single


@given(several, st.integers(1, 30), costs)
def test_draw_all__a_full_wait_passes(
    buckets: list[tuple[Level | None, Quota]], asked: int, cost: int
) -> None:
    """Waiting `retry_after_us` lets one more take pass; -1 means that none ever will."""
    held, rules = [level for level, _ in buckets], [quota for _, quota in buckets]
    taken, to_store = draw_all(held, rules, asked, cost, NOW_US)
    after = held if to_store is None else to_store
    never = any(cost > quota.burst for quota in rules)
    assert (taken.retry_after_us == -1) == never
    if not never:
        assert draw_all(after, rules, 1, cost, NOW_US + taken.retry_after_us)[0].admitted == 1
    if taken.retry_after_us > 0:
        assert draw_all(after, rules, 1, cost, NOW_US + taken.retry_after_us - 1)[0].admitted == 0


def as_double(level: Level) -> Level:
    """The same level in the numbers of Lua."""
    debt = level.debt and Debt(float(level.debt.tat_us), float(level.debt.burst))  # type: ignore[arg-type]
    return Level(float(level.tat_us), float(level.interval_us), debt)  # type: ignore[arg-type]


@pytest.mark.pure  # native classes take no floats; the promise is about take.lua, which computes in them
@given(several, st.integers(0, ASKED_MAX), costs, st.integers(0, YEAR_2200_US))
def test_draw_all__doubles_compute_the_same(
    buckets: list[tuple[Level | None, Quota]], asked: int, cost: int, now_us: int
) -> None:
    """Every step stays below 2**53, so Lua, whose numbers are doubles, gets the same integers."""
    held, rules = [level for level, _ in buckets], [quota for _, quota in buckets]
    taken, to_store = draw_all(held, rules, asked, cost, now_us)
    as_doubles = draw_all(
        [level and as_double(level) for level in held],
        [Quota(float(quota.interval_us), float(quota.burst)) for quota in rules],  # type: ignore[arg-type]
        float(asked),  # type: ignore[arg-type]
        float(cost),  # type: ignore[arg-type]
        float(now_us),  # type: ignore[arg-type]
    )
    assert as_doubles == (taken, to_store)
    assert taken.reset_at_us < 2**53
    assert all(level.full_at_us < 2**53 for level in to_store or ())


@given(limits_rpm)
def test_quota__rounds_to_the_strict_side(limit_rpm: int) -> None:
    """The interval never lets more than the limit pass in a minute, and costs at most 0.017 % of it."""
    interval_us = Quota.per_minute(limit_rpm).interval_us
    exact_us = Fraction(US_PER_MINUTE, limit_rpm)
    assert exact_us <= interval_us < exact_us * (1 + Fraction(17, 100_000))


@given(levels, quotas, few_takes)
def test_draw__figures_stay_in_range(level: Level | None, quota: Quota, asked: int) -> None:
    """Remaining is 0 ... burst, a wait is at most one interval, and full again is at most one span away."""
    taken: Taken = draw(level, quota, asked, NOW_US)[0]
    assert 0 <= taken.remaining <= quota.burst
    assert 0 <= taken.retry_after_us <= quota.interval_us
    assert NOW_US <= taken.reset_at_us <= NOW_US + quota.span_us

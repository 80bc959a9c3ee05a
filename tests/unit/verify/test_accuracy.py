"""What a bucket may and must have admitted: no right fleet is accused, no wrong one is let off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.bucket import Level, Quota, draw
from sidecar.verify.accuracy import Count, Finding, Terms, Window, judge, least_admitted

SECOND_US = 1_000_000
NOW_US = 1_764_000_000 * SECOND_US
TERMS = Terms(limit_rpm=600, burst=10, held_at_start=10)
WINDOW = Window(outer_us=2 * SECOND_US, empty_us=int(1.9 * SECOND_US))
"""At most 10 + 20, at least 10 + 19."""


@pytest.mark.parametrize(
    ("count", "finding"),
    [
        (Count(admitted=30), Finding.FULFILLED),
        (Count(admitted=29), Finding.FULFILLED),
        (Count(admitted=31), Finding.OVER_ADMITTED),
        (Count(admitted=28), Finding.UNDER_ADMITTED),
        (Count(admitted=28, unanswered=1), Finding.FULFILLED),
        (Count(admitted=28, failed=1), Finding.FULFILLED),
        (Count(admitted=30, unanswered=9), Finding.FULFILLED),
        (Count(admitted=29, other={403: 1}), Finding.MISANSWERED),
        (Count(admitted=31, other={403: 1}), Finding.OVER_ADMITTED),
    ],
)
def test_judge__what_was_admitted(count: Count, finding: Finding) -> None:
    """Too many is broken whatever else happened; what was lost may have taken a token, and is no excuse."""
    assert judge(TERMS, WINDOW, count).finding is finding


def test_judge__a_bucket_that_was_not_emptied_proves_nothing() -> None:
    """Without load there is no under-admission, and no proof either."""
    judgment = judge(TERMS, Window(2 * SECOND_US, None), Count(admitted=3))
    assert (judgment.finding, judgment.least, judgment.is_fulfilled) == (Finding.NOT_SATURATED, None, False)


def test_judge__ninety_nine_percent_is_enough() -> None:
    """The least is asked for up to one percent."""
    terms, window = Terms(6_000, 100, 100), Window(10 * SECOND_US, 9 * SECOND_US)
    assert judge(terms, window, Count(admitted=990)).finding is Finding.FULFILLED
    assert judge(terms, window, Count(admitted=989)).finding is Finding.UNDER_ADMITTED


@given(
    limit_rpm=st.integers(1, 10_000),
    burst=st.integers(1, 30),
    waits_us=st.lists(st.one_of(st.integers(0, 20_000), st.integers(0, 5_000_000)), min_size=1, max_size=200),
)
def test_bounds__hold_for_every_right_bucket(limit_rpm: int, burst: int, waits_us: list[int]) -> None:
    """However requests fall, long pauses among them, the bucket's own rules stay within both bounds."""
    terms, quota = Terms(limit_rpm, burst, burst), Quota.per_minute(limit_rpm, burst)
    level: Level | None = None
    began_us = now_us = NOW_US
    count, refused_us = Count(fills_ns=terms.fills_ns), []
    for wait_us in waits_us:
        now_us += wait_us
        taken, stored = draw(level, quota, 1, now_us)
        level = stored or level
        count.note(200 if taken.admitted else 429, now_us * 1_000, now_us * 1_000)
        if not taken.admitted:
            refused_us.append(now_us)
        window = Window(now_us - began_us, refused_us[-1] - refused_us[0] if refused_us else None)
        assert judge(terms, window, count).finding in (Finding.FULFILLED, Finding.NOT_SATURATED)
        if window.empty_us is not None:
            assert count.admitted >= least_admitted(terms, max(0, window.empty_us - count.idle_ns // 1_000))


def test_count__a_pause_between_refusals_is_idle_beyond_the_time_to_fill() -> None:
    """Only what may have flowed over is taken off the least."""
    terms = Terms(6_000, 11, 11)
    count = Count(fills_ns=terms.fills_ns)
    assert terms.fills_ns == 100_000_000
    for sent_ns, received_ns in ((1_000, 2_000), (50_000_000, 100_001_000), (60_000_000, 180_000_000)):
        count.note(429, sent_ns, received_ns)
    assert count.idle_ns == 30_000_000


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        (200, Count(admitted=1)),
        (429, Count(refused=1, refused_ns=7)),
        (503, Count(failed=1)),
        (0, Count(unanswered=1)),
        (401, Count(other={401: 1})),
    ],
)
def test_count__each_status_in_its_place(status: int, counted: Count) -> None:
    """Every answer is counted once, by what it says about the token."""
    count = Count()
    count.note(status, sent_ns=7, received_ns=9)
    assert count == counted
    assert count.total == 1

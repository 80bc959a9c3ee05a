"""The token bucket, by example. Its laws are in tests/property/test_bucket.py."""

from __future__ import annotations

import doctest

import pytest

from sidecar.domain import bucket
from sidecar.domain.bucket import (
    ASKED_MAX,
    BURST_MAX,
    LIMIT_RPM_MAX,
    BucketSet,
    Debt,
    Level,
    Quota,
    QuotaError,
    Taken,
    draw,
    draw_all,
)

SECOND_US = 1_000_000
NOW_US = 1_764_000_000 * SECOND_US
ONE_A_SECOND = Quota.per_minute(60, burst=3)


@pytest.mark.pure
def test_bucket__examples_in_its_docstrings() -> None:
    """The examples in the module are true."""
    assert doctest.testmod(bucket) == doctest.TestResults(failed=0, attempted=2)


def test_quota__burst_defaults_to_the_limit() -> None:
    """A quota without a burst lets a minute's worth through at once."""
    assert Quota(interval_us=100_000, burst=600) == Quota.per_minute(600)


def test_quota__interval_is_rounded_up() -> None:
    """Seven a minute is a token every 8,571,428.57 µs, so 8,571,429."""
    assert Quota.per_minute(7).interval_us == 8_571_429


@pytest.mark.parametrize("limit_rpm", [-1, 0, LIMIT_RPM_MAX + 1])
def test_quota__refuses_a_limit_out_of_range(limit_rpm: int) -> None:
    """Limits are 1 ... 10,000 requests per minute, and the error says so."""
    with pytest.raises(QuotaError, match=f"rate limit is {limit_rpm}; it must be 1 to 10000"):
        Quota.per_minute(limit_rpm)


@pytest.mark.parametrize("burst", [-1, 0, BURST_MAX + 1])
def test_quota__refuses_a_burst_out_of_range(burst: int) -> None:
    """Bursts are 1 ... 1,000,000 tokens, and the error says so."""
    with pytest.raises(QuotaError, match=f"burst is {burst}; it must be 1 to 1000000"):
        Quota.per_minute(60, burst)


@pytest.mark.parametrize("interval_us", [5_999, 60_000_001])
def test_quota__refuses_an_interval_out_of_range(interval_us: int) -> None:
    """An interval outside what limits can give would leave the arithmetic's bounds."""
    with pytest.raises(QuotaError, match=f"interval_us is {interval_us}; it must be 6000 to 60000000"):
        Quota(interval_us, burst=1)


def test_quota__span_is_the_time_to_fill() -> None:
    """An empty bucket of three tokens, one a second, is full after three seconds."""
    assert ONE_A_SECOND.span_us == 3 * SECOND_US


def test_draw__a_bucket_empties_and_refills() -> None:
    """Three takes pass, the fourth waits a second, and after the second it passes."""
    taken, level = draw(None, ONE_A_SECOND, 3, NOW_US)
    assert taken == Taken(3, 0, SECOND_US, NOW_US + 3 * SECOND_US)
    refused, unchanged = draw(level, ONE_A_SECOND, 1, NOW_US + SECOND_US // 2)
    assert refused == Taken(0, 0, SECOND_US // 2, NOW_US + 3 * SECOND_US)
    assert unchanged is None
    passed, _ = draw(level, ONE_A_SECOND, 1, NOW_US + SECOND_US)
    assert passed == Taken(1, 0, SECOND_US, NOW_US + 4 * SECOND_US)


def test_draw__a_level_in_the_past_is_a_full_bucket() -> None:
    """What is stored of a bucket that has filled up again no longer matters."""
    past = Level(NOW_US, ONE_A_SECOND.interval_us)
    assert draw(None, ONE_A_SECOND, 1, NOW_US) == draw(past, ONE_A_SECOND, 1, NOW_US)


def test_draw__a_raised_limit_helps_at_once() -> None:
    """An exhausted bucket whose limit is raised lets the next take pass after the new, short wait."""
    slow, fast = Quota.per_minute(1), Quota.per_minute(10_000, burst=1)
    _, level = draw(None, slow, 1, NOW_US)
    refused, rebased = draw(level, fast, 1, NOW_US)
    assert refused == Taken(0, 0, 6_000, NOW_US + 6_000)
    assert draw(rebased, fast, 1, NOW_US + 6_000)[0].admitted == 1


def test_draw__a_lowered_burst_makes_nobody_wait() -> None:
    """A thousand used tokens under a burst of one are one used token, not a thousand seconds of waiting."""
    wide, narrow = Quota.per_minute(60, burst=1_000), Quota.per_minute(60, burst=1)
    _, level = draw(None, wide, 1_000, NOW_US)
    refused, rebased = draw(level, narrow, 1, NOW_US)
    assert refused == Taken(0, 0, SECOND_US, NOW_US + SECOND_US)
    assert draw(rebased, narrow, 1, NOW_US + SECOND_US)[0].admitted == 1


def admitted_while_switching(quotas: tuple[Quota, ...], rounds: int, seconds: int) -> int:
    """How many takes pass when each quota in turn is in force for *seconds* and all of it is asked for."""
    level, admitted, now_us = None, 0, NOW_US
    for _ in range(rounds):
        for quota in quotas:
            taken, to_store = draw(level, quota, 10_000, now_us)
            level = level if to_store is None else to_store
            admitted += taken.admitted
            now_us += seconds * SECOND_US
    return admitted


@pytest.mark.parametrize(
    ("quotas", "bound"),
    [
        ((Quota.per_minute(600), Quota.per_minute(60)), 600 + 11 * 10),
        ((Quota.per_minute(60, burst=100), Quota.per_minute(60, burst=1)), 100 + 11),
        ((Quota.per_minute(60), Quota.per_minute(600)), 600 + 11 * 10),
        ((Quota.per_minute(600, burst=600), Quota.per_minute(600, burst=60)), 600 + 11 * 10),
        ((Quota.per_minute(600, 9), Quota.per_minute(60, 600), Quota.per_minute(6_000, 1)), 600 + 17 * 100),
    ],
)
def test_draw__switching_quotas_hands_out_one_burst(quotas: tuple[Quota, ...], bound: int) -> None:
    """Lowering a quota and raising it again gives no further burst, however often it is done."""
    assert admitted_while_switching(quotas, 6, 0) == max(quota.burst for quota in quotas)
    assert admitted_while_switching(quotas, 6, 1) <= bound


def test_draw__a_raised_burst_helps_by_the_difference() -> None:
    """An empty bucket of 60 that may hold 600 has 540 tokens at once, and what was used stays used."""
    small, large = Quota.per_minute(60), Quota.per_minute(60, burst=600)
    _, level = draw(None, small, 60, NOW_US)
    taken, level = draw(level, large, 600, NOW_US)
    assert (taken.admitted, level) == (540, Level(NOW_US + 600 * SECOND_US, SECOND_US))
    refused, level = draw(level, small, 1, NOW_US)
    assert refused.retry_after_us == SECOND_US
    assert level == Level(NOW_US + 60 * SECOND_US, SECOND_US, Debt(NOW_US + 600 * SECOND_US, 60))
    assert draw(level, large, 600, NOW_US)[0].admitted == 0


def test_draw__a_debt_is_forgotten_when_it_is_paid() -> None:
    """The level is a plain one again as soon as all that was used has come back."""
    wide, narrow = Quota.per_minute(60, burst=5), Quota.per_minute(60, burst=1)
    _, level = draw(None, wide, 5, NOW_US)
    _, level = draw(level, narrow, 1, NOW_US)
    assert level is not None and level.full_at_us == NOW_US + 5 * SECOND_US
    _, level = draw(level, narrow, 1, NOW_US + 4 * SECOND_US)
    assert level is not None and level.debt is not None
    _, level = draw(level, narrow, 1, NOW_US + 6 * SECOND_US)
    assert level == Level(NOW_US + 7 * SECOND_US, SECOND_US)


def test_draw__a_clock_that_stepped_back_an_hour_makes_nobody_wait() -> None:
    """The bucket is empty at worst, and refills from then on."""
    hour_us = 3_600 * SECOND_US
    _, level = draw(None, ONE_A_SECOND, 1, NOW_US + hour_us)
    refused, rebased = draw(level, ONE_A_SECOND, 1, NOW_US)
    assert refused == Taken(0, 0, SECOND_US, NOW_US + 3 * SECOND_US)
    assert draw(rebased, ONE_A_SECOND, 1, NOW_US + SECOND_US)[0].admitted == 1


def test_draw__a_peek_does_not_rebase() -> None:
    """Looking stores nothing, whatever is stored."""
    ahead = Level(NOW_US + 100 * SECOND_US, ONE_A_SECOND.interval_us)
    assert draw(ahead, ONE_A_SECOND, 0, NOW_US)[1] is None
    assert draw_all([ahead], [ONE_A_SECOND], 0, 1, NOW_US)[1] is None


def test_draw_all__the_tightest_bucket_decides() -> None:
    """A take that one bucket refuses takes nothing from the other."""
    empty = Level(NOW_US + 3 * SECOND_US, ONE_A_SECOND.interval_us)
    taken, to_store = draw_all([None, empty], [Quota.per_minute(600), ONE_A_SECOND], 1, 1, NOW_US)
    assert taken == Taken(0, 0, SECOND_US, NOW_US + 3 * SECOND_US)
    assert to_store is None


def test_draw_all__a_refusal_may_rebase() -> None:
    """A refused take over several buckets leaves each of them as it is, in terms of its quota."""
    ahead = Level(NOW_US + 100 * SECOND_US, ONE_A_SECOND.interval_us)
    used = Level(NOW_US + SECOND_US, ONE_A_SECOND.interval_us)
    _, to_store = draw_all([ahead, used, None], [ONE_A_SECOND] * 3, 1, 1, NOW_US)
    assert to_store == [
        Level(NOW_US + 3 * SECOND_US, ONE_A_SECOND.interval_us, Debt(ahead.tat_us, ONE_A_SECOND.burst)),
        used,
        Level(NOW_US, ONE_A_SECOND.interval_us),
    ]


def test_draw_all__a_cost_above_the_burst_never_passes() -> None:
    """Waiting cannot help a take that is larger than a full bucket: -1, not some number."""
    taken, to_store = draw_all([None], [ONE_A_SECOND], 1, 4, NOW_US)
    assert taken == Taken(0, 3, -1, NOW_US)
    assert to_store is None


@pytest.mark.parametrize(("asked", "cost"), [(-1, 1), (ASKED_MAX + 1, 1), (1, 0), (1, BURST_MAX + 1)])
def test_draw_all__refuses_figures_out_of_range(asked: int, cost: int) -> None:
    """A negative or monstrous take is an error, never arithmetic."""
    with pytest.raises(QuotaError, match=f"asked is {asked} and cost is {cost};"):
        draw_all([None], [ONE_A_SECOND], asked, cost, NOW_US)


@pytest.mark.parametrize(
    ("keys", "quotas", "cost"),
    [
        ((), (), 1),
        (("a",), (), 1),
        (("a", "b"), (ONE_A_SECOND,), 1),
        (("a", "a"), (ONE_A_SECOND, ONE_A_SECOND), 1),
        (("a",), (ONE_A_SECOND,), 0),
        (("a",), (ONE_A_SECOND,), BURST_MAX + 1),
    ],
)
def test_bucket_set__refuses_what_no_store_could_take_from(
    keys: tuple[str, ...], quotas: tuple[Quota, ...], cost: int
) -> None:
    """No bucket, keys without quotas, one key twice, or a cost out of range are errors at compile time."""
    with pytest.raises(QuotaError, match="buckets of 'acme'"):
        BucketSet("acme", 1, keys, quotas, cost)

"""Refusals from memory: exact until the next token, never longer than the server's, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.bucket import BucketSet, Level, Quota, Taken, draw, draw_all
from sidecar.stores.redis.denials import Denials
from tests.store_harness import bucket

NOW_US = 1_764_000_000_000_000
EMPTY = bucket(limit_rpm=600, burst=3)
TAKEN = Taken(1, 0, 100_000, NOW_US + 300_000)


def learnt(sent_s: float = 50.0, received_s: float = 50.001) -> Denials:
    """Knows since *received_s* that EMPTY has its next token 100 ms after NOW_US."""
    denials = Denials(size_max=4, seconds_max=1.0)
    denials.add(EMPTY, TAKEN, NOW_US, sent_s, received_s)
    return denials


def test_denials__an_empty_bucket_is_refused() -> None:
    """Takes and peeks get what the server would say: nothing left, the wait, when it is full."""
    denials = learnt(sent_s=50.0, received_s=50.0)
    assert denials.find(EMPTY, 50.0) == Taken(0, 0, 100_000, NOW_US + 300_000)
    later = denials.find(EMPTY, 50.0625)
    assert later == Taken(0, 0, 37_500, NOW_US + 300_000)
    assert later is not None and later.at_us == NOW_US + 62_500


def test_denials__the_refusal_ends_with_the_earliest_possible_time() -> None:
    """Counted from sending, less what two clocks may drift apart: the server may refuse longer, we never."""
    denials = learnt(sent_s=50.0, received_s=50.03)
    assert denials.find(EMPTY, 50.0998) is not None
    assert denials.find(EMPTY, 50.0999) is None
    assert len(denials) == 0


def test_denials__a_slow_trip_teaches_nothing() -> None:
    """When the token may be back before we know that it was gone, the server is asked."""
    assert len(learnt(sent_s=50.0, received_s=50.2)) == 0


def test_denials__no_refusal_is_older_than_the_bound() -> None:
    """A bucket that stays empty for a minute is asked about every second: clocks step, people reset."""
    denials = Denials(size_max=4, seconds_max=1.0)
    slow = bucket(limit_rpm=1, burst=1)
    denials.add(slow, Taken(1, 0, 60_000_000, NOW_US + 60_000_000), NOW_US, 50.0, 50.001)
    assert denials.find(slow, 50.99) is not None
    assert denials.find(slow, 51.0) is None


def test_denials__another_quota_or_generation_is_another_bucket() -> None:
    """A changed record is compiled to a new set, which is not known to be empty."""
    denials = learnt()
    for other in (bucket(limit_rpm=601, burst=3), bucket(limit_rpm=600, burst=3, generation=2)):
        assert denials.find(other, 50.01) is None
    assert denials.find(EMPTY, 50.01) is not None


def test_denials__can_be_forgotten() -> None:
    """One set, one owner, or all."""
    for forget in (
        lambda denials: denials.forget(EMPTY),
        lambda denials: denials.forget_owner("acme"),
        lambda denials: denials.clear(),
    ):
        denials = learnt()
        forget(denials)
        assert denials.find(EMPTY, 50.01) is None
    kept = learnt()
    kept.forget_owner("globex")
    assert kept.find(EMPTY, 50.01) is not None


def test_denials__are_bounded() -> None:
    """At the bound those that are over go first, then the oldest; the newest is always kept."""
    denials = Denials(size_max=4, seconds_max=1.0)
    sets = [bucket(f"b{index}", limit_rpm=600, burst=3) for index in range(50)]
    for index, buckets in enumerate(sets):
        denials.add(buckets, TAKEN, NOW_US, 50.0 + index / 1_000, 50.0 + index / 1_000)
        assert len(denials) <= 4
        assert denials.find(buckets, 50.0 + index / 1_000) is not None


def test_denials__never_say_that_a_take_would_pass() -> None:
    """The wait told is at least a microsecond, and -1 where no wait helps."""
    denials = Denials(size_max=4, seconds_max=1.0)
    dear = bucket(limit_rpm=600, burst=3, cost=5)
    denials.add(dear, Taken(0, 0, -1, NOW_US + 300_000), NOW_US, 50.0, 50.0)
    reported = denials.find(dear, 50.05)
    assert reported is not None and reported.retry_after_us == -1
    reported = learnt(sent_s=50.0, received_s=50.0).find(EMPTY, 50.0998)
    assert reported is not None and reported.retry_after_us == 200


@given(
    limit_rpm=st.integers(1, 10_000),
    burst=st.integers(1, 50),
    cost=st.integers(1, 60),
    part=st.floats(0, 1, exclude_max=True),
    others=st.lists(st.integers(1, 60), max_size=3),
)
def test_denials__the_server_would_have_refused_too(
    limit_rpm: int, burst: int, cost: int, part: float, others: list[int]
) -> None:
    """At any time before the end, whoever else has tried meanwhile, every figure is the server's own."""
    quota = Quota.per_minute(limit_rpm, burst)
    _, level = draw(None, quota, burst, NOW_US)
    assert level is not None
    buckets = BucketSet("acme", 1, ("acme",), (quota,), cost)
    taken, _ = draw_all([level], [quota], 1, cost, NOW_US)
    denials = Denials(4, 100.0)
    denials.add(buckets, taken, NOW_US, 50.0, 50.0)
    later_s = 50.0 + part * quota.interval_us * 0.998 / 1e6
    reported = denials.find(buckets, later_s)
    if reported is None:
        pytest.fail("it is not known any more")
    now_us = NOW_US + int((later_s - 50.0) * 1e6)
    stored: Level = level
    for other in others:
        found, drawn = draw_all([stored], [quota], 1, other, now_us)
        assert found.admitted == 0 and drawn is None
    assert draw_all([stored], [quota], 1, cost, now_us)[0] == reported

"""The embedded store for every sequence of takes, at a bound so small that it is always in the way."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.bucket import US_PER_MINUTE, BucketSet, Quota
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import StoreFault
from tests.building import ManualClock
from tests.exact_bucket import ExactBucket

LIMIT_RPM, BURST = 60, 3
QUOTA = Quota.per_minute(LIMIT_RPM, BURST)

key_sets = st.sampled_from([("a",), ("b",), ("c",), ("d",), ("a", "b"), ("c", "d"), ("b", "a", "d")])
waits_us = st.one_of(st.just(0), st.integers(0, 2 * QUOTA.interval_us), st.just(QUOTA.span_us))
takes = st.lists(st.tuples(waits_us, key_sets, st.integers(0, 4), st.integers(1, 2)), max_size=40)


@given(takes, st.integers(1, 4))
def test_take_now__never_over_admits_whatever_gives_way(
    sequence: list[tuple[int, tuple[str, ...], int, int]], buckets_max: int
) -> None:
    """Buckets come and go at the bound, several at once, at any cost: no token is handed out twice."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock, buckets_max)
    exact = {key: ExactBucket(Fraction(LIMIT_RPM, US_PER_MINUTE), BURST, clock.now_us) for key in "abcd"}
    for wait_us, keys, asked, cost in sequence:
        clock.advance(us=wait_us)
        taken = store.take_now(BucketSet("x", 1, keys, [QUOTA] * len(keys), cost), asked)
        assert len(store) <= buckets_max
        if taken is StoreFault.OVERLOADED:
            continue
        assert taken is not None and not isinstance(taken, StoreFault)
        room = min(exact[key].at(clock.now_us) for key in keys) // cost
        assert taken.admitted == min(asked, room)
        for key in keys:
            exact[key].take(taken.admitted * cost)

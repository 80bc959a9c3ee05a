"""A sidecar's share of a limit, for while the shared store is unavailable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.bucket import BucketSet, Quota, Taken
from sidecar.stores.local_share import FORGET_AFTER_US, LocalShare
from tests.building import NOW_US, SECOND_US, ManualClock
from tests.store_harness import bucket


def admitted(share: LocalShare, buckets: BucketSet, attempts: int = 200) -> int:
    """How many of *attempts* single takes pass now."""
    outcomes = [share.take_now(buckets, 1) for _ in range(attempts)]
    return sum(outcome.admitted for outcome in outcomes if isinstance(outcome, Taken))


@pytest.mark.parametrize(("live", "passes"), [(1, 100), (2, 50), (3, 33), (7, 14), (100, 1), (500, 1)])
def test_share__is_the_burst_divided(live: int, passes: int) -> None:
    """Rounded down, but never less than one take."""
    assert admitted(LocalShare(ManualClock(), live), bucket(burst=100)) == passes


@settings(max_examples=30)
@given(live=st.integers(1, 10), burst=st.integers(10, 60), seconds=st.integers(0, 60))
def test_share__a_fleet_together_keeps_the_limit(live: int, burst: int, seconds: int) -> None:
    """n sidecars admit at most one burst and what the limit gives in the time, and nearly as much."""
    clock = ManualClock()
    buckets = bucket(limit_rpm=60, burst=burst)
    shares = [LocalShare(clock, live) for _ in range(live)]
    total = sum(admitted(share, buckets, burst) for share in shares)
    for _ in range(seconds):
        clock.advance(seconds=1)
        total += sum(admitted(share, buckets, 2) for share in shares)
    assert burst + seconds - 2 * live < total <= burst + seconds


def test_share__figures_are_the_share_s() -> None:
    """Remaining in takes of this sidecar, the wait until its next one."""
    share = LocalShare(ManualClock(), 4)
    assert share.take_now(bucket(burst=8), 1) == Taken(1, 1, 0, NOW_US + 4 * SECOND_US)
    assert share.take_now(bucket(burst=8), 1) == Taken(1, 0, 4 * SECOND_US, NOW_US + 8 * SECOND_US)
    assert share.take_now(bucket(burst=8), 1) == Taken(0, 0, 4 * SECOND_US, NOW_US + 8 * SECOND_US)


def test_share__used_tokens_stay_used_when_the_fleet_grows() -> None:
    """A new sidecar halves what is left, it does not hand it out again."""
    share = LocalShare(ManualClock(), 1)
    assert admitted(share, bucket(burst=100), 60) == 60
    share.live_sidecars = 2
    assert admitted(share, bucket(burst=100)) == 20
    share.live_sidecars = 0
    assert share.live_sidecars == 1


def test_share__what_never_fits_never_passes() -> None:
    """A cost above the burst is refused forever, also by a share."""
    share = LocalShare(ManualClock(), 3)
    outcome = share.take_now(bucket(burst=2, cost=3), 1)
    assert isinstance(outcome, Taken) and (outcome.admitted, outcome.retry_after_us) == (0, -1)


def test_share__several_buckets_are_shared_alike() -> None:
    """All or none, each at its share."""
    share = LocalShare(ManualClock(), 2)
    quotas = (Quota.per_minute(60, 10), Quota.per_minute(60, 4))
    both = BucketSet("acme", 1, ("acme/wide", "acme/tight"), quotas)
    assert admitted(share, both) == 2


def test_share__can_begin_anew() -> None:
    """When the store has been back for a minute, nothing is left, and the next failure finds full buckets."""
    clock = ManualClock()
    share = LocalShare(clock, 2)
    assert admitted(share, bucket(limit_rpm=1, burst=10)) == 5
    clock.advance(us=FORGET_AFTER_US)
    share.forget_unused()
    assert len(share) == 0
    assert admitted(share, bucket(limit_rpm=1, burst=10)) == 5


def test_share__a_store_that_comes_and_goes_gives_no_second_burst() -> None:
    """What was used without the store stays used until a minute has passed without another."""
    clock = ManualClock()
    share = LocalShare(clock, 2)
    assert admitted(share, bucket(limit_rpm=1, burst=10)) == 5
    for _ in range(3):
        clock.advance(us=FORGET_AFTER_US - 1)
        share.forget_unused()
        # A token of two minutes comes back to this half of the limit, whatever the store does meanwhile.
        assert admitted(share, bucket(limit_rpm=1, burst=10)) <= 1
    assert len(share) == 1

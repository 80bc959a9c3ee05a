"""The embedded bucket store: exact, bounded, one look at the clock per take."""

from __future__ import annotations

import pytest

from sidecar.domain.bucket import BucketSet, Quota, Taken
from sidecar.stores.embedded import COMPARE_CLOCKS_US, TOLERANCE_US, EmbeddedBucketStore
from sidecar.stores.local_share import LocalShare
from sidecar.stores.protocols import StoreFault
from tests.building import NOW_US, SECOND_US, ManualClock

ONE_A_SECOND = Quota.per_minute(60, burst=2)


def buckets(*keys: str, quota: Quota = ONE_A_SECOND, cost: int = 1) -> BucketSet:
    """A bucket set of these keys under one quota."""
    return BucketSet(keys[0], 1, keys, [quota] * len(keys), cost)


def admitted(outcome: Taken | StoreFault | None) -> int:
    """How many takes an outcome admitted; a fault is a failure of the test."""
    assert isinstance(outcome, Taken)
    return outcome.admitted


def test_take_now__takes_and_refuses() -> None:
    """A burst passes, the next take waits, and after the wait it passes."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock)
    assert store.take_now(buckets("a"), 1) == Taken(1, 1, 0, NOW_US + SECOND_US)
    assert store.take_now(buckets("a"), 1) == Taken(1, 0, SECOND_US, NOW_US + 2 * SECOND_US)
    assert store.take_now(buckets("a"), 1) == Taken(0, 0, SECOND_US, NOW_US + 2 * SECOND_US)
    clock.advance(1)
    assert admitted(store.take_now(buckets("a"), 1)) == 1


def test_take_now__a_peek_changes_nothing() -> None:
    """Looking at a bucket leaves no trace of it."""
    store = EmbeddedBucketStore(ManualClock())
    for _ in range(5):
        assert store.take_now(buckets("a"), 0) == Taken(0, 2, 0, NOW_US)
    assert len(store) == 0


def test_take_now__buckets_are_apart() -> None:
    """What one key uses another keeps."""
    store = EmbeddedBucketStore(ManualClock())
    assert [admitted(store.take_now(buckets("a"), 3)), admitted(store.take_now(buckets("b"), 3))] == [2, 2]


def test_take_now__several_buckets_all_or_none() -> None:
    """A take that one bucket refuses leaves the other full."""
    store = EmbeddedBucketStore(ManualClock())
    store.take_now(buckets("a"), 2)
    assert admitted(store.take_now(buckets("a", "b"), 1)) == 0
    assert admitted(store.take_now(buckets("b"), 2)) == 2


def test_take_now__several_buckets_are_all_charged() -> None:
    """A take that passes is counted in each."""
    store = EmbeddedBucketStore(ManualClock())
    assert admitted(store.take_now(buckets("a", "b"), 2)) == 2
    assert admitted(store.take_now(buckets("a"), 1)) == admitted(store.take_now(buckets("b"), 1)) == 0


def test_take_now__a_cost_above_one() -> None:
    """Two tokens a take: the burst of two is one take."""
    store = EmbeddedBucketStore(ManualClock())
    assert admitted(store.take_now(buckets("a", cost=2), 2)) == 1


def test_take_now__a_raised_limit_helps_after_the_wait_it_reported() -> None:
    """A refused take puts the bucket in the terms of the new quota."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock)
    store.take_now(buckets("a", quota=Quota.per_minute(1)), 1)
    raised = buckets("a", quota=Quota.per_minute(600, burst=1))
    refused = store.take_now(raised, 1)
    assert isinstance(refused, Taken) and not refused.admitted
    clock.advance(us=refused.retry_after_us)
    assert admitted(store.take_now(raised, 1)) == 1


def test_take_now__at_the_bound_full_buckets_make_room() -> None:
    """A bucket that has filled up again is as good as none, so it gives way."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock, buckets_max=2)
    for key in ("a", "b"):
        store.take_now(buckets(key), 1)
    clock.advance(1)
    assert admitted(store.take_now(buckets("c"), 1)) == 1
    assert len(store) == 1


def test_take_now__at_the_bound_a_used_bucket_never_gives_way() -> None:
    """Dropping it would hand out its tokens again, so a new bucket is refused as overloaded."""
    store = EmbeddedBucketStore(ManualClock(), buckets_max=2)
    for key in ("a", "b"):
        store.take_now(buckets(key), 2)
    assert store.take_now(buckets("c"), 1) is StoreFault.OVERLOADED
    assert store.take_now(buckets("c", "d"), 1) is StoreFault.OVERLOADED
    assert store.take_now(buckets("c", cost=2), 1) is StoreFault.OVERLOADED
    assert len(store) == 2
    assert admitted(store.take_now(buckets("a"), 1)) == admitted(store.take_now(buckets("b"), 1)) == 0


def test_take_now__at_the_bound_a_bucket_that_owes_never_gives_way() -> None:
    """It is full under its small burst, but what was used under the large one must not be given again."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock, buckets_max=1)
    large = buckets("a", quota=Quota.per_minute(60, burst=60))
    store.take_now(large, 60)
    store.take_now(buckets("a"), 1)
    clock.advance(10)
    assert store.take_now(buckets("b"), 1) is StoreFault.OVERLOADED
    assert admitted(store.take_now(large, 60)) == 10
    clock.advance(60)
    assert admitted(store.take_now(buckets("b"), 1)) == 1


def test_take_now__at_the_bound_known_buckets_still_work() -> None:
    """Overload of others is nothing to them, nor to a peek."""
    store = EmbeddedBucketStore(ManualClock(), buckets_max=2)
    for key in ("a", "b"):
        store.take_now(buckets(key), 1)
    assert admitted(store.take_now(buckets("a", "b"), 1)) == 1
    assert store.take_now(buckets("c"), 0) == Taken(0, 2, 0, NOW_US)


def test_take_now__several_new_buckets_need_room_for_all() -> None:
    """At one place left, two new buckets are too many, and neither is kept."""
    store = EmbeddedBucketStore(ManualClock(), buckets_max=2)
    store.take_now(buckets("a"), 1)
    assert store.take_now(buckets("b", "c"), 1) is StoreFault.OVERLOADED
    assert admitted(store.take_now(buckets("a", "b"), 1)) == 1
    assert len(store) == 2


def test_take_now__never_keeps_more_than_its_bound() -> None:
    """A thousand keys over time, ten places: never an eleventh, and nobody waits who need not."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock, buckets_max=10)
    sizes, overloads = [], 0
    for number in range(1_000):
        overloads += store.take_now(buckets(f"k{number}"), 1) is StoreFault.OVERLOADED
        sizes.append(len(store))
        clock.advance(us=SECOND_US // 10)
    assert max(sizes) == 10
    assert overloads == 0


class CountedLevels(dict[str, object]):
    """A dict that counts how often it is walked."""

    walks = 0

    def items(self):  # type: ignore[no-untyped-def]
        """Count, then walk."""
        CountedLevels.walks += 1
        return super().items()


def test_take_now__a_flood_at_the_bound_does_not_walk_the_buckets_again_and_again() -> None:
    """While no bucket can have filled up since the last look, a refusal costs no walk over all of them."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock, buckets_max=100)
    for number in range(100):
        store.take_now(buckets(f"k{number}", quota=Quota.per_minute(1)), 1)
    CountedLevels.walks = 0
    store.levels = CountedLevels(store.levels)  # type: ignore[assignment]
    for number in range(50):
        assert store.take_now(buckets(f"new{number}"), 1) is StoreFault.OVERLOADED
    assert CountedLevels.walks <= 1
    clock.advance(60)
    assert admitted(store.take_now(buckets("late"), 1)) == 1


def test_take_now__reads_the_clock_once() -> None:
    """Also when it has to make room: a take happens at one time."""
    clock = ManualClock()
    store = EmbeddedBucketStore(clock, buckets_max=1)
    for number in range(4):
        store.take_now(buckets(f"k{number}"), 1)
    store.take_now(buckets("a", "b"), 1)
    assert clock.reads == 5


def test_take_later__is_never_needed() -> None:
    """Anyone who calls it has not looked at `take_now`."""
    with pytest.raises(NotImplementedError, match="answers every take at once"):
        EmbeddedBucketStore().take_later(buckets("a"), 1, 1.0, lambda outcome: None)


def test_take_now__the_wall_clock_only_tells_the_time() -> None:
    """130 s back: nobody waits longer. An hour forward: no extra token. The reset is by that clock."""
    steady, wall = ManualClock(), ManualClock()
    store = EmbeddedBucketStore(steady, wall_us=wall)
    assert store.take_now(buckets("a"), 2) == Taken(2, 0, SECOND_US, NOW_US + 2 * SECOND_US)
    for step_s in (-130, 3_600):
        wall.advance(step_s)
        wall.advance(1)
        steady.advance(1)
        told_us = wall() + 2 * SECOND_US
        assert store.take_now(buckets("a"), 2) == Taken(1, 0, SECOND_US, told_us)
        assert store.take_now(buckets("a", "b"), 1) == Taken(0, 0, SECOND_US, told_us)


def test_take_now__a_step_of_the_wall_clock_is_noticed_within_a_second() -> None:
    """The wall clock is read once a second, not once a take; back in step, nothing is converted."""
    steady, wall = ManualClock(), ManualClock()
    store = EmbeddedBucketStore(steady, wall_us=wall)
    for _ in range(100):
        store.take_now(buckets("a"), 0)
    assert wall.reads == 1
    for step_s in (5, -5):
        wall.advance(step_s)
        steady.advance(us=COMPARE_CLOCKS_US)
        wall.advance(us=COMPARE_CLOCKS_US)
        assert store.take_now(buckets("a"), 0) == Taken(0, 2, 0, wall.now_us)
    wall.advance(us=TOLERANCE_US - 1)
    steady.advance(us=COMPARE_CLOCKS_US)
    wall.advance(us=COMPARE_CLOCKS_US)
    assert store.take_now(buckets("a"), 0) == Taken(0, 2, 0, steady.now_us)


def test_local_share__goes_by_the_steady_clock_too() -> None:
    """What answers while a shared store is unavailable."""
    steady, wall = ManualClock(), ManualClock()
    share = LocalShare(steady, 1, wall)
    wall.advance(-130)
    taken = share.take_now(buckets("a"), 2)
    assert taken == Taken(2, 0, SECOND_US, wall() + 2 * SECOND_US)
    assert isinstance(taken, Taken) and taken.at_us == wall()
    wall.advance(3_600)
    assert admitted(share.take_now(buckets("a"), 1)) == 0
    steady.advance(1)
    assert admitted(share.take_now(buckets("a"), 1)) == 1

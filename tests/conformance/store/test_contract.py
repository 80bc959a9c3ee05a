"""What every bucket store promises, whichever it is."""

from __future__ import annotations

import asyncio

from sidecar.domain.bucket import BucketSet, Quota, Taken
from sidecar.stores.protocols import BucketStore
from tests.building import NOW_US, SECOND_US, ManualClock
from tests.store_harness import bucket, take, take_all

from .conftest import EachStore


def test_store__a_full_bucket_gives_its_burst_and_no_more(each_store: EachStore) -> None:
    """Each take shows what is left and when the bucket is full again; one more than the burst is refused."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        outcomes = [await take(store, bucket(burst=3)) for _ in range(4)]
        assert outcomes == [
            Taken(1, 2, 0, NOW_US + 1 * SECOND_US),
            Taken(1, 1, 0, NOW_US + 2 * SECOND_US),
            Taken(1, 0, SECOND_US, NOW_US + 3 * SECOND_US),
            Taken(0, 0, SECOND_US, NOW_US + 3 * SECOND_US),
        ]

    each_store.run(scenario)


def test_store__tokens_come_back_one_by_one(each_store: EachStore) -> None:
    """After the wait of a refusal one take passes; a microsecond earlier it does not."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        buckets = bucket(burst=2)
        await take(store, buckets, asked=2)
        clock.advance(us=SECOND_US - 1)
        assert await take(store, buckets) == Taken(0, 0, 1, NOW_US + 2 * SECOND_US)
        clock.advance(us=1)
        assert await take(store, buckets) == Taken(1, 0, SECOND_US, NOW_US + 3 * SECOND_US)

    each_store.run(scenario)


def test_store__tells_when_it_took(each_store: EachStore) -> None:
    """Takes, peeks and refusals carry the store's time, by which a replay orders them."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        buckets = bucket(burst=1)
        for asked in (0, 1, 1):
            clock.advance(us=1)
            outcome = await take(store, buckets, asked)
            assert isinstance(outcome, Taken)
            assert outcome.at_us == clock.now_us

    each_store.run(scenario)


def test_store__a_peek_takes_nothing(each_store: EachStore) -> None:
    """A take of nothing shows the state and changes nothing."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        buckets = bucket(burst=3)
        await take(store, buckets)
        seen = Taken(0, 2, 0, NOW_US + SECOND_US)
        assert [await take(store, buckets, asked=0) for _ in range(3)] == [seen] * 3

    each_store.run(scenario)


def test_store__as_many_of_the_asked_pass_as_fit(each_store: EachStore) -> None:
    """A take of several is admitted in part, and says how many."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        outcome = await take(store, bucket(burst=3), asked=5)
        assert outcome == Taken(3, 0, SECOND_US, NOW_US + 3 * SECOND_US)

    each_store.run(scenario)


def test_store__several_buckets_are_taken_from_all_or_none(each_store: EachStore) -> None:
    """The tighter bucket decides, and a refusal costs the other nothing."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        wide, tight = Quota.per_minute(60, 10), Quota.per_minute(30, 1)
        both = BucketSet("acme", 1, ("acme/wide", "acme/tight"), (wide, tight))
        assert await take(store, both) == Taken(1, 0, 2 * SECOND_US, NOW_US + 2 * SECOND_US)
        assert await take(store, both) == Taken(0, 0, 2 * SECOND_US, NOW_US + 2 * SECOND_US)
        alone = BucketSet("acme", 1, ("acme/wide",), (wide,))
        assert await take(store, alone, asked=0) == Taken(0, 9, 0, NOW_US + SECOND_US)

    each_store.run(scenario)


def test_store__a_take_may_cost_several_tokens(each_store: EachStore) -> None:
    """All of them or none; a cost above the burst never passes, and the wait says so."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        dear = bucket(burst=5, cost=3)
        assert await take(store, dear) == Taken(1, 2, SECOND_US, NOW_US + 3 * SECOND_US)
        assert await take(store, dear) == Taken(0, 2, SECOND_US, NOW_US + 3 * SECOND_US)
        assert await take(store, bucket("globex", burst=2, cost=3)) == Taken(0, 2, -1, NOW_US)

    each_store.run(scenario)


def test_store__a_limit_change_keeps_used_tokens(each_store: EachStore) -> None:
    """Two of three tokens used stay two tokens used, at the new rate."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        await take(store, bucket(limit_rpm=60, burst=3), asked=2)
        raised = bucket(limit_rpm=30, burst=10)
        assert await take(store, raised) == Taken(1, 7, 0, NOW_US + 6 * SECOND_US)

    each_store.run(scenario)


def test_store__lowering_and_raising_a_quota_gives_no_second_burst(each_store: EachStore) -> None:
    """600, 60, 600 rpm, again and again: one burst, then the refill; and no wait is longer than stated."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        high, low = bucket(limit_rpm=600, burst=600), bucket(limit_rpm=60, burst=60)
        admitted = 0
        for buckets in (high, low) * 5:
            taken = await take(store, buckets, asked=1_000)
            assert isinstance(taken, Taken)
            assert taken.reset_at_us - clock() <= buckets.quotas[0].span_us
            admitted += taken.admitted
            clock.advance(us=100_000)
        assert 600 <= admitted <= 600 + 9

    each_store.run(scenario)


def test_store__what_was_used_under_a_larger_burst_lasts_until_it_has_come_back(
    each_store: EachStore,
) -> None:
    """A bucket that is full under a small burst still remembers what it owes to the large one."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        large, small = bucket(limit_rpm=60, burst=100), bucket(limit_rpm=60, burst=1)
        await take(store, large, asked=100)
        await take(store, small)
        clock.advance(seconds=10)
        assert await take(store, small, asked=0) == Taken(0, 1, 0, clock())
        assert await take(store, large, asked=100) == Taken(10, 0, SECOND_US, clock() + 100 * SECOND_US)

    each_store.run(scenario)


def test_store__a_clock_that_steps_back_makes_nobody_wait(each_store: EachStore) -> None:
    """The bucket is at worst empty."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        await take(store, bucket(burst=3), asked=3)
        clock.advance(seconds=-3_600)
        now_us = NOW_US - 3_600 * SECOND_US
        assert await take(store, bucket(burst=3)) == Taken(0, 0, SECOND_US, now_us + 3 * SECOND_US)

    each_store.run(scenario)


def test_store__takes_that_meet_are_answered_one_by_one(each_store: EachStore) -> None:
    """Equal takes and peeks of one turn get what they would get one after another."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        buckets = bucket(burst=3)
        outcomes = await take_all(store, [(buckets, asked) for asked in (1, 0, 1, 2, 1, 0)])
        assert outcomes == [
            Taken(1, 2, 0, NOW_US + 1 * SECOND_US),
            Taken(0, 2, 0, NOW_US + 1 * SECOND_US),
            Taken(1, 1, 0, NOW_US + 2 * SECOND_US),
            Taken(1, 0, SECOND_US, NOW_US + 3 * SECOND_US),
            Taken(0, 0, SECOND_US, NOW_US + 3 * SECOND_US),
            Taken(0, 0, SECOND_US, NOW_US + 3 * SECOND_US),
        ]

    each_store.run(scenario)


def test_store__unequal_takes_that_meet_share_their_buckets(each_store: EachStore) -> None:
    """Takes of one turn that differ in quota, cost or buckets still see each other's tokens."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        quota = Quota.per_minute(60, 10)
        shared, own = "acme/shared", "acme/own"
        sets = (
            BucketSet("acme", 1, (shared,), (quota,)),
            BucketSet("acme", 1, (shared,), (quota,), cost=4),
            BucketSet("acme", 1, (own, shared), (quota, quota), cost=3),
            BucketSet("acme", 1, (shared,), (Quota.per_minute(60, 10),)),
        )
        outcomes = await take_all(store, [(buckets, 1) for buckets in sets])
        assert [outcome.remaining for outcome in outcomes if isinstance(outcome, Taken)] == [9, 5, 2, 1]

    each_store.run(scenario)


def test_store__a_crowd_gets_exactly_the_burst(each_store: EachStore) -> None:
    """Of a thousand takes in one turn, over many buckets, each bucket admits its burst."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        sets = [bucket(f"crowd{index}", burst=7) for index in range(100)]
        outcomes = await take_all(store, [(sets[index % 100], 1) for index in range(1_000)])
        assert all(isinstance(outcome, Taken) for outcome in outcomes)
        admitted = [outcome.admitted for outcome in outcomes if isinstance(outcome, Taken)]
        assert [sum(admitted[index::100]) for index in range(100)] == [7] * 100

    each_store.run(scenario)


def test_store__a_callback_that_raises_costs_nobody_an_answer(each_store: EachStore) -> None:
    """One caller's fault goes to the loop's exception handler; the others of its batch are answered."""

    async def scenario(store: BucketStore, clock: ManualClock) -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: faults.append(context["exception"])
        )
        error = RuntimeError("a caller's fault")

        def raising(_: object) -> None:
            raise error

        if store.take_now(bucket(), 1) is None:
            store.take_later(bucket(), 1, 5, raising)
            assert await take(store, bucket("globex")) == Taken(1, 2, 0, NOW_US + SECOND_US)
            assert faults == [error]

    each_store.run(scenario)

"""The rate-limit service's counters in every kind of Redis: shared, batched, and what happens in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sidecar.domain.bucket import Taken
from sidecar.domain.rate_limits.counters import CountersTaken, CounterTake
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import parse_store_url
from tests.building import ManualClock, make_metrics
from tests.redis_servers import LOOPBACK, free_port, shared
from tests.store_harness import StoreHarness, bucket, take
from tests.waiting import PATIENCE_S

Outcome = CountersTaken | StoreFault


def window(key: str, hits: int = 1, limit: int = 100) -> CounterTake:
    """Hits from a fixed window of a day, counted whatever becomes of the call."""
    return CounterTake(f"w4:{key}", 86_400, limit, hits, counts_refused=True)


def token_bucket(key: str, hits: int = 1, limit: int = 100) -> CounterTake:
    """Hits from a token bucket of a day."""
    return CounterTake(f"b4:{key}", 86_400, limit, hits, is_bucket=True)


async def count(
    store: RedisBucketStore, domain: str, takes: Sequence[CounterTake], timeout_s: float = PATIENCE_S
) -> Outcome:
    """One call; checks that `done` is called once and not at once."""
    assert store.counters.take_now(domain, takes) is None
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    store.counters.take_later(domain, takes, timeout_s, future.set_result)
    assert not future.done()
    return await future


@pytest.mark.parametrize("kind", ["standalone", "guarded", "cluster"])
async def test_counters__sidecars_share_them(kind: str) -> None:
    """Three stores call at once, in several domains: every hit is counted once, no bucket gives too much."""
    world, clock = StoreHarness(kind), ManualClock()
    stores = [world.store(clock) for _ in range(3)]
    await asyncio.gather(*(store.start() for store in stores))
    names = [f"domain-{number}" for number in range(7)]
    calls = [
        count(store, name, [window(name), token_bucket(name, limit=5)])
        for store in stores
        for name in names * 20
    ]
    outcomes = await asyncio.gather(*calls)
    assert all(isinstance(outcome, CountersTaken) for outcome in outcomes)
    admitted = [
        outcome for outcome in outcomes
        if isinstance(outcome, CountersTaken) and not any(each.is_over for each in outcome.counted)
    ]  # fmt: skip
    assert len(admitted) == 7 * 5
    for name in names:
        peek = await count(stores[0], name, [window(name, 0)])
        assert isinstance(peek, CountersTaken)
        assert peek.counted[0].used == 60
    await asyncio.gather(*(store.close() for store in stores))


async def test_counters__leave_with_the_takes_of_a_turn() -> None:
    """What meets in a turn of the loop goes to a node in one write, with a script call for each kind."""
    metrics = make_metrics()
    store = StoreHarness("standalone").store(metrics=metrics)
    await store.start()
    calls = [count(store, f"d{number}", [window("w"), window("x")]) for number in range(5)]
    takes = [take(store, bucket(f"owner-{number}")) for number in range(5)]
    outcomes = await asyncio.gather(*calls, *takes)
    assert [type(outcome) for outcome in outcomes] == [CountersTaken] * 5 + [Taken] * 5
    assert metrics.value("sidecar_store_batches_total") == 1
    assert metrics.value("sidecar_store_calls_total") == 2
    assert metrics.value("sidecar_store_takes_total") == 10
    await store.close()


async def test_counters__a_lost_script_is_loaded_again() -> None:
    """SCRIPT FLUSH costs no call its answer, and counts nothing twice."""
    metrics = make_metrics()
    store = StoreHarness("standalone").store(metrics=metrics)
    await store.start()
    for number in range(3):
        shared().standalone.client.script_flush()
        outcome = await count(store, "d", [window("w")])
        assert isinstance(outcome, CountersTaken)
        assert outcome.counted[0].used == number + 1
    assert metrics.value("sidecar_store_script_loads_total") == 3
    await store.close()


@pytest.mark.parametrize("value", ["no counter at all", "5", "1:2:3", "20420:3"])
async def test_counters__what_is_no_bucket_breaks_no_call(value: str) -> None:
    """A value of another version counts as an unused bucket."""
    store = StoreHarness("standalone").store(ManualClock())
    await store.start()
    asked = token_bucket("b")
    shared().standalone.client.set(store.keys.counter("d", asked.key), value)
    outcome = await count(store, "d", [asked])
    assert isinstance(outcome, CountersTaken)
    assert (outcome.counted[0].used, outcome.counted[0].is_over) == (1, False)
    await store.close()


async def test_counters__the_largest_counts_are_exact() -> None:
    """Hits of 2^32 - 1 add up without rounding, and a window stops counting far above every limit."""
    store = StoreHarness("standalone").store(ManualClock())
    await store.start()
    most = 2**32 - 1
    for number in range(1, 4):
        outcome = await count(store, "d", [window("w", most, most), token_bucket("b", most, most)])
        assert isinstance(outcome, CountersTaken)
        counted = [(each.is_over, each.used) for each in outcome.counted]
        assert counted == [(number > 1, number * most), (number > 1, most)]
    key = window("full").key
    client = shared().standalone.client
    client.set(store.keys.counter("d", key), f"{ManualClock()() // 86_400_000_000}:{2**52 - 5}")
    for _ in range(3):
        outcome = await count(store, "d", [window("full", most)])
        assert isinstance(outcome, CountersTaken)
        assert outcome.counted[0].used == 2**52
    await store.close()


async def test_counters__without_a_server() -> None:
    """A call fails at once while the store is unreachable."""
    url = parse_store_url(f"redis://{LOOPBACK}:{free_port()}")
    store = RedisBucketStore(url, make_metrics())
    await store.start()
    assert await count(store, "d", [window("w")]) is StoreFault.UNAVAILABLE
    await store.close()


async def test_counters__a_server_that_stalls() -> None:
    """A call fails within its deadline, as a take does."""
    server = shared().standalone
    store = StoreHarness("standalone").store()
    await store.start()
    server.client.client_pause(int(PATIENCE_S * 1_000), all=False)  # of scripts
    try:
        assert await count(store, "d", [window("w")], timeout_s=0.05) is StoreFault.TIMEOUT
    finally:
        server.client.client_unpause()
    await store.close()

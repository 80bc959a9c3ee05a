"""A Cluster with a slot half moved, or a primary cut off from the others: what stores and registries do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.redis_servers import ClusterGroup, RedisServer
from sidecar.domain.bucket import Taken
from sidecar.domain.lifecycle.commands import Suspend
from sidecar.domain.rate_limits.counters import CountersTaken, CounterTake
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import RegistryUnavailableError
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import LIFECYCLE, create, request
from tests.building import ManualClock, make_metrics
from tests.registry_in_redis import add_people
from tests.store_harness import PATIENT, bucket, ready, take
from tests.waiting import PATIENCE_S, run

OWNER = "acme"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterGroup]:
    """A Cluster that nothing else uses: its slots are moved and its nodes are cut off."""
    group = ClusterGroup(tmp_path)
    yield group
    group.stop()


class Move:
    """The slot of `OWNER` on its way from one primary to another."""

    def __init__(self, cluster: ClusterGroup, store: RedisBucketStore) -> None:
        """Begin: MIGRATING on one side, IMPORTING on the other; no key has moved."""
        self._cluster = cluster
        partition = store.keys.partition_of(OWNER)
        self.partition = partition
        self.slot = store.keys.slot_of(partition)
        self.source = cluster.primary_of(self.slot)
        self.target = next(server for server in cluster.servers[:3] if server is not self.source)
        self._ids = {
            server: server.client.execute_command("CLUSTER MYID") for server in (self.source, self.target)
        }
        self.target.client.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", self._ids[self.source])
        self.source.client.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", self._ids[self.target])

    def move(self, key: str) -> None:
        """Move one key, or none if there is none."""
        self.source.client.execute_command("MIGRATE", "127.0.0.1", self.target.port, key, 0, 5_000)

    def finish(self) -> None:
        """Move what is left, and let everybody know."""
        for key in self.source.client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 1_000):
            self.move(key)
        for server in (self.target, self.source):
            server.client.execute_command("CLUSTER SETSLOT", self.slot, "NODE", self._ids[self.target])


def opened(cluster: ClusterGroup) -> RedisBucketStore:
    """A store whose clock is stopped, with the registry beside it."""
    url = parse_store_url(cluster.url)
    return RedisBucketStore(
        url, make_metrics(), PATIENT, checks_generation=True, override_clock_us=ManualClock()
    )


@pytest.mark.parametrize("moved", ["nothing", "generation", "bucket", "both"])
async def test_slot__left_half_moved_is_served(moved: str, cluster: ClusterGroup) -> None:
    """Wherever the keys of a take are, each token is given once, and a newer record is noticed."""
    store = opened(cluster)
    await store.start()
    generation = store.keys.generation(OWNER)
    buckets = bucket(OWNER, burst=5)
    owner = cluster.primary_of(store.keys.slot_of(store.keys.partition_of(OWNER)))
    owner.client.set(generation, 1)
    assert isinstance(await take(store, buckets), Taken)
    move = Move(cluster, store)
    if moved in ("generation", "both"):
        move.move(generation)
    if moved in ("bucket", "both"):
        move.move(store.keys.bucket(OWNER, OWNER))
    outcomes = await asyncio.gather(*(take(store, buckets) for _ in range(10)))
    assert all(isinstance(outcome, Taken) for outcome in outcomes), outcomes
    assert sum(outcome.admitted for outcome in outcomes if isinstance(outcome, Taken)) == 4
    fresh = await take(store, bucket(OWNER, burst=7, generation=1), asked=0)
    assert isinstance(fresh, Taken) and fresh.remaining == 2
    place = move.target if moved in ("generation", "both") else move.source
    set_there(place, generation, 2)
    assert await take(store, buckets) is StoreFault.SUPERSEDED
    move.finish()
    taken = await take(store, bucket(OWNER, burst=5, generation=2), asked=0)
    assert isinstance(taken, Taken) and taken.remaining == 0
    await store.close()


@pytest.mark.parametrize("is_moved", [False, True])
async def test_slot__left_half_moved_serves_counters(is_moved: bool, cluster: ClusterGroup) -> None:
    """A call with one counter counts once, wherever the counter is, and also when it is new."""
    store = opened(cluster)
    await store.start()

    async def used(name: str, hits: int) -> int | StoreFault:
        done: asyncio.Future[CountersTaken | StoreFault] = asyncio.get_running_loop().create_future()
        hit = CounterTake(name, 60, 1_000, hits, counts_refused=True)
        store.counters.take_later(OWNER, [hit], PATIENCE_S, done.set_result)
        outcome = await done
        return outcome.counted[0].used if isinstance(outcome, CountersTaken) else outcome

    assert await used("old", 1) == 1
    move = Move(cluster, store)
    if is_moved:
        move.move(store.keys.counter(OWNER, "old"))
    assert sorted(await asyncio.gather(*(used("old", 1) for _ in range(5)))) == [2, 3, 4, 5, 6]
    assert await asyncio.gather(*(used(name, 2) for name in ("new", "newer"))) == [2, 2]
    move.finish()
    assert [await used(name, 0) for name in ("old", "new", "newer")] == [6, 2, 2]
    await store.close()


def set_there(server: RedisServer, key: str, value: int) -> None:
    """Set a key, also in a slot that is being imported."""
    with server.client.pipeline(transaction=False) as calls:  # ASKING is for one connection
        calls.execute_command("ASKING")
        calls.execute_command("SET", key, value)
        calls.execute()


async def test_slot__left_half_moved_serves_an_idle_integration(cluster: ClusterGroup) -> None:
    """A full bucket is no key at all, and the generation is: no node has all the keys of the take."""
    store = opened(cluster)
    await store.start()
    owner = cluster.primary_of(store.keys.slot_of(store.keys.partition_of(OWNER)))
    owner.client.set(store.keys.generation(OWNER), 1)
    Move(cluster, store)
    taken = await take(store, bucket(OWNER))
    assert isinstance(taken, Taken) and taken.remaining == 2
    assert store.is_ready
    await store.close()


async def test_slot__that_has_moved_is_found_at_once(cluster: ClusterGroup) -> None:
    """MOVED costs no take its answer, and later ones go to the new node."""
    store = opened(cluster)
    await store.start()
    owner = cluster.primary_of(store.keys.slot_of(store.keys.partition_of(OWNER)))
    owner.client.set(store.keys.generation(OWNER), 1)
    move = Move(cluster, store)
    move.finish()
    assert isinstance(await take(store, bucket(OWNER)), Taken)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            link = store.pipelines[move.partition].link
            if link is not None and link.address.port == move.target.port:
                break
            await asyncio.sleep(0)
    await store.close()


async def test_registry__reads_a_slot_that_is_half_moved_and_says_why_it_cannot_write(
    cluster: ClusterGroup,
) -> None:
    """A record is found wherever it is; a change needs all keys in one place, and happens once they are."""
    url = parse_store_url(cluster.url)
    registry = RedisRegistry(url, LIFECYCLE)
    await add_people(registry)
    await registry.apply(request(create(OWNER)))
    store = opened(cluster)
    await store.start()
    move = Move(cluster, store)
    for moved in (False, True):
        if moved:
            move.move(store.keys.record(OWNER))
        found = await registry.get(OWNER)
        assert found is not None and found.id == OWNER
        assert await registry.get("nobody") is None
    suspend = request(Suspend(integration_id=OWNER, reason="leaked"))
    with pytest.raises(RegistryUnavailableError, match="redis-cli --cluster fix") as raised:
        await registry.apply(suspend)
    assert not raised.value.may_have_happened
    move.finish()
    committed = await registry.apply(suspend)
    assert committed.is_durable
    await registry.aclose()
    await store.close()


def test_primary__that_nobody_replaces_is_reported(
    cluster: ClusterGroup, caplog: pytest.LogCaptureFixture
) -> None:
    """Part of the slots is served by nobody: not ready, a gauge, one log line, and the rest goes on."""

    async def scenario() -> None:
        metrics = make_metrics()
        store = RedisBucketStore(parse_store_url(cluster.url), metrics)
        await store.start()
        slot = store.keys.slot_of(store.keys.partition_of(OWNER))
        primary = cluster.primary_of(slot)
        for server in cluster.servers:
            server.client.config_set("cluster-require-full-coverage", "no")
            server.client.config_set("cluster-replica-no-failover", "yes")
        primary.freeze()
        await ready(store, False)
        assert 0 < metrics.value("sidecar_store_partitions_unserved") < 16
        assert "partitions are not served" in store.trouble
        assert caplog.text.count("partitions are not served") == 1
        primary.thaw()
        await ready(store)
        assert metrics.value("sidecar_store_partitions_unserved") == 0
        await store.close()

    with caplog.at_level(logging.INFO):
        run(scenario(), PATIENCE_S)
    assert "every partition is served" in caplog.text

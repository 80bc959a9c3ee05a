"""The number of partitions: found in what is stored, and never guessed."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import pytest

from sidecar.domain.bucket import Taken
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.heartbeat import Heartbeat
from sidecar.stores.registry.protocol import AuditQuery
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, LIFECYCLE, create, request
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import found
from tests.redis_servers import shared
from tests.store_harness import StoreHarness, bucket, ready, take, url_of
from tests.waiting import run

FORMER = 16
"""What stores got without being asked, before a store outside a Cluster had one partition."""
INTEGRATIONS = ("acme", "other", "third", "fourth")


def client_of(harness: StoreHarness, store: RedisBucketStore) -> Any:
    """A client of the server that holds partition 0."""
    servers = shared()
    if harness.kind == "cluster":
        return servers.cluster.primary_of(store.keys.slot_of(0)).client
    return (servers.sentinel.primary if harness.kind == "sentinel" else servers.standalone).client


def new_partitions(kind: str) -> int:
    """Partitions of a new store of *kind*."""
    return FORMER if kind == "cluster" else 1


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
async def test_layout__a_new_store_has_one_partition_outside_a_cluster(kind: str) -> None:
    """Nothing is stated and nothing is there: 1, or 16 in a Cluster, written down for all who follow."""
    harness = StoreHarness(kind)

    store = harness.store()
    await store.start()
    assert store.keys.partitions == len(store.pipelines) == new_partitions(kind)
    kept = client_of(harness, store).get(store.keys.layout_key)
    assert kept == f"1 partitions={new_partitions(kind)}".encode()
    await store.close()


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
@pytest.mark.parametrize("partitions", [1, FORMER, 7])
async def test_layout__what_is_stored_is_adopted(kind: str, partitions: int) -> None:
    """Buckets that another number's sidecars began go on where they were, no matter who takes."""
    harness = StoreHarness(kind)

    former = harness.store(url=harness.url(partitions=str(partitions)))
    await former.start()
    for name in INTEGRATIONS:
        taken = await take(former, bucket(name, burst=5))
        assert isinstance(taken, Taken) and taken.remaining == 4
    store = harness.store()
    await store.start()
    assert store.keys.partitions == partitions
    for name in INTEGRATIONS:
        taken = await take(store, bucket(name, burst=5))
        assert isinstance(taken, Taken) and taken.remaining == 3
    await store.close()
    await former.close()


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
@pytest.mark.parametrize("partitions", [None, FORMER, 3])
async def test_layout__a_registry_is_adopted_with_its_chains(kind: str, partitions: int | None) -> None:
    """A registry goes on as it is: one chain a partition; a new one outside a Cluster has one chain."""
    prefix, clock = f"sidecar:{secrets.token_hex(4)}:", ManualClock()
    options = {} if partitions is None else {"partitions": str(partitions)}

    former = RedisRegistry(url_of(kind, prefix, **options), LIFECYCLE, clock_us=clock)
    await found(former, clock)
    for name in INTEGRATIONS:
        await former.apply(request(create(name), ANN))
    await former.aclose()
    registry = RedisRegistry(url_of(kind, prefix), LIFECYCLE, clock_us=clock)
    chains = await registry.chains()
    assert len(chains) == (partitions or new_partitions(kind))
    view = await registry.load_all()
    assert {record.id for record in view.records} == set(INTEGRATIONS)
    entries = [entry for chain in chains for entry in (await registry.audit(AuditQuery(chain))).entries]
    assert len(entries) == 5 + len(INTEGRATIONS)
    await registry.apply(request(create("fifth"), ANN))
    assert (await registry.changes_since(view.revision)).records[0].id == "fifth"
    await registry.aclose()


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
def test_layout__is_not_guessed_where_it_is_gone(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Keys without a layout: a sidecar without a number is refused; one with a number writes the layout."""
    harness = StoreHarness(kind)
    clock = ManualClock()

    async def scenario() -> None:
        stated = harness.url(partitions=str(FORMER))
        registry = RedisRegistry(stated, LIFECYCLE, clock_us=clock)
        await found(registry, clock)
        await registry.aclose()
        unstated = harness.store()
        client_of(harness, unstated).delete(unstated.keys.layout_key)
        await unstated.start()
        assert not unstated.is_ready
        assert "add it to the URL; partitions=16 was the default" in unstated.trouble
        store = harness.store(url=stated)
        await store.start()
        assert store.is_ready
        await ready(unstated)  # it tries again by itself, and finds the layout
        assert unstated.keys.partitions == FORMER
        await unstated.close()
        await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())


async def test_layout__a_heartbeat_writes_it_again() -> None:
    """Flushed or evicted under a running fleet, it is back within a second: no one else's number gets in."""
    harness = StoreHarness("standalone")

    store = harness.store(url=harness.url(partitions="5"))
    await store.start()
    client = client_of(harness, store)
    client.delete(store.keys.layout_key)
    heart = Heartbeat(store, "one")
    await heart.beat()
    assert client.get(store.keys.layout_key) == b"1 partitions=5"
    client.delete(store.keys.layout_key)
    await heart.close()
    assert client.get(store.keys.layout_key) is None
    await store.close()


@pytest.mark.parametrize(
    "text", ["2 partitions=16", "1 partitions=0", "1 partitions=257", "1 partitions=016", ""]
)
async def test_layout__of_another_version_is_refused(text: str) -> None:
    """What this program does not know is named, and left as it is."""
    harness = StoreHarness("standalone")

    store = harness.store()
    client = client_of(harness, store)
    client.set(store.keys.layout_key, text)
    await store.start()
    assert not store.is_ready and f"have the layout {text!r}" in store.trouble
    assert client.get(store.keys.layout_key) == text.encode()
    await store.close()

"""The server ends connections and stays there: takes that were not sent wait, and nothing is taken twice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import redis.asyncio

from sidecar.domain.bucket import Taken
from sidecar.stores.protocols import StoreFault
from tests.redis_servers import shared
from tests.store_harness import StoreHarness, bucket, ready, take

TIMEOUT_S = 4.0
ROUNDS = 40


async def kill_clients(server: redis.asyncio.Redis) -> None:
    """End every connection but our own."""
    await server.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.mark.parametrize("kind", ["standalone", "cluster"])
async def test_store__a_killed_connection_is_reopened_at_once(kind: str) -> None:
    """A take right after each kill is admitted unless it had been sent already, and none counts twice."""
    harness = StoreHarness(kind)
    servers = shared()
    ports = (
        [server.port for server in servers.cluster.servers]
        if kind == "cluster"
        else [servers.standalone.port]
    )

    clients = [redis.asyncio.Redis(port=port) for port in ports]
    store = harness.store()
    await store.start()
    await ready(store)
    spent = bucket("spent", limit_rpm=1, burst=10_000)
    outcomes: Counter[bool | StoreFault] = Counter()
    for _ in range(ROUNDS):
        for client in clients:
            await kill_clients(client)
        outcome = await take(store, spent, timeout_s=TIMEOUT_S)
        outcomes[outcome if isinstance(outcome, StoreFault) else outcome.admitted == 1] += 1
    assert outcomes[True] >= ROUNDS * 0.9, outcomes
    await ready(store)
    last = await take(store, spent, asked=0)
    assert isinstance(last, Taken)
    assert outcomes[True] <= 10_000 - last.remaining <= ROUNDS
    await store.close()
    for client in clients:
        await client.aclose()


async def test_store__takes_in_flight_of_a_killed_connection_are_not_repeated() -> None:
    """Whatever is answered as a fault was taken once at most."""
    harness = StoreHarness("standalone")

    client = redis.asyncio.Redis(port=shared().standalone.port)
    store = harness.store()
    await store.start()
    spent = bucket("spent", limit_rpm=1, burst=100_000)
    outcomes = []
    for _ in range(ROUNDS):
        takes = [asyncio.ensure_future(take(store, spent, timeout_s=TIMEOUT_S)) for _ in range(50)]
        await kill_clients(client)
        outcomes += await asyncio.gather(*takes)
    admitted = sum(isinstance(outcome, Taken) for outcome in outcomes)
    await ready(store)
    last = await take(store, spent, asked=0)
    assert isinstance(last, Taken)
    assert admitted <= 100_000 - last.remaining <= len(outcomes)
    await store.close()
    await client.aclose()


async def test_store__a_clean_stop_does_not_say_that_the_store_is_gone() -> None:
    """Stopping the store reports no unreachable store."""
    harness = StoreHarness("standalone")

    states: list[bool] = []
    store = harness.store()
    store.on_state_change = states.append
    await store.start()
    await store.close()
    assert states == [True]

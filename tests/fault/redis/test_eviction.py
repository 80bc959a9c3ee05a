"""A server that may remove keys on its own: refused for a registry, else reported and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.domain.bucket import Taken
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import RegistryUnavailableError
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import LIFECYCLE
from tests.redis_servers import RedisServer
from tests.store_harness import StoreHarness, bucket, ready, take
from tests.waiting import run

EVICTING = (
    "allkeys-lru", "allkeys-lfu", "allkeys-random",
    "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
)  # fmt: skip
ADVICE = "set maxmemory-policy noeviction"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A separate server, whose policy a test sets."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


def set_policy(server: RedisServer, policy: str) -> None:
    """Set it as an operator would."""
    server.client.config_set("maxmemory-policy", policy)


@pytest.mark.parametrize("policy", EVICTING)
async def test_store__an_evicting_policy_is_refused_where_the_registry_is(
    policy: str, server: RedisServer
) -> None:
    """Not ready, with the remedy; when the policy is corrected it becomes ready without a restart."""
    harness = StoreHarness("standalone")
    set_policy(server, policy)

    store = harness.store(url=parse_store_url(server.url), checks_generation=True)
    registry = RedisRegistry(parse_store_url(server.url), LIFECYCLE)
    await store.start()
    assert not store.is_ready
    assert policy in store.trouble and ADVICE in store.trouble
    assert harness.metrics.value("sidecar_store_may_evict") == 1
    with pytest.raises(RegistryUnavailableError, match=ADVICE):
        await registry.administrators()
    set_policy(server, "noeviction")
    await ready(store)
    server.client.set(store.keys.generation("acme"), 1)
    assert isinstance(await take(store, bucket()), Taken)
    assert await registry.administrators() == ()
    assert harness.metrics.value("sidecar_store_may_evict") == 0
    await store.close()
    await registry.aclose()


def test_store__an_evicting_policy_is_reported_where_only_buckets_are(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It works, says so as an error once, and counts it until the policy is corrected."""
    harness = StoreHarness("standalone")
    set_policy(server, "volatile-ttl")

    async def scenario() -> None:
        store = harness.store(url=parse_store_url(server.url))
        await store.start()
        assert isinstance(await take(store, bucket()), Taken)
        await store.check_servers()
        assert harness.metrics.value("sidecar_store_may_evict") == 1
        set_policy(server, "noeviction")
        await store.check_servers()
        assert harness.metrics.value("sidecar_store_may_evict") == 0
        await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert (
        "requests beyond the limit would be admitted" in record.getMessage() and ADVICE in record.getMessage()
    )


def test_store__a_policy_that_is_changed_meanwhile_is_reported(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection lasts, and so does the service; the log and the metric say it."""
    harness = StoreHarness("standalone")

    async def scenario() -> None:
        store = harness.store(url=parse_store_url(server.url), checks_generation=True)
        await store.start()
        set_policy(server, "allkeys-lru")
        await store.check_servers()
        assert store.is_ready
        assert harness.metrics.value("sidecar_store_may_evict") == 1
        await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert "integrations would be lost" in caplog.text


def test_store__a_user_without_info_is_warned(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing can be checked: that is said once, with the permission that is missing."""
    harness = StoreHarness("standalone")
    server.client.execute_command("ACL", "SETUSER", "blind", "on", ">correct", "~*", "+@all", "-info")

    async def scenario() -> None:
        store = harness.store(url=parse_store_url(server.url.replace("//", "//blind:correct@")))
        await store.start()
        assert isinstance(await take(store, bucket()), Taken)
        await store.check_servers()
        await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert ["add +info" in record.getMessage() for record in caplog.records] == [True]

"""
This build goes on with what a former build stored; `make upgrade-proof` runs both builds under load.

The former build's files are kept in tests/upgrade/former.json, so that no history is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain.api_keys import credential_id_of
from sidecar.domain.bucket import Taken
from sidecar.domain.integrations import Status
from sidecar.domain.snapshot import Snapshot
from sidecar.process.checking import check
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.verification import verify_registry
from tests.administration import LIFECYCLE
from tests.building import ManualClock, make_metrics
from tests.redis_servers import RedisServer
from tests.store_harness import PATIENT, take
from tests.upgrade.stored import BURST, TAKEN, put_redis, put_sqlite, stored


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with what the former build stored."""
    server = RedisServer(tmp_path / "redis").start()
    put_redis(stored()["redis"], server.client)
    yield server
    server.stop()


async def check_registry(registry: Registry, content: dict[str, Any]) -> None:
    """Both integrations are there with their keys, one is suspended, and the audit log is intact."""
    records = {record.id: record for record in (await registry.load_all()).records}
    assert records["leaked"].status is Status.SUSPENDED
    assert (records["limited"].status, records["limited"].burst) == (Status.ACTIVE, BURST)
    for id, api_key in content["api_keys"].items():
        assert credential_id_of(api_key) in {credential.id for credential in records[id].credentials}
    assert (await verify_registry(registry)).is_intact
    await registry.aclose()


def test_upgrade__a_registry_in_sqlite_goes_on(tmp_path: Path) -> None:
    """The file is migrated, and holds what the former build wrote."""
    content = stored()["sqlite"]
    put_sqlite(content, tmp_path / "registry.sqlite")

    async def act() -> None:
        await check_registry(await SqliteRegistry.open(tmp_path / "registry.sqlite", LIFECYCLE), content)

    asyncio.run(asyncio.wait_for(act(), 60))


def test_upgrade__a_registry_in_redis_goes_on(redis: RedisServer) -> None:
    """With the number of partitions that the former build chose."""

    async def act() -> None:
        await check_registry(RedisRegistry(parse_store_url(redis.url), LIFECYCLE), stored()["redis"])

    asyncio.run(asyncio.wait_for(act(), 60))


def test_upgrade__buckets_in_redis_go_on(redis: RedisServer) -> None:
    """What the former build had taken stays taken: the rest of the burst is admitted, and no more."""

    async def act() -> None:
        url = parse_store_url(redis.url)
        registry = RedisRegistry(url, LIFECYCLE)
        snapshot = Snapshot.compile((await registry.load_all()).records)
        await registry.aclose()
        clock = ManualClock(stored()["redis"]["stored_at_us"])
        store = RedisBucketStore(url, make_metrics(), PATIENT, override_clock_us=clock)
        await store.start()
        taken = await take(store, snapshot.integrations["limited"].buckets, BURST)
        assert isinstance(taken, Taken) and taken.admitted == BURST - TAKEN
        await store.close()

    asyncio.run(asyncio.wait_for(act(), 60))


def test_upgrade__the_files_of_the_former_example_are_valid(tmp_path: Path) -> None:
    """Configuration and YAML registry of the former build need no change."""
    for path, text in stored()["examples"].items():
        (tmp_path / path).write_text(text.replace("/run/sidecar", str(tmp_path)))
    checked = check(tmp_path / "sidecar.yaml")
    assert checked.loaded.registry.snapshot.integrations

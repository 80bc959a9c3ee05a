"""The backup of docs/operate/registry-redis.md: an RDB file of a running server starts another one."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from sidecar.domain.lifecycle.commands import Suspend
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import ListQuery
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, ID, LIFECYCLE, create, request
from tests.redis_servers import RedisServer
from tests.registry_in_redis import add_people
from tests.waiting import PATIENCE_S

from .kept import verified


def opened(server: RedisServer) -> RedisRegistry:
    """The registry on *server*."""
    return RedisRegistry(parse_store_url(server.url), LIFECYCLE)


def back_up(server: RedisServer, file: Path) -> None:
    """The command of the documentation."""
    dump = ["redis-cli", "-u", server.url, "--rdb", str(file)]
    subprocess.run(dump, check=True, capture_output=True, timeout=PATIENCE_S)


async def test_backup__restores_the_registry_of_its_time(tmp_path: Path) -> None:
    """With the same id and an audit log that verifies; a later suspension is not in it."""
    restored_folder = tmp_path / "restored"
    restored_folder.mkdir()
    former = RedisServer(tmp_path / "former").start()
    restored = RedisServer(restored_folder)
    try:
        registry = opened(former)
        await add_people(registry)
        await registry.apply(request(create(), ANN))
        await asyncio.to_thread(back_up, former, restored_folder / "dump.rdb")
        await registry.apply(request(Suspend(integration_id=ID, reason="leaked"), ANN))
        id = registry.registry_id
        await registry.aclose()
        former.stop()
        restored.start()
        registry = opened(restored)
        page = await registry.list(ListQuery())
        assert [record.status.value for record in page.records] == ["active"]
        assert registry.registry_id == id
        assert await verified(registry)
        await registry.aclose()
    finally:
        former.stop()
        restored.stop()

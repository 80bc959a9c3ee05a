"""A server that answers and refuses: readiness says what a person must fix, until it is corrected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.domain.fail_policy import FailPolicy
from sidecar.process.shared_store import SharedStore
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis import bucket_store
from sidecar.stores.redis.heartbeat import Heartbeat
from sidecar.stores.redis.urls import parse_store_url
from tests.building import make_metrics
from tests.redis_servers import RedisServer
from tests.store_harness import PATIENCE_S, bucket, take

REFUSED = {
    "OOM": (("maxmemory", "1"), "raise maxmemory"),
    "NOREPLICAS": (("min-replicas-to-write", "1"), "min-replicas-to-write"),
    "NOPERM": (None, "the ACL user lacks a permission"),
    "MISCONF": (("save", "3600 1000000"), "cannot persist"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A separate server, which a test makes refuse."""
    server = RedisServer(tmp_path).start()
    yield server
    server.client.config_set("save", "")  # else a server that cannot save does not end
    server.stop()


def refuse(server: RedisServer, code: str) -> None:
    """Have *server* refuse writes by *code*, though it answers."""
    setting, _ = REFUSED[code]
    if setting is None:
        server.client.execute_command("ACL", "SETUSER", "default", "-set", "-zadd")
        return
    server.client.config_set(*setting)
    if code == "MISCONF":
        (server.folder / "dump.rdb").mkdir()  # so that the file cannot take this name
        server.client.bgsave()


@pytest.mark.parametrize("code", REFUSED)
async def test_readiness__says_why_a_server_refuses_commands(
    code: str, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By takes and by the heartbeat alike; the process stays ready, since it answers by its policy."""
    url = parse_store_url(server.url)
    shared = SharedStore(
        url, make_metrics(), checks_generation=False, timeout_s=1.0, policy=FailPolicy.LOCAL, sidecar_id="one"
    )
    states: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()

    async def reported(part: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                is_ready, state = await states.get()
                if part in state and (is_ready or not state.startswith("connected")):
                    return

    task = asyncio.create_task(shared.run(lambda name, is_ready, state: states.put_nowait((is_ready, state))))
    await reported("connected")
    refuse(server, code)
    await reported(f"connected, but {url} refuses commands: {'ERR' if code == 'NOPERM' else code}")
    assert await take(shared.buckets, bucket()) is StoreFault.UNAVAILABLE
    assert REFUSED[code][1] in shared.buckets.trouble
    assert shared.buckets.is_ready
    monkeypatch.setattr(bucket_store, "REFUSAL_LASTS_S", 0.0)
    await shared.buckets.check_servers()
    await reported("connected")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_readiness__says_that_a_server_may_evict_buckets(server: RedisServer) -> None:
    """Where only buckets are it is used all the same, and says so for as long as it is so."""
    server.client.config_set("maxmemory-policy", "allkeys-lru")

    store = bucket_store.RedisBucketStore(parse_store_url(server.url), make_metrics())
    await store.start()
    assert store.is_ready and "set maxmemory-policy noeviction" in store.trouble
    server.client.config_set("maxmemory-policy", "noeviction")
    await store.check_servers()
    assert store.trouble == ""
    await store.close()


async def test_heartbeat__tells_a_refusal(server: RedisServer) -> None:
    """An idle sidecar makes no takes, and must not look well for that."""
    store = bucket_store.RedisBucketStore(parse_store_url(server.url), make_metrics())
    await store.start()
    refuse(server, "NOPERM")
    assert not await Heartbeat(store, "one").beat()
    assert REFUSED["NOPERM"][1] in store.trouble
    await store.close()

"""How many sidecars live: counted by the store's clock, known also when the store is unavailable."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import redis

from sidecar.domain.changes import SIDECAR_LIFETIME_US
from sidecar.process.config import load_config
from sidecar.process.wiring import LoadedConfig, build_sidecar
from sidecar.stores.redis.heartbeat import Heartbeat
from sidecar.stores.redis.scripts import HEARTBEAT
from tests.building import make_metrics
from tests.redis_servers import shared as servers
from tests.registry_in_redis import add_people
from tests.store_harness import StoreHarness


async def test_heartbeat__sidecars_count_each_other(harness: StoreHarness) -> None:
    """Who beats counts; who says goodbye does not; the number comes with each beat."""
    store = harness.store()
    await store.start()
    first, second, third = (Heartbeat(store, name) for name in ("a", "b", "c"))
    changes: list[int] = []
    third.on_beat = changes.append
    for heart in (first, second, third, third):
        assert await heart.beat()
    assert (first.live_sidecars, second.live_sidecars, third.live_sidecars) == (1, 2, 3)
    await first.close()
    await third.beat()
    assert changes == [3, 3, 2]
    await store.close()


async def test_heartbeat__a_silent_sidecar_stops_counting(harness: StoreHarness) -> None:
    """Its beat runs out on the server's clock, and the whole set with the last beat."""
    store = harness.store()
    await store.start()
    heart = Heartbeat(store, "alive")
    space = store.keys
    keys, words = (space.live_key, space.layout_key), ("dead", 1, space.layout)
    await store.run(HEARTBEAT, 0, keys, words)  # for one microsecond
    await heart.beat()
    assert heart.live_sidecars == 1
    link = store.pipelines[0].link
    assert link is not None
    assert 0 < await link.request("PTTL", store.keys.live_key) <= SIDECAR_LIFETIME_US // 1_000
    await store.close()


async def test_heartbeat__keeps_the_last_count_without_a_store(harness: StoreHarness) -> None:
    """The count is needed most when nobody can be asked."""
    store = harness.store()
    await store.start()
    heart, other = Heartbeat(store, "a"), Heartbeat(store, "b")
    await other.beat()
    await heart.beat()
    await store.close()
    assert await heart.beat() is False
    assert heart.live_sidecars == 2
    await heart.close()


async def test_heartbeat__does_not_count_fewer_at_once_when_the_store_is_back(harness: StoreHarness) -> None:
    """After a gap the first to beat finds nobody else, and must not take the others' shares for its own."""
    now_s = 100.0
    store = harness.store()
    heart = Heartbeat(store, "a", clock=lambda: now_s)
    heart.live_sidecars = 3
    assert await heart.beat() is False  # not connected yet
    await store.start()
    assert await heart.beat()
    assert heart.live_sidecars == 3
    now_s += SIDECAR_LIFETIME_US / 1e6
    assert await heart.beat()
    assert heart.live_sidecars == 1
    await heart.close()
    await store.close()


async def test_heartbeat__beats_until_it_is_closed(harness: StoreHarness) -> None:
    """One beat, one pause, and so on, whatever becomes of a beat; nothing of it stays."""
    store = harness.store()
    await store.start()
    pauses: asyncio.Queue[float] = asyncio.Queue()
    go_on: asyncio.Queue[None] = asyncio.Queue()

    async def pause(seconds: float) -> None:
        pauses.put_nowait(seconds)
        await go_on.get()

    def stumble(live_sidecars: int) -> None:
        raise ValueError("an observer of a beat must not end it")

    heart = Heartbeat(store, "a", pause)
    heart.on_beat = stumble
    heart.start()
    for _ in range(3):
        assert await pauses.get() == 1.0
        go_on.put_nowait(None)
    await heart.close()
    link = store.pipelines[0].link
    assert link is not None
    assert await link.request("ZCARD", store.keys.live_key) == 0
    await store.close()


async def test_heartbeat__has_the_identity_that_the_registry_knows(tmp_path: Path) -> None:
    """One process has one name in the fleet; another process has another."""
    store = f"{servers().standalone.url}?prefix=sidecar:{secrets.token_hex(4)}:"
    file = tmp_path / "sidecar.yaml"
    file.write_text(f"{{store: '{store}', listen: {{grpc: '127.0.0.1:0', admin: []}}}}")

    stores, registries, tasks = [], [], []
    for _ in range(2):
        sidecar = await build_sidecar(LoadedConfig(load_config(file, {})), make_metrics())
        assert sidecar.shared is not None and sidecar.followed is not None
        stores.append(sidecar.shared)
        registries.append(sidecar.followed)
        tasks.append(asyncio.create_task(sidecar.shared.run(lambda *state: None)))
        tasks.append(asyncio.create_task(sidecar.followed.run(lambda *state: None)))
    await add_people(registries[0].registry)
    announced: set[str] = set()
    async with asyncio.timeout(60):
        while len(announced) < 2:
            announced = {live.id for live in await registries[0].registry.live_sidecars()}
            await asyncio.sleep(0)
    with redis.Redis.from_url(servers().standalone.url) as client:
        beating = client.zrange(stores[0].buckets.keys.live_key, 0, -1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for followed in registries:
        await followed.close()
    assert announced == {name.decode() for name in beating}

"""Redis comes back empty, with another registry or from an older snapshot: reported, and not applied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from sidecar.domain.bucket import Taken
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.snapshot import Snapshot
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.cluster import ClusterTopology
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.live import LiveOptions, LiveRegistry
from sidecar.stores.registry.protocol import ListQuery, RegistryReplacedError
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, ID, LIFECYCLE, create, request
from tests.building import make_metrics
from tests.redis_servers import ClusterGroup, RedisServer
from tests.registry_in_redis import add_people
from tests.store_harness import PATIENT, bucket, ready, take
from tests.waiting import PATIENCE_S, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A separate server, which can be flushed and restarted."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


class FollowingSidecar:
    """What a running sidecar has in force, and what it says about it."""

    def __init__(self, server: RedisServer | ClusterGroup, registry_id: str = "") -> None:
        """Follow the registry on *server*."""
        url = parse_store_url(f"{server.url}?partitions=3")
        self.registry = RedisRegistry(url, LIFECYCLE, registry_id=registry_id)
        self.metrics = make_metrics()
        self.snapshot = Snapshot.unloaded()
        self.troubles: list[str] = []
        self._news = asyncio.Event()
        self.live = LiveRegistry(self.registry, self._show, self.metrics, LiveOptions(retry_first_s=0.05))
        self.live.on_trouble = self._tell
        self.doubt = self.registry.on_history_lost = self.live.invalidate
        self._task = asyncio.ensure_future(self.live.run())

    def _show(self, snapshot: Snapshot, retired: object) -> None:
        self.snapshot = snapshot
        self._news.set()

    def _tell(self, trouble: str) -> None:
        self.troubles.append(trouble)
        self._news.set()

    async def until(self, condition: Callable[[FollowingSidecar], bool]) -> None:
        """Wait for a snapshot or a trouble with which *condition* holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self):
                self._news.clear()
                await self._news.wait()

    @property
    def trouble(self) -> str:
        """What it says now."""
        return self.troubles[-1] if self.troubles else ""

    async def close(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.registry.aclose()


def is_loaded(sidecar: FollowingSidecar) -> bool:
    """The registry is in force."""
    return sidecar.snapshot.is_loaded


def is_dropped(sidecar: FollowingSidecar) -> bool:
    """Nothing is in force, and the reason is reported."""
    return not sidecar.snapshot.is_loaded and not sidecar.snapshot.integrations and bool(sidecar.trouble)


def opened(server: RedisServer | ClusterGroup, registry_id: str = "") -> RedisRegistry:
    """A separate handle, as a command line has."""
    return RedisRegistry(parse_store_url(f"{server.url}?partitions=3"), LIFECYCLE, registry_id=registry_id)


def in_time(work: Callable[[], Awaitable[None]]) -> None:
    """Run *work* within a deadline."""

    async def bounded() -> None:
        await asyncio.wait_for(work(), PATIENCE_S)  # type: ignore[arg-type]

    asyncio.run(bounded())


async def founded(server: RedisServer | ClusterGroup) -> str:
    """A registry with administrators and an integration; its id."""
    registry = opened(server)
    await add_people(registry)
    await registry.apply(request(create(), ANN))
    await registry.aclose()
    assert len(registry.registry_id) == 16
    return registry.registry_id


async def test_registry__an_emptied_store_is_not_believed(server: RedisServer) -> None:
    """After FLUSHALL nothing is in force, the error names the registry, and no bootstrap gets in."""
    id = await founded(server)
    sidecar = FollowingSidecar(server)
    await sidecar.until(is_loaded)
    server.client.flushall()
    await sidecar.until(is_dropped)
    assert id in sidecar.trouble and "holds no registry" in sidecar.trouble
    assert "sidecar registry accept" in sidecar.trouble
    assert sidecar.metrics.value("sidecar_registry_replaced") == 1
    with pytest.raises(RegistryReplacedError, match=id):
        await sidecar.registry.administrators()
    stranger = opened(server)
    with pytest.raises(RegistryReplacedError, match=f"sidecars follow registry {id}"):
        await add_people(stranger)
    await stranger.aclose()
    await sidecar.close()


READS: dict[str, Callable[[RedisRegistry], Awaitable[object]]] = {
    "token_holder": lambda registry: registry.token_holder(ANN.token_id),
    "administrators": lambda registry: registry.administrators(),
    "get": lambda registry: registry.get(ID),
    "list": lambda registry: registry.list(ListQuery()),
}


@pytest.mark.parametrize("name", READS)
async def test_registry__an_emptied_store_is_noticed_by_the_first_read(
    name: str, server: RedisServer
) -> None:
    """Also within the second after the last look: no valid token is called wrong, no record missing."""
    id = await founded(server)
    registry = opened(server)
    assert await READS[name](registry)
    server.client.flushall()
    with pytest.raises(RegistryReplacedError, match=id):
        await READS[name](registry)
    await registry.aclose()


async def test_registry__a_bootstrap_that_comes_first_is_stopped(server: RedisServer) -> None:
    """Right after FLUSHALL, before anybody has noticed: sidecars are asked, and answer."""
    await founded(server)
    sidecar = FollowingSidecar(server)
    await sidecar.until(is_loaded)
    await sidecar.registry.changes_since(await sidecar.registry.revision(), 0.05)
    await until(lambda: server.client.pubsub_numsub("sidecar:changes")[0][1])
    stranger = opened(server)
    server.client.flushall()
    with pytest.raises(RegistryReplacedError, match="sidecars follow registry"):
        await add_people(stranger)
    await stranger.aclose()
    await sidecar.close()


async def test_registry__restored_data_are_believed_again(server: RedisServer) -> None:
    """The same registry with the same history, put back as it was: the sidecar goes on by itself."""
    await founded(server)
    sidecar = FollowingSidecar(server)
    await sidecar.until(is_loaded)
    kept = {key: server.client.dump(key) for key in server.client.scan_iter()}
    server.client.flushall()
    await sidecar.until(is_dropped)
    for key, value in kept.items():
        server.client.restore(key, 0, value, replace=True)
    await sidecar.until(is_loaded)
    assert set(sidecar.snapshot.integrations) == {ID}
    assert sidecar.metrics.value("sidecar_registry_replaced") == 0
    await sidecar.close()


async def test_registry__another_one_is_believed_only_when_accepted(server: RedisServer) -> None:
    """Somebody bootstrapped again: its administrators and integrations count once an operator says so."""
    first = await founded(server)
    sidecar = FollowingSidecar(server)
    await sidecar.until(is_loaded)
    server.client.flushall()
    await sidecar.until(is_dropped)
    server.client.flushall()  # the claim of the sidecar, too
    other = opened(server)
    await other.accept()  # gives the empty store an id, so that a bootstrap is possible
    await add_people(other)
    await other.apply(request(create("globex"), ANN))
    second = other.registry_id
    assert second != first
    await sidecar.until(lambda one: second in one.trouble or is_loaded(one))
    found, third = await other.accept(first)
    assert found == second
    await sidecar.until(is_loaded)
    assert set(sidecar.snapshot.integrations) == {"globex"}
    assert sidecar.registry.registry_id == third
    await other.aclose()
    await sidecar.close()


async def test_registry__a_pinned_one_is_the_only_one(server: RedisServer) -> None:
    """A sidecar that starts with another id in its configuration loads nothing."""
    id = await founded(server)
    sidecar = FollowingSidecar(server, registry_id="0123456789abcdef")
    await sidecar.until(is_dropped)
    assert id in sidecar.trouble and "the configuration names registry 0123456789abcdef" in sidecar.trouble
    await sidecar.close()
    other = FollowingSidecar(server, registry_id=id)
    await other.until(is_loaded)
    await other.close()


async def test_registry__an_older_snapshot_is_not_believed(server: RedisServer) -> None:
    """Restarted from a snapshot without the latest suspension: nothing is in force until it is accepted."""
    id = await founded(server)
    sidecar = FollowingSidecar(server)
    await sidecar.until(is_loaded)
    server.client.save()
    await sidecar.registry.apply(request(c.Suspend(integration_id=ID, reason="leaked"), ANN))
    restart(server)
    await sidecar.until(is_dropped)
    assert "went back" in sidecar.trouble and id in sidecar.trouble
    with pytest.raises(RegistryReplacedError):
        await sidecar.registry.apply(request(c.Suspend(integration_id=ID, reason="leaked"), ANN))
    operator = opened(server)
    await operator.accept()
    await operator.aclose()
    await sidecar.until(is_loaded)
    assert sidecar.registry.registry_id != id
    await sidecar.close()


async def test_registry__one_from_before_ids_gets_one(server: RedisServer) -> None:
    """A stored registry is adopted: the first that follows it writes the id, once."""
    await founded(server)
    for key in server.client.keys("*registry-id"):
        server.client.delete(key)
    sidecars = [FollowingSidecar(server) for _ in range(3)]
    for sidecar in sidecars:
        await sidecar.until(is_loaded)
    assert len({sidecar.registry.registry_id for sidecar in sidecars}) == 1
    assert len(server.client.keys("*registry-id")) == 3
    for sidecar in sidecars:
        await sidecar.close()


async def test_registry__a_lost_record_is_reported_and_not_taken_for_a_deletion(server: RedisServer) -> None:
    """A key that was evicted or deleted: it stays in force; a sidecar that starts reports it."""
    await founded(server)
    sidecar = FollowingSidecar(server)
    await sidecar.until(is_loaded)
    for key in [*server.client.keys(f"*r:{ID}"), *server.client.keys(f"*g:{ID}")]:
        server.client.delete(key)
    known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    sidecar.live.refresh(ID, 0, known.set_result)
    assert await known is False
    assert set(sidecar.snapshot.integrations) == {ID}
    assert f"lost the records of {ID}" in sidecar.trouble
    late = FollowingSidecar(server)
    await late.until(
        lambda one: one.snapshot is not Snapshot and one.metrics.value("sidecar_registry_loads_total") == 1
    )
    assert not late.snapshot.is_loaded  # unknown keys get 503: they may be those of the lost integration
    await sidecar.close()
    await late.close()


async def test_takes__by_records_of_a_lost_history_never_pass(server: RedisServer) -> None:
    """
    A generation that repeats after a restore means another record.

    The sidecar uses generation 2, a change that the snapshot lacks; there 2 becomes a suspension.
    """
    await founded(server)
    sidecar = FollowingSidecar(server)
    url = parse_store_url(f"{server.url}?partitions=3")
    store = RedisBucketStore(url, make_metrics(), checks_generation=True)
    store.check_link = sidecar.registry.check_link

    def doubt() -> None:
        sidecar.doubt()
        store.release_waiting()

    sidecar.registry.on_history_lost = doubt
    await sidecar.until(is_loaded)
    server.client.save()
    await sidecar.registry.apply(request(c.SetRateLimit(integration_id=ID, rate_limit_rpm=6_000), ANN))
    await sidecar.until(lambda one: one.snapshot.integrations[ID].generation == 2)
    await store.start()
    known = bucket(ID, burst=100_000, generation=2)
    assert isinstance(await take(store, known), Taken)
    restart(server)
    operator = opened(server)
    await operator.accept()
    suspended = await operator.apply(request(c.Suspend(integration_id=ID, reason="leaked"), ANN))
    assert suspended.record.generation == 2
    admitted = 0
    while not sidecar.snapshot.integrations or not sidecar.snapshot.integrations[ID].is_suspended:
        decided_by = sidecar.snapshot.integrations.get(ID)
        outcome = await take(store, known)
        admitted += isinstance(outcome, Taken) and decided_by is not None
        await asyncio.sleep(0)
    assert admitted == 0
    await ready(store)
    await store.close()
    await operator.aclose()
    await sidecar.close()


def test_takes__after_a_cluster_failover_that_lost_changes_never_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The replica lacks generation 2, a change that was not confirmed as durable; there 2 becomes a suspension.

    The former primary redirects to it before the map of the Cluster is known. A sidecar then loads again.
    """
    monkeypatch.setattr(ClusterTopology, "search", lambda self: None)
    group = ClusterGroup(tmp_path)

    async def work() -> None:
        await founded(group)
        sidecar, followed = FollowingSidecar(group), opened(group)
        url = parse_store_url(f"{group.url}?partitions=3")
        store = RedisBucketStore(url, make_metrics(), PATIENT, checks_generation=True)
        store.check_link = followed.check_link
        followed.on_history_lost = sidecar.doubt
        await followed.load_all()
        await store.start()
        slot = store.keys.slot_of(store.keys.partition_of(ID))
        former = group.primary_of(slot)
        replica = part_replica(group, former)
        limit = c.SetRateLimit(integration_id=ID, rate_limit_rpm=6_000)
        assert not (await followed.apply(request(limit, ANN))).is_durable
        await sidecar.until(lambda one: is_loaded(one) and one.snapshot.integrations[ID].generation == 2)
        known = bucket(ID, burst=100_000, generation=2)
        assert isinstance(await take(store, known), Taken)
        replica.client.execute_command("CLUSTER FAILOVER", "TAKEOVER")
        # Until the former primary knows, it would accept the suspension itself.
        await until(lambda: owner_port(former, slot) == replica.port)
        operator = opened(group)
        suspend = request(c.Suspend(integration_id=ID, reason="leaked"), ANN)
        assert (await operator.apply(suspend)).generation == 2
        assert await take(store, known) is StoreFault.UNAVAILABLE
        await sidecar.until(lambda one: is_loaded(one) and one.snapshot.integrations[ID].is_suspended)
        await operator.aclose()
        await followed.aclose()
        await store.close()
        await sidecar.close()

    try:
        in_time(work)
    finally:
        group.stop()
    assert "a failover lost changes that no replica had" in caplog.text


def owner_port(node: RedisServer, slot: int) -> int:
    """The port of the primary of *slot*, by what *node* knows."""
    ranges = node.client.execute_command("CLUSTER SLOTS")
    return next(int(owner[1]) for first, last, owner, *_ in ranges if first <= slot <= last)


def part_replica(group: ClusterGroup, primary: RedisServer) -> RedisServer:
    """Part *primary* from its replica, which then misses what is written; the replica."""
    port = primary.client.info("replication")["slave0"]["port"]
    replica = next(server for server in group.servers if server.port == port)
    primary.client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
    primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    return replica


def restart(server: RedisServer) -> None:
    """End *server* without saving, and start it again on its port with what was saved."""
    server.kill()
    server.start()

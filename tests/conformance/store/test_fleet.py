"""What stores that share a Redis promise together."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

import pytest

from sidecar.domain.bucket import BucketSet, Quota, Taken
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.urls import Address, StoreUrl, StoreUrlError, TlsClient, parse_store_url
from tests.building import ManualClock, make_metrics
from tests.redis_servers import LOOPBACK, RedisServer, shared
from tests.store_harness import StoreHarness, bucket, ready, take, take_all
from tests.waiting import run


def servers_of(harness: StoreHarness) -> list[RedisServer]:
    """The servers that hold the keys of *harness*."""
    servers = shared()
    if harness.kind == "cluster":
        return servers.cluster.servers[:3]
    return [servers.sentinel.primary if harness.kind == "sentinel" else servers.standalone]


def set_generation(harness: StoreHarness, store: RedisBucketStore, owner: str, generation: int) -> None:
    """What the registry does when the record of *owner* changes."""
    key = store.keys.generation(owner)
    server = servers_of(harness)[0]
    if harness.kind == "cluster":
        server = shared().cluster.primary_of(store.keys.slot_of(store.keys.partition_of(owner)))
    server.client.set(key, generation)


@pytest.mark.parametrize(
    ("value", "admitted", "kept"),
    [
        ("1764000002000000:1000000", 3, "1764000005000000:1000000"),
        ("1764000002000000:500000", 1, "1764000005000000:1000000"),
        ("1764000001000000:1000000:1764000004000000:1", 1, "1764000005000000:1000000"),
        ("1764000002000000:1000000:1764000009000000:5", 3, "1764000005000000:1000000:1764000012000000:5"),
        ("no bucket at all", 5, "1764000005000000:1000000"),
        ("1764000002000000:?:of another version", 3, "1764000005000000:1000000"),
    ],
)
async def test_fleet__values_of_every_layout_are_understood(value: str, admitted: int, kept: str) -> None:
    """Today's layouts, with and without a debt, are taken over; what is none of them never breaks a call."""
    harness = StoreHarness("standalone")
    store = harness.store(ManualClock())
    await store.start()
    client, buckets = servers_of(harness)[0].client, bucket(limit_rpm=60, burst=5)
    key = store.keys.bucket(buckets.owner, buckets.keys[0])
    client.set(key, value)
    taken = await take(store, buckets, asked=10)
    assert isinstance(taken, Taken)
    assert (taken.admitted, client.get(key)) == (admitted, kept.encode())
    await store.close()


async def test_fleet__sidecars_share_every_bucket(harness: StoreHarness) -> None:
    """Three stores take at once from forty buckets: each bucket admits its burst, neither more nor less."""
    clock = ManualClock()
    stores = [harness.store(clock) for _ in range(3)]
    await asyncio.gather(*(store.start() for store in stores))
    takes = [(bucket(f"shared{index % 40}", burst=5), 1) for index in range(400)]
    rounds = await asyncio.gather(*(take_all(store, takes) for store in stores))
    outcomes = [outcome for round_ in rounds for outcome in round_]
    assert sum(outcome.admitted for outcome in outcomes if isinstance(outcome, Taken)) == 40 * 5
    assert all(isinstance(outcome, Taken) for outcome in outcomes)
    await asyncio.gather(*(store.close() for store in stores))


async def test_fleet__a_take_for_an_older_record_is_refused(harness: StoreHarness) -> None:
    """Once the registry holds another generation nothing is taken, and the caller learns which."""
    store = harness.store(ManualClock(), checks_generation=True)
    reported: list[tuple[str, int]] = []

    def note(owner: str, generation: int, done: Callable[[bool], None]) -> None:
        reported.append((owner, generation))
        done(True)

    store.refresh = note
    await store.start()
    first, second = bucket(generation=1), bucket(generation=2)
    assert await take(store, first) is StoreFault.SUPERSEDED
    set_generation(harness, store, "acme", 1)
    assert isinstance(await take(store, first), Taken)
    set_generation(harness, store, "acme", 2)
    assert await take_all(store, [(first, 1), (first, 0)]) == [StoreFault.SUPERSEDED] * 2
    taken = await take(store, second)
    assert isinstance(taken, Taken) and taken.remaining == 1
    assert reported == [("acme", 0), ("acme", 2)]
    await store.close()


async def test_fleet__generations_are_not_looked_at_without_a_registry_there(harness: StoreHarness) -> None:
    """With the registry elsewhere, no record in Redis is needed and none matters."""
    store = harness.store(ManualClock())
    await store.start()
    set_generation(harness, store, "acme", 9)
    assert isinstance(await take(store, bucket(generation=1)), Taken)
    await store.close()


async def test_fleet__a_lost_script_is_loaded_within_the_call(harness: StoreHarness) -> None:
    """SCRIPT FLUSH costs no take its answer, and each call in flight loads at most once."""
    store = harness.store(ManualClock())
    await store.start()
    takes = [(bucket(f"scripted{index}"), 1) for index in range(20)]
    for server in servers_of(harness):
        server.client.script_flush()
    outcomes = await take_all(store, takes)
    assert [outcome.admitted for outcome in outcomes if isinstance(outcome, Taken)] == [1] * 20
    loads = harness.metrics.value("sidecar_store_script_loads_total")
    assert 1 <= loads <= harness.metrics.value("sidecar_store_calls_total") - loads
    await store.close()


async def test_fleet__every_bucket_in_redis_ends_by_itself(harness: StoreHarness) -> None:
    """Each key lies under the prefix with its partition's tag, and expires once its bucket is full."""
    store = harness.store()
    await store.start()
    for index in range(50):
        await take(store, bucket(f"ending{index}", limit_rpm=60, burst=100), asked=index + 1)
    found = 0
    for server in servers_of(harness):
        for key in server.client.scan_iter(f"{harness.prefix}*b:*", count=1_000):
            number = int(key.decode().rpartition("b:ending")[2])
            assert key.decode() == store.keys.bucket(f"ending{number}", f"ending{number}")
            assert 0 < server.client.pttl(key) <= 1_000 * (number + 1)
            found += 1
    assert found == 50
    await store.close()


async def test_fleet__one_batch_is_one_call_for_each_partition(harness: StoreHarness) -> None:
    """What meets in a turn leaves together: equal takes as one entry, a Cluster's partitions apart."""
    store = harness.store(ManualClock())
    await store.start()
    sets = [bucket(f"together{index}", burst=100) for index in range(30)]
    await take_all(store, [(buckets, 1) for buckets in sets for _ in range(4)])
    partitions = {store.keys.partition_of(buckets.owner) for buckets in sets}
    counted = {
        name: harness.metrics.value(f"sidecar_store_{name}_total")
        for name in ("takes", "takes_merged", "calls")
    }
    calls = len(partitions) if harness.kind == "cluster" else 1
    assert counted == {"takes": 120, "takes_merged": 90, "calls": calls}
    await store.close()


def test_fleet__sidecars_must_agree_on_the_partitions(
    harness: StoreHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A sidecar with another number of partitions would keep other buckets: it does not become ready."""

    async def scenario() -> None:
        first = harness.store()
        await first.start()
        other = harness.store(url=harness.url(partitions="8"))
        await other.start()
        assert first.is_ready
        assert not other.is_ready
        assert await take(other, bucket()) is StoreFault.UNAVAILABLE
        await asyncio.gather(first.close(), other.close())

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert "set the same 'partitions' for every sidecar" in caplog.text


async def test_fleet__an_empty_bucket_is_refused_from_memory() -> None:
    """While the bucket is known to be empty no call is made; then the server is asked again, and admits."""
    harness = StoreHarness("standalone")

    store = harness.store(denial_s_max=1.0)
    await store.start()
    buckets = BucketSet("acme", 1, ("acme",), (Quota.per_minute(600, 2),))
    assert isinstance(await take(store, buckets, asked=2), Taken)
    calls = harness.metrics.value("sidecar_store_calls_total")
    refused = store.take_now(buckets, 1)
    assert isinstance(refused, Taken)
    assert (refused.admitted, refused.remaining) == (0, 0)
    assert 0 < refused.retry_after_us <= 100_000
    assert store.take_now(buckets, 0) is not None
    assert harness.metrics.value("sidecar_store_denials_from_memory_total") == 2
    assert harness.metrics.value("sidecar_store_calls_total") == calls
    same_but_newer = BucketSet("acme", 2, buckets.keys, buckets.quotas)
    assert store.take_now(same_but_newer, 1) is None
    store.forget("acme")
    assert store.take_now(buckets, 1) is None
    while True:
        outcome = await take(store, buckets)
        assert isinstance(outcome, Taken)
        if outcome.admitted:
            break
        await asyncio.sleep(0)
    await store.close()


async def test_fleet__a_peek_is_no_ground_to_refuse_from_memory() -> None:
    """A peek leaves a bucket in the terms it was written in, so how long it stays empty is not known."""
    harness = StoreHarness("standalone")

    store = harness.store(denial_s_max=1.0)
    await store.start()
    await take(store, bucket(limit_rpm=1, burst=2), asked=2)
    other = bucket(limit_rpm=2, burst=2)
    outcome = await take(store, other, asked=0)
    assert isinstance(outcome, Taken) and outcome.remaining == 0
    assert store.take_now(other, 1) is None
    await store.close()


async def test_fleet__any_text_is_a_bucket_key(harness: StoreHarness) -> None:
    """A key made of a caller's text cannot reach another bucket or the protocol."""
    store = harness.store(ManualClock())
    await store.start()
    names = ("a", "a\r\n$1\r\nb", "{p3}x", "ключ", "", " ", "b:a")
    for name in names:
        outcome = await take(store, BucketSet("acme", 1, (name,), (Quota.per_minute(60, 2),)))
        assert isinstance(outcome, Taken) and outcome.remaining == 1
    await store.close()


async def test_fleet__a_database_is_kept_apart() -> None:
    """The URL's database is where the keys go."""
    harness = StoreHarness("standalone")

    store = harness.store(ManualClock(), url=harness.url(database="3"))
    await store.start()
    await take(store, bucket())
    key = store.keys.bucket("acme", "acme")
    assert shared().standalone.client.exists(key) == 0
    assert shared().standalone.client.move(key, 3) == 0
    await store.close()


@pytest.mark.parametrize("user", ["limited", "nobody"])
def test_fleet__a_wrong_password_is_reported_without_the_password(
    user: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not ready; the log says what to fix and never what was tried."""
    harness = StoreHarness("guarded")
    url = parse_store_url(f"redis://{user}:tried-secret@{LOOPBACK}:{shared().guarded.port}")

    async def scenario() -> None:
        store = harness.store(url=url)
        await store.start()
        assert not store.is_ready
        await store.close()

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    assert "the user name or the password is wrong" in caplog.text
    assert "tried-secret" not in caplog.text + repr(url) + str(url)


def test_fleet__a_missing_permission_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A user who may not run the script is refused at each take, counted, and reported once."""
    harness = StoreHarness("guarded")
    url = parse_store_url(f"redis://mute:correct@{LOOPBACK}:{shared().guarded.port}?prefix={harness.prefix}")

    async def scenario() -> None:
        store = harness.store(url=url)
        await store.start()
        for _ in range(3):
            assert await take(store, bucket()) is StoreFault.UNAVAILABLE
        await store.close()

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert harness.metrics.value("sidecar_store_error_replies_total", "NOPERM") == 3
    assert caplog.text.count("the ACL user lacks a permission") == 1


async def test_fleet__a_password_may_come_from_a_file_or_the_environment(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read at each connect; a missing one ends the start with its name."""
    file = tmp_path_factory.mktemp("secrets") / "password"
    file.write_text("correct\n")
    monkeypatch.setenv("STORE_PASSWORD", "correct")
    harness = StoreHarness("guarded")
    base = f"redis://{LOOPBACK}:{shared().guarded.port}?user=limited&prefix={harness.prefix}"

    for source in (f"password_file={file}", "password_env=STORE_PASSWORD"):
        store = harness.store(url=parse_store_url(f"{base}&{source}"))
        await store.start()
        assert store.is_ready
        await store.close()
    missing = harness.store(url=parse_store_url(f"{base}&password_env=NOT_SET_ANYWHERE"))
    with pytest.raises(StoreUrlError, match="NOT_SET_ANYWHERE"):
        await missing.start()


async def test_fleet__an_unknown_certificate_is_refused() -> None:
    """A server whose authority we do not trust is not talked to, no matter what answers there."""
    url = StoreUrl(
        kind=parse_store_url("redis://x").kind,
        addresses=(Address(LOOPBACK, shared().tls.tls_port),),
        tls=TlsClient(),
    )

    store = RedisBucketStore(url, make_metrics(), StoreLimits(connect_timeout_s=5))
    await store.start()
    assert not store.is_ready
    await store.close()


async def test_fleet__ready_as_soon_as_the_server_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Started before its server, a store is not ready, refuses at once, and becomes ready by itself."""
    server = RedisServer(tmp_path_factory.mktemp("late")).start()
    server.stop()
    states: list[bool] = []

    store = RedisBucketStore(parse_store_url(server.url), make_metrics())
    store.on_state_change = states.append
    await store.start()
    assert await take(store, bucket()) is StoreFault.UNAVAILABLE
    assert not any(states)
    await asyncio.get_running_loop().run_in_executor(None, server.start)
    await ready(store)
    assert isinstance(await take(store, bucket()), Taken)
    await asyncio.get_running_loop().run_in_executor(None, server.stop)
    await ready(store, False)
    assert [state for state, _ in itertools.groupby(states)] == [False, True, False]
    await store.close()

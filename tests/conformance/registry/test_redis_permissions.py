"""The permissions in docs/operate/registry-redis.md suffice for everything, and for no more."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator

import pytest
import redis
import redis.exceptions

from sidecar.domain.changes import SIDECAR_LIFETIME_US
from sidecar.domain.lifecycle.commands import EnableAllowlist
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.heartbeat import Heartbeat
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.stores.registry.protocol import AuditQuery, ListQuery, Registry
from sidecar.stores.registry.redis import feed
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.verification import verify_registry
from tests.administration import ID, LIFECYCLE, create, request
from tests.building import ManualClock, make_metrics
from tests.fault.registry.writes import WRITES
from tests.redis_servers import LOOPBACK, RedisServer, documented_permissions, shared
from tests.registry_in_redis import add_people
from tests.store_harness import PATIENT, bucket, ready, take
from tests.waiting import run, until

USER = "keeper"
ELSEWHERE = {"wait", "cluster|slots", "cluster|info", "asking", "select"}
"""Commands that are needed with replicas, in a Cluster, and with a database in the URL alone."""
OURS = {"config|resetstat", "acl|setuser", "acl|deluser", "acl|whoami", "auth", "hello"}
"""Commands of these tests themselves, and the one that everybody may run."""


def permissions() -> list[str]:
    """What the page gives to the user of a sidecar whose registry is in Redis."""
    lists = documented_permissions()
    assert len(lists) == 2, "one list for buckets alone, one for the registry, too"
    return lists[1].split()


@pytest.fixture
def admin() -> Iterator[redis.Redis]:
    """The administrator of a real server, on which `USER` may do what the page says."""
    server = redis.Redis(LOOPBACK, shared().guarded.port, username="admin", password="correct")
    server.execute_command("ACL", "SETUSER", USER, "reset", "on", ">correct", *permissions())  # type: ignore[no-untyped-call]
    yield server
    server.acl_deluser(USER)
    server.close()


def url(prefix: str) -> StoreUrl:
    """The server as `USER` reaches it."""
    port = shared().guarded.port
    return parse_store_url(f"redis://{USER}:correct@{LOOPBACK}:{port}?prefix=sidecar:{prefix}:&partitions=2")


def opened(prefix: str, clock: ManualClock | None = None) -> RedisRegistry:
    """A separate registry."""
    return RedisRegistry(url(prefix), LIFECYCLE, clock_us=clock or ManualClock())


async def read_everything(registry: Registry) -> None:
    """Each way of reading, with filters and pages."""
    view = await registry.load_all()
    await registry.get(ID)
    await registry.list(ListQuery(search="acme", limit=1))
    await registry.list(ListQuery(after="a"))
    await registry.changes_since(view.revision)
    await registry.webhook_secrets(ID)
    await registry.last_uses(ID)
    await registry.addresses_seen(ID)
    await registry.refused_callers(ID)
    await registry.token_uses()
    await registry.administrators()
    await registry.token_holder("tokenann")
    await registry.live_sidecars()
    for chain in await registry.chains():
        await registry.audit(AuditQuery(chain=chain, limit=1))
        await registry.audit(AuditQuery(chain=chain, newest_first=True, since_us=1))
        await registry.audit(AuditQuery(chain=chain, subject=f"integration:{ID}", actor="ann"))
        await registry.audit(AuditQuery(chain=chain, actor="ann", newest_first=True))
    assert (await verify_registry(registry)).is_intact


async def write_everything() -> None:
    """Every write, each in a separate registry, and then everything that can be read there."""
    for number, (prepare, write) in enumerate(WRITES.values()):
        registry = opened(f"w{number}")
        await prepare(registry)
        await write(registry)
        await read_everything(registry)
        await registry.aclose()


async def repeat_and_outlive() -> None:
    """A repeat that changes nothing keeps its answer, and a sidecar that fell silent is forgotten."""
    clock = ManualClock()
    registry = opened("r", clock)
    prepare, write = WRITES["allowlist.enable"]
    await prepare(registry)
    await write(registry)
    again = request(EnableAllowlist(integration_id=ID), idempotency_key="again", fingerprint="print")
    assert (await registry.apply(again)).entry is None
    await registry.announce("first", await registry.revision())
    clock.advance(us=SIDECAR_LIFETIME_US + 1)
    await registry.announce("second", await registry.revision())
    assert [live_sidecar.id for live_sidecar in await registry.live_sidecars()] == ["second"]
    await registry.aclose()


async def follow(admin: redis.Redis) -> None:
    """A waiting caller learns of a change by the channel, which is probed meanwhile."""
    reader, writer = opened("f"), opened("f")
    await WRITES["integration.create"][0](writer)
    revision = await reader.revision()
    waiting = asyncio.ensure_future(reader.changes_since(revision, timeout_s=30.0))
    await until(lambda: "ping" in commands_used(admin))  # each turn lets it connect and probe
    await writer.apply(request(create("followed")))
    assert [record.id for record in (await waiting).records] == ["followed"]
    await reader.aclose()
    await writer.aclose()


def commands_used(admin: redis.Redis) -> set[str]:
    """The commands that somebody ran, inside scripts too."""
    stats = admin.info("commandstats")
    return {name.removeprefix("cmdstat_") for name in stats} - OURS


async def test_permissions__are_enough_and_no_more(
    admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user with exactly these does all that the registry does; what else is listed, deciding needs."""
    monkeypatch.setattr(feed, "PING_INTERVAL_S", 0.01)
    admin.config_resetstat()

    async with asyncio.timeout(60):
        await write_everything()
        await repeat_and_outlive()
        await follow(admin)
    granted = {word[1:] for word in permissions() if word.startswith("+")}
    used = commands_used(admin)
    assert used <= granted
    buckets = {word[1:] for word in documented_permissions()[0].split() if word.startswith("+")}
    assert granted - used - ELSEWHERE <= buckets


def form_of(kind: str, prefix: str) -> tuple[StoreUrl, list[RedisServer]]:
    """A URL of *kind* for `USER`, and the servers that must know that user."""
    servers = shared()
    query = f"user={USER}&password_env=KEEPER_PASSWORD&prefix={prefix}&partitions=4"
    if kind == "cluster":
        return parse_store_url(f"{servers.cluster.url}?{query}"), servers.cluster.servers
    if kind == "sentinel":
        return parse_store_url(f"{servers.sentinel.url}?{query}"), [servers.sentinel.primary]
    if kind == "unix":
        return parse_store_url(f"unix://{servers.unix.folder}/socket?{query}"), [servers.unix]
    if kind == "tls":
        files = servers.tls_files
        query += f"&ca_file={files.ca}&cert_file={files.client_cert}&key_file={files.client_key}"
        return parse_store_url(f"rediss://{LOOPBACK}:{servers.tls.tls_port}?{query}"), [servers.tls]
    database = "/3" if kind == "database" else ""
    return parse_store_url(f"{servers.standalone.url}{database}?{query}"), [servers.standalone]


def client_of(server: RedisServer) -> redis.Redis:
    """An administrator of *server*, however it is reached."""
    servers = shared()
    if server is servers.unix:
        return redis.Redis(unix_socket_path=str(server.folder / "socket"))
    if server is servers.tls:
        files = servers.tls_files
        return redis.Redis(
            LOOPBACK,
            servers.tls.tls_port,
            ssl=True,
            ssl_ca_certs=str(files.ca),
            ssl_certfile=str(files.client_cert),
            ssl_keyfile=str(files.client_key),
        )
    return redis.Redis(LOOPBACK, server.port)


@pytest.mark.parametrize("kind", ["standalone", "database", "unix", "tls", "sentinel", "cluster"])
@pytest.mark.parametrize("with_registry", [False, True], ids=["buckets", "registry"])
def test_permissions__are_enough_for_every_form_of_url(
    kind: str, with_registry: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user with exactly these takes, beats and administers; nothing is refused or warned of."""
    monkeypatch.setenv("KEEPER_PASSWORD", "correct")
    where, servers = form_of(kind, f"sidecar:{kind}:{next(_NUMBERS)}:")
    granted = documented_permissions()[with_registry].split()
    for server in servers:
        with client_of(server) as client:
            client.execute_command("ACL", "SETUSER", USER, "reset", "on", ">correct", *granted)  # type: ignore[no-untyped-call]

    async def scenario() -> None:
        store = RedisBucketStore(where, make_metrics(), PATIENT, checks_generation=with_registry)
        await store.start()
        await ready(store)
        beat = Heartbeat(store, "sidecar-1")
        assert await beat.beat()
        await store.check_servers()
        for number in range(8):
            assert await take(store, bucket(f"acme-{number}")) is not StoreFault.TIMEOUT
        if with_registry:
            registry = RedisRegistry(where, LIFECYCLE)
            await add_people(registry)
            revision = await registry.revision()
            await registry.changes_since(revision, timeout_s=0.05)
            await registry.apply(request(create("permitted")))
            assert [record.id for record in (await registry.changes_since(revision)).records] == ["permitted"]
            await registry.aclose()
        await beat.close()
        await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario(), patience_s=60)
    assert [record.getMessage() for record in caplog.records] == []
    for server in servers:
        with client_of(server) as client:
            client.acl_deluser(USER)


_NUMBERS = itertools.count()


@pytest.mark.parametrize(
    "command",
    [
        ("XDEL", "{key}", "1-0"),
        ("XTRIM", "{key}", "MAXLEN", "0"),
        ("DEL", "{key}"),
        ("UNLINK", "{key}"),
        ("RENAME", "{key}", "sidecar:elsewhere"),
        ("EXPIRE", "{key}", "1"),
        ("FLUSHDB",),
        ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "{key}"),
        ("CONFIG", "SET", "appendonly", "no"),
        ("GET", "another:key"),
    ],
    ids=lambda command: command[0].lower(),
)
async def test_permissions__do_not_reach_the_audit_log(admin: redis.Redis, command: tuple[str, ...]) -> None:
    """No entry can be taken out of the log with them, and no key of another program can be read."""
    prefix = f"log{next(_NUMBERS)}"

    registry = opened(prefix)
    await WRITES["admin.bootstrap"][1](registry)
    await registry.aclose()
    [key] = [name for name in admin.scan_iter(f"sidecar:{prefix}:*") if name.endswith(b"}audit")]
    words = [word.replace("{key}", key.decode()) for word in command]
    user = redis.Redis(LOOPBACK, shared().guarded.port, username=USER, password="correct")
    with user, pytest.raises(redis.exceptions.NoPermissionError):
        user.execute_command(*words)  # type: ignore[no-untyped-call]
    assert admin.xlen(key) == 1

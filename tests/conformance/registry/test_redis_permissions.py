"""The permissions that docs/registry-redis.md names: enough for everything, no more, and not for the log."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator

import pytest
import redis
import redis.exceptions

from sidecar.domain.lifecycle.commands import EnableAllowlist
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.stores.registry.protocol import SIDECAR_LIFETIME_US, AuditQuery, ListQuery, Registry
from sidecar.stores.registry.redis import feed
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.verification import verify_registry
from tests.administration import ID, LIFECYCLE, ManualClock, create, request
from tests.fault.registry.writes import WRITES
from tests.house.source import text_of
from tests.redis_servers import LOOPBACK, shared

PAGE = "docs/registry-redis.md"
USER = "keeper"
ELSEWHERE = {"role", "cluster|slots"}
"""Commands that are needed with Sentinel and in a Cluster alone."""
OURS = {"info", "config|resetstat", "acl|setuser", "acl|deluser", "acl|whoami", "auth", "hello"}
"""Commands of these tests themselves, and the one that everybody may run."""


def permissions() -> list[str]:
    """What the page gives to the user of a sidecar whose registry is in Redis."""
    lists = re.findall(r"^user sidecar on >… (.+)$", text_of(PAGE), re.MULTILINE)
    assert len(lists) == 2, "one list for buckets alone, one for the registry, too"
    found: list[str] = lists[1].split()
    return found


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
    """A registry of its own."""
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
    """Every write, each in a registry of its own, and then everything that can be read there."""
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
    clock.advance(SIDECAR_LIFETIME_US + 1)
    await registry.announce("second", await registry.revision())
    assert [one.id for one in await registry.live_sidecars()] == ["second"]
    await registry.aclose()


async def follow(admin: redis.Redis) -> None:
    """One who waits is told of a change by the channel, which is probed meanwhile."""
    reader, writer = opened("f"), opened("f")
    await WRITES["integration.create"][0](writer)
    revision = await reader.revision()
    waiting = asyncio.ensure_future(reader.changes_since(revision, timeout_s=30.0))
    while "ping" not in commands_used(admin):  # noqa: ASYNC110 - each turn lets it connect and probe
        await asyncio.sleep(0)
    await writer.apply(request(create("followed")))
    assert [record.id for record in (await waiting).records] == ["followed"]
    await reader.aclose()
    await writer.aclose()


def commands_used(admin: redis.Redis) -> set[str]:
    """The commands that somebody ran, inside scripts too."""
    stats = admin.info("commandstats")
    return {name.removeprefix("cmdstat_") for name in stats} - OURS


def test_permissions__are_enough_and_no_more(admin: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with exactly these does all that the registry does; what else is listed, deciding needs."""
    monkeypatch.setattr(feed, "PING_INTERVAL_S", 0.01)
    admin.config_resetstat()

    async def scene() -> None:
        async with asyncio.timeout(60):
            await write_everything()
            await repeat_and_outlive()
            await follow(admin)

    asyncio.run(scene())
    granted = {word[1:] for word in permissions() if word.startswith("+")}
    used = commands_used(admin)
    assert used <= granted
    buckets = {word[1:] for word in first_list() if word.startswith("+")}
    assert granted - used - ELSEWHERE <= buckets


def first_list() -> list[str]:
    """What the page gives to the user of a sidecar whose buckets alone are in Redis."""
    found: list[str] = re.findall(r"^user sidecar on >… (.+)$", text_of(PAGE), re.MULTILINE)[0].split()
    return found


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
def test_permissions__do_not_reach_the_audit_log(admin: redis.Redis, command: tuple[str, ...]) -> None:
    """No entry can be taken out of the log with them, and no key of another program can be read."""
    prefix = f"log{next(_NUMBERS)}"

    async def scene() -> None:
        registry = opened(prefix)
        await WRITES["admin.bootstrap"][1](registry)
        await registry.aclose()

    asyncio.run(scene())
    [key] = [one for one in admin.scan_iter(f"sidecar:{prefix}:*") if one.endswith(b"}audit")]
    words = [word.replace("{key}", key.decode()) for word in command]
    user = redis.Redis(LOOPBACK, shared().guarded.port, username=USER, password="correct")
    with user, pytest.raises(redis.exceptions.NoPermissionError):
        user.execute_command(*words)  # type: ignore[no-untyped-call]
    assert admin.xlen(key) == 1

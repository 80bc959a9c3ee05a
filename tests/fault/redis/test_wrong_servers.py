"""A URL that leads to another kind of server: what is there is reported, and the URL that works."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import RegistryUnavailableError
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import LIFECYCLE
from tests.redis_servers import LOOPBACK, RedisServer, free_port, shared
from tests.store_harness import StoreHarness, bucket, ready, take
from tests.waiting import run, until


def tls_files(*, with_client: bool = True) -> str:
    """The options that the TLS server wants."""
    files = shared().tls_files
    own = f"&cert_file={files.client_cert}&key_file={files.client_key}" if with_client else ""
    return f"ca_file={files.ca}{own}"


def sentinel_port() -> int:
    """The port of a Sentinel."""
    return parse_store_url(shared().sentinel.url).addresses[0].port


def cluster_port() -> int:
    """The port of a Cluster node."""
    return shared().cluster.servers[0].port


@dataclass(frozen=True)
class Wrong:
    """A URL, made when its server runs, and what is reported: a pattern in which PORT is that of the URL."""

    url: Callable[[], str]
    reported: str


WRONG = {
    "cluster node": Wrong(
        lambda: f"redis://{LOOPBACK}:{cluster_port()}",
        r"is a node of a Redis Cluster: use redis\+cluster://127\.0\.0\.1:PORT$",
    ),
    "sentinel": Wrong(
        lambda: f"redis://{LOOPBACK}:{sentinel_port()}",
        r"is a Sentinel and stores no keys: use redis\+sentinel://127\.0\.0\.1:PORT/main$",
    ),
    "cluster asked of a sentinel": Wrong(
        lambda: f"redis+cluster://{LOOPBACK}:{sentinel_port()}", r"is a Sentinel and stores no keys"
    ),
    "cluster asked of a single server": Wrong(
        lambda: f"redis+cluster://{LOOPBACK}:{shared().standalone.port}",
        r"is not a node of a Redis Cluster: use redis://127\.0\.0\.1:PORT$",
    ),
    "sentinels asked of a single server": Wrong(
        lambda: f"redis+sentinel://{LOOPBACK}:{shared().standalone.port}/main",
        r"is a Redis server, not a Sentinel: list the Sentinels, or use redis://127\.0\.0\.1:PORT$",
    ),
    "sentinels asked of a cluster node": Wrong(
        lambda: f"redis+sentinel://{LOOPBACK}:{cluster_port()}/main",
        r"is a node of a Redis Cluster, not a Sentinel: .* use redis\+cluster://127\.0\.0\.1:PORT$",
    ),
    "unknown service": Wrong(
        lambda: f"redis+sentinel://{LOOPBACK}:{sentinel_port()}/mian",
        r"does not monitor the service 'mian', only main: use redis\+sentinel://127\.0\.0\.1:PORT/main",
    ),
    "tls port": Wrong(
        lambda: f"redis://{LOOPBACK}:{shared().tls.tls_port}",
        r"speaks TLS: use rediss instead of redis in the URL \(rediss://127\.0\.0\.1:PORT\)$",
    ),
    "plain port": Wrong(
        lambda: f"rediss://{LOOPBACK}:{shared().standalone.port}?{tls_files()}",
        r"does not speak TLS: use redis instead of rediss in the URL \(redis://127\.0\.0\.1:PORT\)$",
    ),
    "no client certificate": Wrong(
        lambda: f"rediss://{LOOPBACK}:{shared().tls.tls_port}?{tls_files(with_client=False)}",
        r"requires a client certificate: set cert_file and key_file$",
    ),
    "untrusted certificate": Wrong(
        lambda: f"rediss://{LOOPBACK}:{shared().tls.tls_port}",
        r"the certificate of .* is not trusted .*: set ca_file to the file of its CA",
    ),
    "wrong database": Wrong(
        lambda: f"redis://{LOOPBACK}:{shared().standalone.port}/99", r"the server has fewer databases"
    ),
    "no password": Wrong(
        lambda: f"redis://{LOOPBACK}:{shared().guarded.port}", r"the server requires a password"
    ),
    "wrong password": Wrong(
        lambda: f"redis://limited:wrong@{LOOPBACK}:{shared().guarded.port}",
        r"the user name or the password is wrong",
    ),
    "password without need": Wrong(
        lambda: f"redis://:secret@{LOOPBACK}:{shared().standalone.port}",
        r"the server has no password: remove it from the URL$",
    ),
    "nothing there": Wrong(
        lambda: f"redis://{LOOPBACK}:{free_port()}", r"nothing listens at 127\.0\.0\.1:PORT"
    ),
    "no such socket": Wrong(
        lambda: f"unix://{shared().folder}/none", r"socket .*/none does not exist: start Redis"
    ),
    "no such host": Wrong(
        lambda: "redis://host.invalid", r"the host name 'host\.invalid' cannot be resolved"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("plain", [False, True], ids=["uvloop", "asyncio"])
def test_store__a_wrong_server_is_reported(name: str, plain: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The bucket store is not ready, and its log and its state say what is wrong and what would work."""
    harness = StoreHarness("standalone")
    text = WRONG[name].url()

    async def scenario() -> None:
        store = harness.store(url=parse_store_url(text))
        await store.start()
        assert not store.is_ready
        await until(lambda: reports(WRONG[name].reported, text, store.trouble))
        await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario(), plain=plain)
    lines = [record.getMessage() for record in caplog.records]
    assert all(line != after for line, after in pairwise(lines))
    assert any(reports(WRONG[name].reported.removesuffix("$"), text, line) for line in lines)


@pytest.mark.parametrize("name", WRONG)
async def test_registry__a_wrong_server_is_reported(name: str) -> None:
    """Anyone who administers learns the same, and that nothing was changed."""
    text = WRONG[name].url()
    registry = RedisRegistry(parse_store_url(text), LIFECYCLE)

    async def has_reported() -> bool:
        with pytest.raises(RegistryUnavailableError) as raised:
            await registry.administrators()
        return reports(WRONG[name].reported.removesuffix("$"), text, str(raised.value))

    await until(has_reported)
    await registry.aclose()


def reports(pattern: str, url: str, reported: str) -> bool:
    """
    Whether *reported* matches *pattern*; it never contains a password.

    A server can close a connection before the client has read the reason: the next attempt may report it.
    """
    assert "wrong@" not in reported and "secret" not in reported
    port = parse_store_url(url).addresses[0].port
    return re.search(pattern.replace("PORT", str(port)), reported) is not None


def test_store__a_replica_is_reported_and_left_when_it_is_promoted(tmp_path: Path) -> None:
    """The URL of its primary is named; once it is a primary itself it is used without a restart."""
    harness = StoreHarness("standalone")
    primary = shared().standalone
    replica = RedisServer(tmp_path, "--replicaof", f"{LOOPBACK} {primary.port}").start()

    async def scenario() -> None:
        store = harness.store(url=parse_store_url(replica.url))
        await store.start()
        assert not store.is_ready
        assert f"is a replica of {LOOPBACK}:{primary.port}" in store.trouble
        assert store.trouble.endswith(f"use redis://{LOOPBACK}:{primary.port}")
        replica.client.execute_command("REPLICAOF", "NO", "ONE")
        await ready(store)
        assert store.trouble == ""
        await store.close()

    try:
        run(scenario())
    finally:
        replica.stop()


async def test_store__something_that_is_no_redis_is_reported() -> None:
    """A web server, for example."""
    harness = StoreHarness("standalone")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    store = harness.store(url=parse_store_url(f"redis://{LOOPBACK}:{port}"))
    await store.start()
    assert "check that it is a Redis server" in store.trouble
    await store.close()
    server.close()


def test_store__a_node_that_hides_what_it_is_is_reported_by_its_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without the permission for INFO a Cluster node is found out by its first reply to a take."""
    harness = StoreHarness("standalone")
    servers = shared().cluster.servers
    for server in servers:
        server.client.execute_command(
            "ACL", "SETUSER", "blind", "reset", "on", ">correct", "~*", "+@all", "-info"
        )

    async def scenario() -> None:
        for server in servers:  # all buckets are in one slot, which one of the nodes serves
            store = harness.store(url=parse_store_url(f"redis://blind:correct@{LOOPBACK}:{server.port}"))
            await store.start()
            await take(store, bucket("acme"))
            await store.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    reported = "\n".join(record.getMessage() for record in caplog.records)
    assert "refuses INFO" in reported and "add +info" in reported
    assert "use a redis+cluster:// URL" in reported
    for server in servers:
        server.client.execute_command("ACL", "DELUSER", "blind")

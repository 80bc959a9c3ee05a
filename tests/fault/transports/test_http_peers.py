"""Hostile peers of an HTTP listener, on real sockets: others are served, and nothing piles up."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.observe.metrics import Metrics
from sidecar.observe.transport_metrics import HTTP_CLOSE_REASONS
from sidecar.transports import accepting
from sidecar.transports.http1 import HttpServer
from sidecar.transports.http1.connection import Connection
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import Response
from sidecar.transports.http1.work import DECIDING, OWN_LOOP, SHARED_LOOP, Pace
from sidecar.transports.server import Endpoint
from tests.building import make_metrics
from tests.unit.transports.http1.test_server import Streams, Tls, close, connect, get, run
from tests.waiting import until

PAGE = b"x" * 4_000_000
SPARE_FILES = 12


class PageServer:
    """A server of one large page and one small one, on a loopback port or a Unix socket."""

    def __init__(self, limits: HttpLimits | None = None, pace: Pace = OWN_LOOP) -> None:
        """Nothing is bound yet."""
        self.metrics: Metrics = make_metrics()
        self._limits = limits
        self._pace = pace
        self.endpoint = Endpoint()

    def handle(self, exchange: Exchange) -> None:
        """Answer with a page."""
        body = PAGE if exchange.request.path == b"/large" else b"small"
        exchange.respond(Response(200, "text/plain", body))

    async def start(self, endpoint: Endpoint) -> HttpServer:
        """Serve on *endpoint*."""
        server = HttpServer(self.handle, [endpoint], self.metrics, self._pace, self._limits)
        [self.endpoint] = await server.start()
        return server

    def closed_for(self, reason: str) -> int:
        """How many connections were closed for *reason*."""
        return self.metrics.value("sidecar_http_connections_closed_total", reason)

    async def until(self, count: int, *reasons: str) -> None:
        """Wait until *count* connections were closed for *reasons*."""
        await until(lambda: sum(map(self.closed_for, reasons)) >= count)

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return self.metrics.value("sidecar_http_connections_open")


async def ask(endpoint: Endpoint) -> None:
    """An honest client, on a connection of its own."""
    connection = await connect(endpoint)
    assert await get(connection, "/small") == (200, b"small")
    await close(connection)


async def hold(endpoint: Endpoint, sent: bytes) -> Streams:
    """A connection that sends *sent* and then nothing."""
    connection = await connect(endpoint)
    connection[1].write(sent)
    return connection


PACES = pytest.mark.parametrize("pace", [OWN_LOOP, SHARED_LOOP, DECIDING], ids=["own", "shared", "deciding"])


@PACES
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_peers__that_hold_connections_keep_nobody_out(sent: bytes, pace: Pace) -> None:
    """Silent, half-sent or idle: the oldest makes room for whoever comes."""
    limits = HttpLimits(connections_per_source_max=20)

    async def scenario() -> None:
        served = PageServer(limits, pace)
        server = await served.start(Endpoint("127.0.0.1"))
        held = [await hold(served.endpoint, sent) for _ in range(100)]
        await ask(served.endpoint)
        assert served.open <= 20
        await served.until(80, "evicted")
        await close(*held)
        await server.drain()
        assert served.open == 0

    run(scenario)


@PACES
@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX: "])
def test_peers__endless_heads_end(begin: bytes, pace: Pace) -> None:
    """The client is told, and is cut off although it sends on."""

    async def scenario() -> None:
        served = PageServer(HttpLimits(linger_s=0.05), pace)
        server = await served.start(Endpoint("127.0.0.1"))
        reader, writer = await connect(served.endpoint)
        writer.write(begin)
        more = b"X: y\r\n" * 1_000 if begin.endswith(b"\n") else b"y" * 6_000
        with pytest.raises(ConnectionError):
            while True:
                writer.write(more)
                await writer.drain()
        await served.until(1, "bad_request")
        await ask(served.endpoint)
        await close((reader, writer))
        await server.drain()

    run(scenario)


@PACES
def test_peers__that_do_not_read_are_cut_off(pace: Pace) -> None:
    """A large answer that nobody takes is held for the write time-out, and within the bound of all such."""
    limits = HttpLimits(write_timeout_s=0.05, unsent_bytes_max=2 * len(PAGE))

    async def scenario() -> None:
        served = PageServer(limits, pace)
        server = await served.start(Endpoint("127.0.0.1"))
        asking = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 100
        held = [await hold(served.endpoint, asking) for _ in range(10)]
        for _, writer in held:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        await served.until(10, "slow_reader", "memory_limit")
        await ask(served.endpoint)
        await close(*held)
        await server.drain()

    run(scenario)


@PACES
def test_peers__that_pipeline_without_end_share_with_others(pace: Pace) -> None:
    """Eight floods and one honest client."""

    async def scenario() -> None:
        served = PageServer(None, pace)
        server = await served.start(Endpoint("127.0.0.1"))
        floods = [
            await hold(served.endpoint, b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n" * 5_000) for _ in range(8)
        ]
        for _ in range(5):
            await ask(served.endpoint)
        await close(*floods)
        await server.drain()

    run(scenario)


def test_peers__that_never_shake_hands_make_room_too(tmp_path: Path) -> None:
    """A TLS listener with as many silent connections as there are places serves the next one."""
    tls = Tls(tmp_path)

    async def scenario() -> None:
        served = PageServer(HttpLimits(connections_per_source_max=3))
        server = await served.start(tls.endpoint)
        plain = Endpoint(served.endpoint.host, served.endpoint.port)
        held = [await hold(plain, b"") for _ in range(6)]
        connection = await connect(served.endpoint, tls.trust())
        assert await get(connection, "/small") == (200, b"small")
        await close(connection, *held)
        await server.drain()
        assert served.open == 0

    run(scenario)


def test_peers__a_handshake_has_a_deadline(tmp_path: Path) -> None:
    """Whoever connects to a TLS listener and says nothing is closed."""
    tls = Tls(tmp_path)

    async def scenario() -> None:
        served = PageServer(HttpLimits(handshake_timeout_s=0.05))
        server = await served.start(tls.endpoint)
        connection = await hold(Endpoint(served.endpoint.host, served.endpoint.port), b"")
        assert await connection[0].read() == b""
        await served.until(1, "handshake")
        await close(connection)
        await server.drain()

    run(scenario)


def test_peers__that_have_gone_leave_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """Reference counts alone free a connection, TLS or not: the collector does not see what OpenSSL holds."""
    tls = Tls(tmp_path)
    trust = tls.trust()

    async def visit(endpoint: Endpoint, served: PageServer) -> None:
        connection = await connect(endpoint, trust if endpoint.tls else None)
        assert await get(connection, "/small") == (200, b"small")
        await close(connection)
        held = await hold(Endpoint(endpoint.host, endpoint.port), b"GET / HTTP")
        held[1].transport.abort()
        await until(lambda: served.open == 0)

    async def scenario() -> None:
        for endpoint in (tls.endpoint, Endpoint("127.0.0.1")):
            served = PageServer()
            server = await served.start(endpoint)
            await visit(served.endpoint, served)
            gc.collect()
            for _ in range(5):
                await visit(served.endpoint, served)
            for _ in range(10):
                await asyncio.sleep(0)
            left = [each for each in gc.get_objects() if isinstance(each, Connection)]
            assert left == []
            await server.drain()

    gc.disable()
    try:
        run(scenario)
    finally:
        gc.enable()


@contextmanager
def few_files() -> Iterator[None]:
    """Let the process open `SPARE_FILES` more files than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + SPARE_FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_peers__that_use_up_the_descriptors_give_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When none is left to accept with, idle connections are closed until there is one."""
    monkeypatch.setattr(accepting, "PAUSE_S", 0.01)

    async def scenario() -> None:
        served = PageServer(HttpLimits(connections_per_source_max=400))
        server = await served.start(Endpoint("127.0.0.1"))
        held: list[Streams] = []
        with few_files():
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    held.append(await hold(served.endpoint, b""))
            await close(held.pop(), held.pop())
            await ask(served.endpoint)
        await close(*held)
        await server.drain()
        assert sum(served.closed_for(reason) for reason in HTTP_CLOSE_REASONS) == len(held) + 3

    run(scenario)

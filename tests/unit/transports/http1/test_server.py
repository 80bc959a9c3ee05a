"""HTTP listeners, with real sockets on uvloop."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import uvloop

from sidecar.process.admin_http import AdminApp
from sidecar.process.readiness import Readiness
from sidecar.transports.http1 import HttpServer, server
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.work import SHARED_LOOP
from sidecar.transports.server import Endpoint, ListenError, TlsFiles
from tests.building import make_metrics
from tests.certificates import AuthorityFolder

TIMEOUT_S = 60.0
ANY = Endpoint("127.0.0.1", 0)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def make_server(*endpoints: Endpoint) -> HttpServer:
    """A server of the admin pages."""
    metrics = make_metrics()
    app = AdminApp(metrics, Readiness(metrics, ("grpc",)), SHARED_LOOP)
    return HttpServer(app.serve, endpoints, metrics, SHARED_LOOP)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run *scenario* on uvloop; no task may be left behind."""

    async def whole() -> None:
        await asyncio.wait_for(scenario(), TIMEOUT_S)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=TIMEOUT_S)
        assert not left

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


async def connect(endpoint: Endpoint, trust: ssl.SSLContext | None = None) -> Streams:
    """A connection to *endpoint*."""
    if endpoint.path:
        return await asyncio.open_unix_connection(endpoint.path)
    name = "localhost" if trust else None
    return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=trust, server_hostname=name)


async def get(streams: Streams, path: str = "/healthz") -> tuple[int, bytes]:
    """One request on a connection that stays open; its status and body."""
    reader, writer = streams
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split(" ")[1]), await reader.readexactly(length)


async def close(*connections: Streams) -> None:
    """Close connections and see them closed."""
    for _, writer in connections:
        writer.close()
        try:
            await writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            continue


async def started(*endpoints: Endpoint) -> tuple[HttpServer, Sequence[Endpoint]]:
    """A running server, and where it listens."""
    serving = make_server(*endpoints)
    return serving, await serving.start()


def test_http_server__serves_on_all_its_endpoints(tmp_path: Path) -> None:
    """TCP with a port of the system's choice, and a Unix socket with its mode."""
    path = tmp_path / "admin.sock"

    async def scenario() -> None:
        serving, endpoints = await started(ANY, Endpoint(path=str(path)))
        assert endpoints[0].port > 0
        assert path.stat().st_mode & 0o777 == 0o660
        for endpoint in endpoints:
            connection = await connect(endpoint)
            assert [(await get(connection))[0] for _ in range(3)] == [200, 200, 200]
            assert (await get(connection, "/readyz"))[0] == 503
            await close(connection)
        await serving.drain()
        assert not path.exists()
        with pytest.raises(OSError):
            await connect(endpoints[0])

    run(scenario)


def test_http_server__connections_outlive_those_of_proxies() -> None:
    """The server never closes a kept-alive connection first: 75 s is what proxies keep one."""
    assert HttpLimits().idle_timeout_s > 75


def test_http_server__stops_with_idle_connections_open() -> None:
    """A scraper that keeps its connection does not hold up the end."""

    async def scenario() -> None:
        serving, [endpoint] = await started(ANY)
        connection = await connect(endpoint)
        assert (await get(connection))[0] == 200
        await serving.drain()
        assert await connection[0].read() == b""
        await close(connection)

    run(scenario)


def test_http_server__stops_in_spite_of_half_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never ends its request gets the grace, and no more."""
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        serving, [endpoint] = await started(ANY)
        connection = await connect(endpoint)
        connection[1].write(b"GET /healthz HTTP/1.1\r\nhost:")
        await connection[1].drain()
        await serving.drain()
        await close(connection)

    run(scenario)


def test_http_server__a_taken_address_is_told_and_nothing_stays_bound(tmp_path: Path) -> None:
    """If one endpoint cannot be bound, none is."""
    first = tmp_path / "first.sock"
    blocked = tmp_path / "blocked"
    blocked.write_text("no socket")

    async def scenario() -> None:
        serving = make_server(Endpoint(path=str(first)), Endpoint(path=str(blocked)))
        with pytest.raises(ListenError, match="is not a socket"):
            await serving.start()
        assert not first.exists()

    run(scenario)


def test_http_server__without_endpoints_is_nothing() -> None:
    """`listen.admin: []` turns it off."""

    async def scenario() -> None:
        serving, endpoints = await started()
        serving.reload_tls()
        await serving.drain()
        assert endpoints == ()

    run(scenario)


class Tls:
    """A server's certificate and what clients need to trust it."""

    def __init__(self, folder: Path, is_mutual: bool = False) -> None:
        """Make both."""
        self.folder = folder
        self.authority = AuthorityFolder(folder)
        self.certificate, self.key = self.authority.sign("server")
        self.files = TlsFiles(self.certificate, self.key, self.authority.ca if is_mutual else None)
        self.endpoint = Endpoint("127.0.0.1", 0, tls=self.files)

    def trust(self, name: str = "") -> ssl.SSLContext:
        """A client's context, with a certificate called *name* if it has one."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        if name:
            context.load_cert_chain(*self.authority.sign(name))
        return context


def serial(connection: Streams) -> str:
    """The serial number of the server's certificate."""
    certificate = connection[1].get_extra_info("ssl_object").getpeercert()
    return str(certificate["serialNumber"])


def test_http_server__tls_files_are_followed(tmp_path: Path) -> None:
    """After a reload new connections get the new certificate, and requests on old ones were not lost."""
    tls = Tls(tmp_path)

    async def scenario() -> None:
        serving, [endpoint] = await started(tls.endpoint)
        before = await connect(endpoint, tls.trust())
        assert (await get(before))[0] == 200
        tls.authority.sign("server")
        serving.reload_tls()
        after = await connect(endpoint, tls.trust())
        status, body = await get(after)
        assert (status, json.loads(body)) == (200, {"status": "alive"})
        assert serial(before) != serial(after)
        await close(before, after)
        await serving.drain()

    run(scenario)


def test_http_server__changed_tls_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to send a signal."""
    monkeypatch.setattr(server, "POLL_INTERVAL_S", 0.005)
    tls = Tls(tmp_path)

    async def scenario() -> None:
        serving, [endpoint] = await started(tls.endpoint)
        first = await connect(endpoint, tls.trust())
        number = serial(first)
        await close(first)
        tls.authority.sign("server")
        while True:
            connection = await connect(endpoint, tls.trust())
            current = serial(connection)
            await close(connection)
            if current != number:
                break
        await serving.drain()

    run(scenario)


def test_http_server__bad_tls_files_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The former certificate stays in use, and the log says why."""
    tls = Tls(tmp_path)

    async def scenario() -> None:
        serving, [endpoint] = await started(tls.endpoint)
        tls.key.write_text("nonsense")
        serving.reload_tls()
        connection = await connect(endpoint, tls.trust())
        assert (await get(connection))[0] == 200
        await close(connection)
        await serving.drain()

    run(scenario)
    assert "the previous certificate stays in use" in caplog.text


def test_http_server__a_withdrawn_client_ca_is_gone(tmp_path: Path) -> None:
    """Mutual TLS lets in only whom the CA of now signed, not those of a CA that was replaced."""
    tls = Tls(tmp_path, is_mutual=True)

    async def scenario() -> None:
        serving, [endpoint] = await started(tls.endpoint)
        insider, stranger = tls.trust("prometheus"), tls.trust()
        connection = await connect(endpoint, insider)
        assert (await get(connection))[0] == 200
        await close(connection)
        await refused(endpoint, stranger)
        other = tmp_path / "other"
        other.mkdir()
        tls.authority.ca.write_bytes(AuthorityFolder(other).ca.read_bytes())
        serving.reload_tls()
        await refused(endpoint, insider)
        await serving.drain()

    run(scenario)


async def refused(endpoint: Endpoint, trust: ssl.SSLContext) -> None:
    """See that a client is not served. In TLS 1.3 it learns that with its first read."""
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        connection = await connect(endpoint, trust)
        try:
            await get(connection)
        finally:
            await close(connection)

"""Closed connections leave no memory behind, whatever they were doing and however they ended."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from sidecar.transports.fast.connection import Connection
from sidecar.transports.server import Endpoint, TlsFiles
from tests.certificates import AuthorityFolder
from tests.unit.transports.sockets import GrpcClient, LoopThread, RunningServer, dial
from tests.waiting import eventually

ROUNDS = 10
BURST = 200
GROWTH_BYTES_MAX = 24 << 20
"""400 TLS connections at a time were 90 MiB that stayed."""


class TlsServed:
    """A server with TLS on uvloop, whose clients trust it."""

    def __init__(self, thread: LoopThread, folder: Path) -> None:
        """Start it."""
        authority = AuthorityFolder(folder)
        self.context = ssl.create_default_context(cafile=authority.ca)
        self.context.set_alpn_protocols(["h2"])
        files = TlsFiles(*authority.sign("server"))
        self.thread = thread
        self.served = RunningServer(thread, Endpoint("127.0.0.1", 0), Endpoint("127.0.0.1", 0, tls=files))
        self.plain, self.tls = self.served.endpoints

    def connect(self) -> GrpcClient:
        """A client over TLS."""
        return GrpcClient(dial(self.tls), self.context)

    def await_none(self) -> None:
        """Wait until every connection has closed, and the loop has turned since."""
        eventually(lambda: self.served.open == 0, what="every connection has closed")
        self.thread.call(int)


@pytest.fixture(name="server")
def fixture_server(tmp_path: Path) -> Iterator[TlsServed]:
    """A server; the garbage collector rests meanwhile."""
    thread = LoopThread(uvloop.new_event_loop)
    server = TlsServed(thread, tmp_path)
    gc.collect()
    gc.disable()
    try:
        yield server
    finally:
        gc.enable()
        server.served.close()
        thread.close()


def answered(server: TlsServed) -> None:
    """Make a call and hang up."""
    with server.connect() as client:
        assert client.call() == "0"


def plain(server: TlsServed) -> None:
    """The same without TLS."""
    with GrpcClient(dial(server.plain)) as client:
        assert client.call() == "0"


def cut_amid_a_call(server: TlsServed) -> None:
    """Reset the TCP connection while a call is kept."""
    client = server.connect()
    client.send("/t/Keep")
    eventually(lambda: server.served.kept.calls, what="the call is kept")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()
    server.await_none()
    server.served.reply_all()


def no_handshake(server: TlsServed) -> None:
    """Say something that is no TLS."""
    with dial(server.tls) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while raw.recv(1_000):
            pass


def other_protocol(server: TlsServed) -> None:
    """Shake hands for HTTP/1.1."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    with context.wrap_socket(dial(server.tls)) as client, contextlib.suppress(ssl.SSLError, ConnectionError):
        assert client.recv(1) == b""


def spoilt(server: TlsServed) -> None:
    """Break a rule of HTTP/2, so that the server ends the connection."""
    client = server.connect()
    with client:
        client.socket.sendall(b"\0\0\0\x03\0\0\0\0\0")  # RST_STREAM on stream 0
        client.read_until_goaway()


@pytest.mark.parametrize("visit", [answered, plain, cut_amid_a_call, no_handshake, other_protocol, spoilt])
def test_closed__nothing_is_left_to_the_garbage_collector(
    server: TlsServed, visit: Callable[[TlsServed], None]
) -> None:
    """Reference counts alone free it: the collector does not see what OpenSSL holds, and comes too late."""
    visit(server)
    server.await_none()
    gc.collect()
    for _ in range(ROUNDS):
        visit(server)
        server.await_none()
    left = [each for each in gc.get_objects() if isinstance(each, Connection | ssl.SSLObject)]
    assert left == []


def test_closed__memory_of_a_burst_is_given_back(server: TlsServed) -> None:
    """Many TLS connections at a time, wave after wave: afterwards memory is about what it was."""
    before = resident_bytes()
    for _ in range(3):
        clients = [server.connect() for _ in range(BURST)]
        assert {client.call() for client in clients} == {"0"}
        for client in clients:
            client.socket.close()
        server.await_none()
    clients.clear()
    eventually(lambda: resident_bytes() - before < GROWTH_BYTES_MAX, what="memory is given back")


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

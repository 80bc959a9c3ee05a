"""
A hostile peer: `python -m loadtest.hostile_peers.peers KIND HOST:PORT`.

It attacks from several loopback addresses, so that limits per address do not stop it, until its standard
input ends. It does not check how the sidecar reacts.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvloop

from loadtest.bench.processes import STOP_TIMEOUT_S, BenchError
from sidecar.services.ext_authz import CHECK
from sidecar.verify.check_link import SETTINGS, call_frames, frame, header_block
from sidecar.verify.subjects import message_of

SOURCES = 4
"""The addresses 127.0.0.1 to 127.0.0.4; normal clients also have the first."""
CONNECT_TIMEOUT_S = 5.0
RETRY_S = 0.2
ESTABLISHED_S = 0.5
"""Time after which the attack counts as started, even if some connections were refused."""
CHUNK_BYTES = 6_000
PIPELINED = 1_000
BYTE_INTERVAL_S = 0.1
STREAMS = 1_000
CALL_TIMEOUT_MS = 60_000
NO_WINDOW = (4).to_bytes(2, "big") + (0).to_bytes(4, "big")
"""SETTINGS_INITIAL_WINDOW_SIZE 0 (RFC 9113 6.5.2): the server cannot send answers."""

Attack = Callable[[socket.socket], Awaitable[None]]


def _send(sock: socket.socket, data: bytes) -> Awaitable[None]:
    return asyncio.get_running_loop().sock_sendall(sock, data)


def _receive(sock: socket.socket) -> Awaitable[bytes]:
    return asyncio.get_running_loop().sock_recv(sock, 65_536)


async def _until_closed(sock: socket.socket) -> None:
    while await _receive(sock):
        pass


def _request(path: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *fields, "", "")).encode()


async def _endless_lines(sock: socket.socket) -> None:
    await _send(sock, b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    while True:
        await _send(sock, b"X: y\r\n" * (CHUNK_BYTES // 6))


async def _endless_value(sock: socket.socket) -> None:
    await _send(sock, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
    while True:
        await _send(sock, b"y" * CHUNK_BYTES)


async def _half_sent(sock: socket.socket) -> None:
    await _send(sock, b"GET /metrics HTTP/1.1\r\nHost:")
    await _until_closed(sock)


async def _slow_body(sock: socket.socket) -> None:
    await _send(sock, b"POST /v1/changes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await _send(sock, b"x")
        await asyncio.sleep(BYTE_INTERVAL_S)


async def _slow_reader(sock: socket.socket) -> None:
    await _send(sock, _request("/metrics") * 100)
    await asyncio.Event().wait()


async def _invalid(sock: socket.socket) -> None:
    await _send(sock, b"GET / HTTP/1.1\r\nHost: x\r\nBad Field: y\r\n\r\n")
    await _until_closed(sock)


async def _pipelining(sock: socket.socket) -> None:
    async def flood() -> None:
        while True:
            await _send(sock, _request("/healthz") * PIPELINED)

    sending = asyncio.ensure_future(flood())
    try:
        await _until_closed(sock)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _reconnecting(sock: socket.socket) -> None:
    await _send(sock, _request("/healthz"))


async def _wrong_tokens(sock: socket.socket) -> None:
    while True:
        await _send(sock, _request("/v1/integrations", "Authorization: Bearer sct_wrong_token"))
        if not await _receive(sock):
            return


async def _taking_no_answer(sock: socket.socket) -> None:
    await _send(sock, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, NO_WINDOW))
    block, message = header_block(CHECK, "sidecar", CALL_TIMEOUT_MS), message_of("no key")
    for number in range(STREAMS):
        await _send(sock, call_frames(block, 2 * number + 1, message))
    await _until_closed(sock)


@dataclass(frozen=True, slots=True)
class PeerKind:
    """One kind of peer: the attack of each of its *connections*, which are reopened when they end."""

    text: str
    connections: int
    attack: Attack
    retry_s: float = RETRY_S
    listeners: frozenset[str] = frozenset({"metrics", "http", "admin"})


KINDS = {
    "header-lines": PeerKind("endless header lines", 8, _endless_lines),
    "header-value": PeerKind("an endless header value", 8, _endless_value),
    "half-sent": PeerKind("half-sent requests", 1_100, _half_sent),
    "silent": PeerKind("silent connections", 600, _until_closed),
    "slow-body": PeerKind("a body, byte by byte", 300, _slow_body),
    "slow-reader": PeerKind("large answers that are not read", 200, _slow_reader),
    "invalid": PeerKind("invalid requests", 16, _invalid, 0.0),
    "pipelining": PeerKind("pipelined requests without end", 8, _pipelining),
    "reconnecting": PeerKind("a connection for each request", 32, _reconnecting, 0.0),
    "wrong-tokens": PeerKind("calls with a wrong token", 32, _wrong_tokens, listeners=frozenset({"admin"})),
    "grpc-window-0": PeerKind(
        "gRPC calls whose answers are not taken", 100, _taking_no_answer, listeners=frozenset({"grpc"})
    ),
}
"""All kinds, by name."""


@asynccontextmanager
async def _connection(host: str, port: int, number: int) -> AsyncIterator[socket.socket]:
    """Open a connection from the source address of *number*, with a small receive buffer."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        sock.bind((f"127.0.0.{1 + number % SOURCES}", 0))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        yield sock


async def _keep_attacking(kind: PeerKind, host: str, port: int, number: int) -> None:
    while True:
        with contextlib.suppress(OSError):  # the sidecar has closed the connection, as intended
            async with _connection(host, port, number) as sock:
                await kind.attack(sock)
        await asyncio.sleep(kind.retry_s)


async def _attack(kind: PeerKind, host: str, port: int) -> None:
    attacks = [
        asyncio.ensure_future(_keep_attacking(kind, host, port, number)) for number in range(kind.connections)
    ]
    await asyncio.wait(attacks, timeout=ESTABLISHED_S)
    print("attacking", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for attack in attacks:
        attack.cancel()
    await asyncio.gather(*attacks, return_exceptions=True)


@contextmanager
def attacking(name: str, address: str, core: int | None) -> Iterator[None]:
    """
    Attack *address* with a peer of the kind *name* while the block runs, on *core* with idle priority.

    None = on any core, with the priority of this process.

    Raises:
        BenchError: the attack did not start.
    """
    placed = [] if core is None else ["chrt", "-i", "0", "taskset", "-c", str(core)]
    process = subprocess.Popen(
        [*placed, sys.executable, "-m", __name__, name, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise BenchError(f"the peer {name} did not start: {process.communicate()[1][-500:]}")
        yield
        process.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def main(name: str, address: str) -> None:
    """Attack *address* with the kind *name* until standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    host, _, port = address.rpartition(":")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_attack(KINDS[name], host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""ASGI applications behind the HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sidecar.rpc.http import TRUST
from sidecar.transports.http1 import HttpServer
from sidecar.transports.http1.asgi import AsgiApp, Receive, Scope, Send, serve_asgi
from sidecar.transports.http1.work import OWN_LOOP
from sidecar.transports.server import Endpoint
from tests.building import make_metrics
from tests.unit.transports.http1.test_server import Streams, close, connect, run

Talk = Callable[[Streams], Any]


def talk(app: AsgiApp, talk: Talk) -> None:
    """Serve *app*, and have *talk* use one connection to it."""

    async def scenario() -> None:
        server = HttpServer(partial(serve_asgi, app), [Endpoint("127.0.0.1")], make_metrics(), OWN_LOOP)
        [endpoint] = await server.start()
        connection = await connect(endpoint)
        await talk(connection)
        await close(connection)
        await server.drain()

    run(scenario)


def exchanged(app: AsgiApp, request: bytes) -> bytes:
    """Everything that comes back for *request*, after which the connection closes."""
    received = bytearray()

    async def once(connection: Streams) -> None:
        connection[1].write(request)
        received.extend(await connection[0].read())

    talk(app, once)
    return b"".join(line for line in bytes(received).splitlines(True) if not line.startswith(b"date:"))


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in two parts."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    await send({"type": "http.response.body", "body": b"hello", "more_body": True})
    await send({"type": "http.response.body", "body": b"!"})


def test_asgi__an_answer_of_parts() -> None:
    """In chunks; HEAD gets the head alone."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nx-a: b\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    assert exchanged(hello, request) == head + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nx-a: b\r\nconnection: close\r\n\r\n"
    assert exchanged(hello, request.replace(b"GET", b"HEAD")) == head


def test_asgi__the_scope_says_what_was_asked() -> None:
    """The path decoded and as it was sent, and who asks."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await hello(scope, receive, send)

    exchanged(app, b"GET /a%20b?c=%20d HTTP/1.0\r\nX-A: B\r\n\r\n")
    [scope] = scopes
    told = {name: scope[name] for name in ("http_version", "method", "scheme", "path", "raw_path", "headers")}
    assert told == {
        "http_version": "1.0", "method": "GET", "scheme": "http", "path": "/a b", "raw_path": b"/a%20b",
        "headers": [(b"x-a", b"B")],
    }  # fmt: skip
    assert (scope["query_string"], scope["client"][0]) == (b"c=%20d", "127.0.0.1")
    scope["extensions"][TRUST]()  # too late for anything, and no fault


def test_asgi__a_fault_is_a_500_or_breaks_the_answer_off(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody takes half an answer for a whole one; an application that says nothing has failed, too."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if scope["path"] != "/silent":
            raise RuntimeError("broken")

    for path in (b"/", b"/silent"):
        answer = exchanged(fail, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
        assert answer.startswith(b"HTTP/1.1 500 ")
    assert exchanged(fail, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"\r\n4\r\nhalf\r\n")
    assert caplog.text.count("RuntimeError: broken") == 2


def test_asgi__an_application_learns_that_its_client_has_gone() -> None:
    """While it works, and while it waits for the rest of a body."""
    told: list[str] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while told[-1:] != ["http.disconnect"]:
            begun.set()
            told.append((await receive())["type"])
        ended.set()

    async def leave(connection: Streams) -> None:
        connection[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        await begun.wait()
        connection[1].close()
        await ended.wait()

    talk(app, leave)
    assert told[-1] == "http.disconnect"


def test_asgi__a_slow_reader_holds_the_application_back() -> None:
    """No more is kept of an endless answer than the kernel does not take."""
    sent, is_gone = 0, asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            is_gone.set()

        watching = asyncio.ensure_future(watch())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not is_gone.is_set():
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            sent += 65_536
            await asyncio.sleep(0)
        await watching

    async def leave(connection: Streams) -> None:
        connection[1].transport.pause_reading()  # type: ignore[attr-defined]
        connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        before = -1
        while sent != before or not sent:
            before = sent
            for _ in range(50):
                await asyncio.sleep(0)
        connection[1].transport.abort()
        await is_gone.wait()

    talk(app, leave)
    assert sent < 50_000_000

"""
Runs an ASGI application, with one task per request.

Source: the ASGI HTTP specification 2.3; messages to a disconnected client are ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import unquote

from sidecar.rpc.http import TRUST
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.messages import problem

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

_log = logging.getLogger("sidecar.http")
_tasks: set[asyncio.Task[None]] = set()


def serve_asgi(app: AsgiApp, exchange: Exchange) -> None:
    """Let *app* answer *exchange* in a new task."""
    task = asyncio.get_running_loop().create_task(_Bridge(exchange).run(app))
    _tasks.add(task)  # the loop itself keeps only weak references
    task.add_done_callback(_tasks.discard)


def scope_of(exchange: Exchange) -> Scope:
    """Return the ASGI scope of the request of *exchange*."""
    request = exchange.request
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method,
        "scheme": "https" if request.is_tls else "http",
        "path": unquote(request.path.decode("ascii", "replace")),
        "raw_path": request.path,
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers),
        "client": request.peer,
        "server": None,
        "extensions": {TRUST: exchange.trust},
    }


class _Bridge:
    """Connects one exchange to an application."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._changed = asyncio.Event()
        self._is_body_received = False
        exchange.on_change = self._changed.set

    async def run(self, app: AsgiApp) -> None:
        exchange = self._exchange
        try:
            await app(scope_of(exchange), self._receive, self._send)
        except Exception:
            if not exchange.is_canceled:
                _log.exception("the application failed at %s", exchange.request.method)
        finally:
            if not exchange.is_answered:
                self._fail()

    def _fail(self) -> None:
        exchange = self._exchange
        if exchange.is_begun or exchange.is_canceled:
            exchange.abort()
        else:
            detail = "The server failed; see its log."
            exchange.respond(problem(500, "Internal Server Error", detail))

    async def _receive(self) -> MutableMapping[str, Any]:
        exchange = self._exchange
        while True:
            if not self._is_body_received and (exchange.body or exchange.is_body_whole):
                body = bytes(exchange.body)
                exchange.body.clear()
                self._is_body_received = exchange.is_body_whole
                return {"type": "http.request", "body": body, "more_body": not exchange.is_body_whole}
            if exchange.is_canceled or exchange.is_answered:
                return {"type": "http.disconnect"}
            exchange.want_body()
            await self._change()

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        exchange = self._exchange
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            exchange.begin(message["status"], tuple((bytes(name), bytes(value)) for name, value in headers))
            return
        while not exchange.is_writable and not exchange.is_canceled:
            await self._change()
        exchange.send(message.get("body", b""), is_last=not message.get("more_body", False))

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

"""Middleware that enforces decisions in ASGI applications: FastAPI, Starlette, Django."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any

from sidecar.client.clients import AsyncClient
from sidecar.client.decisions import ClientDecision
from sidecar.client.http import KEY_HEADERS, RequestRules, judged_path

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_ANSWERS = frozenset({"http.response.start", "websocket.accept"})
_DENIAL = "websocket.http.response"


class AsgiMiddleware:
    """
    Asks the sidecar about each request and WebSocket; the application sees those that may go on.

    A denied request is answered with the status, headers and body of the decision. So is a denied WebSocket
    where the server can; elsewhere it is closed before it opens (403).
    """

    def __init__(
        self,
        app: Application,
        client: AsyncClient,
        *,
        key_headers: Collection[str] = KEY_HEADERS,
        client_ip_header: str | None = None,
    ) -> None:
        """Protect *app*; see `RequestRules` for the other arguments."""
        self._app = app
        self._client = client
        self._rules = RequestRules(key_headers, client_ip_header)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = _joined(scope["headers"], self._rules.read_headers)
        decision = await self._client.decide(
            scope.get("method", "GET"),  # a WebSocket opens with GET
            judged_path(scope["path"].encode("utf-8", "replace"), scope.get("raw_path") or b"") or "/",
            headers=self._rules.keys_of(headers),
            client_ip=self._rules.client_ip(headers, (scope.get("client") or ("",))[0]),
        )
        if not decision.is_allowed:
            await _deny(decision, scope, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] in _ANSWERS:
                message = {**message, "headers": _replaced(message.get("headers") or (), decision.headers)}
            await send(message)

        hidden = self._rules.hidden_from_application(decision)
        shown = _replaced(scope["headers"], decision.upstream_headers, hidden)
        await self._app({**scope, "headers": shown}, receive, send_with_limits)


def _joined(headers: Iterable[tuple[bytes, bytes]], names: Collection[str]) -> dict[str, str]:
    """The values of the headers *names*; repeats joined with ','."""
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in names:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _replaced(
    headers: Iterable[tuple[bytes, bytes]], new: Mapping[str, str], hidden: Collection[str] = ()
) -> Headers:
    """
    *headers* with *new* in place of theirs and without *hidden*.

    To applications that follow CGI, Django among them, `x_a` and `x-a` are one header, so both go.
    """
    removed = {*new, *hidden}
    kept = [
        (name, value)
        for name, value in headers
        if name.decode("latin-1").lower().replace("_", "-") not in removed
    ]
    return [*kept, *((name.encode(), value.encode("latin-1")) for name, value in new.items())]


async def _deny(decision: ClientDecision, scope: Scope, send: Send) -> None:
    kind = "http"
    if scope["type"] == "websocket":
        if _DENIAL not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = "websocket.http"
    headers = _replaced([(b"content-length", b"%d" % len(decision.body))], decision.headers)
    await send({"type": f"{kind}.response.start", "status": decision.status, "headers": headers})
    body = b"" if scope.get("method") == "HEAD" else decision.body
    await send({"type": f"{kind}.response.body", "body": body})

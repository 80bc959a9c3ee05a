"""
One application, written with FastAPI, Flask and Django, and the real servers that serve it.

`GET` and `HEAD` of any path answer with what the application sees: its path and headers. Its own
X-RateLimit-Limit is there to be replaced.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
import flask
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import re_path
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from sidecar.client import AsgiMiddleware, AsyncClient, Client, WsgiMiddleware
from tests.waiting import PATIENCE_S

OWN_HEADERS = {"x-ratelimit-limit": "of the application", "x-own": "kept"}


def _seen(path: str, headers: Any) -> dict[str, Any]:
    return {"path": path, "headers": {name.lower(): value for name, value in headers.items()}}


def _django_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(_seen(request.path, request.headers), headers=OWN_HEADERS)


urlpatterns = [re_path("", _django_view)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="only for tests")
django.setup()


def _fastapi() -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "HEAD"])
    async def view(request: Request) -> JSONResponse:
        return JSONResponse(_seen(request.url.path, request.headers), headers=OWN_HEADERS)

    return app


def _flask() -> Any:
    app = flask.Flask(__name__)

    @app.get("/<path:path>")
    def view(path: str) -> Any:
        return _seen(flask.request.path, flask.request.headers), OWN_HEADERS

    return app.wsgi_app


ASGI = {"FastAPI": _fastapi, "Django on ASGI": get_asgi_application}
WSGI = {"Flask": _flask, "Django": get_wsgi_application}


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(name: str, target: str, *, on_failure: Any = "closed", **rules: Any) -> Iterator[str]:
    """Serve the application *name* behind its middleware, which asks *target*; yields its URL."""
    client_settings = {"timeout_s": PATIENCE_S, "on_failure": on_failure}
    if name in WSGI:
        client = Client(target, **client_settings)
        with client, serve_wsgi(WsgiMiddleware(WSGI[name](), client, **rules)) as url:
            yield url
        return
    async_client = AsyncClient(target, **client_settings)
    with serve_asgi(AsgiMiddleware(ASGI[name](), async_client, **rules), async_client) as url:
        yield url


@contextlib.contextmanager
def serve_wsgi(app: Any) -> Iterator[str]:
    """Serve *app* with the server of the standard library."""
    server = make_server("127.0.0.1", 0, app, handler_class=_QuietHandler)
    with server, _in_thread(lambda: server.serve_forever(poll_interval=0.01), server.shutdown):
        yield f"http://127.0.0.1:{server.server_port}"


@contextlib.contextmanager
def serve_asgi(app: Any, client: AsyncClient) -> Iterator[str]:
    """Serve *app* with Uvicorn; *client* is closed at its end."""

    async def with_end(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await client.close()
        await send({"type": "lifespan.shutdown.complete"})

    with serve_uvicorn(with_end) as url:
        yield url


@contextlib.contextmanager
def serve_uvicorn(app: Any) -> Iterator[str]:
    """Serve *app*, its lifespan included, with Uvicorn."""
    config = uvicorn.Config(app, lifespan="on", log_config=None, ws="none", proxy_headers=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        listener,
        _in_thread(lambda: server.run(sockets=[listener]), lambda: setattr(server, "should_exit", True)),
    ):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _in_thread(run: Callable[[], object], stop: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()

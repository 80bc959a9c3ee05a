"""
The admin listeners: uvicorn on the event loop of the decisions, without its own signals and logs.

Each listener has a uvicorn server of its own, because that is what carries a TLS context. When TLS
files change, a new server takes over the same listening socket: no connection is refused, and a
withdrawn client CA is really gone, which changing a context in place could not do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from sidecar.app.admin_http import AdminApp
from sidecar.observe.metrics import Metrics
from sidecar.transports.listeners import Listener, bind
from sidecar.transports.server import Endpoint, ListenError
from sidecar.transports.tls import POLL_INTERVAL_S, TlsContext

KEEP_ALIVE_TIMEOUT_S = 80
"""Proxies and scrapers keep connections for up to 75 s; the server must not be the first to close."""

CONNECTIONS_MAX = 256
STOP_TIMEOUT_S = 2
START_TIMEOUT_S = 10.0


class _QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves the admin application on its endpoints until it is stopped."""

    def __init__(self, app: AdminApp, endpoints: Sequence[Endpoint], metrics: Metrics) -> None:
        """Serve *app* on *endpoints*, counting TLS reloads in *metrics*; nothing is bound before `start`."""
        self._listeners = [_AdminListener(app, endpoint, metrics) for endpoint in endpoints]
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their real ports.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used; none is bound then.
        """
        try:
            for listener in self._listeners:
                await listener.start()
        except BaseException:
            await self.stop()
            raise
        if any(listener.endpoint.tls for listener in self._listeners):
            self._polling = asyncio.create_task(self._poll_tls())
        return tuple(listener.endpoint for listener in self._listeners)

    async def reload_tls(self) -> None:
        """Load all TLS files again; those that cannot be used change nothing, which is logged."""
        for listener in self._listeners:
            await listener.follow_tls(TlsContext.reload)

    async def stop(self) -> None:
        """Close all listeners; requests under way get `STOP_TIMEOUT_S`."""
        if self._polling is not None:
            self._polling.cancel()
        await asyncio.gather(*(listener.stop() for listener in self._listeners))

    async def _poll_tls(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            for listener in self._listeners:
                await listener.follow_tls(TlsContext.poll)


class _AdminListener:
    """One endpoint, and the server that has it now."""

    def __init__(self, app: AdminApp, endpoint: Endpoint, metrics: Metrics) -> None:
        self.endpoint = endpoint
        self._app = app
        self._metrics = metrics
        self._tls: TlsContext | None = None
        self._listener: Listener | None = None
        self._server: _QuietServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self.endpoint.tls is not None:
            self._tls = TlsContext(self.endpoint.tls, self._metrics)
        self._listener = bind(self.endpoint)
        self.endpoint = self._listener.endpoint
        await self._serve()

    async def _serve(self) -> None:
        assert self._listener is not None
        config = uvicorn.Config(
            self._app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_TIMEOUT_S,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
        config.load()
        if self._tls is not None:
            config.ssl = self._tls.current
            config.ssl.set_alpn_protocols(["http/1.1"])
        self._server = _QuietServer(config)
        # The server closes the socket it is given; ours stays, for its successor.
        self._serving = asyncio.create_task(self._server.serve([self._listener.socket.dup()]))
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._server.started:
                if self._serving.done():
                    self._serving.result()
                    raise ListenError(f"cannot listen on {self.endpoint}: the HTTP server did not start")
                await asyncio.sleep(0)

    async def follow_tls(self, look: Callable[[TlsContext], object]) -> None:
        """Have *look* done; when it brings another context, a new server takes the socket over."""
        if self._tls is None:
            return
        context = self._tls.current
        look(self._tls)
        if self._tls.current is not context:
            former, serving = self._server, self._serving
            await self._serve()
            await _stopped(former, serving)

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await _stopped(self._server, self._serving)


async def _stopped(server: _QuietServer | None, serving: asyncio.Task[None] | None) -> None:
    """Stop *server* within a bound: its own grace, and a moment for its last turn."""
    if server is None or serving is None:
        return
    server.should_exit = True
    done, _ = await asyncio.wait({serving}, timeout=STOP_TIMEOUT_S + 1)
    if not done:
        serving.cancel()

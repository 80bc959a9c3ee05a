"""The HTTP/1.1 server: binds, accepts, reloads its TLS files, and drains."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Sequence

from sidecar.observe.metrics import Metrics
from sidecar.transports.http1.acceptor import Acceptor
from sidecar.transports.http1.core import HttpCore
from sidecar.transports.http1.exchange import Handler
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.work import Pace
from sidecar.transports.listeners import bind_all
from sidecar.transports.server import Endpoint
from sidecar.transports.tls import POLL_INTERVAL_S, TlsContext, tls_contexts

STOP_TIMEOUT_S = 2.0
"""Default time for running requests after a shutdown request."""


class HttpServer:
    """Serves one handler on its endpoints. Implements `sidecar.transports.server.ListeningServer`."""

    def __init__(
        self,
        handler: Handler,
        endpoints: Sequence[Endpoint],
        metrics: Metrics,
        pace: Pace,
        limits: HttpLimits | None = None,
        observe_ns: Callable[[int], None] | None = None,
    ) -> None:
        """
        Serve *handler* on *endpoints*, and count in *metrics*; `start` binds.

        Args:
            handler: answers requests, on the event loop; see `Handler`.
            pace: the server's share of the event loop; `SHARED_LOOP` if the loop also decides.
            limits: None = the default limits.
            observe_ns: receives the duration of each request, from its first byte to the last of its answer.
        """
        self._handler = handler
        self._endpoints = tuple(endpoints)
        self._metrics = metrics
        self._pace = pace
        self._limits = limits or HttpLimits()
        self._observe_ns = observe_ns
        self._core: HttpCore | None = None
        self._acceptors: list[Acceptor] = []
        self._contexts: list[TlsContext] = []
        self._closed = asyncio.Event()
        self._tls_tick = 0

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their actual ports.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used; then none is bound.
        """
        contexts = tls_contexts(self._endpoints, self._metrics)
        listeners = bind_all(self._endpoints)
        files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        loop, connections_max = asyncio.get_running_loop(), self._limits.connections_within(files_max)
        core = self._core = HttpCore(
            self._handler, self._limits, self._pace, self._metrics, loop, connections_max, self._observe_ns
        )
        core.on_closed = self._closed.set
        self._contexts = [context for context in contexts if context is not None]
        self._acceptors = [
            Acceptor(core, listener, context) for listener, context in zip(listeners, contexts, strict=True)
        ]
        for acceptor in self._acceptors:
            acceptor.start()
        if self._contexts:
            self._tls_tick = core.wheel.add(core.loop.time() + POLL_INTERVAL_S, self)
        return tuple(listener.endpoint for listener in listeners)

    def reload_tls(self) -> bool:
        """See `ListeningServer.reload_tls`."""
        return self._follow_tls(TlsContext.reload)

    def on_due(self, now_s: float) -> None:
        """Check the TLS files for changes (called by the timer wheel)."""
        assert self._core is not None
        self._follow_tls(TlsContext.poll)
        self._tls_tick = self._core.wheel.add(now_s + POLL_INTERVAL_S, self)

    def _follow_tls(self, update: Callable[[TlsContext], bool | None]) -> bool:
        """
        Call *update* on each context; after a change, close all connections after their running request.

        So clients with a removed CA are disconnected.
        """
        before = [context.current for context in self._contexts]
        results = [update(context) for context in self._contexts]
        if self._core is not None and before != [context.current for context in self._contexts]:
            for connection in tuple(self._core.connections):
                connection.drain()
        return False not in results

    async def drain(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """See `ListeningServer.drain`."""
        core = self._core
        if core is None:
            return True
        is_whole = True
        core.is_draining = True
        core.wheel.discard(self._tls_tick, self)
        for acceptor in self._acceptors:
            acceptor.stop()
        for connection in tuple(core.connections):
            connection.drain()
        try:
            async with asyncio.timeout(timeout_s):
                while core.connections:
                    self._closed.clear()
                    await self._closed.wait()
        except TimeoutError:
            is_whole = False
            for connection in tuple(core.connections):
                connection.abort("drain")
        handshakes = [task for acceptor in self._acceptors for task in acceptor.cancel_handshakes()]
        if handshakes:
            await asyncio.wait(handshakes, timeout=STOP_TIMEOUT_S)
        core.wheel.close()
        return is_whole

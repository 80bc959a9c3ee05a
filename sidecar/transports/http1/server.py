"""The HTTP/1.1 server: binds, accepts, follows its TLS files, and drains."""

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
from sidecar.transports.listeners import Listener, bind
from sidecar.transports.server import Endpoint
from sidecar.transports.tls import POLL_INTERVAL_S, TlsContext

STOP_TIMEOUT_S = 2.0
"""How long running requests of a listener that does not decide may take once it is told to stop."""


class HttpServer:
    """Serves one handler on its endpoints until it is stopped."""

    def __init__(
        self,
        handler: Handler,
        endpoints: Sequence[Endpoint],
        metrics: Metrics,
        pace: Pace,
        limits: HttpLimits | None = None,
    ) -> None:
        """
        Serve *handler* on *endpoints*, counting in *metrics*; nothing is bound before `start`.

        Args:
            handler: answers requests, on the event loop; see `Handler`.
            pace: how much of the event loop it may take; `SHARED_LOOP` beside decisions.
            limits: every bound; None = the default ones.
        """
        self._handler = handler
        self._endpoints = tuple(endpoints)
        self._metrics = metrics
        self._pace = pace
        self._limits = limits or HttpLimits()
        self._core: HttpCore | None = None
        self._acceptors: list[Acceptor] = []
        self._contexts: list[TlsContext] = []
        self._left = asyncio.Event()
        self._tls_tick = 0

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their real ports.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used; none is bound then.
        """
        contexts = [
            None if each.tls is None else TlsContext(each.tls, self._metrics) for each in self._endpoints
        ]
        listeners = _bind_all(self._endpoints)
        files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        loop, connections_max = asyncio.get_running_loop(), self._limits.connections_within(files_max)
        core = self._core = HttpCore(
            self._handler, self._limits, self._pace, self._metrics, loop, connections_max
        )
        core.on_left = self._left.set
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
        """Look for changed TLS files (from the timer wheel)."""
        assert self._core is not None
        self._follow_tls(TlsContext.poll)
        self._tls_tick = self._core.wheel.add(now_s + POLL_INTERVAL_S, self)

    def _follow_tls(self, look: Callable[[TlsContext], bool | None]) -> bool:
        """
        Have *look* done at each context; connections made by a former one end with their running request.

        So a client whose CA was withdrawn is really gone.
        """
        before = [context.current for context in self._contexts]
        results = [look(context) for context in self._contexts]
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
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            is_whole = False
            for connection in tuple(core.connections):
                connection.abort("drain")
        handshakes = [task for acceptor in self._acceptors for task in acceptor.cancel_handshakes()]
        if handshakes:
            await asyncio.wait(handshakes, timeout=STOP_TIMEOUT_S)
        core.wheel.close()
        return is_whole


def _bind_all(endpoints: Sequence[Endpoint]) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for endpoint in endpoints:
            listeners.append(bind(endpoint))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners

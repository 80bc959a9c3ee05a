"""The fast server: binds, accepts, and drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from sidecar.observe.metrics import Metrics
from sidecar.rpc.calls import Method
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.transports.fast.acceptor import Acceptor
from sidecar.transports.fast.core import Core
from sidecar.transports.listeners import bind_all
from sidecar.transports.server import Endpoint, TransportLimits
from sidecar.transports.tls import POLL_INTERVAL_S, TlsContext, tls_contexts

CUT_S = 0.25
"""How long a cut connection may take to write its last bytes before it is aborted."""


class FastGrpcServer:
    """Implements `sidecar.transports.server.ListeningServer`."""

    def __init__(
        self,
        methods: Iterable[Method],
        endpoints: Sequence[Endpoint],
        limits: TransportLimits,
        metrics: Metrics,
        turn: LoopTurn | None = None,
        *,
        _http_error_delay_s: float = 0.0,
    ) -> None:
        """
        Serve *methods* on *endpoints* within *limits*, and count in *metrics*; `start` binds.

        Args:
            turn: shared with the store that the methods take from; None = no shared store.
            _http_error_delay_s: only for conformance tools, see `Core`.
        """
        self._methods = tuple(methods)
        self._endpoints = tuple(endpoints)
        self._limits = limits
        self._metrics = metrics
        self.turn = turn
        self._http_error_delay_s = _http_error_delay_s
        self._core: Core | None = None
        self._acceptors: list[Acceptor] = []
        self._tls: list[TlsContext] = []
        self._closed = asyncio.Event()

    async def start(self) -> tuple[Endpoint, ...]:
        """See `ListeningServer.start`."""
        contexts = tls_contexts(self._endpoints, self._metrics)
        listeners = bind_all(self._endpoints)
        core = self._core = Core(
            self._methods,
            self._limits,
            self._metrics,
            asyncio.get_running_loop(),
            http_error_delay_s=self._http_error_delay_s,
            turn=self.turn,
        )
        core.on_connection_closed = self._closed.set
        self._tls = [context for context in contexts if context is not None]
        self._acceptors = [
            Acceptor(core, listener, context, self._metrics)
            for listener, context in zip(listeners, contexts, strict=True)
        ]
        for acceptor in self._acceptors:
            acceptor.start()
        if self._tls:
            core.wheel.add(core.loop.time() + POLL_INTERVAL_S, self)
        return tuple(listener.endpoint for listener in listeners)

    def reload_tls(self) -> bool:
        """See `ListeningServer.reload_tls`."""
        results = [context.reload() for context in self._tls]
        return all(results)

    def on_due(self, now_s: float) -> None:
        """Check the TLS files for changes (called by the timer wheel)."""
        if self._core is not None and not self._core.is_draining:
            for context in self._tls:
                context.poll()
            self._core.wheel.add(now_s + POLL_INTERVAL_S, self)

    async def drain(self, timeout_s: float) -> bool:
        """
        See `ListeningServer.drain`.

        Connections in the backlog are still served. A second drain shortens the first.
        """
        core = self._core
        if core is None:
            return True
        if not core.is_draining:
            core.is_draining = True
            for acceptor in self._acceptors:
                acceptor.stop()
            for connection in tuple(core.connections):
                connection.drain("drain")
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_until_closed(core)
            is_complete = True
        except TimeoutError:
            is_complete = await self._cut_all(core)
        core.wheel.close()
        return is_complete

    async def _wait_until_closed(self, core: Core) -> None:
        while core.open:
            self._closed.clear()
            await self._closed.wait()

    async def _cut_all(self, core: Core) -> bool:
        """Close the remaining connections; True = no answer was cut off."""
        for acceptor in self._acceptors:
            acceptor.cancel_handshakes()
        cut_off = [connection.cut() for connection in tuple(core.connections)]
        try:
            async with asyncio.timeout(CUT_S):
                await self._wait_until_closed(core)
        except TimeoutError:
            for connection in tuple(core.connections):
                connection.abort()
        return not any(cut_off)

"""The fast server: binds, accepts, and drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from sidecar.observe.metrics import Metrics
from sidecar.rpc.calls import Method
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.transports.fast.acceptor import Acceptor
from sidecar.transports.fast.core import Core
from sidecar.transports.listeners import Listener, bind
from sidecar.transports.server import Endpoint, TransportLimits
from sidecar.transports.tls import POLL_INTERVAL_S, TlsContext

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
        Serve *methods* on *endpoints* under *limits*, counting in *metrics*.

        Args:
            turn: shared with the store that the methods take from; None = there is no shared store.
            _http_error_delay_s: for conformance tools alone, see `Core`.
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
        self._left = asyncio.Event()

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their real ports.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files not be used; names it and says
                what to do. Then none is bound.
        """
        contexts = [
            None if each.tls is None else TlsContext(each.tls, self._metrics) for each in self._endpoints
        ]
        listeners = _bind_all(self._endpoints)
        core = self._core = Core(
            self._methods,
            self._limits,
            self._metrics,
            asyncio.get_running_loop(),
            http_error_delay_s=self._http_error_delay_s,
            turn=self.turn,
        )
        core.on_connection_left = self._left.set
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
        """Load all TLS files again now; False = some cannot be used and the former ones stay."""
        results = [context.reload() for context in self._tls]
        return all(results)

    def on_due(self, now_s: float) -> None:
        """Look for changed TLS files (from the timer wheel)."""
        if self._core is not None and not self._core.is_draining:
            for context in self._tls:
                context.poll()
            self._core.wheel.add(now_s + POLL_INTERVAL_S, self)

    async def drain(self, timeout_s: float) -> bool:
        """
        Stop accepting, let running calls end, then close all; at most *timeout_s*.

        Connections that already wait in the backlog are still served. A second drain shortens the
        first.

        Returns:
            True when nothing had to be cut off.
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
                await self._all_left(core)
            whole = True
        except TimeoutError:
            whole = await self._cut_all(core)
        core.wheel.close()
        return whole

    async def _all_left(self, core: Core) -> None:
        while core.open:
            self._left.clear()
            await self._left.wait()

    async def _cut_all(self, core: Core) -> bool:
        """Close what is left; True = no answer was lost by it."""
        for acceptor in self._acceptors:
            acceptor.cancel_handshakes()
        cut_off = [connection.cut() for connection in tuple(core.connections)]
        try:
            async with asyncio.timeout(CUT_S):
                await self._all_left(core)
        except TimeoutError:
            for connection in tuple(core.connections):
                connection.abort()
        return not any(cut_off)


def _bind_all(endpoints: Iterable[Endpoint]) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for endpoint in endpoints:
            listeners.append(bind(endpoint))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners

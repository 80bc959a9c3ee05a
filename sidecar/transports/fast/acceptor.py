"""Accepts connections on one listener, within the limits of the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

from sidecar.observe.metrics import Metrics
from sidecar.transports.accepting import ListenerAcceptor
from sidecar.transports.fast.connection import Connection
from sidecar.transports.fast.core import Core
from sidecar.transports.fast.lifetime import LINGER_S
from sidecar.transports.listeners import Listener
from sidecar.transports.tls import TlsContext

ACCEPTS_PER_TURN = 64
"""Connections accepted in one loop turn, so that connection churn does not delay calls."""

_log = logging.getLogger("sidecar.transports")


class Acceptor(ListenerAcceptor):
    """Accepts the connections of one listener."""

    def __init__(self, core: Core, listener: Listener, tls: TlsContext | None, metrics: Metrics) -> None:
        """Prepare; `start` begins to accept."""
        super().__init__(listener, tls, metrics, _log)
        self._core = core
        self._accepted_slot = metrics.slot("sidecar_connections_accepted_total")

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accept():
                return

    def _admit(self, accepted: socket.socket, address: Any) -> None:
        core, peer = self._core, "" if self._listener.endpoint.path else address[0]
        core.values[self._accepted_slot] += 1
        if not core.admit(peer):
            core.values[core.closed_slots["connection_limit"]] += 1
            accepted.close()
            return
        self._run(self._serve(accepted, peer))

    async def _serve(self, accepted: socket.socket, peer: str) -> None:
        """Pass the socket to a `Connection`; this task ends after the handshake."""
        connection = Connection(self._core, peer)
        tls = None if self._tls is None else self._tls.current
        limits = self._core.limits
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else limits.handshake_timeout_s,
                ssl_shutdown_timeout=None if tls is None else LINGER_S,
            )
        except (OSError, asyncio.CancelledError):
            self._drop(accepted, connection)  # ssl.SSLError and TimeoutError are OSErrors
        except Exception:
            self._core.log_fault(f"accepting on {self._listener.endpoint}")
            self._drop(accepted, connection)

    def _drop(self, accepted: socket.socket, connection: Connection) -> None:
        # The loop closes the socket, but uvloop first waits for the end of a canceled handshake.
        with contextlib.suppress(OSError):
            accepted.shutdown(socket.SHUT_RDWR)
        connection.fail_handshake()

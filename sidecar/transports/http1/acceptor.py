"""
Accepts connections on one listener, in the server's work queue.

A flood of connections is paced like other work, and closes idle connections when file descriptors run out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Any

from sidecar.transports.accepting import ListenerAcceptor
from sidecar.transports.http1.connection import Connection
from sidecar.transports.http1.core import HttpCore
from sidecar.transports.listeners import Listener
from sidecar.transports.tls import TlsContext

HANDSHAKE_COST_S = 0.001
"""The time that a TLS handshake counts for in the server's pace."""

_log = logging.getLogger("sidecar.http")


class Acceptor(ListenerAcceptor):
    """Accepts the connections of one listener. Implements `work.Worker`."""

    source = "listener"

    def __init__(self, core: HttpCore, listener: Listener, tls: TlsContext | None) -> None:
        """Prepare; `start` begins to accept."""
        super().__init__(listener, tls, core.metrics, _log)
        self._core = core

    def stop(self) -> None:
        """See `ListenerAcceptor.stop`."""
        super().stop()
        self._core.queue.discard(self)

    def _on_readable(self) -> None:
        self._loop.remove_reader(self._listener.socket)
        self._core.queue.add(self)

    def work(self) -> None:
        """Accept one connection (called by the work queue)."""
        if self._accept():
            self._core.queue.add(self)
        elif self._pause is None:
            self.start()

    def _admit(self, accepted: socket.socket, address: Any) -> None:
        peer = None if self._listener.endpoint.path else (str(address[0]), int(address[1]))
        connection = Connection(self._core, accepted, peer)
        if not self._core.admit(connection):
            accepted.close()
            return
        if self._tls is not None:
            self._core.queue.charge(HANDSHAKE_COST_S)
        self._run(self._serve(accepted, connection))

    def _pause_accepting(self, error: OSError) -> None:
        """Close the longest idle connection and pause, because no file descriptor is free."""
        if self._core.idle:
            next(iter(self._core.idle)).abort("evicted")
        super()._pause_accepting(error)

    async def _serve(self, accepted: socket.socket, connection: Connection) -> None:
        """Pass the socket to *connection*; this task ends after the handshake."""
        tls = None if self._tls is None else self._tls.current
        limits = self._core.limits
        connect = partial(self._loop.connect_accepted_socket, lambda: connection, accepted)
        try:
            if tls is None:
                await connect()
            else:
                tls.set_alpn_protocols(["http/1.1"])
                await connect(
                    ssl=tls,
                    ssl_handshake_timeout=limits.handshake_timeout_s,
                    ssl_shutdown_timeout=limits.linger_s,
                )
        except (OSError, asyncio.CancelledError):
            connection.abort("handshake")  # ssl.SSLError and TimeoutError are OSErrors
        except Exception:
            self._core.log_fault(f"accepting on {self._listener.endpoint}")
            connection.abort("internal")

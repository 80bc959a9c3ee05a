"""
Accepts connections on one listener, within the limits of the process.

Unlike `loop.create_server`, it counts TLS handshakes as connections, uses the current TLS context for each
connection, pauses when file descriptors run out, and accepts the backlog before a drain, because closing the
listener would reset these connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket

from sidecar.observe.metrics import Metrics
from sidecar.transports.fast.connection import Connection
from sidecar.transports.fast.core import Core
from sidecar.transports.fast.lifetime import LINGER_S
from sidecar.transports.listeners import Listener
from sidecar.transports.tls import TlsContext

ACCEPTS_PER_TURN = 64
"""Connections accepted in one loop turn, so that connection churn does not delay calls."""

PAUSE_S = 0.5
"""How long accepting pauses when the process has no free file descriptor."""

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_log = logging.getLogger("sidecar.transports")


class Acceptor:
    """Accepts the connections of one listener."""

    def __init__(self, core: Core, listener: Listener, tls: TlsContext | None, metrics: Metrics) -> None:
        """Prepare; `start` begins to accept."""
        self._core = core
        self._listener = listener
        self._tls = tls
        self._metrics = metrics
        self._accepted_slot = metrics.slot("sidecar_connections_accepted_total")
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._serving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept."""
        self._pause = None
        self._loop.add_reader(self._listener.socket, self._on_readable)

    def stop(self) -> None:
        """Accept the backlog, then stop accepting and close the listener."""
        while self._accept():
            pass
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.socket)
        self._listener.close()

    def cancel_handshakes(self) -> None:
        """Cancel TLS handshakes in progress."""
        for task in self._serving:
            task.cancel()

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Accept one connection; False = the backlog is empty, or no file descriptor is free."""
        try:
            accepted, address = self._listener.socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause_accepting(error)
                return False
            return True  # the client disconnected before accept (accept(2))
        self._core.values[self._accepted_slot] += 1
        self._admit(accepted, "" if self._listener.endpoint.path else address[0])
        return True

    def _pause_accepting(self, error: OSError) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._metrics.add("sidecar_accept_pauses_total")
        _log.error("accepting on %s pauses: %s", self._listener.endpoint, error.strerror)
        self._loop.remove_reader(self._listener.socket)
        self._pause = self._loop.call_later(PAUSE_S, self.start)

    def _admit(self, accepted: socket.socket, peer: str) -> None:
        core = self._core
        if not core.admit(peer):
            core.values[core.closed_slots["connection_limit"]] += 1
            accepted.close()
            return
        task = self._loop.create_task(self._serve(accepted, peer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, accepted: socket.socket, peer: str) -> None:
        """Pass the socket to a `Connection`; this task ends after the handshake."""
        accepted.setblocking(False)
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
        # The loop closes the socket, but uvloop first waits for the end of a cancelled handshake.
        with contextlib.suppress(OSError):
            accepted.shutdown(socket.SHUT_RDWR)
        connection.fail_handshake()

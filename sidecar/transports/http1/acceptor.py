"""
Accepts connections on one listener, in the server's work queue.

Unlike `loop.create_server`, it counts TLS handshakes as connections, uses the current TLS context for each
connection, paces a flood of connections like other work, and closes idle connections when file descriptors
run out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from functools import partial

from sidecar.transports.http1.connection import Connection
from sidecar.transports.http1.core import HttpCore
from sidecar.transports.listeners import Listener
from sidecar.transports.tls import TlsContext

PAUSE_S = 0.5
"""How long accepting pauses when the process has no free file descriptor."""

HANDSHAKE_COST_S = 0.001
"""The time that a TLS handshake counts for in the server's pace."""

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_log = logging.getLogger("sidecar.http")


class Acceptor:
    """Accepts the connections of one listener. Implements `work.Worker`."""

    source = "listener"

    def __init__(self, core: HttpCore, listener: Listener, tls: TlsContext | None) -> None:
        """Prepare; `start` begins to accept."""
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._tls = tls
        self._pause: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept."""
        self._pause = None
        self._loop.add_reader(self._listener.socket, self._on_readable)

    def stop(self) -> None:
        """Accept the backlog, which closing the listener would reset; then close the listener."""
        while self._accept():
            pass
        if self._pause is not None:
            self._pause.cancel()
        self._core.queue.discard(self)
        self._loop.remove_reader(self._listener.socket)
        self._listener.close()

    def cancel_handshakes(self) -> set[asyncio.Task[None]]:
        """Cancel TLS handshakes in progress; return their tasks."""
        for task in self._handshakes:
            task.cancel()
        return self._handshakes

    def _on_readable(self) -> None:
        self._loop.remove_reader(self._listener.socket)
        self._core.queue.add(self)

    def work(self) -> None:
        """Accept one connection (called by the work queue)."""
        if self._accept():
            self._core.queue.add(self)
        elif self._pause is None:
            self.start()

    def _accept(self) -> bool:
        """Accept one connection; False = the backlog is empty, or accepting pauses (`_pause`)."""
        try:
            accepted, address = self._listener.socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause_accepting(error)
                return False
            return True  # the client disconnected before accept (accept(2))
        accepted.setblocking(False)
        peer = None if self._listener.endpoint.path else (str(address[0]), int(address[1]))
        connection = Connection(self._core, accepted, peer)
        if not self._core.admit(connection):
            accepted.close()
            return True
        if self._tls is not None:
            self._core.queue.charge(HANDSHAKE_COST_S)
        task = self._loop.create_task(self._serve(accepted, connection))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        return True

    def _pause_accepting(self, error: OSError) -> None:
        """Close the longest idle connection and pause, because no file descriptor is free."""
        core = self._core
        core.metrics.add("sidecar_accept_pauses_total")
        _log.error("accepting on %s pauses: %s", self._listener.endpoint, error.strerror)
        if core.idle:
            next(iter(core.idle)).abort("evicted")
        self._pause = self._loop.call_later(PAUSE_S, self.start)

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

"""Accepts the connections of one listener; the HTTP/1.1 server and the fast gRPC server extend it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Coroutine
from typing import Any

from sidecar.observe.metrics import Metrics
from sidecar.transports.listeners import Listener
from sidecar.transports.tls import TlsContext

PAUSE_S = 0.5
"""How long accepting pauses when the process has no free file descriptor."""

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class ListenerAcceptor:
    """
    Accepts connections, and pauses when file descriptors run out.

    Unlike `loop.create_server`, it counts TLS handshakes as connections, uses the current TLS context for
    each connection, and accepts the backlog before a drain, because closing the listener would reset it.
    """

    def __init__(
        self, listener: Listener, tls: TlsContext | None, metrics: Metrics, log: logging.Logger
    ) -> None:
        """Prepare; `start` begins to accept."""
        self._listener = listener
        self._tls = tls
        self._metrics = metrics
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

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

    def cancel_handshakes(self) -> set[asyncio.Task[None]]:
        """Cancel TLS handshakes in progress; return their tasks."""
        for task in self._handshakes:
            task.cancel()
        return self._handshakes

    def _on_readable(self) -> None:
        raise NotImplementedError

    def _admit(self, accepted: socket.socket, address: Any) -> None:
        """Serve the connection *accepted*, or close it if a limit is reached."""
        raise NotImplementedError

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
        self._admit(accepted, address)
        return True

    def _pause_accepting(self, error: OSError) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._metrics.add("sidecar_accept_pauses_total")
        self._log.error("accepting on %s pauses: %s", self._listener.endpoint, error.strerror)
        self._loop.remove_reader(self._listener.socket)
        self._pause = self._loop.call_later(PAUSE_S, self.start)

    def _run(self, handshake: Coroutine[Any, Any, None]) -> None:
        """Run *handshake* in a task, which `cancel_handshakes` can cancel."""
        task = self._loop.create_task(handshake)
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

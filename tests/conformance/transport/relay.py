"""A TCP relay between client and server that counts connections and the server's PING acknowledgements."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from sidecar.transports.server import Endpoint
from tests.waiting import PATIENCE_S

from .wire import ACK, PING


class Relay:
    """Listens on a free port and passes everything on to one server."""

    def __init__(self, target: Endpoint) -> None:
        """Relay to *target*."""
        self._target = (target.host, target.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._listening.getsockname()[1])
        self._changed = threading.Condition()
        self.connections = 0
        self.ping_acks = 0
        self._sockets: list[socket.socket] = []
        self._spawn(self._accept)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until *condition*, a statement about the counts, holds."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), f"not within {PATIENCE_S} s: {what}"

    @staticmethod
    def _spawn(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                self._note("connections")
                self._spawn(self._pump, client, server)
                self._spawn(self._pump_counted, server, client)

    def _note(self, count: str) -> None:
        with self._changed:
            setattr(self, count, getattr(self, count) + 1)
            self._changed.notify_all()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _pump_counted(self, source: socket.socket, sink: socket.socket) -> None:
        """As `_pump`, and read the frame headers that pass."""
        buffer = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
                buffer += data
                while len(buffer) >= 9 and len(buffer) >= (size := 9 + int.from_bytes(buffer[:3], "big")):
                    if buffer[3] == PING and buffer[4] & ACK:
                        self._note("ping_acks")
                    buffer = buffer[size:]
            sink.shutdown(socket.SHUT_WR)

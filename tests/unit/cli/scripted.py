"""A server with scripted answers: cut off, silent, huge; and a relay that loses answers."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.waiting import PATIENCE_S

SILENCE = None
"""Takes a request and never answers it."""
CUT = b""
"""Takes a request and closes the connection."""


def answer(status: int, body: bytes, content_type: str = "application/json", *headers: str) -> bytes:
    """An HTTP answer, after which the connection is closed."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {content_type}", "Connection: close", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class _Listening:
    """Something that takes connections in a thread until it is left."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, name=type(self).__name__)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for writer in [*self._open, self._listener]:
            writer.close()
        self._thread.join(PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_S)
            self._open.append(connection)
            with contextlib.suppress(OSError):
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        raise NotImplementedError


class Scripted(_Listening):
    """Answers the n-th connection with the n-th of *script*; the last one again and again."""

    def __init__(self, *script: bytes | None) -> None:
        """Answer with *script*."""
        super().__init__()
        self._script: Sequence[bytes | None] = script
        self.requests: list[bytes] = []

    def serve(self, connection: socket.socket) -> None:
        """Read one request, and do what the script says."""
        self.requests.append(read_request(connection))
        said = self._script[min(len(self.requests), len(self._script)) - 1]
        if said is not SILENCE:
            connection.sendall(said)
            connection.close()


class LosingRelay(_Listening):
    """Passes requests on to a real server, and loses the answer of the first *losses* of them."""

    def __init__(self, target: str, losses: int) -> None:
        """Relay to *target*, a URL."""
        super().__init__()
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._losses = losses
        self.requests: list[bytes] = []

    def serve(self, connection: socket.socket) -> None:
        """Pass one request on; its answer goes back, or is lost with the connection."""
        request = read_request(connection)
        self.requests.append(request)
        with socket.create_connection(self._target, PATIENCE_S) as upstream:
            upstream.sendall(request)
            reported = read_request(upstream)
        if len(self.requests) > self._losses:
            connection.sendall(reported)
        connection.close()


def read_request(connection: socket.socket) -> bytes:
    """One HTTP message with a Content-Length, or without a body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    length = int(found[1]) if found else 0
    while len(body) < length:
        part = connection.recv(65_536)
        if not part:
            break
        body += part
    return head + b"\r\n\r\n" + body

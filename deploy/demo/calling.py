"""An HTTP client that sends exactly the given headers and path."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 15.0

Header = tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names are lower case, in the order of the answer."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return all values of header *name*."""
        return [value for known, value in self.headers if known == name]

    def one(self, name: str) -> str:
        """
        Return the only value of header *name*.

        Raises:
            AssertionError: the header is missing or repeated.
        """
        values = self.all(name)
        if len(values) != 1:
            raise AssertionError(f"header {name} occurs {len(values)} times in {self}")
        return values[0]

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


class Client:
    """One kept-alive HTTP/1.1 connection to 127.0.0.1, or to a Unix socket."""

    def __init__(self, port: int = 0, path: str = "", timeout_s: float = TIMEOUT_S) -> None:
        """Connect at the first request to TCP *port*, or to the Unix socket at *path*."""
        self._connection: http.client.HTTPConnection
        if path:
            self._connection = _UnixConnection(path, timeout_s)
        else:
            self._connection = _Connection("127.0.0.1", port, timeout=timeout_s)

    def send(
        self, method: str, path: str, headers: Iterable[Header] = (), body: bytes | None = None
    ) -> Answer:
        """
        Send exactly these headers, in this order, after `host`; return the complete answer.

        Raises:
            OSError, http.client.HTTPException: the connection failed; the next request reconnects.
        """
        connection = self._connection
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        pairs = tuple((name.lower(), value) for name, value in response.getheaders())
        return Answer(response.status, pairs, content)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP/1.1 that sends the bytes of a path unchanged, even if they are invalid in a URL."""

    def _encode_request(self, request: str) -> bytes:
        return request.encode("latin-1")


class _UnixConnection(_Connection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


def send(
    port: int, method: str, path: str, headers: Iterable[Header] = (), body: bytes | None = None
) -> Answer:
    """Send one request on a new connection to 127.0.0.1; see `Client.send`."""
    with contextlib.closing(Client(port)) as client:
        return client.send(method, path, headers, body)

"""The interface of one request and its answer for handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from sidecar.transports.http1.messages import Headers, Request, Response


class ExchangeConnection(Protocol):
    """The interface of a connection for its exchange."""

    def begin_answer(self, status: int, headers: Headers) -> None:
        """Begin the answer; `send` must follow."""

    def send(self, data: bytes, is_last: bool) -> None:
        """Send a part of the answer's body."""

    def answer(self, encoded: bytes) -> None:
        """Send a complete answer; see `HttpExchange.answer`."""

    def want_body(self) -> None:
        """Read more of the body."""

    def trust(self) -> None:
        """Release the slot of an authenticated request."""

    def abort(self, reason: str) -> None:
        """Close immediately."""


class Exchange:
    """
    One request and its answer. Output after the connection has closed is dropped.

    `on_change` is called when a part of the body has arrived, or `is_writable` or `is_canceled` becomes true.
    `body` is the part that was read but not taken by the handler. `is_canceled` = the client disconnected or
    did not send its body, so no answer is needed.
    """

    __slots__ = (
        "_connection", "body", "is_answered", "is_begun", "is_body_whole", "is_canceled", "is_writable",
        "on_change", "request",
    )  # fmt: skip

    def __init__(self, request: Request, connection: ExchangeConnection) -> None:
        """Answer *request* on *connection*."""
        self.request = request
        self._connection = connection
        self.body = bytearray()
        self.is_body_whole = not request.body_bytes
        self.is_canceled = False
        self.is_writable = True
        self.is_begun = False
        self.is_answered = False
        self.on_change: Callable[[], None] = _ignore

    def respond(self, response: Response) -> None:
        """Send a complete response."""
        headers = (
            (b"content-type", response.content_type.encode()),
            (b"content-length", str(len(response.body)).encode()),
            (b"cache-control", b"no-store"),
            *response.headers,
        )
        self.begin(response.status, headers)
        self.send(response.body, is_last=True)

    def answer(self, encoded: bytes) -> None:
        """See `rpc.http.HttpExchange.answer`."""
        self.is_begun = self.is_answered = True
        self._connection.answer(encoded)

    def begin(self, status: int, headers: Headers) -> None:
        """
        Begin an answer in parts; without a Content-Length it is chunked, or closing the connection ends it.

        Raises:
            ValueError: a header has an invalid character.
        """
        self._connection.begin_answer(status, headers)
        self.is_begun = True

    def send(self, data: bytes, is_last: bool) -> None:
        """Send a part of the body; wait for `is_writable` before the next one."""
        self.is_answered = is_last
        self._connection.send(data, is_last)

    def want_body(self) -> None:
        """Read more of the body; `on_change` is called when it has arrived."""
        self._connection.want_body()

    def trust(self) -> None:
        """Mark the caller as authenticated: the request no longer counts against `requests_max`."""
        self._connection.trust()

    def abort(self) -> None:
        """Close the connection, which is the only way to show the client that the answer is incomplete."""
        self._connection.abort("internal")


Handler: TypeAlias = Callable[[Exchange], None]
"""Answers an exchange, immediately or later. The server calls it after the head, before the body."""


def _ignore() -> None:
    """Do nothing."""

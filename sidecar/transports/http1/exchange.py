"""One request and its answer, as a handler sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from sidecar.transports.http1.messages import Headers, Request, Response


class Wire(Protocol):
    """What an exchange needs of its connection."""

    def begin_answer(self, status: int, headers: Headers) -> None:
        """Begin the answer; `send` follows."""

    def send(self, data: bytes, is_last: bool) -> None:
        """Send a part of the answer's body."""

    def answer(self, encoded: bytes) -> None:
        """Send a whole answer; see `HttpExchange.answer`."""

    def want_body(self) -> None:
        """Read on: the handler waits for the body."""

    def trust(self) -> None:
        """The caller is known and trusted: give its place to another stranger."""

    def abort(self, reason: str) -> None:
        """Close without a word."""


class Exchange:
    """
    One request and its answer. What is sent after the connection has gone goes nowhere.

    `on_change` is called when a part of the body has come, when `is_writable` or `is_gone` becomes true.
    `body` holds what was read and not yet taken. `is_gone` = the client has gone, or does not send its
    body: nobody waits for an answer.
    """

    __slots__ = (
        "_wire", "body", "is_answered", "is_begun", "is_body_whole", "is_gone", "is_writable", "on_change",
        "request",
    )  # fmt: skip

    def __init__(self, request: Request, wire: Wire) -> None:
        """*request*, to be answered through *wire*."""
        self.request = request
        self._wire = wire
        self.body = bytearray()
        self.is_body_whole = not request.body_bytes
        self.is_gone = False
        self.is_writable = True
        self.is_begun = False
        self.is_answered = False
        self.on_change: Callable[[], None] = _nothing

    def respond(self, response: Response) -> None:
        """Answer with a whole response."""
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
        self._wire.answer(encoded)

    def begin(self, status: int, headers: Headers) -> None:
        """
        Begin an answer of parts; without a Content-Length its end is told in another way.

        Raises:
            ValueError: a header would break the message.
        """
        self._wire.begin_answer(status, headers)
        self.is_begun = True

    def send(self, data: bytes, is_last: bool) -> None:
        """Send a part of the body; wait for `is_writable` before the next one."""
        self.is_answered = is_last
        self._wire.send(data, is_last)

    def want_body(self) -> None:
        """Have more of the body read; `on_change` tells when it has come."""
        self._wire.want_body()

    def trust(self) -> None:
        """Say that the caller is trusted: the request no longer counts against `requests_max`."""
        self._wire.trust()

    def abort(self) -> None:
        """Break the connection: only that tells the client that a part of an answer is not the whole."""
        self._wire.abort("internal")


Handler: TypeAlias = Callable[[Exchange], None]
"""Answers an exchange, at once or later. It is called once the head is there, before the body."""


def _nothing() -> None:
    """Nobody wants to be told."""

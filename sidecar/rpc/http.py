"""The seam between the HTTP/1.1 transport and services that answer its requests themselves."""

from __future__ import annotations

from typing import Protocol

TRUST = "sidecar.trust"
"""
Key in the ASGI scope's `extensions`: a function to call once the caller has shown a valid token.

Requests of callers that nobody knows yet share few places; a request that is trusted gives its place back.
"""


class HttpRequest(Protocol):
    """The head of a request, as services read it. Header names are in lower case."""

    @property
    def method(self) -> str:
        """In upper case."""

    @property
    def path(self) -> bytes:
        """As it was sent, without the query."""

    @property
    def query(self) -> bytes:
        """Without the question mark; empty if there is none."""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names and values in the order in which they came."""

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the peer; None = it came through a Unix socket."""


class HttpExchange(Protocol):
    """One request and its answer."""

    @property
    def request(self) -> HttpRequest:
        """What is asked."""

    def answer(self, encoded: bytes) -> None:
        """
        Answer with a whole response, once.

        *encoded* is the status in three digits, then the header lines with Content-Length, an empty line
        and the body. The transport adds the status line, Date and Connection; HEAD gets no body.
        """

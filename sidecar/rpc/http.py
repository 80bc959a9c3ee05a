"""The interface of HTTP requests for services, and the ASGI extension of the HTTP transport."""

from __future__ import annotations

from typing import Protocol

TRUST = "sidecar.trust"
"""
Key in the ASGI scope's `extensions`: a function that the application calls once the caller is authenticated.

Unauthenticated requests share `HttpLimits.requests_max` slots; an authenticated request frees its slot.
"""


class HttpRequest(Protocol):
    """The head of a request. Header names are in lower case."""

    @property
    def method(self) -> str:
        """The method, in upper case."""

    @property
    def path(self) -> bytes:
        """The raw path, without the query."""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names and values, in the order of the request."""

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the peer; None = a Unix socket."""


class HttpExchange(Protocol):
    """One request and its answer."""

    @property
    def request(self) -> HttpRequest:
        """The head of the request."""

    def answer(self, encoded: bytes) -> None:
        """
        Send the complete response; call it once.

        *encoded* is the status in three digits, then the header lines with Content-Length, an empty line
        and the body. The transport adds the status line, Date and Connection; HEAD gets no body.
        """

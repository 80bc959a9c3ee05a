"""Requests and responses of HTTP/1.1, and the encoding of response heads."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
CHUNKED = -1
"""`Request.body_bytes` of a chunked body."""

Headers = tuple[tuple[bytes, bytes], ...]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@dataclass(slots=True)
class Request:
    """
    The head of one request. Header names are in lower case; `path` and `query` are raw.

    `peer` is the address and port of the client; None = a Unix socket. `body_bytes` is the length of the
    body, or CHUNKED.
    """

    method: str
    target: bytes
    path: bytes
    query: bytes
    headers: Headers
    version: str = "1.1"
    body_bytes: int = 0
    is_kept_alive: bool = True
    expects_continue: bool = False
    peer: tuple[str, int] | None = None
    is_tls: bool = False

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of the header *name*, which is in lower case."""
        return [value for header, value in self.headers if header == name]


class Response(NamedTuple):
    """One complete response."""

    status: int
    content_type: str
    body: bytes
    headers: Headers = ()


class HttpError(Exception):
    """A request cannot be served; the connection answers `status` and closes."""

    def __init__(self, status: int, detail: str) -> None:
        """Answer *status*; *detail* says to the client what is wrong."""
        super().__init__(detail)
        self.status = status


def problem(status: int, title: str, detail: str, headers: Headers = ()) -> Response:
    """Return an error document (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Response(status, PROBLEM_JSON, json.dumps(body).encode() + b"\n", headers)


def refusal(error: HttpError) -> Response:
    """Return the response to a request that cannot be served."""
    return problem(error.status, HTTPStatus(error.status).phrase, str(error))


def response_bytes(encoded: bytes, now_s: float, connection: bytes) -> bytes:
    """
    Complete the response *encoded* (see `rpc.http.HttpExchange.answer`), whose headers are safe.

    *connection* is the line of the Connection header, or empty.
    """
    status = _STATUS_LINES[int(encoded[:3])]
    return b"%b%b%b%b" % (status, _date_line(int(now_s)), connection, encoded[3:])


@lru_cache(maxsize=2)
def _date_line(now_s: int) -> bytes:
    return f"date: {formatdate(now_s, usegmt=True)}\r\n".encode()


def head_bytes(status: int, headers: Headers, now_s: float, is_last: bool) -> bytes:
    """
    Return status line and header fields of a response, with Date (RFC 9110 6.6.1).

    Raises:
        ValueError: a header has an invalid character.
    """
    lines = [_STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()]
    for name, value in headers:
        if not _NAME.fullmatch(name) or _UNSAFE.search(value):
            raise ValueError(f"the response header {name!r} has an invalid character")
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(_date_line(int(now_s)))
    if is_last:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)

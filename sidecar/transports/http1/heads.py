"""
Parses the head of a request with httptools (llhttp), within limits.

The parser only gets complete heads from the connection's bounded buffer: it buffers nothing, and its result
does not depend on how the head was split into reads.
"""

from __future__ import annotations

import httptools

from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import CHUNKED, Headers, HttpError, Request

END_OF_HEAD = b"\r\n\r\n"
_VERSIONS = ("1.0", "1.1")
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
"""Headers that this module reads; the others are for handlers."""


class _Events:
    """Collects the events of the parser."""

    __slots__ = ("framing", "headers", "heads", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.framing: list[tuple[bytes, bytes]] = []
        self.heads = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        field = name.lower(), value
        self.headers.append(field)
        if field[0] in _FRAMING:
            self.framing.append(field)

    def on_headers_complete(self) -> None:
        self.heads += 1


def find_head(inbox: bytearray, searched: int, limits: HttpLimits) -> int:
    """
    Return the length of the head at the start of *inbox*; 0 = the head is incomplete.

    Args:
        searched: the number of bytes at the last search.

    Raises:
        HttpError: the head is too long, or does not begin with a method, such as TLS to a plain listener.
    """
    if inbox and not 0x41 <= inbox[0] <= 0x5A and inbox != b"\r":  # methods begin with A to Z
        raise HttpError(400, "The request does not begin with a method. Is it TLS to a plain-text port?")
    found = inbox.find(END_OF_HEAD, max(0, searched - len(END_OF_HEAD) + 1))
    end = 0 if found < 0 else found + len(END_OF_HEAD)
    length = end or len(inbox)
    line_max = limits.request_line_bytes_max
    if length > line_max + 1 and inbox.find(b"\r\n", 0, line_max + 2) < 0:
        raise HttpError(414, f"The request line has more than {line_max} bytes.")
    if length > limits.head_bytes_max:
        raise HttpError(431, f"The request's head has more than {limits.head_bytes_max} bytes.")
    return end


def parse_head(head: bytes, limits: HttpLimits, peer: tuple[str, int] | None, is_tls: bool) -> Request:
    """
    Parse *head*, including the empty line at its end.

    Raises:
        HttpError: the head is malformed, ambiguous or not supported.
    """
    if head.count(b"\r\n") - 2 > limits.header_fields_max:
        raise HttpError(431, f"The request has more than {limits.header_fields_max} header fields.")
    events = _Events()
    parser = httptools.HttpRequestParser(events)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # RFC 9110 7.8: a server may ignore it
    except httptools.HttpParserError as error:
        raise HttpError(400, f"The request is not valid HTTP/1.1: {error}.") from None
    version, method = parser.get_http_version(), parser.get_method().decode()
    if version not in _VERSIONS:
        raise HttpError(505, "Only HTTP/1.0 and HTTP/1.1 are supported.")
    if events.heads != 1:
        raise HttpError(400, "The end of the request's head is ambiguous.")
    if method == "CONNECT":
        raise HttpError(501, "CONNECT is not supported.")
    headers, framing = tuple(events.headers), tuple(events.framing)
    _require_one_host(framing, version)
    path, query = _split_target(events.target)
    return Request(
        method,
        events.target,
        path,
        query,
        headers,
        version,
        _body_bytes(framing, version, limits),
        _is_kept_alive(framing, version),
        _expects_continue(framing, version),
        peer,
        is_tls,
    )


def _require_one_host(headers: Headers, version: str) -> None:
    """Refuse two Host headers, and none in HTTP/1.1 (RFC 9112 3.2)."""
    hosts = len([name for name, _ in headers if name == b"host"])
    if hosts > 1 or (not hosts and version == "1.1"):
        raise HttpError(400, "The request must have exactly one Host header.")


def _split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of *target*, in origin or absolute form (RFC 9112 3.2)."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise HttpError(400, "The request target is neither a path nor a URL.") from None
    if b"#" in target or not target.startswith((b"/", b"http://", b"https://")):
        raise HttpError(400, "The request target is neither a path nor a URL.")
    return url.path or b"/", url.query or b""


def _body_bytes(headers: Headers, version: str, limits: HttpLimits) -> int:
    """Return the length of the body, or CHUNKED; the parser has refused two lengths, and both together."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            if version == "1.0":
                raise HttpError(400, "HTTP/1.0 has no Transfer-Encoding.")
            if value.strip().lower() != b"chunked":
                raise HttpError(501, "The only supported Transfer-Encoding is 'chunked'.")
            return CHUNKED
        if name == b"content-length":
            length = int(value)
    if length > limits.body_bytes_max:
        raise HttpError(413, f"The body has more than {limits.body_bytes_max} bytes.")
    return length


def _is_kept_alive(headers: Headers, version: str) -> bool:
    """Return whether the connection is persistent (RFC 9112 9.3)."""
    values = b",".join([value for name, value in headers if name == b"connection"]).lower()
    if not values:
        return version == "1.1"
    options = {option.strip() for option in values.split(b",")}
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)


def _expects_continue(headers: Headers, version: str) -> bool:
    for name, value in headers:
        if name == b"expect" and version == "1.1":
            if value.lower() != b"100-continue":
                raise HttpError(417, "The only supported expectation is '100-continue'.")
            return True
    return False

"""
All header lists that this server sends.

ngh2 does not check outgoing headers, so all text from a request or a handler passes through `encode_message`.
HPACK indexes constant lists: the headers and trailers of OK take two bytes and one byte.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast.engine import Headers

CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
STATUS_200: Final = (b":status", b"200")

OK_HEADERS: Final[Headers] = (STATUS_200, CONTENT_TYPE)
OK_TRAILERS: Final[Headers] = ((b"grpc-status", b"0"),)

ACCEPT_ENCODING: Final = (b"grpc-accept-encoding", b"identity")

MESSAGE_CHARACTERS_MAX: Final = 512
"""Maximum length of a grpc-message before encoding, which takes up to 12 bytes per character."""

STATUS_HEADERS_BYTES_MAX: Final = 12 * MESSAGE_CHARACTERS_MAX + 512
"""Maximum size of a status's header list (peers accept 8 to 16 KiB)."""

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


def encode_message(detail: str) -> bytes:
    """
    Return the value of `grpc-message` for *detail* (PROTOCOL-HTTP2.md, "Status-Message").

    >>> encode_message("café 100% a\\nb")
    b'caf%C3%A9 100%25 a%0Ab'
    """
    text = detail[:MESSAGE_CHARACTERS_MAX].encode("utf-8", "replace")
    if _PLAIN.issuperset(text):
        return text
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in text)


@lru_cache(maxsize=256)
def status_trailers(code: StatusCode, detail: str) -> Headers:
    """Return the trailers that end an answer with *code*."""
    status = (b"grpc-status", b"%d" % code)
    return (status, (b"grpc-message", encode_message(detail))) if detail else (status,)


@lru_cache(maxsize=256)
def status_headers(code: StatusCode, detail: str, *, names_encodings: bool = False) -> Headers:
    """
    Return a complete answer without a message (Trailers-Only).

    The HTTP status is 200 (PROTOCOL-HTTP2.md). Proxies retry only answers of this form.
    """
    extra = (ACCEPT_ENCODING,) if names_encodings else ()
    return (STATUS_200, CONTENT_TYPE, *extra, *status_trailers(code, detail))


def http_error(status: int) -> tuple[Headers, bytes]:
    """Return headers and body for a request that is not gRPC; *status* is 405 or 415."""
    body = _HTTP_BODIES[status]
    headers: Headers = (
        (b":status", b"%d" % status),
        (b"content-type", b"text/plain"),
        (b"content-length", b"%d" % len(body)),
        *(((b"allow", b"POST"),) if status == 405 else ()),
    )
    return headers, body


_HTTP_BODIES: Final = {
    405: b"This is a gRPC server: the method must be POST.\n",
    415: b"This is a gRPC server: the content-type must be application/grpc.\n",
}

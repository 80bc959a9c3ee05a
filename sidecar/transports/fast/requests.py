"""
Parses request headers: finds the method, the deadline and errors.

Sources: grpc/doc/PROTOCOL-HTTP2.md "Requests", statuscodes.md. ngh2 has checked pseudo-headers, names,
connection headers and `te` (RFC 9113 8.2, 8.3).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sidecar.rpc.calls import ExchangeMethod, Method, UnaryMethod
from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast.engine import Headers
from sidecar.transports.server import TransportLimits

TIMEOUT_S_MAX: Final = 86_400.0
"""Maximum deadline; longer ones are shortened, because 99999999H is 11,000 years."""

FIELD_OVERHEAD_BYTES: Final = 32
"""Bytes that a header field counts for in addition to its octets (RFC 9113 6.5.2)."""

_joined_fields: Final = chain.from_iterable


_READ_FIELDS: Final = frozenset((b":method", b":path", b"content-type", b"grpc-timeout", b"grpc-encoding"))
"""The headers that `read_request` reads."""


class Refusal:
    """The answer to a request without a handler: a gRPC status, or an HTTP status if it is not gRPC."""

    __slots__ = ("code", "detail", "http_status")

    def __init__(self, code: StatusCode, detail: str, http_status: int = 200) -> None:
        """Answer with *code* and *detail*, or with *http_status* if it is not 200."""
        self.code = code
        self.detail = detail
        self.http_status = http_status


class Request:
    """
    Parsed request headers, shared by all calls with equal headers.

    `refusal` is the answer if there is no handler; `timeout_s` None = no deadline; `octets` is the size of
    the headers (RFC 9113 6.5.2).
    """

    __slots__ = (
        "handle",
        "headers",
        "is_encoded",
        "is_exchange",
        "is_streaming",
        "method",
        "octets",
        "refusal",
        "timeout_s",
    )

    def __init__(
        self,
        headers: Headers,
        octets: int,
        method: Method | None,
        refusal: Refusal | None,
        timeout_s: float | None = None,
        is_encoded: bool = False,
    ) -> None:
        """Store a request for *method*, or a request that gets *refusal*."""
        self.headers = headers
        self.octets = octets
        self.handle: Callable[[bytes, Any], bytes | None] = _unreachable if method is None else method.handle
        self.method = method
        self.is_exchange = type(method) is ExchangeMethod
        self.is_streaming = method is not None and type(method) is not UnaryMethod
        self.refusal = refusal
        self.timeout_s = timeout_s
        self.is_encoded = is_encoded

    @property
    def path(self) -> str:
        """The method's path, for messages."""
        return "" if self.method is None else self.method.path

    def follow(self, headers: Headers, octets_max: int) -> Request | None:
        """
        Return the request of *headers* if they differ from this request only in values of text metadata.

        None = they must be parsed. A tracing proxy sends the same fields in the same order with other trace
        ids; this comparison takes a third of the time of parsing.
        """
        known = self.headers
        if self.refusal is not None or len(headers) != len(known):
            return None
        octets = self.octets
        for field, known_field in zip(headers, known, strict=True):
            if field != known_field:
                name, value = field
                if name != known_field[0] or name in _READ_FIELDS or name[-4:] == b"-bin":
                    return None
                octets += len(value) - len(known_field[1])
        if octets > octets_max:
            return None
        return Request(headers, octets, self.method, None, self.timeout_s, self.is_encoded)

    def metadata(self, name: str) -> str | None:
        """
        Return the value of metadata *name*, repeats joined by ','; None = absent.

        Bytes outside ASCII, which metadata must not have, become `\\xNN`.
        """
        if not _is_metadata(name):
            return None
        wanted = name.encode()
        values = [value for key, value in self.headers if key == wanted]
        return b",".join(values).decode("ascii", "backslashreplace") if values else None


def _is_metadata(name: str) -> bool:
    # PROTOCOL-HTTP2.md, "Custom-Metadata": the other names belong to the protocol.
    return not name.startswith((":", "grpc-")) and name not in ("content-type", "te")


def read_request(headers: Headers, methods: Mapping[bytes, Method], limits: TransportLimits) -> Request:
    """Parse *headers*: find the method and the deadline, or the refusal."""
    fields = dict(headers)
    joined = b"".join(_joined_fields(headers))
    octets = len(joined) + FIELD_OVERHEAD_BYTES * len(headers)
    method = methods.get(fields.get(b":path", b""))
    refusal = _refuse_form(fields, method) or _refuse_size(headers, octets, limits)
    if refusal is None and b"-bin" in joined and not _are_binary_fields_base64(headers):
        refusal = Refusal(StatusCode.INTERNAL, "a '-bin' metadata value is not base64")
    if refusal is not None:
        return Request(headers, octets, None, refusal)
    timeout = fields.get(b"grpc-timeout")
    is_encoded = fields.get(b"grpc-encoding", b"identity") != b"identity"
    return Request(
        headers, octets, method, None, None if timeout is None else parse_timeout(timeout), is_encoded
    )


def _refuse_form(fields: Mapping[bytes, bytes], method: Method | None) -> Refusal | None:
    if fields.get(b":method") != b"POST":
        return Refusal(StatusCode.UNIMPLEMENTED, "", http_status=405)
    if not is_grpc(fields.get(b"content-type", b"")):
        return Refusal(StatusCode.UNIMPLEMENTED, "", http_status=415)
    if method is None:
        return Refusal(StatusCode.UNIMPLEMENTED, "unknown service or method")
    if b"grpc-timeout" not in fields:
        return None
    timeout_s = parse_timeout(fields[b"grpc-timeout"])
    if timeout_s is None:
        return Refusal(
            StatusCode.INTERNAL, "grpc-timeout is invalid; it must be 1 to 8 digits and one of H M S m u n"
        )
    if timeout_s <= 0.0:
        return Refusal(StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
    return None


def _refuse_size(headers: Headers, octets: int, limits: TransportLimits) -> Refusal | None:
    if octets <= limits.header_list_bytes_max and len(headers) <= limits.header_fields_max:
        return None
    return Refusal(
        StatusCode.RESOURCE_EXHAUSTED,
        f"the request has {len(headers)} header fields of {octets} bytes; at most "
        f"{limits.header_fields_max} fields of {limits.header_list_bytes_max} bytes are allowed",
    )


def _unreachable(_message: bytes, _call: object) -> bytes | None:
    raise AssertionError("a refused request has no handler")


def is_grpc(content_type: bytes) -> bool:
    """
    Return whether *content_type* is `application/grpc`, with or without `+subtype` and parameters.

    >>> is_grpc(b"application/grpc+proto"), is_grpc(b"application/grpc-web")
    (True, False)
    """
    if content_type == b"application/grpc":
        return True
    return content_type[:16].lower() == b"application/grpc" and content_type[16:17] in (b"", b"+", b";")


_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@lru_cache(maxsize=1_024)
def parse_timeout(value: bytes) -> float | None:
    """
    Return the seconds of a `grpc-timeout`, at most a day; None = malformed.

    >>> parse_timeout(b"200m"), parse_timeout(b"99999999H"), parse_timeout(b"1.5S")
    (0.2, 86400.0, None)
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        return None
    return min(int(match[1]) * _UNIT_S[match[2]], TIMEOUT_S_MAX)


def _are_binary_fields_base64(headers: Headers) -> bool:
    return all(
        _is_base64(piece)
        for name, value in headers
        if name.endswith(b"-bin")
        for piece in value.split(b",")  # repeats may be joined
    )


def _is_base64(value: bytes) -> bool:
    bare = value.strip(b" ").rstrip(b"=")
    try:
        binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)
    except binascii.Error:
        return False
    return True

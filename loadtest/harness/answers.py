"""Reads answers of each protocol into one form; the common cases without decoding the whole message."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse
from google.protobuf.message import DecodeError

from sidecar.v1.decision_pb2 import DecideResponse

MISSING = -1
UNREADABLE = 0
"""The status of an answer that is not one of its protocol."""

_LIMIT, _REMAINING, _RESET = b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"
_ALLOW = (b"\x0a\x00\x1a", b"\x1a")  # CheckResponse: status 0 or none, then ok_response
_STATUS_AT_MOST = 64
_DENIED_STATUS = b"\x0a\x03\x08"  # DeniedHttpResponse.status.code, a varint of two bytes


class Answer(NamedTuple):
    """
    The result of one call: an HTTP status, and what the answer says of the limit.

    `limit` is in requests per minute (RLS: per unit), `reset_s` in seconds since the epoch; `MISSING` = the
    answer does not say it.
    """

    status: int
    limit: int = MISSING
    remaining: int = MISSING
    reset_s: float = MISSING


Read = Callable[[bytes, float], Answer]
"""Reads a message that arrived at a time, in seconds since the epoch."""


def read_check(message: bytes, now_s: float) -> Answer:
    """Read a CheckResponse of Envoy's ext_authz."""
    if message.startswith(_ALLOW):
        status = 200
    else:
        at = message.find(_DENIED_STATUS, 0, _STATUS_AT_MOST)
        status = message[at + 3] & 0x7F | message[at + 4] << 7 if at >= 0 else UNREADABLE
    # HeaderValue: the key, then field 2 (value) with its length; the names are unique in an answer.
    limit, remaining, reset = (_value(message, name) for name in (_LIMIT, _REMAINING, _RESET))
    if status == UNREADABLE or MISSING in (limit, remaining, reset):
        return _decode_check(message)
    return Answer(status, limit, remaining, reset)


def _value(message: bytes, name: bytes) -> int:
    at = message.find(name) + len(name)
    if at < len(name) or message[at : at + 1] != b"\x12":
        return MISSING
    digits = message[at + 2 : at + 2 + message[at + 1]]
    return int(digits) if digits.isdigit() else MISSING


def _decode_check(message: bytes) -> Answer:
    """Decode the whole message, as any server may have written it."""
    try:
        response = CheckResponse.FromString(message)
    except DecodeError:
        return Answer(UNREADABLE)
    if response.status.code == 0:
        options, status = response.ok_response.response_headers_to_add, 200
    else:
        options, status = response.denied_response.headers, response.denied_response.status.code or 403
    headers = {
        option.header.key.lower(): option.header.value or option.header.raw_value.decode("latin-1")
        for option in options
    }
    return Answer(status, *(_number(headers, name.decode()) for name in (_LIMIT, _REMAINING, _RESET)))


def _number(headers: Mapping[str, str], name: str) -> int:
    value = headers.get(name, "")
    return int(value) if value.isdigit() else MISSING


def read_decision(message: bytes, now_s: float) -> Answer:
    """Read a DecideResponse of `sidecar.v1`."""
    try:
        response = DecideResponse.FromString(message)
    except DecodeError:
        return Answer(UNREADABLE)
    if not response.HasField("reset_at"):
        return Answer(response.http_status)
    reset_s = response.reset_at.seconds + response.reset_at.nanos / 1e9
    return Answer(response.http_status, response.limit, response.remaining, reset_s)


def read_rate_limit(message: bytes, now_s: float) -> Answer:
    """Read a RateLimitResponse of Envoy's rate-limit service: OK is 200, OVER_LIMIT is 429."""
    try:
        response = RateLimitResponse.FromString(message)
    except DecodeError:
        return Answer(UNREADABLE)
    codes = {RateLimitResponse.OK: 200, RateLimitResponse.OVER_LIMIT: 429}
    status = codes.get(response.overall_code, UNREADABLE)
    for limited in response.statuses:
        if limited.HasField("current_limit"):
            wait = limited.duration_until_reset
            reset_s = now_s + wait.seconds + wait.nanos / 1e9
            unit = limited.current_limit.requests_per_unit
            return Answer(status, unit, limited.limit_remaining, math.ceil(reset_s))
    return Answer(status)


def read_http(message: bytes, now_s: float) -> Answer:
    """
    Read an HTTP answer, whose head is in lower case.

    Behind auth_request the sidecar's answer has its status in `x-auth-status`.
    """
    stated = _field(message, b"x-auth-status")
    status = stated if stated != MISSING else int(message[9:12])
    return Answer(status, *(_field(message, name) for name in (_LIMIT, _REMAINING, _RESET)))


def _field(message: bytes, name: bytes) -> int:
    at = message.find(b"\n" + name + b":")
    if at < 0:
        return MISSING
    value = message[at + len(name) + 2 : at + len(name) + 24].split(b"\r", 1)[0].strip()
    return int(value) if value.isdigit() else MISSING


READERS: Mapping[str, Read] = {
    "ext_authz": read_check,
    "native": read_decision,
    "rls": read_rate_limit,
    "forward_auth": read_http,
    "http": read_http,
}
"""By the `protocol` of a scenario."""

"""Reading answers: quick reading and decoding agree, and what an answer does not say is missing."""

from __future__ import annotations

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from loadtest.harness.answers import (
    MISSING,
    UNREADABLE,
    Answer,
    read_check,
    read_decision,
    read_http,
    read_rate_limit,
)
from sidecar.v1.decision_pb2 import DecideResponse

LIMITS = {"x-ratelimit-limit": "600", "x-ratelimit-remaining": "7", "x-ratelimit-reset": "1795517611"}


def headers(values: dict[str, str], *, is_raw: bool = False) -> list[HeaderValueOption]:
    """Headers as Envoy's messages have them; *is_raw* = as bytes."""
    options = []
    for key, value in values.items():
        option = HeaderValueOption()
        option.header.key = key
        if is_raw:
            option.header.raw_value = value.encode()
        else:
            option.header.value = value
        options.append(option)
    return options


def check(status: int, options: list[HeaderValueOption]) -> bytes:
    """A CheckResponse with an HTTP status."""
    response = CheckResponse()
    if status == 200:
        response.status.code = 0
        response.ok_response.response_headers_to_add.extend(options)
    else:
        response.status.code = 7
        response.denied_response.status.code = status
        response.denied_response.headers.extend(options)
    return bytes(response.SerializeToString())


@pytest.mark.parametrize("status", [200, 401, 403, 429, 503])
@pytest.mark.parametrize("is_raw", [False, True])
def test_answers__check__status_and_limits(status: int, is_raw: bool) -> None:
    """The headers are found in both of their forms."""
    message = check(status, headers(LIMITS, is_raw=is_raw))
    assert read_check(message, 0) == Answer(status, 600, 7, 1795517611)


@pytest.mark.parametrize("missing", LIMITS)
def test_answers__check__a_missing_header_is_missing(missing: str) -> None:
    """It is not taken from anywhere else."""
    left = {name: value for name, value in LIMITS.items() if name != missing}
    assert MISSING in read_check(check(429, headers(left)), 0)


def test_answers__other_bytes_are_unreadable() -> None:
    """They are no verdict."""
    for read in (read_check, read_decision, read_rate_limit):
        assert read(b"\xff\xff\xff", 0).status == UNREADABLE


def test_answers__native() -> None:
    """The reset is exact to the microsecond; without a bucket it is missing."""
    response = DecideResponse(http_status=429, limit=600, remaining=0)
    assert read_decision(response.SerializeToString(), 0) == Answer(429)
    response.reset_at.seconds, response.reset_at.nanos = 100, 500_000_000
    assert read_decision(response.SerializeToString(), 0) == Answer(429, 600, 0, 100.5)


def test_answers__rate_limit() -> None:
    """The reset is a duration from now on; a server that fills no status says nothing of the limit."""
    response = RateLimitResponse(overall_code=RateLimitResponse.OVER_LIMIT)
    assert read_rate_limit(response.SerializeToString(), 0) == Answer(429)
    status = response.statuses.add(limit_remaining=3)
    status.current_limit.requests_per_unit = 10
    status.duration_until_reset.seconds = 5
    assert read_rate_limit(response.SerializeToString(), 1_000.2) == Answer(429, 10, 3, 1_006)


def test_answers__http() -> None:
    """Behind auth_request the status is in a header."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in LIMITS.items())
    message = f"http/1.1 403 forbidden\r\n{lines}x-auth-status: 429\r\n\r\n".encode()
    assert read_http(message, 0) == Answer(429, 600, 7, 1795517611)
    assert read_http(b"http/1.1 403 forbidden\r\n\r\n", 0) == Answer(403)

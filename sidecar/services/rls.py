"""
Envoy's global rate limiting, `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`.

Messages come from xds-protos; `domain.rate_limits` implements their semantics. A call that cannot be
answered ends with UNAVAILABLE or INVALID_ARGUMENT: Envoy then applies its `failure_mode_deny`.
"""

from __future__ import annotations

from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf.message import DecodeError

from sidecar.domain.rate_limits.decisions import (
    UNLIMITED_REMAINING,
    Descriptor,
    InvalidRequestError,
    LimitAnswer,
    LimitRequest,
    Status,
)
from sidecar.domain.rate_limits.rules import Limit
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.rate_limiter import PlannedCall, RateLimiter
from sidecar.stores.protocols import StoreFault

SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
SHOULD_RATE_LIMIT: Final = f"/{SERVICE}/ShouldRateLimit"
HEALTH_SERVICES: Final = (SERVICE, "ratelimit")
"""The names in the health service; the second one is the name of envoyproxy/ratelimit."""

_OK, _OVER_LIMIT = RateLimitResponse.OK, RateLimitResponse.OVER_LIMIT

_FAULTS: Final = {
    StoreFault.UNAVAILABLE: "the store of the counters is not available",
    StoreFault.TIMEOUT: "the store of the counters did not answer in time",
    StoreFault.OVERLOADED: "the store of the counters has no room for more",
    StoreFault.SUPERSEDED: "the store of the counters is not available",
}


PLANS_MAX: Final = 8_192
"""Calls whose plan is kept: proxies repeat the same bytes for the same client."""
PLANNED_BYTES_MAX: Final = 1_024
"""A longer message is decoded each time."""


class RateLimitService:
    """Answers Envoy's ShouldRateLimit calls with the answers of a `RateLimiter`."""

    def __init__(self, limiter: RateLimiter) -> None:
        """Ask *limiter*."""
        self._limiter = limiter
        self._plans: dict[bytes, PlannedCall] = {}
        self._limits = limiter.limits  # by which the plans were made

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The methods to bind to a transport."""
        return (UnaryMethod(SHOULD_RATE_LIMIT, self.should_rate_limit),)

    def should_rate_limit(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one ShouldRateLimit.

        Raises:
            RpcError: INTERNAL, the message is not a RateLimitRequest; INVALID_ARGUMENT, a value is invalid;
                UNAVAILABLE, the counters could not be asked.
        """
        if self._limits is not self._limiter.limits:
            self._plans.clear()
            self._limits = self._limiter.limits
        planned = self._plans.get(message) or self._plan(message)
        answer = self._limiter.limit(planned, call.deadline_s, _reply, call)
        if answer is None:
            return None
        if type(answer) is StoreFault:
            raise RpcError(StatusCode.UNAVAILABLE, _FAULTS[answer])
        assert type(answer) is LimitAnswer
        return encode(answer)

    def _plan(self, message: bytes) -> PlannedCall:
        try:
            planned = self._limiter.plan(limit_request(RateLimitRequest.FromString(message)))
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a RateLimitRequest") from None
        except InvalidRequestError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        if len(message) <= PLANNED_BYTES_MAX:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()  # those in use come back at once
            self._plans[message] = planned
        return planned


def _reply(answer: LimitAnswer | StoreFault, call: UnaryCall) -> None:
    if type(answer) is StoreFault:
        call.fail(StatusCode.UNAVAILABLE, _FAULTS[answer])
        return
    assert type(answer) is LimitAnswer
    call.reply(encode(answer))


def limit_request(message: RateLimitRequest) -> LimitRequest:
    """*message* as the domain reads it."""
    descriptors = []
    for descriptor in message.descriptors:
        override = None
        if descriptor.HasField("limit"):
            override = descriptor.limit.requests_per_unit, descriptor.limit.unit
        hits = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else None
        entries = [(entry.key, entry.value) for entry in descriptor.entries]
        descriptors.append(Descriptor(entries, hits, override))
    return LimitRequest(message.domain, descriptors, message.hits_addend)


def encode(answer: LimitAnswer) -> bytes:
    """
    A serialized RateLimitResponse.

    Its statuses are put together here: building messages takes twice as long as the rest of a call.
    """
    parts = [_OVERALL_OVER if answer.is_over else _OVERALL_OK]
    for status in answer.statuses:
        limit = status.limit
        if limit is None:
            parts.append(_UNMATCHED)
        elif limit.unit is None:
            parts.append(_UNLIMITED)
        else:
            body = _status(status, limit)
            parts += (b"\x12", _varint(len(body)), body)
    if answer.headers or answer.metadata is not None:
        rest = RateLimitResponse()
        for name, value in answer.headers:
            rest.response_headers_to_add.append(HeaderValue(key=name, value=value))
        if answer.metadata is not None:
            rest.dynamic_metadata.update(answer.metadata)
        parts.append(rest.SerializeToString())
    return b"".join(parts)


_OVERALL_OK: Final = RateLimitResponse(overall_code=RateLimitResponse.OK).SerializeToString()
_OVERALL_OVER: Final = RateLimitResponse(overall_code=RateLimitResponse.OVER_LIMIT).SerializeToString()
_OK_STATUS: Final = RateLimitResponse.DescriptorStatus(code=RateLimitResponse.OK)
_UNMATCHED: Final = RateLimitResponse(statuses=[_OK_STATUS]).SerializeToString()
_UNLIMITED: Final = RateLimitResponse(
    statuses=[
        RateLimitResponse.DescriptorStatus(code=RateLimitResponse.OK, limit_remaining=UNLIMITED_REMAINING)
    ]
).SerializeToString()

_VARINTS: Final = tuple(bytes((number,)) for number in range(128))
LIMIT_FIELDS_MAX: Final = 4_096
_limit_fields: dict[tuple[int, int, str, bool], bytes] = {}
"""Code and current_limit of a status, serialized; requests may bring limits, so they are bounded."""


def _status(status: Status, limit: Limit) -> bytes:
    """A DescriptorStatus: code and current_limit, then fields 3 (limit_remaining) and 4 (duration)."""
    assert limit.unit is not None  # unlimited statuses are made once
    key = (limit.requests, limit.unit, limit.name, status.is_over)
    head = _limit_fields.get(key) or _limit_field(key)
    remaining, reset = status.remaining, _varint(status.reset_s)
    left = b"\x18" + _varint(remaining) if remaining else b""
    duration = b"\x22%c\x08%b" % (len(reset) + 1, reset) if status.reset_s else b"\x22\x00"
    return head + left + duration


def _limit_field(key: tuple[int, int, str, bool]) -> bytes:
    requests, unit, name, is_over = key
    message = RateLimitResponse.DescriptorStatus(code=_OVER_LIMIT if is_over else _OK)
    message.current_limit.requests_per_unit = requests
    message.current_limit.unit = unit
    message.current_limit.name = name
    if len(_limit_fields) >= LIMIT_FIELDS_MAX:
        _limit_fields.clear()
    field: bytes = message.SerializeToString()
    _limit_fields[key] = field
    return field


def _varint(number: int) -> bytes:
    """
    A number that is not negative, as protobuf writes it.

    >>> _varint(300)
    b'\\xac\\x02'
    """
    if number < 128:
        return _VARINTS[number]
    output = bytearray()
    while number > 127:
        output.append(number & 127 | 128)
        number >>= 7
    output.append(number)
    return bytes(output)

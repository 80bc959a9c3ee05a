"""
Envoy's global rate limiting, `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`.

Messages come from xds-protos; what they mean is `domain.rate_limits`. A call that cannot be answered ends as
UNAVAILABLE or INVALID_ARGUMENT: Envoy then goes by its `failure_mode_deny`.
"""

from __future__ import annotations

from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf.message import DecodeError

from sidecar.domain.rate_limits.decisions import (
    Descriptor,
    InvalidRequestError,
    LimitAnswer,
    LimitRequest,
    Status,
)
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.rate_limiter import RateLimiter
from sidecar.stores.protocols import StoreFault

SERVICE = "envoy.service.ratelimit.v3.RateLimitService"
SHOULD_RATE_LIMIT = f"/{SERVICE}/ShouldRateLimit"
HEALTH_SERVICES = (SERVICE, "ratelimit")
"""What the health service knows it by; the second one is envoyproxy/ratelimit's own name."""

_OK, _OVER_LIMIT = RateLimitResponse.OK, RateLimitResponse.OVER_LIMIT

_FAULTS = {
    StoreFault.UNAVAILABLE: "the store of the counters is not available",
    StoreFault.TIMEOUT: "the store of the counters did not answer in time",
    StoreFault.OVERLOADED: "the store of the counters has no room for more",
    StoreFault.SUPERSEDED: "the store of the counters is not available",
}


class RateLimitService:
    """Answers Envoy's ShouldRateLimit calls with the answers of a `RateLimiter`."""

    def __init__(self, limiter: RateLimiter) -> None:
        """Ask *limiter*."""
        self._limiter = limiter

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The methods to bind to a transport."""
        return (UnaryMethod(SHOULD_RATE_LIMIT, self.should_rate_limit),)

    def should_rate_limit(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one ShouldRateLimit.

        Raises:
            RpcError: INTERNAL, the message is no RateLimitRequest; INVALID_ARGUMENT, it cannot be meant;
                UNAVAILABLE, the counters could not be asked.
        """
        try:
            request = limit_request(RateLimitRequest.FromString(message))
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a RateLimitRequest") from None
        try:
            answer = self._limiter.limit(request, call.deadline_s, _reply, call)
        except InvalidRequestError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        if answer is None:
            return None
        if type(answer) is StoreFault:
            raise RpcError(StatusCode.UNAVAILABLE, _FAULTS[answer])
        assert type(answer) is LimitAnswer
        return encode(answer)


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
    """A serialized RateLimitResponse."""
    response = RateLimitResponse(overall_code=_OVER_LIMIT if answer.is_over else _OK)
    for status in answer.statuses:
        _fill(response.statuses.add(), status)
    for name, value in answer.headers:
        response.response_headers_to_add.append(HeaderValue(key=name, value=value))
    if answer.metadata is not None:
        response.dynamic_metadata.update(answer.metadata)
    message: bytes = response.SerializeToString()
    return message


def _fill(message: RateLimitResponse.DescriptorStatus, status: Status) -> None:
    message.code = _OVER_LIMIT if status.is_over else _OK
    limit = status.limit
    if limit is None:
        return
    message.limit_remaining = status.remaining
    if limit.unit is None:
        return
    message.current_limit.requests_per_unit = limit.requests
    message.current_limit.unit = int(limit.unit)
    message.current_limit.name = limit.name
    message.duration_until_reset.seconds = status.reset_s

"""
Envoy's external authorization, `envoy.service.auth.v3.Authorization/Check`.

A denial is always gRPC OK with a non-zero status code **and** a denied_response: Envoy lets a
request through when either is missing. Messages come from xds-protos.
"""

from __future__ import annotations

from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.message import DecodeError

from sidecar.domain.answers import Answer, AnswerStyle, Decision, Headers
from sidecar.domain.policy import AccessRequest
from sidecar.observe.build import IS_COMPILED
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.check_requests import access_request, read_check
from sidecar.services.decider import Decider
from sidecar.services.templates import AnswerTemplates

_parse: Final = CheckRequest.FromString
_IS_COMPILED: Final = IS_COMPILED

CHECK: Final = "/envoy.service.auth.v3.Authorization/Check"

_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class ExtAuthzService:
    """Answers Envoy's Check calls with the decisions of a `Decider`."""

    def __init__(self, decider: Decider, style: AnswerStyle) -> None:
        """Render answers in *style*."""
        self._decider = decider
        self._templates = AnswerTemplates(style, encode)

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The methods to bind to a transport."""
        return (UnaryMethod(CHECK, self.check),)

    def check(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one Check.

        Raises:
            RpcError: INTERNAL, the message is not a CheckRequest.
        """
        request = self.read(message)
        decision = self._decider.decide(request, call.deadline_s, self._reply, (call, request))
        return None if decision is None else self.render(decision, request)

    def read(self, message: bytes) -> AccessRequest:
        """
        Read a CheckRequest.

        Raises:
            RpcError: INTERNAL, the message is not a CheckRequest.
        """
        reads_peer = self._decider.policy.client_address.reads_peer
        request = read_check(message, reads_peer) if _IS_COMPILED else None
        if request is not None:
            return request
        try:
            return access_request(_parse(message).attributes, reads_peer)
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a CheckRequest") from None

    def render(self, decision: Decision, request: AccessRequest) -> bytes:
        """Return the CheckResponse that answers *request* with *decision*."""
        return self._templates.render(decision, request)

    def _reply(self, decision: Decision, context: tuple[UnaryCall, AccessRequest]) -> None:
        call, request = context
        call.reply(self.render(decision, request))


def encode(answer: Answer) -> bytes:
    """Return *answer* as a serialized CheckResponse."""
    # Templates compare messages byte by byte, and protobuf maps have no fixed order otherwise.
    message: bytes = check_response(answer).SerializeToString(deterministic=True)
    return message


def check_response(answer: Answer) -> CheckResponse:
    """
    Return *answer* as a CheckResponse.

    For a denied gRPC call Envoy takes the status from our header `grpc-status`. Without the header it derives
    UNAVAILABLE from 429, and clients retry that.
    """
    response = CheckResponse()
    response.status.code = answer.decision.reason.grpc_code
    if answer.is_allowed:
        allowed = response.ok_response
        allowed.headers.extend(_options(answer.upstream_headers))
        allowed.headers_to_remove.extend(answer.removed_headers)
        allowed.response_headers_to_add.extend(_options(answer.client_headers))
    else:
        denied: DeniedHttpResponse = response.denied_response
        denied.status.CopyFrom(HttpStatus(code=answer.status))
        denied.headers.extend(_options(answer.client_headers))
        denied.body = answer.body.decode()
    response.dynamic_metadata.update(answer.metadata)
    return response


def _options(headers: Headers) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=_OVERWRITE)
        for name, value in headers
    ]

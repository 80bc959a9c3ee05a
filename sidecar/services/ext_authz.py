"""
Envoy's external authorization, `envoy.service.auth.v3.Authorization/Check`.

A denial is always gRPC OK with a non-zero status code **and** a denied_response: Envoy lets a
request through when either is missing. Messages come from xds-protos.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.message import DecodeError

from sidecar.domain.answers import Answer, AnswerStyle, Decision, Headers
from sidecar.domain.policy import AccessRequest
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decider import Decider
from sidecar.services.templates import AnswerTemplates

DIALECT: Final = "ext_authz"
"""The name of this service in the decision log."""
_parse: Final = CheckRequest.FromString

CHECK: Final = "/envoy.service.auth.v3.Authorization/Check"

_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class ExtAuthzService:
    """Answers Envoy's Check calls with the decisions of a `Decider`."""

    def __init__(self, decider: Decider, style: AnswerStyle) -> None:
        """Render answers in *style*."""
        self._decider = decider
        self.render = AnswerTemplates(style, encode).render

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The methods to bind to a transport."""
        return (UnaryMethod(CHECK, self.check),)

    def check(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one Check.

        Raises:
            RpcError: INTERNAL, the message is not a CheckRequest.
        """
        try:
            attributes = _parse(message).attributes
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a CheckRequest") from None
        request = access_request(attributes, self._decider.policy.client_address.reads_peer)
        decision = self._decider.decide(request, call.deadline_s, self._reply, (call, request))
        return None if decision is None else self.render(decision, request)

    def _reply(self, decision: Decision, context: tuple[UnaryCall, AccessRequest]) -> None:
        call, request = context
        call.reply(self.render(decision, request))


def access_request(attributes: AttributeContext, reads_peer: bool = True) -> AccessRequest:
    """
    Convert Envoy's *attributes* to the policy's form; without the peer unless *reads_peer*.

    Envoy joins repeated headers with ',' in `headers`. With `encode_raw_headers` it sends `header_map`
    instead, with each header apart, so they are joined here.
    """
    http = attributes.request.http
    headers = http.headers
    if not headers and http.HasField("header_map"):
        headers = _joined(http.header_map.headers)
    peer = attributes.source.address.socket_address.address if reads_peer else ""
    scope = attributes.context_extensions.get("scope")
    return AccessRequest(http.method, http.path, headers.get, peer, scope, None, None, DIALECT)


def _joined(headers: Iterable[HeaderValue]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for header in headers:
        name = header.key.lower()
        value = header.raw_value.decode("latin-1") if header.raw_value else header.value
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


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

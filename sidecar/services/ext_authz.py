"""
Envoy's external authorization, `envoy.service.auth.v3.Authorization/Check`.

A denial is always gRPC OK with a non-zero status code **and** a denied_response: Envoy lets a
request through when either is missing. Messages come from xds-protos.
"""

from __future__ import annotations

from collections.abc import Mapping

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.message import DecodeError

from sidecar.domain.answers import (
    AnswerStyle,
    Headers,
    Limits,
    denial_headers,
    fallback_headers,
    grpc_status_headers,
    http_status,
    identity_headers,
    limit_headers,
    problem_body,
)
from sidecar.domain.decisions import DECISION_ID_LENGTH, Reason, retry_after_s, seconds_up
from sidecar.domain.policy import AccessRequest
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decider import Decider, Decision, limits_of
from sidecar.services.templates import Template, compile_template

CHECK = "/envoy.service.auth.v3.Authorization/Check"
TEMPLATES_PER_INTEGRATION_MAX = 256

_GRPC = "application/grpc"
_OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class ExtAuthzService:
    """Answers Envoy's Check calls with the decisions of a `Decider`."""

    def __init__(self, decider: Decider, style: AnswerStyle) -> None:
        """Render answers in *style*."""
        self._decider = decider
        self._style = style
        self._unknown_caller: dict[tuple[Reason, str, bool], Template] = {}

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The methods to bind to a transport."""
        return (UnaryMethod(CHECK, self.check),)

    def check(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one Check.

        Raises:
            RpcError: INTERNAL, the message is no CheckRequest.
        """
        try:
            attributes = CheckRequest.FromString(message).attributes
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a CheckRequest") from None
        request = access_request(attributes, self._decider.policy.client_address.reads_peer)
        decision = self._decider.decide(request, call.deadline_s, self._reply, (call, request))
        return None if decision is None else self.render(decision, request)

    def _reply(self, decision: Decision, context: tuple[UnaryCall, AccessRequest]) -> None:
        call, request = context
        call.reply(self.render(decision, request))

    def render(self, decision: Decision, request: AccessRequest) -> bytes:
        """A serialised CheckResponse for *decision* about *request*."""
        id, reason, evaluation, taken, fallback = decision
        _, integration, credential, key_headers, _, scope, detail = evaluation
        is_grpc = reason is not Reason.OK and is_grpc_type(request.header("content-type"))
        if integration is None:
            return self._unknown_caller_template(decision, is_grpc) % {b"id": id.encode()}
        if reason is Reason.IP_NOT_ALLOWED:
            # The refused address stands in the text, so no template could be used again.
            return _serialise(check_response(decision, id, limits_of(decision), self._style, is_grpc))
        remaining = reset = wait = b""
        if taken is not None:
            remaining, reset = b"%d" % taken.remaining, b"%d" % seconds_up(taken.reset_at_us)
            wait = b"%d" % retry_after_s(taken.retry_after_us) if taken.retry_after_us > 0 else b""
        # What stands in the message and is no variable, and the variables' widths. The registry's
        # objects outlive this service and its style, so the service is part of the key.
        key = (
            self, reason.word, credential, key_headers, scope if reason is Reason.SCOPE_MISSING else detail,
            len(remaining), len(reset), len(wait), fallback, is_grpc,
        )  # fmt: skip
        template = integration.fragments.get(key)
        if template is None:
            template = self._compile(decision, len(remaining), len(reset), len(wait), is_grpc)
            if len(integration.fragments) >= TEMPLATES_PER_INTEGRATION_MAX:
                integration.fragments.clear()
            integration.fragments[key] = template
        return template % {b"id": id.encode(), b"remaining": remaining, b"reset": reset, b"wait": wait}

    def _unknown_caller_template(self, decision: Decision, is_grpc: bool) -> Template:
        key = decision.reason, decision.evaluation.detail, is_grpc
        template = self._unknown_caller.get(key)
        if template is None:
            template = compile_template(
                lambda values: _serialise(check_response(decision, values["id"], None, self._style, is_grpc)),
                {"id": DECISION_ID_LENGTH},
            )
            self._unknown_caller[key] = template
        return template

    def _compile(self, decision: Decision, remaining: int, reset: int, wait: int, is_grpc: bool) -> Template:
        """The template of *decision* for figures of these widths."""
        own = limits_of(decision)

        def render(values: Mapping[str, str]) -> bytes:
            limits = own and Limits(
                own.limit, values["remaining"], values["reset"], values["wait"], own.is_share
            )
            return _serialise(check_response(decision, values["id"], limits, self._style, is_grpc))

        widths = {"id": DECISION_ID_LENGTH, "remaining": remaining, "reset": reset, "wait": wait}
        return compile_template(render, widths)


def access_request(attributes: AttributeContext, reads_peer: bool = True) -> AccessRequest:
    """
    What Envoy asks, as the policy reads it; without the peer when nothing *reads_peer*.

    `headers` holds repeats joined with ','; with `encode_raw_headers` it is empty and `header_map`
    holds every header apart, so they are joined here.
    """
    http = attributes.request.http
    headers = http.headers
    if not headers and http.HasField("header_map"):
        headers = _joined(http.header_map.headers)
    peer = attributes.source.address.socket_address.address if reads_peer else ""
    scope = attributes.context_extensions.get("scope")
    # A named tuple's own constructor takes three times as long.
    return tuple.__new__(AccessRequest, (http.method, http.path, headers.get, peer, scope, None, None))


def _joined(headers: list[HeaderValue]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for header in headers:
        name = header.key.lower()
        value = header.raw_value.decode("latin-1") if header.raw_value else header.value
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def is_grpc_type(content_type: str | None) -> bool:
    """Whether a request with this content type is a gRPC call to Envoy: gRPC-Web, for example, is not."""
    return content_type is not None and (content_type == _GRPC or content_type.startswith(f"{_GRPC}+"))


def check_response(
    decision: Decision, decision_id: str, limits: Limits | None, style: AnswerStyle, is_grpc: bool = False
) -> CheckResponse:
    """
    The CheckResponse of *decision*, with *decision_id* and *limits* in place of its own.

    For a gRPC call Envoy turns a denial into a status: into that of our header `grpc-status`, else into one
    that it works out from the HTTP status, which for 429 would be UNAVAILABLE, and clients try that again.
    """
    response = CheckResponse()
    evaluation, reason = decision.evaluation, decision.reason
    response.status.code = reason.grpc_code
    mark = _options(fallback_headers(decision.fallback))
    if reason.grpc_code == 0:
        allowed = response.ok_response
        allowed.headers.extend(_options(identity_headers(evaluation, decision_id)))
        allowed.headers_to_remove.extend(evaluation.key_headers)
        if limits is not None:
            allowed.response_headers_to_add.extend(_options(limit_headers(limits, style)))
        allowed.response_headers_to_add.extend(mark)
    else:
        denied: DeniedHttpResponse = response.denied_response
        denied.status.CopyFrom(HttpStatus(code=http_status(reason, style)))
        denied.headers.extend(_options(denial_headers(reason, decision_id, limits, style)))
        denied.headers.extend(mark)
        if is_grpc:
            denied.headers.extend(_options(grpc_status_headers(reason, evaluation, limits, style)))
        else:
            denied.body = problem_body(reason, evaluation, decision_id, limits, style).decode()
    response.dynamic_metadata.update(
        {
            "decision_id": decision_id,
            "verdict": reason.verdict.value,
            "reason": reason.word,
            "integration": evaluation.integration.id if evaluation.integration else "",
            "credential": evaluation.credential.id if evaluation.credential else "",
        }
    )
    if decision.fallback is not None:
        response.dynamic_metadata.update({"fallback": decision.fallback.policy.value})
    return response


def _serialise(response: CheckResponse) -> bytes:
    # Deterministic, because a template compares messages byte by byte and maps have no order.
    message: bytes = response.SerializeToString(deterministic=True)
    return message


def _options(headers: Headers) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=_OVERWRITE)
        for name, value in headers
    ]

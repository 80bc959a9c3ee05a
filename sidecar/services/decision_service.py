"""
The native `sidecar.v1.DecisionService`, for callers other than proxies.

proto/sidecar/v1/decision.proto documents it. It shares the `Decider` with the proxies' services, and
therefore rules, buckets and counters; only the messages differ.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.domain.answers import AnswerStyle, Decision, answer_to, limit_rpm_of
from sidecar.domain.cidr import AddressError, parse_client_address
from sidecar.domain.client_address import PeerAddress
from sidecar.domain.decisions import Reason, Verdict
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.policy import AccessRequest, Policy
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decider import Decider
from sidecar.v1 import decision_pb2 as pb

SERVICE: Final = "sidecar.v1.DecisionService"
DECIDE: Final = f"/{SERVICE}/Decide"
DECIDE_BATCH: Final = f"/{SERVICE}/DecideBatch"

DIALECT: Final = "native"
"""The name of this service in the decision log."""
BATCH_REQUESTS_MAX: Final = 256
"""Maximum requests of one DecideBatch: deciding them blocks the event loop for a few milliseconds."""

_VERDICTS: Final = {verdict: pb.Verdict.Value(f"VERDICT_{verdict.name}") for verdict in Verdict}
_REASONS: Final = {reason: pb.Reason.Value(f"REASON_{reason.name}") for reason in Reason}
_FALLBACKS: Final = {policy: pb.Fallback.Value(f"FALLBACK_{policy.name}") for policy in FailPolicy}
_STATED_ADDRESS: Final = PeerAddress(
    "client_ip"
)  # the caller states the client's address; headers are not read


class DecisionService:
    """Answers native callers with the decisions of a `Decider`."""

    def __init__(self, decider: Decider, style: AnswerStyle) -> None:
        """Render the answers for end clients in *style*."""
        self._decider = decider
        self._style = style

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The methods to bind to a transport."""
        return UnaryMethod(DECIDE, self.decide), UnaryMethod(DECIDE_BATCH, self.decide_batch)

    def decide(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one Decide.

        Raises:
            RpcError: INTERNAL, the message is not a DecideRequest; INVALID_ARGUMENT, a field is invalid.
        """
        try:
            request = pb.DecideRequest.FromString(message)
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a DecideRequest") from None
        decider = self._decider
        try:
            asked = access_request(request, decider.policy)
        except InvalidFieldError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        decision = decider.decide(asked, call.deadline_s, self._reply, call)
        return None if decision is None else self._serialize(decision)

    def decide_batch(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one DecideBatch; all requests are checked before the first one is decided.

        Raises:
            RpcError: as for `decide`; also INVALID_ARGUMENT for more than BATCH_REQUESTS_MAX requests.
        """
        try:
            requests = pb.DecideBatchRequest.FromString(message).requests
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a DecideBatchRequest") from None
        if len(requests) > BATCH_REQUESTS_MAX:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                f"requests: the call has {len(requests)} requests; at most {BATCH_REQUESTS_MAX} are allowed;"
                " send several calls",
            )
        decider = self._decider
        asked = [_access_request_at(index, request, decider.policy) for index, request in enumerate(requests)]
        batch = _Batch(len(asked), call, self._style)
        for index, request in enumerate(asked):
            decision = decider.decide(request, call.deadline_s, batch.settle, index)
            if decision is not None:
                batch.put(decision, index)
        return batch.message() if batch.is_complete else None

    def _reply(self, decision: Decision, call: UnaryCall) -> None:
        call.reply(self._serialize(decision))

    def _serialize(self, decision: Decision) -> bytes:
        response = pb.DecideResponse()
        fill(response, decision, self._style)
        return response.SerializeToString()


class _Batch:
    """
    Collects the answers of one DecideBatch, and replies when the last one has arrived.

    No task and no future waits. The store bounds each wait, and the call drops a reply after its end.
    """

    __slots__ = ("_call", "_missing", "_response", "_responses", "_style")

    def __init__(self, size: int, call: UnaryCall, style: AnswerStyle) -> None:
        self._call = call
        self._style = style
        self._missing = size
        self._response = pb.DecideBatchResponse()
        self._responses = [self._response.responses.add() for _ in range(size)]

    @property
    def is_complete(self) -> bool:
        return not self._missing

    def put(self, decision: Decision, index: int) -> None:
        fill(self._responses[index], decision, self._style)
        self._missing -= 1

    def settle(self, decision: Decision, index: int) -> None:
        self.put(decision, index)
        if self.is_complete:
            self._call.reply(self.message())

    def message(self) -> bytes:
        return self._response.SerializeToString()


class InvalidFieldError(ValueError):
    """A field of a request is invalid; the message is '<field>: <what is wrong and what to do>'."""


def access_request(request: pb.DecideRequest, policy: Policy) -> AccessRequest:
    """
    Convert *request* to the policy's form.

    Raises:
        InvalidFieldError: a mistake of the caller itself, not of its client.
    """
    api_key, scope = request.api_key, request.scope
    if api_key and request.headers:
        raise InvalidFieldError("headers: must be empty when api_key is set; send the key in one place only")
    if scope and policy.route_named(scope) is None:
        raise InvalidFieldError(
            "scope: must be 'category:read' or 'category:write' of a configured category, or 'none'"
        )
    if not scope:
        for field, value in (("method", request.method), ("path", request.path)):
            if not value:
                raise InvalidFieldError(f"{field}: is empty; set it to select the route, or set scope")
    if request.client_ip:
        _check_address(request.client_ip)
    return AccessRequest(
        request.method,
        request.path or "/",
        _by_lower_name(request).get,
        request.client_ip,
        scope or None,
        api_key or None,
        _STATED_ADDRESS,
        DIALECT,
    )


def _access_request_at(index: int, request: pb.DecideRequest, policy: Policy) -> AccessRequest:
    try:
        return access_request(request, policy)
    except InvalidFieldError as error:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"requests[{index}].{error}") from None


def _check_address(text: str) -> None:
    try:
        parse_client_address(text)
    except AddressError as error:
        raise InvalidFieldError(f"client_ip: {error}; leave client_ip empty if it is unknown") from None


def _by_lower_name(request: pb.DecideRequest) -> dict[str, str]:
    """Return the headers by lower-case name; names that differ only in case are joined as repeats."""
    headers: dict[str, str] = {}
    for spelling, value in request.headers.items():
        name = spelling.lower()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _set_us(time: Timestamp | Duration, time_us: int) -> None:
    """Set *time* as `FromMicroseconds` does, but without its 2 µs; *time_us* is not negative."""
    seconds, rest_us = divmod(time_us, 1_000_000)
    time.seconds = seconds
    time.nanos = rest_us * 1_000


def fill(response: pb.DecideResponse, decision: Decision, style: AnswerStyle) -> None:
    """Write *decision* into the empty message *response*."""
    reason, evaluation, taken = decision.reason, decision.evaluation, decision.taken
    response.verdict = _VERDICTS[reason.verdict]
    response.reason = _REASONS[reason]
    response.decision_id = decision.id
    if evaluation.integration is not None and evaluation.credential is not None:
        response.integration_id = evaluation.integration.id
        response.credential_id = evaluation.credential.id
        if taken is not None:
            response.limit = limit_rpm_of(decision)
            response.remaining = taken.remaining
            _set_us(response.reset_at, taken.reset_at_us)
            if taken.retry_after_us > 0:
                _set_us(response.retry_after, taken.retry_after_us)
    if decision.fallback is not None:
        response.fallback = _FALLBACKS[decision.fallback.policy]
    if decision.would_deny is not None:
        response.would_deny = _REASONS[decision.would_deny]
    answer = answer_to(decision, style)
    response.http_status = answer.status
    response.headers.update(answer.client_headers)
    response.body = answer.body.decode()
    if (
        evaluation.key_headers and answer.is_allowed
    ):  # others do not pass headers on, and need not pay for these
        response.upstream_headers.update(answer.upstream_headers)
        response.removed_headers.extend(answer.removed_headers)

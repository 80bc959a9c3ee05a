"""
The self-service answer to an integration, requested with its API key: `GET /whoami` and `DescribeCaller`.

Read-only: it looks into the bucket and takes nothing. It is limited by itself, so that it is no way around a
quota: each integration may ask 60 times a minute in each process.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from sidecar.domain.answers import AnswerStyle, Decision, answer_to, retry_after_s
from sidecar.domain.bucket import Level, Quota, Taken, draw
from sidecar.domain.cidr import format_address
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest, Evaluation
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.rpc.http import HttpExchange, HttpRequest
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decider import Decider
from sidecar.services.decision_service import SERVICE, InvalidFieldError, access_request
from sidecar.services.forward_auth import encode, encoded_response
from sidecar.services.recent_refusals import RecentRefusals
from sidecar.stores.protocols import StoreFault
from sidecar.stores.registry.file.registry_records import iso_time
from sidecar.v1 import decision_pb2 as pb

DESCRIBE_CALLER = f"/{SERVICE}/DescribeCaller"
QUOTA = Quota.per_minute(60, 20)
INTEGRATIONS_MAX = 10_000
"""Integrations whose calls are counted; past it the one that asked first is forgotten."""
NOTE = (
    "Refusals by one process of the platform since it started; it does not know those by other processes."
    " Ask again to reach another one."
)


class CallerRefusedError(Exception):
    """The caller is no known integration; `decision` says why."""

    def __init__(self, decision: Decision) -> None:
        """Refuse by *decision*."""
        super().__init__(decision.reason.public_label)
        self.decision = decision


class TooOftenError(Exception):
    """The integration sent too many of these requests; it may send one after `wait_s`."""

    def __init__(self, wait_s: int) -> None:
        """Refuse for *wait_s* seconds."""
        super().__init__(f"An integration may ask 60 times a minute who it is; retry in {wait_s} s.")
        self.wait_s = wait_s


class CallerDescriber:
    """Describes callers to themselves, by the registry and the buckets of a `Decider`."""

    def __init__(self, decider: Decider) -> None:
        """Take note of refusals from now on."""
        self._decider = decider
        self._refusals = decider.refusals = RecentRefusals(decider.clock_us())
        self._levels: dict[str, Level] = {}

    def describe(
        self, request: AccessRequest, done: Callable[[dict[str, object]], None]
    ) -> dict[str, object] | None:
        """
        Return the answer to the caller of *request*, or None and call *done* with it after a round trip.

        Raises:
            CallerRefusedError: the key is not accepted.
            TooOftenError: the integration has asked too often.
        """
        decider = self._decider
        evaluation = decider.identify(request)
        integration = evaluation.integration
        if integration is None:
            raise CallerRefusedError(decider.refuse(evaluation.reason, evaluation.detail))
        wait_us = self._wait_us(integration)
        if wait_us:
            raise TooOftenError(retry_after_s(wait_us))
        outcome = decider.peek(
            integration, lambda outcome: done(description(evaluation, outcome, self._refusals))
        )
        return None if outcome is None else description(evaluation, outcome, self._refusals)

    def _wait_us(self, integration: CompiledIntegration) -> int:
        """How long the integration must wait until its next request; 0 = it need not wait."""
        level = self._levels.pop(integration.id, None)
        taken, stored = draw(level, QUOTA, 1, self._decider.clock_us())
        level = stored or level
        if level is not None:
            self._levels[integration.id] = level
        if len(self._levels) > INTEGRATIONS_MAX:
            del self._levels[next(iter(self._levels))]
        return 0 if taken.admitted else taken.retry_after_us


def description(
    evaluation: Evaluation, outcome: Taken | StoreFault, refusals: RecentRefusals
) -> dict[str, object]:
    """
    The answer to a known caller; *outcome* is a peek into its bucket.

    `remaining` and `reset_at` are null when the store does not answer. `is_allowed` is null for a suspended
    integration, whose allowlist is not checked.
    """
    integration, credential = evaluation.integration, evaluation.credential
    assert integration is not None
    assert credential is not None
    record = integration.record
    address = evaluation.client_address
    is_allowed = None if integration.is_suspended else evaluation.reason is not Reason.IP_NOT_ALLOWED
    known = outcome if type(outcome) is Taken else None
    expires_at_us = credential.expires_at_us
    return {
        "integration": {"id": integration.id, "name": integration.name, "status": record.status.value},
        "credential": {
            "id": credential.id,
            "expires_at": None if expires_at_us is None else iso_time(expires_at_us),
        },
        "scopes": sorted(map(str, integration.scopes)),
        "rate_limit": {
            "limit_rpm": integration.limit_rpm,
            "burst": record.quota.burst,
            "remaining": None if known is None else known.remaining,
            "reset_at": None if known is None else iso_time(known.reset_at_us),
        },
        "client_address": {
            "address": None if address is None else format_address(address),
            "is_allowlist_enabled": integration.allowlist is not None,
            "is_allowed": is_allowed,
        },
        "refusals": {
            "since": iso_time(refusals.since_us),
            "note": NOTE,
            "latest": [
                {
                    "at": iso_time(refusal.at_us),
                    "reason": refusal.reason.public_label,
                    "status": refusal.reason.http_status,
                    "method": refusal.method,
                    "path": refusal.path,
                    "decision_id": refusal.decision_id,
                }
                for refusal in refusals.of(integration.id)
            ],
        },
    }


class WhoAmI:
    """The page /whoami of the forward-auth listener."""

    def __init__(
        self,
        describer: CallerDescriber,
        style: AnswerStyle,
        caller_of: Callable[[HttpRequest], AccessRequest],
    ) -> None:
        """Refuse unknown callers in *style*; *caller_of* reads who calls."""
        self._describer = describer
        self._style = style
        self._caller_of = caller_of

    def serve(self, exchange: HttpExchange) -> None:
        """Answer one request, from the caller itself or through a proxy."""
        try:
            described = self._describer.describe(
                self._caller_of(exchange.request), lambda described: _answer(exchange, described)
            )
        except CallerRefusedError as error:
            exchange.answer(encode(answer_to(error.decision, self._style)))
        except TooOftenError as error:
            exchange.answer(_too_often(error))
        else:
            if described is not None:
                _answer(exchange, described)


def _answer(exchange: HttpExchange, described: dict[str, object]) -> None:
    body = json.dumps(described, indent=2).encode() + b"\n"
    headers = [("content-type", "application/json"), ("cache-control", "no-store")]
    exchange.answer(encoded_response(200, headers, body))


def _too_often(error: TooOftenError) -> bytes:
    problem = {
        "type": "about:blank",
        "title": "Too many calls of /whoami",
        "status": 429,
        "detail": str(error),
    }
    headers = [("content-type", "application/problem+json"), ("retry-after", str(error.wait_s))]
    return encoded_response(429, headers, json.dumps(problem).encode())


class DescribeCallerMethod:
    """The method `DescribeCaller` of the native service."""

    def __init__(self, describer: CallerDescriber, decider: Decider, style: AnswerStyle) -> None:
        """Refuse unknown callers with the text of *style*."""
        self._describer = describer
        self._decider = decider
        self._style = style

    def method(self) -> UnaryMethod:
        """The method to bind to a transport."""
        return UnaryMethod(DESCRIBE_CALLER, self.handle)

    def handle(self, message: bytes, call: UnaryCall) -> bytes | None:
        """
        Handle one DescribeCaller.

        Raises:
            RpcError: INTERNAL or INVALID_ARGUMENT, as for `Decide`; UNAUTHENTICATED, the key is not accepted;
                RESOURCE_EXHAUSTED, the caller asks too often; UNAVAILABLE, the registry is not loaded.
        """
        try:
            asked = self._request(pb.DescribeCallerRequest.FromString(message), call)
            described = self._describer.describe(asked, lambda described: call.reply(_encoded(described)))
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a DescribeCallerRequest") from None
        except InvalidFieldError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        except TooOftenError as error:
            raise RpcError(StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        except CallerRefusedError as error:
            reason, answer = error.decision.reason, answer_to(error.decision, self._style)
            detail: str = json.loads(answer.body)["detail"]
            raise RpcError(StatusCode(reason.grpc_code), detail) from None
        return None if described is None else _encoded(described)

    def _request(self, request: pb.DescribeCallerRequest, call: UnaryCall) -> AccessRequest:
        asked = access_request(
            pb.DecideRequest(
                api_key=request.api_key, headers=request.headers, client_ip=request.client_ip, scope="none"
            ),
            self._decider.policy,
        )
        if request.api_key or request.headers:
            return asked
        return AccessRequest("", "/", call.metadata, asked.peer, address_rule=asked.address_rule)


def _encoded(described: dict[str, object]) -> bytes:
    return ParseDict(described, pb.DescribeCallerResponse()).SerializeToString()

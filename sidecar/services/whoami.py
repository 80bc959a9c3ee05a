"""
`GET /whoami`: an integration asks with its own API key who it is and what it may do.

Read-only: it looks into the bucket and takes nothing. It is limited by itself, so that it is no way around a
quota: each integration may ask 60 times a minute in each process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from sidecar.domain.answers import AnswerStyle, answer_to
from sidecar.domain.bucket import Level, Quota, Taken, draw
from sidecar.domain.cidr import format_address
from sidecar.domain.decisions import Reason, retry_after_s
from sidecar.domain.policy import AccessRequest, Evaluation
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.rpc.http import HttpExchange, HttpRequest
from sidecar.services.decider import Decider
from sidecar.services.forward_auth import encode, encoded_response
from sidecar.stores.protocols import StoreFault
from sidecar.stores.registry.file.registry_records import iso_time

QUOTA = Quota.per_minute(60, 20)
INTEGRATIONS_MAX = 10_000
"""Integrations whose calls are counted; past it the one that asked first is forgotten."""


class _Waiting(NamedTuple):
    exchange: HttpExchange
    evaluation: Evaluation


class WhoAmI:
    """Describes callers to themselves, by the registry and the buckets of a `Decider`."""

    def __init__(
        self, decider: Decider, style: AnswerStyle, caller_of: Callable[[HttpRequest], AccessRequest]
    ) -> None:
        """Refuse unknown callers in *style*; *caller_of* reads who calls."""
        self._decider = decider
        self._style = style
        self._caller_of = caller_of
        self._levels: dict[str, Level] = {}

    def serve(self, exchange: HttpExchange) -> None:
        """Answer one request, from the caller itself or through a proxy."""
        evaluation = self._decider.identify(self._caller_of(exchange.request))
        integration = evaluation.integration
        if integration is None:
            decision = self._decider.refuse(evaluation.reason, evaluation.detail)
            exchange.answer(encode(answer_to(decision, self._style)))
            return
        wait_us = self._wait_us(integration)
        if wait_us:
            exchange.answer(_too_often(retry_after_s(wait_us)))
            return
        waiting = _Waiting(exchange, evaluation)
        self._decider.peek(integration, lambda outcome: _answer(waiting, outcome))

    def _wait_us(self, integration: CompiledIntegration) -> int:
        """How long the integration must wait until it may ask again; 0 = it may ask now."""
        level = self._levels.pop(integration.id, None)
        taken, stored = draw(level, QUOTA, 1, self._decider.clock_us())
        level = stored or level
        if level is not None:
            self._levels[integration.id] = level
        if len(self._levels) > INTEGRATIONS_MAX:
            del self._levels[next(iter(self._levels))]
        return 0 if taken.admitted else taken.retry_after_us


def _answer(waiting: _Waiting, outcome: Taken | StoreFault) -> None:
    body = json.dumps(describe(waiting.evaluation, outcome), indent=2).encode() + b"\n"
    headers = [("content-type", "application/json"), ("cache-control", "no-store")]
    waiting.exchange.answer(encoded_response(200, headers, body))


def describe(evaluation: Evaluation, outcome: Taken | StoreFault) -> dict[str, object]:
    """
    What a known caller is told about itself; *outcome* is a peek into its bucket.

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
    }


def _too_often(wait_s: int) -> bytes:
    problem = {
        "type": "about:blank",
        "title": "Too many calls of /whoami",
        "status": 429,
        "detail": f"An integration may ask 60 times a minute who it is; retry in {wait_s} s.",
    }
    headers = [("content-type", "application/problem+json"), ("retry-after", str(wait_s))]
    return encoded_response(429, headers, json.dumps(problem).encode())

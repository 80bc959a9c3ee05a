"""Rows of the decision log as `replay` reads them, made from real decisions."""

from __future__ import annotations

from sidecar.domain.answers import Decision, limit_rpm_of
from sidecar.domain.cidr import format_address
from sidecar.domain.decisions import Reason
from sidecar.domain.paths import PathRefusedError
from sidecar.domain.policy import AccessRequest, Policy
from sidecar.domain.replay import LoggedRequest


def logged(request: AccessRequest, decision: Decision, policy: Policy, time_us: int) -> LoggedRequest:
    """The row of *decision* about *request*."""
    evaluation, taken = decision.evaluation, decision.taken
    assert evaluation.integration is not None
    assert evaluation.credential is not None
    address = evaluation.client_address
    return LoggedRequest(
        decision_id=decision.id,
        time=time_us,
        credential=evaluation.credential.id,
        reason=decision.reason.label,
        would_deny="" if decision.would_deny is None else decision.would_deny.label,
        method=request.method,
        path=request.path.partition("?")[0],
        scope="" if evaluation.scope is None else str(evaluation.scope),
        client_address=request.peer if address is None else format_address(address),
        route=_route(request, decision, policy),
        limit_rpm=limit_rpm_of(decision),
        reset_at=0 if taken is None else taken.reset_at_us,
        store_time=0 if taken is None else taken.at_us,
        fallback="" if decision.fallback is None else decision.fallback.policy.value,
        generation=evaluation.integration.generation,
    )


def _route(request: AccessRequest, decision: Decision, policy: Policy) -> str:
    """The route that the decision looked up; '' = none."""
    if request.scope is not None or decision.reason is Reason.IP_NOT_ALLOWED:
        return ""
    try:
        route = policy.routes.find(request.method, request.path)
    except PathRefusedError:
        return ""
    return "" if route is None else route.path

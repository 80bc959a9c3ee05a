"""Explains a decision step by step: what each step checked, its outcome, and the answer."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sidecar.domain.answers import Answer, Decision, retry_after_s
from sidecar.domain.bucket import Taken
from sidecar.domain.cidr import format_address
from sidecar.domain.decisions import Reason
from sidecar.domain.effective import in_force
from sidecar.domain.integrations import Integration
from sidecar.domain.path_faults import AmbiguousRouteError, PathRefusedError
from sidecar.domain.paths import normalize_path
from sidecar.domain.policy import AccessRequest, Evaluation, Policy, Route
from sidecar.domain.replay import LoggedRequest, Replay
from sidecar.domain.route_readings import RouteReadings
from sidecar.stores.registry.file.registry_records import iso_time

PASSED, FAILED, SHADOWED, NOT_REACHED = "passed", "failed", "in shadow", "not reached"

STEPS = ("credential", "suspension", "allowlist", "path", "route", "scope", "bucket")
"""In the order of `Policy.evaluate`."""

_FAILED_STEP = {
    Reason.MISSING_CREDENTIAL: "credential",
    Reason.MALFORMED_CREDENTIAL: "credential",
    Reason.UNKNOWN_CREDENTIAL: "credential",
    Reason.EXPIRED_CREDENTIAL: "credential",
    Reason.KEY_FLOOD: "credential",
    Reason.INTEGRATION_SUSPENDED: "suspension",
    Reason.IP_NOT_ALLOWED: "allowlist",
    Reason.PATH_REFUSED: "path",
    Reason.URI_TOO_LONG: "path",
    Reason.ROUTE_UNKNOWN: "route",
    Reason.METHOD_NOT_ALLOWED: "route",
    Reason.ROUTE_MISCONFIGURED: "route",
    Reason.SCOPE_MISSING: "scope",
    Reason.RATE_LIMITED: "bucket",
    Reason.STORE_UNAVAILABLE: "bucket",
    Reason.OVERLOADED: "bucket",
}

_CREDENTIAL_FAULTS = {
    Reason.MISSING_CREDENTIAL: "the request carries no API key",
    Reason.MALFORMED_CREDENTIAL: "not an API key: its shape or its checksum is wrong",
    Reason.UNKNOWN_CREDENTIAL: "no integration has this API key",
    Reason.EXPIRED_CREDENTIAL: "the API key has expired",
    Reason.KEY_FLOOD: "no integration has this API key, and its source has sent too many such keys",
}


_ROUTE_FAULTS = {
    Reason.ROUTE_UNKNOWN: "no route matches the path",
    Reason.METHOD_NOT_ALLOWED: "routes match the path, but none of them with the method {method}",
    Reason.ROUTE_MISCONFIGURED: (
        "the proxy states {scope!r}, which is not a scope of the configuration; correct it in the proxy"
    ),
}


class ExplainedStep(NamedTuple):
    """
    One step: `outcome` is 'passed', 'failed', 'in shadow' or 'not reached'; `detail` gives the reason.

    A step in shadow would have failed if its rule was enforced; later steps may hide more of them.
    """

    name: str
    outcome: str
    detail: str


def explain(
    request: AccessRequest, decision: Decision, routes: RouteReadings[Route] | None = None
) -> list[ExplainedStep]:
    """The steps of *decision* about *request*; they name the routes if *routes* is given."""
    failed = _index_of(decision.reason)
    shadowed = len(STEPS) if decision.would_deny is None else _index_of(decision.would_deny)
    steps = []
    for index, name in enumerate(STEPS):
        if index > failed:
            steps.append(ExplainedStep(name, NOT_REACHED, ""))
        else:
            outcome = FAILED if index == failed else SHADOWED if index == shadowed else PASSED
            detail = _DETAILS[name](request, decision)
            if routes is not None and request.scope is None and name in ("path", "route"):
                detail += _named_routes(name, request, routes)
            steps.append(ExplainedStep(name, outcome, detail))
    return steps


def _index_of(reason: Reason) -> int:
    """The index of the step that fails for *reason*."""
    return STEPS.index(_FAILED_STEP[reason]) if reason in _FAILED_STEP else len(STEPS)


def _fault(evaluation: Evaluation) -> Reason:
    """Why the evaluation fails, or would fail if no rule was in shadow; OK = it does not."""
    return evaluation.would_deny or evaluation.reason


def as_plain_data(steps: list[ExplainedStep], answer: Answer) -> dict[str, Any]:
    """A decision as the JSON object of `--json`."""
    decision, evaluation = answer.decision, answer.decision.evaluation
    return {
        "decision_id": decision.id,
        "verdict": decision.reason.verdict.value,
        "reason": decision.reason.label,
        "would_deny": None if decision.would_deny is None else decision.would_deny.label,
        "integration": evaluation.integration.id if evaluation.integration else None,
        "credential": evaluation.credential.id if evaluation.credential else None,
        "steps": [step._asdict() for step in steps],
        "answer": {
            "status": answer.status,
            "client_headers": dict(answer.client_headers),
            "upstream_headers": dict(answer.upstream_headers),
            "removed_headers": list(answer.removed_headers),
            "body": json.loads(answer.body) if answer.body else None,
        },
    }


class LoggedExplanation(NamedTuple):
    """A logged request, decided by one version of the record: the decision and its steps."""

    generation: int
    decision: Decision
    steps: list[ExplainedStep]


def explain_logged(
    policy: Policy, record: Integration, row: LoggedRequest, at_us: int, taken: Taken | None = None
) -> LoggedExplanation:
    """
    Decide the request of *row* by *record* as in force at *at_us*, and explain it.

    *taken* is what the store answered; None = it is worked out from the bucket that the row shows.
    """
    effective = in_force(record, at_us)
    credential = next((key for key in effective.credentials if key.id == row.credential), None)
    replay = Replay(policy, effective, credential)
    reason = None
    if credential is None:
        reason = Reason.UNKNOWN_CREDENTIAL
    elif credential.expires_at_us is not None and credential.expires_at_us <= at_us:
        reason = Reason.EXPIRED_CREDENTIAL
    if reason is None:
        decision = replay.decision(row, taken)
    else:
        decision = Decision(row.decision_id, reason, Evaluation(reason), None)
    return LoggedExplanation(
        record.generation, decision, explain(replay.request(row), decision, policy.routes)
    )


def _credential(request: AccessRequest, decision: Decision) -> str:
    evaluation = decision.evaluation
    if evaluation.integration is None or evaluation.credential is None:
        return evaluation.detail or _CREDENTIAL_FAULTS[decision.reason]
    expires_at_us = evaluation.credential.expires_at_us
    expiry = f", valid until {iso_time(expires_at_us)}" if expires_at_us is not None else ""
    return (
        f"{evaluation.credential.id} of {evaluation.integration.name} ({evaluation.integration.id}){expiry}"
    )


def _suspension(request: AccessRequest, decision: Decision) -> str:
    integration = decision.evaluation.integration
    return "suspended by an administrator" if integration and integration.is_suspended else "active"


def _allowlist(request: AccessRequest, decision: Decision) -> str:
    evaluation = decision.evaluation
    allowlist = evaluation.integration.allowlist if evaluation.integration else None
    if allowlist is None:
        return "off: any address may call"
    if evaluation.client_address is None:
        return evaluation.detail or "the client's address is unknown"
    address = format_address(evaluation.client_address)
    block = allowlist.longest_match(evaluation.client_address)
    return f"{address} is in {block}" if block else f"{address} is in none of the {len(allowlist)} entries"


def _path(request: AccessRequest, decision: Decision) -> str:
    if decision.evaluation.detail:
        return decision.evaluation.detail
    try:
        return normalize_path(request.path, len(request.path))
    except PathRefusedError as error:
        return error.advice


def _named_routes(step: str, request: AccessRequest, routes: RouteReadings[Route]) -> str:
    """The route that matches, or the two routes of an ambiguous path, as text for *step*."""
    try:
        route = routes.find(request.method, request.path)
    except AmbiguousRouteError as error:
        matches = " and ".join(map(str, error.targets))
        return (
            f" It matches {matches}. If you know how the upstream reads paths, set 'paths.case' and"
            " 'paths.trailing_slash'."
        )
    except PathRefusedError:
        return ""
    return f": {route}" if step == "route" and route is not None else ""


def _route(request: AccessRequest, decision: Decision) -> str:
    fault = _fault(decision.evaluation)
    if fault in _ROUTE_FAULTS:
        return _ROUTE_FAULTS[fault].format(method=request.method, scope=request.scope)
    return "stated by the proxy" if request.scope is not None else "a route matches"


def _scope(request: AccessRequest, decision: Decision) -> str:
    evaluation = decision.evaluation
    source = "the route" if request.scope is None else "the proxy"
    if _fault(evaluation) is Reason.SCOPE_MISSING:
        return f"{source} requires {evaluation.scope}; the integration has {_scopes(evaluation)}"
    return f"{source} requires {evaluation.scope or 'no scope'}"


def _scopes(evaluation: Evaluation) -> str:
    scopes = evaluation.integration.scopes if evaluation.integration else ()
    return ", ".join(sorted(map(str, scopes))) or "no scopes"


def _bucket(request: AccessRequest, decision: Decision) -> str:
    taken, integration = decision.taken, decision.evaluation.integration
    if taken is None or integration is None:
        return "the store did not answer"
    quota = integration.record.quota
    left = f"{taken.remaining} of {quota.burst} tokens left, refilled at {integration.limit_rpm} a minute"
    if Reason.RATE_LIMITED in (decision.reason, decision.would_deny):
        return f"{left}; the next in {retry_after_s(taken.retry_after_us)} s"
    return left


_DETAILS = {
    "credential": _credential,
    "suspension": _suspension,
    "allowlist": _allowlist,
    "path": _path,
    "route": _route,
    "scope": _scope,
    "bucket": _bucket,
}

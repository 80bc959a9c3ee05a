"""The endpoint that explains a logged decision, by the record then and by the record now."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.audit import AuditEntry, parse_entry
from sidecar.domain.bucket import Taken
from sidecar.domain.decision_rows import COLUMN_NAMES, DecisionRow
from sidecar.domain.integrations import Integration
from sidecar.domain.record_history import HistoryError, version_of
from sidecar.domain.replay import LoggedRequest
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer
from sidecar.services.admin.bodies import VerdictWord
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.decision_views import DecisionView, decision_view
from sidecar.services.admin.decisions import READ, found_decision
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.explain import LoggedExplanation, explain_logged
from sidecar.stores.registry.protocol import PAGE_MAX, AuditQuery

VERSIONS_MAX = 1_000
"""Changes that are read to find an earlier version of a record."""


class StepView(TypedDict):
    """One step: `outcome` is passed, failed, in shadow or not reached."""

    name: str
    outcome: str
    detail: str


class DecidedView(TypedDict):
    """What one version of the record decides about the request, step by step."""

    generation: int
    verdict: VerdictWord
    reason: str
    would_deny: str
    steps: list[StepView]


class ExplanationView(TypedDict):
    """
    A logged decision, explained.

    `then` is by the version of the record that decided, `now` by the present one; both by the present routes.
    Null = the version is not known, and `note` says why.
    """

    decision: DecisionView
    then: DecidedView | None
    now: DecidedView | None
    note: str


async def explain_decision(context: AdminContext, call: Call, query: b.DecisionQuery, body: Any) -> Response:
    """Answer with the steps of one decision."""
    logged = await found_decision(context, call, query)
    row = LoggedRequest.of(logged.row)
    integration_id = str(logged.row[COLUMN_NAMES.index("integration")])
    record = await context.registry.get(integration_id) if integration_id else None
    view: ExplanationView = {"decision": decision_view(logged), "then": None, "now": None, "note": ""}
    if record is None:
        view["note"] = (
            f"the integration {integration_id} was deleted"
            if integration_id
            else "the caller was not identified, so no record decided"
        )
        return answer(view)
    view["now"] = _view(explain_logged(context.policy, record, row, context.clock_us()))
    try:
        version = await _version(context, record, row.generation)
    except HistoryError as error:
        view["note"] = str(error)
    else:
        taken = _taken(logged.row, row)
        view["then"] = _view(explain_logged(context.policy, version, row, row.at_us, taken))
    return answer(view)


async def _version(context: AdminContext, record: Integration, generation: int) -> Integration:
    """
    Return *record* as it was at *generation*.

    Raises:
        HistoryError: the audit log does not lead back to it, or it is too long ago.
    """
    subject = f"integration:{record.id}"
    entries: list[AuditEntry] = []
    (chain,) = await context.registry.chains(subject)
    after = ""
    wanted = record.generation - generation
    if wanted > VERSIONS_MAX:
        raise HistoryError(f"the record was changed {wanted} times since; at most {VERSIONS_MAX} are read")
    while len(entries) < wanted:
        page = await context.registry.audit(
            AuditQuery(chain, subject, newest_first=True, after=after, limit=min(PAGE_MAX, wanted))
        )
        entries += [parse_entry(entry.body) for entry in page.entries]
        after = page.next_after
        if not after:
            break
    return version_of(record, generation, entries)


def _taken(row: DecisionRow, logged: LoggedRequest) -> Taken | None:
    """What the store answered; None = the decision did not read its bucket."""
    if not logged.store_time or logged.fallback:
        return None
    named = dict(zip(COLUMN_NAMES, row, strict=True))
    is_admitted = logged.reason == "ok" and logged.would_deny != "rate_limited"
    remaining, retry_after_us = int(named["remaining"]), int(named["retry_after_us"])
    return Taken(int(is_admitted), remaining, retry_after_us, logged.reset_at, logged.store_time)


def _view(explanation: LoggedExplanation) -> DecidedView:
    decision = explanation.decision
    return {
        "generation": explanation.generation,
        "verdict": decision.reason.verdict.value,
        "reason": decision.reason.label,
        "would_deny": "" if decision.would_deny is None else decision.would_deny.label,
        "steps": [
            {"name": step.name, "outcome": step.outcome, "detail": step.detail} for step in explanation.steps
        ],
    }


ENDPOINTS = (
    Endpoint(
        "explain_decision", "GET", "/v1/decisions/{decision_id}/explanation", "decisions",
        "Explain one decision step by step",
        "By the record that decided, which the audit log gives back, and by the present record.",
        explain_decision, READ, b.DecisionQuery, answer=ExplanationView,
    ),
)  # fmt: skip

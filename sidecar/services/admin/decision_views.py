"""Converts rows of the decision log to answers of the API; the types are the schemas of the answers."""

from __future__ import annotations

from typing import cast

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from sidecar.domain.decision_rows import COLUMNS
from sidecar.services.admin.bodies import VerdictWord
from sidecar.services.admin.times import format_optional_time, format_time
from sidecar.stores.decisions.missing import MissingSpan
from sidecar.stores.decisions.pages import LoggedDecision


class DecisionView(TypedDict):
    """
    One decision, with the columns of the decision log.

    An unknown text is empty, and an unknown time null.
    """

    sidecar: str
    time: str
    decision_id: str
    request_id: str
    trace_id: str
    integration: str
    credential: str
    verdict: VerdictWord
    reason: str
    would_deny: str
    method: str
    path: str
    scope: str
    client_address: str
    route: str
    remaining: int
    limit_rpm: int
    reset_at: str | None
    store_time: str | None
    retry_after_us: int
    fallback: str
    dialect: str
    worker: int
    latency_us: int
    generation: int


MissingView = TypedDict(
    "MissingView",
    {
        "sidecar": str,
        "from": str,
        "to": str,
        "worker": int | None,
        "allowed": int | None,
        "refused": int | None,
        "cause": str,
    },
)
"""A span of time in which rows of a sidecar are missing; null = unknown, or every worker."""


class SidecarNamesView(TypedDict):
    """The sidecars whose rows are here, and the live ones whose rows are elsewhere."""

    sidecars: list[str]
    sidecars_elsewhere: list[str]


class DecisionPageView(SidecarNamesView):
    """
    One page of decisions, newest first; `next_after` null = the last page.

    A page ends early when the time of the query is over. `missing` are the latest of `missing_spans` spans
    with missing rows. `recorded` says how far the log was recorded, for `recorded_after`.
    """

    items: list[DecisionView]
    next_after: str | None
    recorded: str
    missing: list[MissingView]
    missing_spans: int


class ErasureView(SidecarNamesView):
    """What an erasure removed, or would remove."""

    rows: int
    files: int
    is_dry_run: bool


def decision_view(decision: LoggedDecision) -> DecisionView:
    """Return a row as the API shows it."""
    view = {
        column.name: format_optional_time(cast(int, value)) if column.is_time else value
        for column, value in zip(COLUMNS, decision.row, strict=True)
    }
    return cast(DecisionView, {"sidecar": decision.sidecar, **view})


def missing_view(span: MissingSpan) -> MissingView:
    """Return a span with missing rows as the API shows it."""
    return {
        "sidecar": span.sidecar,
        "from": format_time(span.from_us),
        "to": format_time(span.to_us),
        "worker": _known(span.worker),
        "allowed": _known(span.allowed),
        "refused": _known(span.refused),
        "cause": span.cause,
    }


def _known(number: int) -> int | None:
    return number if number >= 0 else None

"""Plans and reports as JSON documents, for programs; the same words as in the diff for people."""

from __future__ import annotations

from typing import Any

from sidecar.app.declaring.engine import Progress, Report
from sidecar.domain.canonical import Json
from sidecar.domain.declared import Difference, FieldChange, Kind, Plan, Refusal
from sidecar.stores.registry_records import iso_time

_MOMENT = "_us"


def plan_document(plan: Plan) -> dict[str, Any]:
    """All of *plan*; integrations without a difference are only counted."""
    return {
        "integrations": [_difference(one) for one in plan.differences],
        "counts": {
            "add": plan.count(Kind.ADD),
            "change": plan.count(Kind.CHANGE),
            "remove": plan.count(Kind.REMOVE),
            "unchanged": plan.unchanged,
            "refused": plan.refused,
            "steps": plan.steps,
        },
        "not_in_file": {
            "integrations": list(plan.kept_integrations),
            "credentials": list(plan.kept_credentials),
        },
    }


def report_document(report: Report | None) -> dict[str, Any] | None:
    """What came of a plan; None = it was not applied."""
    if report is None:
        return None
    error = report.error
    return {
        "steps_made": report.made,
        "steps_not_tried": report.unfinished,
        "declined": [_declined(one) for one in report.declined],
        "error": str(error) if error is not None else None,
        "may_have_happened": error is not None and error.may_have_happened,
        "took_ms": round(report.took_s * 1_000),
    }


def shown_field(change: FieldChange) -> FieldChange:
    """
    *change* as people read it: a moment in ISO 8601, and the field's name without its unit.

    >>> shown_field(FieldChange("credentials.k1.expires_at_us", None, 1801353600000000))
    FieldChange(field='credentials.k1.expires_at', before=None, after='2027-01-31T00:00:00Z')
    """
    if not change.field.endswith(_MOMENT):
        return change
    return FieldChange(change.field.removesuffix(_MOMENT), _moment(change.before), _moment(change.after))


def _moment(value: Json) -> Json:
    return iso_time(value) if isinstance(value, int) else value


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "id": difference.integration_id,
        "name": difference.name,
        "change": difference.kind.value,
        "actions": [step.command.word for step in difference.steps],
        "fields": [shown_field(one)._asdict() for one in difference.fields],
        "refusals": [_refusal(one) for one in difference.refusals],
        "remarks": list(difference.remarks),
    }


def _refusal(refusal: Refusal) -> dict[str, Any]:
    problem = refusal.problem
    return {
        "action": refusal.word or None,
        "code": problem.code.word,
        "field": problem.field,
        "message": problem.message,
        "remedy": problem.remedy,
    }


def _declined(progress: Progress) -> dict[str, Any]:
    declined = progress.declined
    assert declined is not None  # the caller takes only those
    step = progress.difference.steps[progress.made]
    return {
        "id": progress.difference.integration_id,
        "action": step.command.word,
        "code": declined.code,
        "message": declined.message,
        "steps_made": progress.made,
    }

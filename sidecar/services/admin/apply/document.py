"""
Converts plans and reports to JSON documents, for the admin API and `--json`.

The command line prints its diff from the same documents.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from json import dumps
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from sidecar.domain.canonical import Json
from sidecar.domain.declared import ApplyPlan, Difference, DifferenceKind, FieldChange, Refusal
from sidecar.services.admin.apply.engine import Progress, Report
from sidecar.services.admin.views import DurabilityView, durability_view
from sidecar.stores.registry.file.registry_records import iso_time
from sidecar.stores.registry.protocol import Registry

_TIME_SUFFIX = "_us"


class FieldView(TypedDict):
    """A value before and after, or a list member that is added or removed; null = absent."""

    field: str
    before: Any  # a value of `Json`; pydantic cannot resolve a recursive alias in a TypedDict
    after: Any


class RefusalView(TypedDict):
    """A declared change that the rules refuse; `action` is the command that it needs."""

    action: str | None
    code: str
    field: str
    message: str
    remedy: str


class DifferenceView(TypedDict):
    """The differences of one integration, and the actions that the rules accept."""

    id: str
    name: str
    change: Literal["add", "change", "remove", "none"]
    actions: list[str]
    fields: list[FieldView]
    refusals: list[RefusalView]
    remarks: list[str]


class CountsView(TypedDict):
    """Counts of integrations by change; `steps` is the total number of actions."""

    add: int
    change: int
    remove: int
    unchanged: int
    refused: int
    steps: int


class NotInFileView(TypedDict):
    """Ids that the file does not name; they are kept unless pruned."""

    integrations: list[str]
    credentials: list[str]


class PlanView(TypedDict):
    """All differences between a file and the registry; equal integrations are only counted."""

    integrations: list[DifferenceView]
    counts: CountsView
    not_in_file: NotInFileView


class DeclinedView(TypedDict):
    """A step that the registry refused, and the number of steps made before it."""

    id: str
    action: str
    code: str
    message: str
    steps_made: int


class ReportView(DurabilityView):
    """
    The result of applying a plan.

    `error` is the failure that stopped it; `may_have_happened` true = part of the failed batch may have been
    made. Applying the file again is always safe.
    """

    steps_made: int
    steps_not_tried: int
    declined: list[DeclinedView]
    error: str | None
    may_have_happened: bool
    took_ms: int


class ApplyView(TypedDict):
    """
    The plan, and the result of applying it as `report`; null = a dry run, or no change was needed.

    `warnings` are about the file. `plan` is the digest for `expected_plan`.
    """

    plan: str
    difference: PlanView
    warnings: list[str]
    is_dry_run: bool
    report: ReportView | None
    is_in_force: NotRequired[bool]


def plan_view(plan: ApplyPlan) -> PlanView:
    """Convert *plan*."""
    return {
        "integrations": [_difference(difference) for difference in plan.differences],
        "counts": {
            "add": plan.count(DifferenceKind.ADD),
            "change": plan.count(DifferenceKind.CHANGE),
            "remove": plan.count(DifferenceKind.REMOVE),
            "unchanged": plan.unchanged,
            "refused": plan.refused,
            "steps": plan.steps,
        },
        "not_in_file": {
            "integrations": list(plan.kept_integrations),
            "credentials": list(plan.kept_credentials),
        },
    }


def plan_digest(plan: ApplyPlan) -> str:
    """
    Return the digest of the changes of *plan*: its commands without reasons, and the expected generations.

    Plans with equal digests make the same changes.
    """
    steps = [
        [step.command.action_name, repr(replace(step.command, reason="")), step.expected_generation]
        for difference in plan.differences
        for step in difference.steps
    ]
    return "sha256:" + sha256(dumps(steps).encode()).hexdigest()


def report_view(registry: Registry, report: Report) -> ReportView:
    """Convert *report*, of changes of *registry*."""
    error = report.error
    return {
        "steps_made": report.made,
        "steps_not_tried": report.unfinished,
        "declined": [_declined(progress) for progress in report.declined],
        "error": str(error) if error is not None else None,
        "may_have_happened": error is not None and error.may_have_happened,
        "took_ms": round(report.took_s * 1_000),
        **durability_view(registry, report.is_durable),
    }


def _difference(difference: Difference) -> DifferenceView:
    return {
        "id": difference.integration_id,
        "name": difference.name,
        "change": difference.kind.value,
        "actions": [step.command.action_name for step in difference.steps],
        "fields": [_field(change) for change in difference.fields],
        "refusals": [_refusal(refusal) for refusal in difference.refusals],
        "remarks": list(difference.remarks),
    }


def _field(change: FieldChange) -> FieldView:
    """Convert *change*: times in ISO 8601, and the field's name without its unit."""
    name, before, after = change
    if name.endswith(_TIME_SUFFIX):
        name, before, after = name.removesuffix(_TIME_SUFFIX), _time(before), _time(after)
    return {"field": name, "before": before, "after": after}


def _time(value: Json) -> Json:
    return iso_time(value) if isinstance(value, int) else value


def _refusal(refusal: Refusal) -> RefusalView:
    problem = refusal.problem
    return {
        "action": refusal.action_name or None,
        "code": problem.code.text,
        "field": problem.field,
        "message": problem.message,
        "remedy": problem.remedy,
    }


def _declined(progress: Progress) -> DeclinedView:
    declined = progress.declined
    assert declined is not None  # the caller filters them
    step = progress.difference.steps[progress.made]
    return {
        "id": progress.difference.integration_id,
        "action": step.command.action_name,
        "code": declined.code,
        "message": declined.message,
        "steps_made": progress.made,
    }

"""
Plans and reports as JSON documents: what the admin API answers, and what `--json` prints.

The command line prints its diff from the same documents, so a plan is described in one place.
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
from sidecar.stores.registry.file.registry_records import iso_time

_TIME_SUFFIX = "_us"


class FieldView(TypedDict):
    """One value before and after, or one member of a list that is added or removed; null = not there."""

    field: str
    before: Any  # a value of `Json`; pydantic cannot resolve a recursive alias in a TypedDict
    after: Any


class RefusalView(TypedDict):
    """Something the file declares and the rules refuse; `action` is the command that it would need."""

    action: str | None
    code: str
    field: str
    message: str
    remedy: str


class DifferenceView(TypedDict):
    """What differs for one integration, and the actions that the rules accept."""

    id: str
    name: str
    change: Literal["add", "change", "remove", "none"]
    actions: list[str]
    fields: list[FieldView]
    refusals: list[RefusalView]
    remarks: list[str]


class CountsView(TypedDict):
    """Integrations by what happens to them; `steps` counts the actions of all of them."""

    add: int
    change: int
    remove: int
    unchanged: int
    refused: int
    steps: int


class NotInFileView(TypedDict):
    """Ids of what the file does not name and what therefore stays, unless it is pruned."""

    integrations: list[str]
    credentials: list[str]


class PlanView(TypedDict):
    """All that differs between a file and the registry; integrations that do not differ are only counted."""

    integrations: list[DifferenceView]
    counts: CountsView
    not_in_file: NotInFileView


class DeclinedView(TypedDict):
    """A step that the registry refused, and how many steps of that integration were made before it."""

    id: str
    action: str
    code: str
    message: str
    steps_made: int


class ReportView(TypedDict):
    """
    The result of applying a plan.

    `error` is the failure that ended it early; `may_have_happened` true = the batch that failed may be in
    force in part. Applying the file again is always safe.
    """

    steps_made: int
    steps_not_tried: int
    declined: list[DeclinedView]
    error: str | None
    may_have_happened: bool
    took_ms: int


class ApplyView(TypedDict):
    """
    The plan, and with `report` the result of applying it; null = it was a dry run, or nothing was to be done.

    `warnings` are remarks on the file. `plan` is the digest that `expected_plan` takes.
    """

    plan: str
    difference: PlanView
    warnings: list[str]
    is_dry_run: bool
    report: ReportView | None
    is_in_force: NotRequired[bool]


def plan_view(plan: ApplyPlan) -> PlanView:
    """All of *plan*."""
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
    The digest that names what *plan* would do: its commands without reasons, and the generations they expect.

    Two plans with equal digests make the same changes, whatever else was compared.
    """
    steps = [
        [step.command.word, repr(replace(step.command, reason="")), step.expected_generation]
        for difference in plan.differences
        for step in difference.steps
    ]
    return "sha256:" + sha256(dumps(steps).encode()).hexdigest()


def report_view(report: Report) -> ReportView:
    """The result in *report*."""
    error = report.error
    return {
        "steps_made": report.made,
        "steps_not_tried": report.unfinished,
        "declined": [_declined(progress) for progress in report.declined],
        "error": str(error) if error is not None else None,
        "may_have_happened": error is not None and error.may_have_happened,
        "took_ms": round(report.took_s * 1_000),
    }


def _difference(difference: Difference) -> DifferenceView:
    return {
        "id": difference.integration_id,
        "name": difference.name,
        "change": difference.kind.value,
        "actions": [step.command.word for step in difference.steps],
        "fields": [_field(change) for change in difference.fields],
        "refusals": [_refusal(refusal) for refusal in difference.refusals],
        "remarks": list(difference.remarks),
    }


def _field(change: FieldChange) -> FieldView:
    """*change* as people read it: a time in ISO 8601, and the field's name without its unit."""
    name, before, after = change
    if name.endswith(_TIME_SUFFIX):
        name, before, after = name.removesuffix(_TIME_SUFFIX), _time(before), _time(after)
    return {"field": name, "before": before, "after": after}


def _time(value: Json) -> Json:
    return iso_time(value) if isinstance(value, int) else value


def _refusal(refusal: Refusal) -> RefusalView:
    problem = refusal.problem
    return {
        "action": refusal.word or None,
        "code": problem.code.word,
        "field": problem.field,
        "message": problem.message,
        "remedy": problem.remedy,
    }


def _declined(progress: Progress) -> DeclinedView:
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

"""Applies a file: plans, checks the plan's digest, applies, and reports the result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sidecar.domain.changes import Position
from sidecar.domain.declared import ApplyPlan
from sidecar.domain.integrations import Suspension
from sidecar.domain.lifecycle.commands import Suspend
from sidecar.domain.lifecycle.dual_control import able_to_reactivate
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.services.admin.apply.document import ApplyView, plan_digest, plan_view, report_view
from sidecar.services.admin.apply.engine import ApplyRequest, PlanChangedError, apply_plan, make_plan
from sidecar.services.admin.notices import accounts_now
from sidecar.stores.registry.protocol import Registry

NAMED_MAX = 5
"""Maximum number of integrations that a warning names."""


async def apply_declared(
    registry: Registry, catalogue: ScopeCatalogue, request: ApplyRequest
) -> tuple[ApplyView, Sequence[Position]]:
    """
    Apply *request* to *registry*; return the plan with its report, and the positions of the changes.

    Raises:
        PlanChangedError: the plan is not the expected one, and nothing was changed.
        RegistryError: the registry could not be read, and nothing was changed.
    """
    plan = await make_plan(registry, catalogue, request)
    digest = await asyncio.to_thread(plan_digest, plan)
    if request.expected_plan not in (None, digest):
        raise PlanChangedError
    view: ApplyView = {
        "plan": digest,
        "difference": await asyncio.to_thread(plan_view, plan),
        "warnings": await _lock_warnings(registry, plan, request),
        "is_dry_run": request.is_dry_run,
        "report": None,
    }
    if request.is_dry_run or not plan.steps:
        return view, ()
    report = await apply_plan(registry, plan, request)
    view["report"] = report_view(registry, report)
    return view, report.positions


async def _lock_warnings(registry: Registry, plan: ApplyPlan, request: ApplyRequest) -> list[str]:
    """Return a warning if nobody could reactivate what *plan* suspends."""
    ids = [
        difference.integration_id
        for difference in plan.differences
        if any(isinstance(step.command, Suspend) for step in difference.steps)
    ]
    accounts = await accounts_now(registry) if ids else None
    suspension = Suspension(request.actor.id, request.now_us, "", 0, request.now_us)
    if accounts is None or able_to_reactivate(accounts, [suspension], request.now_us):
        return []
    named = ", ".join(ids[:NAMED_MAX]) + (f" and {len(ids) - NAMED_MAX} more" if len(ids) > NAMED_MAX else "")
    return [
        f"this suspends {named}, which nobody can reactivate, because no other administrator has a live"
        " token; create one first ('sidecar admin create')"
    ]

"""One run: plan, compare the plan's digest with the expected one, apply, and describe the result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sidecar.domain.changes import Position
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.services.admin.apply.document import ApplyView, plan_digest, plan_view, report_view
from sidecar.services.admin.apply.engine import ApplyRequest, PlanChangedError, apply_plan, make_plan
from sidecar.stores.registry.protocol import Registry


async def apply_declared(
    registry: Registry, catalogue: ScopeCatalogue, request: ApplyRequest
) -> tuple[ApplyView, Sequence[Position]]:
    """
    Apply *request* to *registry*; return what was planned and done, and the positions of the changes.

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
        "warnings": [],
        "is_dry_run": request.is_dry_run,
        "report": None,
    }
    if request.is_dry_run or not plan.steps:
        return view, ()
    report = await apply_plan(registry, plan, request)
    view["report"] = report_view(report)
    return view, report.positions

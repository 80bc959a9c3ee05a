"""The endpoint that applies a posted registry file."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from sidecar.domain.changes import ChangeContext
from sidecar.domain.roles import Action
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer
from sidecar.services.admin.apply.document import ApplyView
from sidecar.services.admin.apply.engine import ApplyRequest, PlanChangedError, default_reason
from sidecar.services.admin.apply.run import apply_declared
from sidecar.services.admin.call import Call
from sidecar.services.admin.confirmation import put_in_force
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.deadline import run_while_connected
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.problems import ApiCode, Fault, Problem, ProblemError, problem_error
from sidecar.sources.file_faults import FileFaultsError
from sidecar.stores.registry.file.registry_file import Declared, parse_declarations

FILE_BYTES_MAX = 16 * 1_048_576
"""Limit of the body; a file of 10,000 integrations takes about 3 MB."""
APPLY_TIMEOUT_S = 600.0
FILE_NAME = "FILE"
"""The file's name in messages if the caller did not send one."""


class FileToApply(b.Body):
    """
    A registry file, as text, and how to apply it.

    `prune`: delete integrations, and revoke API keys, that the file does not name; both are permanent.
    `expected_plan`: refuse the call unless the plan has this digest, which a dry run returns.
    """

    file: Annotated[str, Field(description="The YAML text of the file, with the list `integrations:`.")]
    file_name: Annotated[str, Field(max_length=255, description="The file's name in messages.")] = FILE_NAME
    prune: bool = False
    expected_plan: Annotated[str, Field(max_length=71)] | None = None


class ApplyQuery(b.Query):
    """Whether to apply the file, or only to compare it."""

    dry_run: Annotated[b.Switch, Field(description="Change nothing; answer with the plan only.")] = False


async def apply_file(context: AdminContext, call: Call, query: ApplyQuery, body: FileToApply) -> Response:
    """Compare the file with the registry and, unless it is a dry run, apply the difference."""
    call.note(action="apply", is_dry_run=query.dry_run)
    try:
        work = _applied(context, call, query, body)
        return await run_while_connected(call.request.receive, work, APPLY_TIMEOUT_S)
    except TimeoutError:
        error = problem_error(
            ApiCode.TIMEOUT,
            f"applying the file took longer than {APPLY_TIMEOUT_S:g} s",
            "apply it again: only the remaining differences are changed",
        )
        raise error from None


async def _applied(context: AdminContext, call: Call, query: ApplyQuery, body: FileToApply) -> Response:
    declared = await asyncio.to_thread(_declared, context, body)
    request = ApplyRequest(
        declared.declarations,
        body.reason or default_reason(body.file_name),
        call.actor,
        ChangeContext(call.request_id, call.source),
        context.clock_us(),
        body.prune,
        body.expected_plan,
        query.dry_run,
    )
    try:
        view, positions = await apply_declared(context.registry, context.catalogue, request)
    except PlanChangedError:
        raise _plan_changed() from None
    view["warnings"] = [*map(str, declared.warnings), *view["warnings"]]
    if view["report"] is not None:
        view["is_in_force"] = await put_in_force(context, positions)
        call.note(count=view["report"]["steps_made"], refused=len(view["report"]["declined"]))
    return answer(view)


def _declared(context: AdminContext, body: FileToApply) -> Declared:
    try:
        return parse_declarations(body.file.encode(), body.file_name, context.catalogue)
    except FileFaultsError as error:
        raise _mistakes(error) from None


def _mistakes(error: FileFaultsError) -> ProblemError:
    """Return the error with every mistake of the file and its line."""
    code = ApiCode.INVALID_FILE
    faults = tuple(
        Fault(code.text, f"line {fault.line}" if fault.line is not None else "", _located(fault), "")
        for fault in error.faults
    )
    detail = "\n".join(error.lines())
    return ProblemError(Problem(code.status, code.text, detail, faults))


def _located(fault: Any) -> str:
    return f"{fault.field}: {fault.problem}" if fault.field else str(fault.problem)


def _plan_changed() -> ProblemError:
    return problem_error(
        ApiCode.PLAN_CHANGED,
        "the file or the registry has changed since the plan was made; nothing was changed",
        "make a new plan with dry_run, check it, and apply it",
        "expected_plan",
    )


ENDPOINTS = (
    Endpoint(
        "apply_file", "POST", "/v1/apply", "changes", "Apply a registry file",
        "Compares the file with the registry and changes only what differs. The changes are made one by one,"
        " each only if the integration still has the generation that was compared. With `dry_run` it answers"
        " with the plan; send the plan's digest as `expected_plan` to apply exactly this plan. Applying a"
        " file again is always safe.",
        apply_file, frozenset({Action.READ_INTEGRATIONS}), ApplyQuery, FileToApply, answer=ApplyView,
        examples=({"file": "integrations:\n  - {id: acme, name: Acme, scopes: [orders:read]}\n"},),
        body_bytes_max=FILE_BYTES_MAX,
    ),
)  # fmt: skip

"""The endpoint that makes many changes in one call, each independent of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Discriminator, Field, create_model
from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.changes import ChangeRequest, Committed
from sidecar.domain.lifecycle.commands import CreateIntegration, NewCredential
from sidecar.domain.lifecycle.outcome import Outcome
from sidecar.domain.refusals import RefusedError
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.change_table import BY_ACTION_NAME, ROWS, ChangeRow, CommandInputs, SecretKind
from sidecar.services.admin.changes import position_text
from sidecar.services.admin.confirmation import ConfirmationView, confirm, put_in_force
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.problems import ProblemView, document, refused
from sidecar.services.admin.views import DurabilityView, durability_view
from sidecar.stores.registry.protocol import REQUESTS_MAX, RegistryError

GENERATION_MAX = 2**53 - 1


class ResultView(TypedDict):
    """The result of one change: its status, and a problem if it was refused."""

    status: int
    integration_id: str
    generation: int | None
    is_change: bool
    position: str | None
    problem: ProblemView | None


class ManyView(DurabilityView):
    """The results of the changes, in their order."""

    results: list[ResultView]
    is_dry_run: bool
    is_in_force: bool
    took_ms: int
    confirmation: NotRequired[ConfirmationView]


def _member(row: ChangeRow) -> type[BaseModel]:
    """Return the model of a change of *row* in /v1/changes."""
    fields: dict[str, Any] = {
        "action": (Literal[row.action_name], ...),
        "integration_id": (b.IntegrationId, ...),
        "expected_generation": (Annotated[int, Field(ge=0, le=GENERATION_MAX)] | None, None),
    }
    if row.names_credential:
        fields["credential_id"] = (b.CredentialId, ...)
    if row.command is CreateIntegration:
        fields["credentials"] = (b.GivenCredentials, [])
    elif row.generates is SecretKind.API_KEY:
        fields["credential"] = (b.GivenCredential, ...)
    name = row.command.__name__ + "Member"
    return create_model(name, __base__=row.member, __doc__=row.summary + ".", **fields)


MEMBERS: Mapping[str, type[BaseModel]] = {
    row.action_name: _member(row) for row in ROWS if row.member is not None
}
_MEMBER: Any = Annotated[reduce(or_, MEMBERS.values()), Discriminator("action")]

ManyChanges = create_model(
    "ManyChanges",
    __config__=ConfigDict(extra="forbid", strict=True, frozen=True),
    __doc__="Changes, made in their order; `action` is the name of a command, as in the audit log.",
    changes=(Annotated[list[_MEMBER], Field(max_length=REQUESTS_MAX)], ...),
)


async def make_changes(context: AdminContext, call: Call, query: b.ChangeQuery, body: Any) -> Response:
    """Make the changes, or try each against the current records."""
    call.note(action="changes", count=len(body.changes))
    requests = _requests(context, call, body.changes)
    if query.wait:
        call.take_long()
    made = await (_tried(context, requests) if query.dry_run else _applied(context, requests))
    committed = [result for result in made if isinstance(result, Committed)]
    positions = [change.position for change in committed if change.position is not None]
    is_in_force = await put_in_force(context, positions) and not query.dry_run
    durability = durability_view(context.registry, all(change.is_durable for change in committed))
    results = [_result(request, result, call) for request, result in zip(requests, made, strict=True)]
    view: ManyView = {
        "results": results,
        "is_dry_run": query.dry_run,
        "is_in_force": is_in_force,
        "is_durable": durability["is_durable"] and not query.dry_run,
        "lacks_replicas": durability["lacks_replicas"],
        "took_ms": call.took_ms,
    }
    if query.wait and not query.dry_run:
        view["confirmation"] = await confirm(context, call, positions, query.wait)
        view["took_ms"] = call.took_ms
    refused_count = sum(isinstance(result, RefusedError) for result in made)
    call.note(
        refused=refused_count,
        is_dry_run=query.dry_run,
        is_in_force=is_in_force,
        is_durable=view["is_durable"],
    )
    return answer(view)


def _requests(context: AdminContext, call: Call, members: Sequence[Any]) -> list[ChangeRequest]:
    now_us = context.clock_us()
    requests = []
    for number, member in enumerate(members):
        row = BY_ACTION_NAME[member.action]
        command = row.build(
            CommandInputs(
                integration_id=member.integration_id,
                body=member,
                reason=member.reason,
                now_us=now_us,
                credential_id=member.credential_id if row.names_credential else "",
                credentials=_given_credentials(row, member),
            )
        )
        change_context = call.change_context(f":{number}")
        requests.append(ChangeRequest(command, call.actor, change_context, member.expected_generation))
    return requests


def _given_credentials(row: ChangeRow, member: Any) -> tuple[NewCredential, ...]:
    if row.generates is not SecretKind.API_KEY:
        return ()
    given = member.credentials if row.command is CreateIntegration else [member.credential]
    return tuple(
        NewCredential(credential.id, credential.digest, credential.expires_at) for credential in given
    )


async def _applied(
    context: AdminContext, requests: Sequence[ChangeRequest]
) -> Sequence[Committed | RefusedError]:
    try:
        return await context.registry.apply_many(requests)
    except RegistryError as error:
        if len(requests) > 1:
            # The error is about the part that failed; other parts may have been committed.
            error.may_have_happened = True
        raise


async def _tried(
    context: AdminContext, requests: Sequence[ChangeRequest]
) -> Sequence[Outcome | RefusedError]:
    tried: list[Outcome | RefusedError] = []
    for request in requests:
        try:
            tried.append(await context.registry.preview(request))
        except RefusedError as error:
            tried.append(error)
    return tried


def _result(request: ChangeRequest, made: Committed | Outcome | RefusedError, call: Call) -> ResultView:
    integration_id = request.command.integration_id
    if isinstance(made, RefusedError):
        problem = refused(made)
        return {
            "status": problem.status,
            "integration_id": integration_id,
            "generation": None,
            "is_change": False,
            "position": None,
            "problem": document(problem, call.request_id),
        }
    is_made = isinstance(made, Committed)
    return {
        "status": BY_ACTION_NAME[request.command.action_name].status if is_made else 200,
        "integration_id": integration_id,
        "generation": made.record.generation,
        "is_change": made.entry is not None if isinstance(made, Committed) else made.is_change,
        "position": position_text(made.position) if isinstance(made, Committed) else None,
        "problem": None,
    }


ENDPOINTS = (
    Endpoint(
        "make_changes", "POST", "/v1/changes", "changes", "Make many changes",
        f"Up to {REQUESTS_MAX}, each independent, in their order; a refused change does"
        " not stop the others. A malformed member refuses the whole call, and nothing is changed."
        " Each change needs the permission of its command.",
        make_changes, frozenset(row.command.action for row in ROWS), b.ChangeQuery, ManyChanges,
        answer=ManyView,
        examples=(
            {
                "changes": [
                    {"action": "integration.create", "integration_id": "acme", "name": "Acme"},
                    {"action": "scopes.add", "integration_id": "acme", "scopes": ["orders:read"]},
                ]
            },
        ),
    ),
)  # fmt: skip

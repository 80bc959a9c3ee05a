"""The endpoints that read: the caller, integrations, credentials, scopes and live sidecars."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.integrations import Integration, Status
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import PERMISSIONS, Action
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer, etag, list_answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.times import format_time
from sidecar.services.admin.views import (
    CredentialView,
    IntegrationView,
    RoleWord,
    ScopeCategoryView,
    category_view,
    credential_views,
    integration_view,
    refused_caller_view,
)
from sidecar.stores.registry.protocol import ListQuery

INTEGRATION = "/v1/integrations/{integration_id}"


class WhoamiView(TypedDict):
    """The account of a token, and what it may do."""

    administrator: str
    name: str
    role: RoleWord
    token_id: str
    expires_at: str
    permissions: list[str]


class IntegrationPageView(TypedDict):
    """One page of integrations; `next_after` null = the last page."""

    items: list[IntegrationView]
    next_after: str | None


class CredentialListView(TypedDict):
    """All credentials of an integration, with their last use."""

    items: list[CredentialView]


class ScopeListView(TypedDict):
    """The configured categories of scopes."""

    items: list[ScopeCategoryView]


class SidecarView(TypedDict):
    """A live sidecar, and whether it has applied the latest change."""

    id: str
    revision: str
    seen_at: str
    is_up_to_date: bool


class SidecarListView(TypedDict):
    """The live sidecars, and the registry's revision."""

    items: list[SidecarView]
    revision: str


async def whoami(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with the account of the token."""
    caller = call.caller
    assert caller is not None  # every other call was refused
    view: WhoamiView = {
        "administrator": caller.actor.id,
        "name": caller.name,
        "role": caller.actor.role.value,
        "token_id": caller.actor.token_id,
        "expires_at": format_time(caller.expires_at_us),
        "permissions": sorted(action.value for action in PERMISSIONS[caller.actor.role]),
    }
    return answer(view)


async def list_integrations(context: AdminContext, call: Call, query: b.ListQuery, body: Any) -> Response:
    """Answer with one page of integrations."""
    status = Status(query.status) if query.status is not None else None
    page = await context.registry.list(ListQuery(query.search, status, query.after, query.limit))
    now_us = context.clock_us()
    return await list_answer(
        (integration_view(record, now_us) for record in page.records), {"next_after": page.next_after or None}
    )


async def show_integration(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with one integration, its credentials' last use, and the callers that its allowlist refused."""
    record = await known_integration(context, call.path("integration_id"))
    uses = await context.registry.last_uses(record.id)
    refused = await context.registry.refused_callers(record.id)
    view = integration_view(record, context.clock_us(), uses)
    view["refused_callers"] = [refused_caller_view(record, caller) for caller in refused]
    return answer(view, headers=etag(record.generation))


async def list_credentials(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with the credentials of one integration and their last use."""
    record = await known_integration(context, call.path("integration_id"))
    uses = await context.registry.last_uses(record.id)
    view: CredentialListView = {"items": credential_views(record, context.clock_us(), uses)}
    return answer(view, headers=etag(record.generation))


async def list_scopes(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with the configured scopes."""
    view: ScopeListView = {
        "items": [category_view(category) for category in context.catalogue.categories.values()]
    }
    return answer(view)


async def list_sidecars(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with the live sidecars, and which of them lag behind."""
    # Read before the sidecars: one that applies a change in between is ahead, and not shown as behind.
    revision = await context.registry.revision()
    sidecars = await context.registry.live_sidecars()
    items: list[SidecarView] = [
        {
            "id": sidecar.id,
            "revision": str(sidecar.revision),
            "seen_at": format_time(sidecar.seen_at_us),
            "is_up_to_date": len(sidecar.revision.sequences) == len(revision.sequences)
            and all(map(int.__ge__, sidecar.revision.sequences, revision.sequences)),
        }
        for sidecar in sidecars
    ]
    return await list_answer(items, {"revision": str(revision)})


async def known_integration(context: AdminContext, integration_id: str) -> Integration:
    """
    Return the integration with this id.

    Raises:
        NotFoundError: it does not exist.
    """
    record = await context.registry.get(integration_id)
    if record is None:
        raise refusal(
            Code.INTEGRATION_UNKNOWN,
            "integration_id",
            f"no integration {integration_id[:80]!a}",
            "list the integrations; the audit log has the entries of deleted ones",
        )
    return record


_READ = frozenset({Action.READ_INTEGRATIONS})

ENDPOINTS = (
    Endpoint(
        "whoami", "GET", "/v1/whoami", "administrators", "Show the account of the token",
        "Works for every role.", whoami, answer=WhoamiView,
    ),
    Endpoint(
        "list_integrations", "GET", "/v1/integrations", "integrations", "List and search integrations",
        "Ordered by id. Does not include last uses.", list_integrations, _READ,
        b.ListQuery, answer=IntegrationPageView,
    ),
    Endpoint(
        "show_integration", "GET", INTEGRATION, "integrations", "Show one integration",
        "Includes the last use of its API keys, and the latest callers that its allowlist refused. The ETag"
        " is for If-Match.",
        show_integration, _READ, answer=IntegrationView,
    ),
    Endpoint(
        "list_credentials", "GET", INTEGRATION + "/credentials", "credentials",
        "List the API keys of an integration", "Includes the last use of each.",
        list_credentials, _READ, answer=CredentialListView,
    ),
    Endpoint(
        "list_scopes", "GET", "/v1/scopes", "scopes", "List the configured scopes",
        "The configured categories of scopes.", list_scopes, _READ, answer=ScopeListView,
    ),
    Endpoint(
        "list_sidecars", "GET", "/v1/sidecars", "sidecars", "List the live sidecars",
        "Shows whether each has applied the latest change.", list_sidecars, _READ,
        answer=SidecarListView,
    ),
)  # fmt: skip

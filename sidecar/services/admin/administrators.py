"""The endpoints for administrators: accounts, roles and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NotRequired

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain import administrators as a
from sidecar.domain.accounts import TOKEN_PREFIX, live_admin_tokens
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.changes import AdminRequest, Position
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import Action, Role
from sidecar.domain.suggestions import did_you_mean
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer, list_answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.changes import position_text
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.notices import expiry_notices
from sidecar.services.admin.times import SECOND_US, format_time
from sidecar.services.admin.views import (
    AdministratorView,
    DurabilityView,
    NoticeView,
    administrator_view,
    durability_view,
    notice_view,
)

ACCOUNT = "/v1/administrators/{administrator_id}"


class AdministratorListView(TypedDict):
    """
    All accounts, removed ones included.

    `admin_access_ends_at` is when the last live token with the role admin expires, null = there is none;
    `notices` warns two weeks before.
    """

    items: list[AdministratorView]
    admin_access_ends_at: str | None
    notices: list[NoticeView]


class AdministratorChangeView(DurabilityView):
    """
    The result of a change of an account.

    `token` is in the first answer only: a repeat with the same idempotency key has null.
    """

    administrator: AdministratorView
    is_change: bool
    summary: str
    position: str | None
    took_ms: int
    token: NotRequired[str | None]
    token_id: NotRequired[str | None]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs of a command; `token` None = the change issues no token."""

    id: str
    reason: str
    body: Any
    call: Call
    token: a.NewToken | None = None

    @property
    def on(self) -> dict[str, str]:
        return {"administrator_id": self.id, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One kind of change of an account; `lifetime_field` names the body's field with the token's lifetime."""

    command: type[a.AdminCommand]
    method: str
    path: str
    summary: str
    body: type[b.Body] | None
    build: Callable[[_Inputs], a.AdminCommand]
    lifetime_field: str = ""
    status: int = 200
    examples: tuple[dict[str, object], ...] = ()


def _create(given: _Inputs) -> a.AdminCommand:
    assert given.token is not None  # the row generates one
    return a.CreateAdministrator(
        **given.on, name=given.body.name, role=Role(given.body.role), token=given.token
    )


def _issue(given: _Inputs) -> a.AdminCommand:
    assert given.token is not None  # the row generates one
    return a.IssueToken(**given.on, token=given.token)


ROWS: tuple[AccountRow, ...] = (
    AccountRow(
        a.CreateAdministrator, "POST", "/v1/administrators", "Create an account, with its first token",
        b.NewAdministrator, _create, "token_expires_in", 201,
        ({"id": "bob", "name": "Bob", "role": "operator"},),
    ),
    AccountRow(
        a.SetRole, "POST", ACCOUNT + "/role", "Change the role of an account",
        b.RoleChange, lambda given: a.SetRole(**given.on, role=Role(given.body.role)),
        examples=({"role": "auditor"},),
    ),
    AccountRow(
        a.RemoveAdministrator, "DELETE", ACCOUNT, "Remove an account and revoke its tokens", None,
        lambda given: a.RemoveAdministrator(**given.on),
    ),
    AccountRow(
        a.IssueToken, "POST", ACCOUNT + "/tokens", "Issue another token to an account; it is shown once",
        b.TokenTerms, _issue, "expires_in", 201, ({"expires_in": "30d"},),
    ),
    AccountRow(
        a.RevokeToken, "DELETE", ACCOUNT + "/tokens/{token_id}", "Revoke a token at once", None,
        lambda given: a.RevokeToken(**given.on, token_id=given.call.path("token_id")),
    ),
)  # fmt: skip


async def list_administrators(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with all accounts."""
    now_us = context.clock_us()
    accounts = await context.registry.administrators()
    uses = context.token_uses.merged_with(await context.registry.token_uses())
    live = live_admin_tokens(accounts, now_us)
    return await list_answer(
        (administrator_view(account, now_us, uses) for account in accounts),
        {
            "admin_access_ends_at": format_time(live[-1][1].expires_at_us) if live else None,
            "notices": [notice_view(notice) for notice in expiry_notices(accounts, now_us)],
        },
    )


async def show_administrator(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with one account; a removed one, too."""
    wanted = call.path("administrator_id")
    accounts = await context.registry.administrators()
    for account in accounts:
        if account.id == wanted:
            uses = context.token_uses.merged_with(await context.registry.token_uses())
            return answer(administrator_view(account, context.clock_us(), uses))
    raise refusal(
        Code.ADMINISTRATOR_UNKNOWN,
        "administrator_id",
        f"no administrator {wanted[:80]!a}{did_you_mean(wanted, (account.id for account in accounts))}",
        "list the administrators to find the id",
    )


async def change_account(
    row: AccountRow, context: AdminContext, call: Call, query: Any, body: Any
) -> Response:
    """Make the change that *row* describes."""
    given = _Inputs(
        id=body.id if row.command is a.CreateAdministrator else call.path("administrator_id"),
        reason=body.reason if body is not None else query.reason,
        body=body,
        call=call,
    )
    call.note(action=row.command.action_name, subject=f"administrator:{given.id[:64]}")
    token = ""
    if row.lifetime_field:
        fresh = generate_api_key(TOKEN_PREFIX)
        expires_at_us = context.clock_us() + getattr(body, row.lifetime_field) * SECOND_US
        public = a.NewToken(fresh.credential_id, fresh.digest, expires_at_us)
        given, token = _Inputs(given.id, given.reason, body, call, public), fresh.api_key
    committed = await context.registry.administer(
        AdminRequest(row.build(given), call.actor, call.change_context())
    )
    entry = committed.entry
    durability = durability_view(context.registry, committed.is_durable)
    view: AdministratorChangeView = {
        "administrator": administrator_view(committed.administrator, context.clock_us()),
        "is_change": entry is not None,
        "is_durable": durability["is_durable"],
        "lacks_replicas": durability["lacks_replicas"],
        "summary": entry.summary if entry is not None else "no change needed",
        "position": position_text(Position(entry.chain, entry.sequence)) if entry is not None else None,
        "took_ms": call.took_ms,
    }
    if token:
        view["token"] = token if not committed.is_replay else None
        view["token_id"] = committed.administrator.tokens[-1].id
    call.note(position=view["position"], is_replay=committed.is_replay)
    headers = {"Idempotency-Replayed": "true"} if committed.is_replay else {}
    if row.command is a.CreateAdministrator:
        headers["Location"] = f"/v1/administrators/{committed.administrator.id}"
    return answer(view, row.status, headers)


def _endpoint(row: AccountRow) -> Endpoint:
    return Endpoint(
        name=row.command.action_name.replace(".", "_"),
        method=row.method,
        path=row.path,
        tag="administrators",
        summary=row.summary,
        description=" ".join((row.command.__doc__ or "").split()),
        handle=partial(change_account, row),
        actions=frozenset({Action.ADMINISTER}),
        query=b.ReasonQuery if row.body is None else b.Query,
        body=row.body,
        answer=AdministratorChangeView,
        status=row.status,
        examples=row.examples,
    )


_READ = frozenset({Action.READ_ADMINISTRATORS})

ENDPOINTS = (
    Endpoint(
        "list_administrators", "GET", "/v1/administrators", "administrators", "List the accounts",
        "Includes removed accounts, because an id is never reused.", list_administrators, _READ,
        answer=AdministratorListView,
    ),
    Endpoint(
        "show_administrator", "GET", ACCOUNT, "administrators", "Show one account",
        "Tokens are shown by id.", show_administrator, _READ, answer=AdministratorView,
    ),
    *map(_endpoint, ROWS),
)  # fmt: skip

"""`sidecar integrations`: which there are, and making, changing and ending them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sidecar.cli.admin_command import Confirmed, IntegrationChange, Invocation, command

GROUP = "Integrations: list, show, create, edit, delete."
app = typer.Typer(no_args_is_help=True, help=GROUP)

LIST_MAX = 10_000
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The integration's id.")]
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="ROWS", min=1, max=LIST_MAX, help="Show so many at most.")
]
NameOption = Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What people call it.")]
ContactOption = Annotated[str | None, typer.Option("--contact", metavar="TEXT", help="Whom to ask.")]
OwnerOption = Annotated[str | None, typer.Option("--owner", metavar="TEXT", help="Who answers for it.")]
ManagerOption = Annotated[
    str | None,
    typer.Option("--third-party-manager", metavar="TEXT", help="The third party that runs it, if any."),
]
RpmOption = Annotated[
    int | None,
    typer.Option("--rate-limit-rpm", metavar="N", help="Requests per minute, 1 to 10,000. Default: 60."),
]
BurstOption = Annotated[
    int | None, typer.Option("--burst", metavar="N", help="Requests at once. Default: the limit.")
]
ExpiresOption = Annotated[
    str,
    typer.Option(
        "--expires",
        metavar="WHEN",
        help="When the key ends: 2026-12-01T00:00Z, or 90d from now. Default: never.",
    ),
]


class Status(StrEnum):
    """Which integrations to list."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class StorePolicy(StrEnum):
    """What to answer while the store is away."""

    DENY = "deny"
    ALLOW = "allow"
    LOCAL = "local"
    DEFAULT = "default"


@app.callback()
def integrations() -> None:
    """Integrations: list, show, create, edit, delete."""


@command(app, "list")
def list_integrations(
    call: Invocation,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            metavar="TEXT",
            help="Only those with this in id, name, contact, owner, manager or a credential's id.",
        ),
    ] = "",
    status: Annotated[Status | None, typer.Option("--status", help="Only those that are so.")] = None,
    limit: LimitOption = 1_000,
) -> None:
    """List integrations, in the order of their ids."""
    from sidecar.cli.views import print_integrations

    query = {"search": search, "status": status.value if status is not None else None}
    print_integrations(call, call.client.listed("/v1/integrations", query, limit))


@command(app, "show")
def show(call: Invocation, id: IdArgument) -> None:
    """Show one integration with its credentials and when each was last used."""
    from sidecar.cli.views import print_integration

    record = call.get("integrations", id)
    call.print_json(record) if call.is_json else print_integration(record)


@command(app, "create", IntegrationChange)
def create(
    call: Invocation,
    id: Annotated[str, typer.Argument(metavar="ID", help="Its id, such as acme-erp; it is for ever.")],
    name: NameOption = None,
    contact: ContactOption = None,
    owner: OwnerOption = None,
    third_party_manager: ManagerOption = None,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="SCOPE", help="Such as orders:read; may be repeated. Default: none."),
    ] = None,
    rate_limit_rpm: RpmOption = None,
    burst: BurstOption = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="CIDR", help="Let only these addresses in; may be repeated. Default: all."
        ),
    ] = None,
    issue_credential: Annotated[
        bool, typer.Option("--issue-credential", help="Also issue an API key, and print it.")
    ] = False,
    expires: ExpiresOption = "",
    on_store_error: Annotated[
        StorePolicy | None,
        typer.Option("--on-store-error", help="What its requests get while the shared store is away."),
    ] = None,
) -> None:
    """
    Create an integration. It may do nothing until it is given scopes and an API key.

    With --issue-credential the key is alone on standard output, shown this once.
    """
    from sidecar.cli.exits import EXIT_USAGE, CommandError
    from sidecar.cli.times import moment_of

    if expires and not issue_credential:
        raise CommandError("--expires is the end of the key that --issue-credential makes", EXIT_USAGE)
    body = {
        "id": id,
        "name": name or id,
        "contact": contact,
        "owner": owner,
        "third_party_manager": third_party_manager,
        "scopes": scope,
        "rate_limit_rpm": rate_limit_rpm,
        "burst": burst,
        "allowlist": allow,
        "issue_credential": issue_credential or None,
        "credential_expires_at": moment_of("--expires", expires) if expires else None,
        "on_store_error": _policy(on_store_error),
    }
    answer = call.change(
        "POST", "integrations", body={key: one for key, one in body.items() if one is not None}
    )
    if issue_credential:
        call.print_secret(answer, "api_key", f"The API key of {id}")
    else:
        call.print_change(answer)


@command(app, "edit", IntegrationChange)
def edit(
    call: Invocation,
    id: IdArgument,
    name: NameOption = None,
    contact: ContactOption = None,
    owner: OwnerOption = None,
    third_party_manager: ManagerOption = None,
) -> None:
    """Change who it is and whom to ask; '' empties a field, what is not named stays."""
    from sidecar.cli.exits import EXIT_USAGE, CommandError

    fields = {"name": name, "contact": contact, "owner": owner, "third_party_manager": third_party_manager}
    given = {key: value for key, value in fields.items() if value is not None}
    if not given:
        raise CommandError("nothing to change: name a field, such as --contact", EXIT_USAGE)
    call.print_change(call.change("PATCH", "integrations", id, body=given))


@command(app, "delete", IntegrationChange, Confirmed)
def delete(call: Invocation, id: IdArgument) -> None:
    """
    End an integration for good.

    Its API keys end at once, its trail is kept, and its id is never used again.
    """
    call.confirm(f"Delete {id} for good? Its API keys end at once, and its id is never used again.")
    call.print_change(call.change("DELETE", "integrations", id, in_query=True))


@command(app, "on-store-error", IntegrationChange)
def on_store_error(
    call: Invocation,
    id: IdArgument,
    policy: Annotated[StorePolicy, typer.Argument(help="'default' = as the configuration says for all.")],
) -> None:
    """Say what its requests get while the shared store is away."""
    body = {"policy": _policy(policy)}
    call.print_change(call.change("POST", "integrations", id, "on-store-error", body=body))


def _policy(policy: StorePolicy | None) -> str | None:
    return None if policy in (None, StorePolicy.DEFAULT) else policy.value

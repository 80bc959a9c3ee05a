"""`sidecar integrations`: list, show, create, edit and delete integrations."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import Confirmed, IntegrationChange, Invocation, command
from sidecar.domain.enforcement import Rule
from sidecar.domain.integrations import DETAILS, SEARCHED, Status

app = typer.Typer(no_args_is_help=True, help="Integrations: list, show, create, edit, delete.")

LIST_MAX = 10_000
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The integration's id.")]
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="ROWS", min=1, max=LIST_MAX, help="Maximum number of rows.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="TEXT", help="The name of the integration.")
]
DetailOptions: Any = make_dataclass(
    "DetailOptions",
    [
        (
            name,
            Annotated[
                str | None, typer.Option(f"--{name.replace('_', '-')}", metavar="TEXT", help=text.help)
            ],
            field(default=None),
        )
        for name, text in DETAILS.items()
    ],
)
RpmOption = Annotated[
    int | None,
    typer.Option("--rate-limit-rpm", metavar="N", help="Requests per minute, 1 to 10,000. Default: 60."),
]
BurstOption = Annotated[
    int | None,
    typer.Option("--burst", metavar="N", help="Requests that may arrive at once. Default: the limit."),
]
ExpiresOption = Annotated[
    str,
    typer.Option(
        "--expires",
        metavar="WHEN",
        help="When the key expires: 2026-12-01T00:00Z, or 90d from now. Default: never.",
    ),
]


SearchOption = Annotated[str, typer.Option("--search", metavar="TEXT", help=f"Search in {SEARCHED}.")]
StatusOption = Annotated[Status | None, typer.Option("--status", help="Filter by status.")]


ShadowOption = Annotated[
    bool | None,
    typer.Option(
        "--shadow/--enforce",
        help="Count requests that the rule would refuse, but allow them / refuse them. Default: as it is.",
    ),
]


class StorePolicy(StrEnum):
    """The values of `--on-store-error`."""

    DENY = "deny"
    ALLOW = "allow"
    LOCAL = "local"
    DEFAULT = "default"


@command(app, "list")
def list_integrations(
    call: Invocation, search: SearchOption = "", status: StatusOption = None, limit: LimitOption = 1_000
) -> None:
    """List integrations, in the order of their ids."""
    from sidecar.cli.views import print_integrations

    query = {"search": search, "status": status.value if status is not None else None}
    print_integrations(call, call.client.listed("/v1/integrations", query, limit))


@command(app, "show")
def show(call: Invocation, id: IdArgument) -> None:
    """Show one integration with its credentials and when each was last used."""
    from sidecar.cli.views import print_integration

    call.show(call.get("integrations", id), print_integration)


@command(app, "create", IntegrationChange, DetailOptions)
def create(
    call: Invocation,
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The integration's id, such as acme-erp; it can never be changed or reused."
        ),
    ],
    details: DetailOptions,
    name: NameOption = None,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="SCOPE", help="Such as orders:read; may be repeated. Default: none."),
    ] = None,
    rate_limit_rpm: RpmOption = None,
    burst: BurstOption = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="CIDR", help="Allow only this address or block; may be repeated. Default: all."
        ),
    ] = None,
    issue_credential: Annotated[
        bool, typer.Option("--issue-credential", help="Also issue an API key and print it.")
    ] = False,
    expires: ExpiresOption = "",
    on_store_error: Annotated[
        StorePolicy | None,
        typer.Option(
            "--on-store-error", help="How to answer its requests while the shared store is unavailable."
        ),
    ] = None,
) -> None:
    """
    Create an integration. It cannot call until it has scopes and an API key.

    With --issue-credential the key is shown once, alone on standard output.
    """
    from sidecar.cli.exits import EXIT_USAGE, CommandError
    from sidecar.cli.times import moment_of

    if expires and not issue_credential:
        raise CommandError("--expires needs --issue-credential: it sets when that key expires", EXIT_USAGE)
    body = {
        "id": id,
        "name": name or id,
        **vars(details),
        "scopes": scope,
        "rate_limit_rpm": rate_limit_rpm,
        "burst": burst,
        "allowlist": allow,
        "issue_credential": issue_credential or None,
        "credential_expires_at": moment_of("--expires", expires) if expires else None,
        "on_store_error": _policy(on_store_error),
    }
    answer = call.change(
        "POST", "integrations", body={key: value for key, value in body.items() if value is not None}
    )
    if issue_credential:
        call.print_secret(answer, "api_key", f"The API key of {id}")
    else:
        call.print_change(answer)


@command(app, "edit", IntegrationChange, DetailOptions)
def edit(call: Invocation, id: IdArgument, details: DetailOptions, name: NameOption = None) -> None:
    """Change name, contact, owner or manager; '' clears a field."""
    from sidecar.cli.exits import EXIT_USAGE, CommandError

    texts = {"name": name, **vars(details)}
    changes = {key: value for key, value in texts.items() if value is not None}
    if not changes:
        raise CommandError("no field given: name one, such as --contact", EXIT_USAGE)
    call.print_change(call.change("PATCH", "integrations", id, body=changes))


@command(app, "delete", IntegrationChange, Confirmed)
def delete(call: Invocation, id: IdArgument) -> None:
    """
    Delete an integration permanently.

    Its API keys stop working at once, its audit entries are kept, and its id is never reused.
    """
    call.confirm(
        f"Delete {id} permanently? Its API keys stop working at once, and its id can never be reused."
    )
    call.print_change(call.change("DELETE", "integrations", id, in_query=True))


@command(app, "on-store-error", IntegrationChange)
def on_store_error(
    call: Invocation,
    id: IdArgument,
    policy: Annotated[StorePolicy, typer.Argument(help="'default' = the configuration's on_store_error.")],
) -> None:
    """Set how to answer its requests while the shared store is unavailable."""
    body = {"policy": _policy(policy)}
    call.print_change(call.change("POST", "integrations", id, "on-store-error", body=body))


@command(app, "shadow", IntegrationChange)
def shadow(
    call: Invocation,
    id: IdArgument,
    rule: Annotated[
        list[Rule] | None,
        typer.Argument(help="All rules in shadow; 'scopes' covers path, route and scope."),
    ] = None,
    enforce: Annotated[bool, typer.Option("--enforce", help="Enforce every rule.")] = False,
) -> None:
    """Set the rules in shadow: requests that they would refuse are counted, but allowed."""
    from sidecar.cli.exits import EXIT_USAGE, CommandError

    if enforce == bool(rule):
        raise CommandError("name the rules to put in shadow, or pass --enforce", EXIT_USAGE)
    body = {"shadow": [named.value for named in rule or ()]}
    call.print_change(call.change("POST", "integrations", id, "shadow", body=body))


def in_shadow(shadow: bool | None) -> dict[str, bool]:
    """The field of a body for `ShadowOption`; it is left out by default."""
    return {} if shadow is None else {"in_shadow": shadow}


def _policy(policy: StorePolicy | None) -> str | None:
    return None if policy in (None, StorePolicy.DEFAULT) else policy.value

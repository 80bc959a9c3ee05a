"""`sidecar admin`: administrators and their tokens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sidecar.cli.admin_bootstrap import LIFETIME, ExpiresOption, bootstrap, recover
from sidecar.cli.admin_command import Change, Confirmed, Invocation, command
from sidecar.domain.roles import Role

app = typer.Typer(no_args_is_help=True, help="Administrators and their tokens.")


app.command()(bootstrap)
app.command()(recover)


AccountArgument = Annotated[str, typer.Argument(metavar="ID", help="The account's id.")]


RoleOption = Annotated[
    Role,
    typer.Option(
        "--role", help="admin can do everything, auditor can read everything, operator can suspend."
    ),
]

token_app = typer.Typer(no_args_is_help=True, help="Tokens of administrators.")


@command(token_app, "issue", Change)
def issue_token(call: Invocation, id: AccountArgument, expires: ExpiresOption = LIFETIME) -> None:
    """Issue another token to an account; it is shown once, alone on standard output."""
    answer = call.change("POST", "administrators", id, "tokens", body=_lifetime("expires_in", expires))
    call.print_secret(answer, "token", f"The token of {id}")


@command(token_app, "revoke", Change, Confirmed)
def revoke_token(
    call: Invocation,
    id: AccountArgument,
    token_id: Annotated[
        str, typer.Argument(metavar="TOKEN_ID", help="The token's id, as 'admin list' shows it.")
    ],
) -> None:
    """Revoke a token at once."""
    call.confirm(f"Revoke the token {token_id} of {id}? Calls with it are refused from now on.")
    call.print_change(call.change("DELETE", "administrators", id, "tokens", token_id, in_query=True))


app.add_typer(token_app, name="token")


@command(app, "list")
def list_administrators(call: Invocation) -> None:
    """
    List all accounts, removed ones included, with their tokens and their last use.

    Prints a warning when the last token with the role admin expires within 14 days.
    """
    from sidecar.cli.tables import plain
    from sidecar.cli.views import print_administrators

    listing = call.get("administrators")
    if call.is_json:
        call.print_json(listing)
        return
    print_administrators(listing["items"])
    for notice in listing.get("notices") or ():
        typer.echo(f"warning: {plain(notice['message'])}", err=True)


@command(app, "create", Change)
def create(
    call: Invocation,
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The account's id, such as bob; it can never be changed or reused."
        ),
    ],
    role: RoleOption,
    name: Annotated[
        str, typer.Option("--name", metavar="TEXT", help="The person's name. Default: the id.")
    ] = "",
    expires: ExpiresOption = LIFETIME,
) -> None:
    """Create an account; its first token is shown once, alone on standard output."""
    body = {"id": id, "name": name or id, "role": role.value, **_lifetime("token_expires_in", expires)}
    call.print_secret(call.change("POST", "administrators", body=body), "token", f"The token of {id}")


@command(app, "role", Change)
def set_role(
    call: Invocation,
    id: AccountArgument,
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="admin, auditor or operator.")],
) -> None:
    """Change the role of an account."""
    call.print_change(call.change("POST", "administrators", id, "role", body={"role": role.value}))


@command(app, "remove", Change, Confirmed)
def remove(call: Invocation, id: AccountArgument) -> None:
    """Remove an account and revoke its tokens; its audit entries stay, and its id is never reused."""
    call.confirm(
        f"Remove the administrator {id}? Its tokens stop working at once, and its id can never be reused."
    )
    call.print_change(call.change("DELETE", "administrators", id, in_query=True))


@command(app, "whoami")
def whoami(call: Invocation) -> None:
    """Show the account and the role of your token, and when the token expires."""
    from sidecar.cli.tables import print_fields
    from sidecar.cli.times import shown

    me = call.get("whoami")
    if call.is_json:
        call.print_json(me)
        return
    names = (("administrator", "administrator"), ("role", "role"), ("token", "token_id"))
    fields = [(name, me[field]) for name, field in names]
    print_fields([*fields, ("until", shown(me["expires_at"])), ("may", me["permissions"])])


def _lifetime(field: str, expires: str) -> dict[str, Any]:
    from sidecar.cli.times import token_lifetime
    from sidecar.domain.durations import format_duration

    return {field: format_duration(token_lifetime("--expires", expires))}

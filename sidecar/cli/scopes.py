"""`sidecar scopes`: the scopes of an integration."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.admin_command import IntegrationChange, Invocation, command
from sidecar.cli.integrations import IdArgument

app = typer.Typer(no_args_is_help=True, help="The scopes of an integration: what it may read and write.")

ScopesArgument = Annotated[
    list[str], typer.Argument(metavar="SCOPE", help="A scope, such as orders:read or orders:write.")
]


@command(app, "list")
def list_scopes(call: Invocation, id: IdArgument) -> None:
    """List the scopes of an integration."""
    from sidecar.cli.tables import Column, print_table

    record = call.get("integrations", id)
    if call.is_json:
        call.print_json(record["scopes"])
    else:
        print_table([Column("scope")], [[scope] for scope in record["scopes"]], f"{id} has no scope")


@command(app, "add", IntegrationChange)
def add(call: Invocation, id: IdArgument, scope: ScopesArgument) -> None:
    """Add scopes, in force from the next request on."""
    call.print_change(call.change("POST", "integrations", id, "scopes", "add", body={"scopes": scope}))


@command(app, "remove", IntegrationChange)
def remove(call: Invocation, id: IdArgument, scope: ScopesArgument) -> None:
    """Remove scopes; requests that need them get a 403 from now on."""
    call.print_change(call.change("POST", "integrations", id, "scopes", "remove", body={"scopes": scope}))


@command(app, "catalogue")
def catalogue(call: Invocation) -> None:
    """List the configured categories with their sensitivity and their scopes."""
    from sidecar.cli.tables import Column, print_table

    listing = call.get("scopes")
    if call.is_json:
        call.print_json(listing)
        return
    rows = [
        (item["name"], item["title"], item["sensitivity"], " ".join(item["scopes"]))
        for item in listing["items"]
    ]
    columns = (Column("category"), Column("title"), Column("sensitivity"), Column("scopes"))
    print_table(columns, rows, "no category is configured")

"""`sidecar admin bootstrap`: the first administrator of a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.app.cli.exits import telling_mistakes
from sidecar.app.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from sidecar.app.first_administrator import FirstAdministrator

LIFETIME_DAYS = 90
LIFETIME_DAYS_MAX = 366


def bootstrap(
    id: Annotated[
        str,
        typer.Option("--id", metavar="ID", help="The account's id, such as ann; it is for ever."),
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="TEXT", help="Who it is, for the audit log. Default: the id.")
    ] = "",
    expires_in_days: Annotated[
        int,
        typer.Option(
            "--expires-in-days",
            metavar="DAYS",
            min=1,
            max=LIFETIME_DAYS_MAX,
            help="The life of the token.",
        ),
    ] = LIFETIME_DAYS,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """
    Make the first administrator, on a registry that never had one, and print the token.

    Works on the registry that the configuration names, past any running sidecar; whoever can read the
    configuration and reach the registry may run it. The token is shown this once, alone on standard
    output. Exits with 1 when the registry has had administrators before: they make the next ones.
    """
    with telling_mistakes():
        from sidecar.app.cli.on_registry import on_registry
        from sidecar.app.first_administrator import make_first_administrator

        made = on_registry(
            config, lambda registry: make_first_administrator(registry, id, name or id, expires_in_days)
        )
    if json:
        import json as encoder

        typer.echo(encoder.dumps(_described(made)))
        return
    typer.echo(
        f"Made {made.id}, who may administer everything until {made.expires_at}. The token, shown this once:",
        err=True,
    )
    typer.echo(made.token)
    typer.echo(
        "Keep it secret: put it into SIDECAR_ADMIN_TOKEN. Make an account for a second person soon, because"
        "\nnobody can reactivate what the same person suspended.",
        err=True,
    )


def _described(made: FirstAdministrator) -> dict[str, Any]:
    return {
        "administrator": {"id": made.id, "name": made.name, "role": "admin"},
        "token": made.token,
        "token_id": made.token_id,
        "expires_at": made.expires_at,
    }

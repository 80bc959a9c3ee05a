"""`sidecar admin bootstrap` and `recover`: administrators made on the registry itself, past the admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.cli.exits import report_errors
from sidecar.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from sidecar.process.first_administrator import MadeAdministrator

LIFETIME = "90d"
IdOption = Annotated[
    str, typer.Option("--id", metavar="ID", help="The account's id, such as ann; it can never be reused.")
]
NameOption = Annotated[
    str, typer.Option("--name", metavar="TEXT", help="Who it is, for the audit log. Default: the id.")
]
ExpiresOption = Annotated[
    str,
    typer.Option(
        "--expires", metavar="WHEN", help="When the token ends: 90d, or 2026-12-01T00:00Z; at most 366d."
    ),
]


def bootstrap(
    id: IdOption,
    name: NameOption = "",
    expires: ExpiresOption = LIFETIME,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """
    Make the first administrator, on a registry that never had one, and print the token.

    Works on the registry that the configuration names, past any running sidecar; whoever can read the
    configuration and reach the registry may run it. The token is shown this once, alone on standard
    output. Exits with 1 when the registry has had administrators before: they make the next ones.
    """
    with report_errors():
        from sidecar.cli.on_registry import on_registry
        from sidecar.cli.times import token_lifetime
        from sidecar.process.first_administrator import make_first_administrator

        lifetime_s = token_lifetime("--expires", expires)
        made = on_registry(
            config, lambda registry: make_first_administrator(registry, id, name or id, lifetime_s)
        )
    _print_account(
        made,
        json,
        "Keep it secret: put it into SIDECAR_ADMIN_TOKEN. Make an account for a second person soon, because"
        "\nnobody can reactivate what the same person suspended.",
    )


def recover(
    id: IdOption,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; stays in the audit log for ever.")
    ],
    name: NameOption = "",
    expires: ExpiresOption = LIFETIME,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """
    Make an administrator on the machine, when no other one can help, and print the token.

    For when every token is lost or has expired, and for when the only administrator suspended an
    integration. Works on the registry that the configuration names, past any running sidecar;
    whoever owns the registry's file, or the credentials of its Redis, may run it.

    The access of the new account depends on no other administrator. The recovery stays in the audit
    log. Each integration that the account reactivates is marked single_person there, in the review
    and in a metric, because the owner of the machine may be the one who suspended it.
    """
    with report_errors():
        from sidecar.cli.on_registry import on_registry
        from sidecar.cli.times import token_lifetime
        from sidecar.process.first_administrator import recover_administrator

        lifetime_s = token_lifetime("--expires", expires)
        made = on_registry(
            config, lambda registry: recover_administrator(registry, id, name or id, reason, lifetime_s)
        )
    _print_account(
        made,
        json,
        "Keep it secret: put it into SIDECAR_ADMIN_TOKEN. This recovery is in the audit log for ever. What"
        f"\n{made.id} reactivates is marked single_person. Remove the account once it is no longer needed.",
    )


def _print_account(made: MadeAdministrator, as_json: bool, advice: str) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(_described(made)))
        return
    typer.echo(
        f"Made {made.id}, who may administer everything until {made.expires_at}. The token, shown this once:",
        err=True,
    )
    typer.echo(made.token)
    typer.echo(advice, err=True)


def _described(made: MadeAdministrator) -> dict[str, Any]:
    return {
        "administrator": {"id": made.id, "name": made.name, "role": "admin"},
        "token": made.token,
        "token_id": made.token_id,
        "expires_at": made.expires_at,
    }

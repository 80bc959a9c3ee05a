"""`sidecar admin bootstrap` and `recover`: create administrators in the registry, without the admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.cli.exits import report_errors
from sidecar.cli.options import ConfigOption, JsonOption
from sidecar.cli.output import print_durability

if TYPE_CHECKING:
    from sidecar.process.first_administrator import CreatedAdministrator

LIFETIME = "90d"
IdOption = Annotated[
    str, typer.Option("--id", metavar="ID", help="The account's id, such as ann; it can never be reused.")
]
NameOption = Annotated[
    str, typer.Option("--name", metavar="TEXT", help="The person's name, for the audit log. Default: the id.")
]
ExpiresOption = Annotated[
    str,
    typer.Option(
        "--expires", metavar="WHEN", help="When the token expires: 90d, or 2026-12-01T00:00Z; at most 366d."
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
    Create the first administrator of a registry and print the token.

    Changes the registry that the configuration names, without a running sidecar. Anyone who can read the
    configuration and reach the registry can run it. The token is shown once, alone on standard output.
    Exits with 1 if the registry ever had an administrator: use 'sidecar admin create' then.
    """
    with report_errors():
        from sidecar.cli.offline import on_registry
        from sidecar.cli.times import token_lifetime
        from sidecar.process.first_administrator import create_first_administrator

        lifetime_s = token_lifetime("--expires", expires)
        made = on_registry(
            config, lambda registry: create_first_administrator(registry, id, name or id, lifetime_s)
        )
    _print_account(
        made,
        json,
        "Keep it secret: put it into SIDECAR_ADMIN_TOKEN. Create an account for a second person soon:"
        "\nnobody can reactivate an integration that they suspended themselves.",
    )


def recover(
    id: IdOption,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, for the audit log.")],
    name: NameOption = "",
    expires: ExpiresOption = LIFETIME,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """
    Create an administrator on the registry's machine when no other one can help, and print the token.

    Use it when every token is lost or has expired, or when the only administrator suspended an
    integration. Changes the registry that the configuration names, without a running sidecar. Anyone
    who owns the registry's file, or the credentials of its Redis, can run it.

    The access of the new account depends on no other administrator. The audit log records the recovery.
    Each integration that the account reactivates is marked single_person in the audit log, in the review
    and in a metric, because the owner of the machine may have suspended it, too.
    """
    with report_errors():
        from sidecar.cli.offline import on_registry
        from sidecar.cli.times import token_lifetime
        from sidecar.process.first_administrator import recover_administrator

        lifetime_s = token_lifetime("--expires", expires)
        made = on_registry(
            config, lambda registry: recover_administrator(registry, id, name or id, reason, lifetime_s)
        )
    _print_account(
        made,
        json,
        "Keep it secret: put it into SIDECAR_ADMIN_TOKEN. The audit log records this recovery."
        f"\nIntegrations that {made.id} reactivates are"
        "\nmarked single_person. Remove the account when it is no longer needed.",
    )


def _print_account(made: CreatedAdministrator, as_json: bool, advice: str) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(_described(made)))
        return
    typer.echo(
        f"Created the administrator {made.id}. Its token expires at {made.expires_at}, shown only once:",
        err=True,
    )
    typer.echo(made.token)
    print_durability(_described(made))
    typer.echo(advice, err=True)


def _described(made: CreatedAdministrator) -> dict[str, Any]:
    return {
        "administrator": {"id": made.id, "name": made.name, "role": "admin"},
        "token": made.token,
        "token_id": made.token_id,
        "expires_at": made.expires_at,
        "is_durable": made.is_durable,
        "lacks_replicas": made.lacks_replicas,
    }

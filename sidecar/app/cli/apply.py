"""`sidecar apply`: make running sidecars hold what a file declares, by the admin API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidecar.app.cli.calling import ADMINISTRATION, Confirmed, Invocation, command
from sidecar.app.cli.exits import CommandError

FileOption = Annotated[
    Path, typer.Option("--file", "-f", metavar="FILE", help="The YAML file with 'integrations:'.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the difference, and change nothing.")]
PruneOption = Annotated[
    bool,
    typer.Option(
        "--prune",
        help="Delete integrations, and revoke API keys, that the file does not name. Both are for ever.",
    ),
]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="Why; goes on record with every change. Default: that the file declares it.",
    ),
]


def reason_of(reason: str, file: Path) -> str:
    """What goes on record: the reason that was given, or where the change comes from."""
    return reason or f"declared in {file.name}"[:200]


def add_to(app: typer.Typer) -> None:
    """Add the command to *app*."""
    command(app, "apply", Confirmed, panel=ADMINISTRATION)(apply)


def apply(
    call: Invocation,
    file: FileOption,
    dry_run: DryRunOption = False,
    prune: PruneOption = False,
    reason: ReasonOption = "",
) -> None:
    """
    Make the registry hold what a file declares: show the difference, ask, and change only that.

    Applying it twice changes nothing the second time. What the file does not name is left alone
    unless --prune is given. Exits with 1 when anything was refused, or would be.
    """
    from sidecar.app.cli.declaring import Asked, declare
    from sidecar.app.declaring.api_target import ApiTarget
    from sidecar.app.declaring.target import TargetError
    from sidecar.stores.registry_file import load_declarations

    asked = Asked(
        reason=reason_of(reason, file),
        is_dry_run=dry_run,
        is_confirmed=call.is_confirmed,
        has_prune=prune,
        is_json=call.is_json,
    )
    target = ApiTarget(call.client)
    try:
        declared = load_declarations(file, str(file), target.catalogue())
        for warning in declared.warnings:
            typer.echo(f"warning: {warning}", err=True)
        declare(target, declared.declarations, asked, call.confirm)
    except TargetError as error:
        raise CommandError("\n  ".join(str(error).splitlines())) from None

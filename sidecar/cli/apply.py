"""`sidecar apply`: change the registry to what a file declares, through the admin API."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Confirmed, Invocation, command
from sidecar.cli.exits import CommandError

FileOption = Annotated[
    Path, typer.Option("--file", "-f", metavar="FILE", help="The YAML file with 'integrations:'.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the differences, and change nothing.")]
PruneOption = Annotated[
    bool,
    typer.Option(
        "--prune",
        help="Delete integrations, and revoke API keys, that the file does not name. Both are permanent.",
    ),
]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="The reason to record with every change. Default: 'declared in FILE'.",
    ),
]


FILE_BYTES_MAX = 12 * 1_048_576
"""The file must fit, as JSON, into the 16 MiB that the admin API accepts."""
APPLY_EXTRA_S = 600.0
"""Added to the timeout of the call; the server's own deadline is the same."""


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
    Change the registry to what a file declares: show the differences, ask, and apply them.

    Applying the same file again changes nothing. Integrations and API keys that the file does not name
    are kept unless --prune is given. Exits with 1 if the registry refuses any of the changes.
    """
    from sidecar.admin_client.client import path_to
    from sidecar.cli.apply_flow import ApplyOptions, Document, declare

    body = {"file": _text_of(file), "file_name": file.name, "prune": prune, "reason": reason}

    def send(is_dry_run: bool, plan: str | None) -> Document:
        return call.client.change(
            "POST",
            path_to("apply"),
            {**body, "expected_plan": plan},
            query={"dry_run": is_dry_run},
            idempotency_key=f"apply-{secrets.token_hex(8)}",
            extra_s=APPLY_EXTRA_S,
        ).data

    options = ApplyOptions(dry_run, call.is_confirmed, call.is_json)
    declare(lambda: send(True, None), lambda plan: send(False, plan), options, call.confirm)


def _text_of(file: Path) -> str:
    """The content of *file*; the server parses it and reports its mistakes."""
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise CommandError(
            f"{file} is larger than {FILE_BYTES_MAX} bytes; use 'sidecar registry push' for larger files"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{file}:{line}: not UTF-8 text; save the file as UTF-8") from None

"""`sidecar webhook-secret`: the secrets that sign an integration's webhooks."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.admin_command import IntegrationChange, Invocation, command
from sidecar.cli.integrations import IdArgument

app = typer.Typer(no_args_is_help=True, help="The secrets that sign the webhooks of an integration.")


@command(app, "generate", IntegrationChange)
def generate(call: Invocation, id: IdArgument) -> None:
    """Create the first signing secret; it is shown once, alone on standard output."""
    answer = call.change("POST", "integrations", id, "webhook-secret", "generate", body={})
    call.print_secret(answer, "secret", f"The webhook secret of {id}")


@command(app, "rotate", IntegrationChange)
def rotate(
    call: Invocation,
    id: IdArgument,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap",
            metavar="DURATION",
            help="How long the old secret keeps signing, at most 30d. 0 = it ends at once.",
        ),
    ] = "0",
) -> None:
    """Replace the signing secret; the new one is shown once, alone on standard output."""
    from sidecar.cli.times import checked_duration

    body = {"overlap": checked_duration("--overlap", overlap)}
    answer = call.change("POST", "integrations", id, "webhook-secret", "rotate", body=body)
    call.print_secret(answer, "secret", f"The new webhook secret of {id}")

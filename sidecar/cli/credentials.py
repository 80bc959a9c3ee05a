"""`sidecar credentials`: the API keys of an integration."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import Confirmed, IntegrationChange, Invocation, command
from sidecar.cli.integrations import ExpiresOption, IdArgument

app = typer.Typer(
    no_args_is_help=True, help="API keys of an integration: list, issue, rotate, revoke, expire."
)

CredentialArgument = Annotated[
    str, typer.Argument(metavar="CREDENTIAL", help="The credential's id, as 'credentials list' shows it.")
]


@command(app, "list")
def list_credentials(call: Invocation, id: IdArgument) -> None:
    """List the credentials with their state, and when and from where each was last used."""
    from sidecar.cli.views import print_credentials

    listing = call.get("integrations", id, "credentials")
    if call.is_json:
        call.print_json(listing)
    else:
        print_credentials(
            listing["items"], f"{id} has no credential; 'sidecar credentials issue {id}' issues one"
        )


@command(app, "issue", IntegrationChange)
def issue(call: Invocation, id: IdArgument, expires: ExpiresOption = "") -> None:
    """
    Issue another API key; existing keys keep working.

    The key is shown once, alone on standard output: KEY=$(sidecar credentials issue acme).
    """
    answer = call.change("POST", "integrations", id, "credentials", "issue", body=_expiry(expires))
    call.print_secret(answer, "api_key", f"The API key of {id}")


@command(app, "rotate", IntegrationChange)
def rotate(
    call: Invocation,
    id: IdArgument,
    credential: CredentialArgument,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap",
            metavar="DURATION",
            help="How long the old key keeps working, at most 30d. 0 = it stops at once.",
        ),
    ] = "0",
    expires: ExpiresOption = "",
) -> None:
    """
    Issue an API key that replaces another one, which keeps working for the overlap.

    The new key is shown once, alone on standard output. 'credentials list' shows whether the old one is
    still used.
    """
    from sidecar.cli.times import checked_duration

    body = {"overlap": checked_duration("--overlap", overlap), **_moment(expires)}
    answer = call.change("POST", "integrations", id, "credentials", credential, "rotate", body=body)
    call.print_secret(answer, "api_key", f"The new API key of {id}")


@command(app, "revoke", IntegrationChange, Confirmed)
def revoke(call: Invocation, id: IdArgument, credential: CredentialArgument) -> None:
    """Revoke an API key at once and permanently."""
    call.confirm(f"Revoke {credential} of {id}? Requests with it are refused at once, permanently.")
    call.print_change(call.change("POST", "integrations", id, "credentials", credential, "revoke", body={}))


@command(app, "expire", IntegrationChange)
def expire(
    call: Invocation,
    id: IdArgument,
    credential: CredentialArgument,
    at: Annotated[
        str,
        typer.Option(
            "--at", metavar="WHEN", help="When the key expires: 2026-12-01T00:00Z, 90d from now, or 'never'."
        ),
    ],
) -> None:
    """Change when an API key expires; to end it at once, revoke it."""
    from sidecar.cli.times import NEVER, moment_of

    body = {"expires_at": None if at == NEVER else moment_of("--at", at)}
    call.print_change(call.change("POST", "integrations", id, "credentials", credential, "expiry", body=body))


def _expiry(expires: str) -> dict[str, Any]:
    """The fields of the API for the end of a new key; a duration counts by the server's clock."""
    from sidecar.cli.times import Duration, parse_when

    if not expires:
        return {}
    when = parse_when("--expires", expires)
    return {"expires_in": when.text} if isinstance(when, Duration) else {"expires_at": when.text}


def _moment(expires: str) -> dict[str, Any]:
    from sidecar.cli.times import moment_of

    return {"expires_at": moment_of("--expires", expires)} if expires else {}

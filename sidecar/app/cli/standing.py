"""`sidecar suspend` and `sidecar reactivate`."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.app.cli.calling import ADMINISTRATION, Confirmed, IntegrationChange, Invocation, command
from sidecar.app.cli.integrations import IdArgument

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes on record for ever.")]


def add_to(app: typer.Typer) -> None:
    """Register both on *app*."""

    @command(app, "suspend", IntegrationChange, Confirmed, panel=ADMINISTRATION)
    def suspend(call: Invocation, id: IdArgument, reason: ReasonOption) -> None:
        """
        Block every request of an integration at once, and invalidate its API keys for ever.

        Scopes, allowlist, limit and trail are kept. Somebody else must reactivate it, after new keys were
        issued. Asks first on a terminal; from a script it does not, so that it is quick in an incident.
        """
        call.confirm(f"Suspend {id}? Its requests are refused at once, and its API keys end.", is_urgent=True)
        call.tell_change(call.change("POST", "integrations", id, "suspend", body={"reason": reason}))

    @command(app, "reactivate", IntegrationChange, panel=ADMINISTRATION)
    def reactivate(call: Invocation, id: IdArgument, reason: ReasonOption) -> None:
        """
        Let a suspended integration in again, with the API keys that were issued since.

        Needs another administrator than those who suspended it, and whose access does not come from them.
        """
        call.tell_change(call.change("POST", "integrations", id, "reactivate", body={"reason": reason}))

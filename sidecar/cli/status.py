"""`sidecar suspend` and `sidecar reactivate`."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Confirmed, IntegrationChange, Invocation, command
from sidecar.cli.integrations import IdArgument
from sidecar.cli.options import ConfigOption

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; stays in the audit log.")]
OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Work on the registry itself, without the API and without a token: on its machine.",
    ),
]
NOBODY_CAN_REACTIVATE = "nobody_can_reactivate"


def add_to(app: typer.Typer) -> None:
    """Register both on *app*."""

    @command(app, "suspend", IntegrationChange, Confirmed, panel=ADMINISTRATION)
    def suspend(
        call: Invocation,
        id: IdArgument,
        reason: ReasonOption,
        offline: OfflineOption = False,
        config: ConfigOption = None,
    ) -> None:
        """
        Block every request of an integration at once, and invalidate its API keys for ever.

        Scopes, allowlist, limit and trail are kept. A different administrator must reactivate it, after
        new keys were issued. When there is none, the command says so and asks; a script passes --yes.
        On a terminal the command always asks, in a script never else: it must be quick in an incident.

        When the API does not answer, or every token is lost, run it with --offline on the machine that
        holds the registry: the configuration (--config) names it.
        """
        question = f"Suspend {id}? Its requests are refused at once, and its API keys end for ever."
        if offline:
            from sidecar.cli.offline import suspend_offline

            suspend_offline(call, config, id, reason, question)
            return
        body = {"reason": reason}
        warning = "" if call.is_confirmed or call.is_dry_run else _lock_warning(call, id, reason)
        if warning:
            typer.echo(f"warning: {warning}", err=True)
        call.confirm(question, is_urgent=not warning)
        call.print_change(call.change("POST", "integrations", id, "suspend", body=body))

    @command(app, "reactivate", IntegrationChange, panel=ADMINISTRATION)
    def reactivate(call: Invocation, id: IdArgument, reason: ReasonOption) -> None:
        """
        Let a suspended integration in again, with the API keys that were issued since.

        Needs another administrator than those who suspended it, and whose access does not come from them.
        """
        call.print_change(call.change("POST", "integrations", id, "reactivate", body={"reason": reason}))


def _lock_warning(call: Invocation, id: str, reason: str) -> str:
    """What the server says when nobody could reactivate it; '' = somebody could."""
    tried = call.preview("POST", "integrations", id, "suspend", body={"reason": reason})
    notices = tried.data.get("notices") or ()
    return next((notice["message"] for notice in notices if notice.get("code") == NOBODY_CAN_REACTIVATE), "")

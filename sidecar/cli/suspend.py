"""`sidecar suspend` and `sidecar reactivate`."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Confirmed, IntegrationChange, Invocation, command
from sidecar.cli.integrations import IdArgument
from sidecar.cli.options import ConfigOption

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, for the audit log.")]
OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline", help="Change the registry itself, on its machine, without the API and a token."
    ),
]
NOBODY_CAN_REACTIVATE = "nobody_can_reactivate"


def add_to(app: typer.Typer) -> None:
    """Register both commands on *app*."""

    @command(app, "suspend", IntegrationChange, Confirmed, panel=ADMINISTRATION)
    def suspend(
        call: Invocation,
        id: IdArgument,
        reason: ReasonOption,
        offline: OfflineOption = False,
        config: ConfigOption = None,
    ) -> None:
        """
        Block every request of an integration at once, and invalidate its API keys permanently.

        Scopes, allowlist, limit and audit entries are kept. To reactivate it, issue new API keys; then
        another administrator must run 'sidecar reactivate'. If no other administrator can, the command
        warns and asks for confirmation, and a script must pass --yes. Otherwise it asks only on a terminal.

        If the API does not answer, or every token is lost, run it with --offline on the machine that
        holds the registry; the configuration (--config) names the registry.
        """
        question = (
            f"Suspend {id}? Its requests are refused at once, and its API keys are invalidated permanently."
        )
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
        Reactivate a suspended integration, with the API keys issued since the suspension.

        An administrator who suspended it, or whose access was granted by one who did, cannot reactivate it.
        """
        call.print_change(call.change("POST", "integrations", id, "reactivate", body={"reason": reason}))


def _lock_warning(call: Invocation, id: str, reason: str) -> str:
    """The server's warning that no administrator could reactivate the integration; '' = one could."""
    tried = call.preview("POST", "integrations", id, "suspend", body={"reason": reason})
    notices = tried.data.get("notices") or ()
    return next((notice["message"] for notice in notices if notice.get("code") == NOBODY_CAN_REACTIVATE), "")

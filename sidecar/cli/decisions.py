"""`sidecar decisions`: one decision of the log, and the erasure of decisions."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.admin_command import Change, Confirmed, Invocation, command
from sidecar.cli.decision_filters import SinceOption, UntilOption, span_query
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.logs import QUERY_S, print_gaps
from sidecar.cli.suspend import ReasonOption

app = typer.Typer(no_args_is_help=True, help="Decisions of the decision log: show one, erase many.")

ERASURE_S = 600.0
"""Added to --timeout: an erasure writes the files of the log again."""


@app.callback()
def decisions() -> None:
    """Decisions of the decision log: show one, erase many."""


@command(app, "show")
def show(
    call: Invocation,
    id: Annotated[str, typer.Argument(metavar="ID", help="The decision's id: the header X-Decision-Id.")],
    since: SinceOption = "",
    until: UntilOption = "",
) -> None:
    """
    Show everything that is known of one decision.

    'sidecar logs --request-id ID' finds a decision by the proxy's x-request-id.
    """
    decision = call.get("decisions", id, query=span_query(since, until), extra_s=QUERY_S)
    if call.is_json:
        call.print_json(decision)
        return
    from sidecar.cli.tables import print_fields

    print_fields(decision.items())


@command(app, "erase", Change, Confirmed)
def erase(
    call: Invocation,
    reason: ReasonOption,
    integration: Annotated[
        str, typer.Option("--integration", metavar="ID", help="Erase the decisions of this integration.")
    ] = "",
    address: Annotated[
        str,
        typer.Option("--address", metavar="CIDR", help="Erase the decisions about this address or block."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how many decisions match, and erase nothing.")
    ] = False,
) -> None:
    """
    Erase the decisions of an integration or of addresses from the log permanently, on request.

    The audit log records the erasure, but not an erased address. Decisions of the last
    seconds may be written later: erase again after a minute.
    """
    if (not integration) == (not address):
        raise CommandError("pass either --integration or --address", EXIT_USAGE)
    subject = {"integration": integration} if integration else {"address": address}
    body = {**subject, "reason": reason}
    found = call.change("POST", "decisions", "erase", body=body, query={"dry_run": True}, extra_s=ERASURE_S)
    answer = found.data
    if not dry_run:
        what = f"of {integration}" if integration else f"about {address}"
        call.confirm(f"Erase {answer['rows']} decisions {what} permanently?")
        answer = call.change("POST", "decisions", "erase", body=body, extra_s=ERASURE_S).data
    if call.is_json:
        call.print_json(answer)
        return
    verb = "would be erased" if dry_run else "erased"
    typer.echo(f"{answer['rows']} decisions {verb}")
    print_gaps(answer)

"""`sidecar decisions`: one decision of the log, and the erasure of decisions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import Change, Confirmed, Invocation, command
from sidecar.cli.decide import print_steps
from sidecar.cli.decision_filters import LogOption, SinceOption, UntilOption, span_query
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.logs import QUERY_S, client_of, print_gaps
from sidecar.cli.suspend import ReasonOption
from sidecar.cli.tables import print_fields

app = typer.Typer(no_args_is_help=True, help="Decisions of the log: show or explain one, erase many.")

DecisionArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The decision's id: the header X-Decision-Id.")
]
ERASURE_S = 600.0
"""Added to --timeout: an erasure writes the files of the log again."""


@command(app, "show")
def show(
    call: Invocation,
    id: DecisionArgument,
    since: SinceOption = "",
    until: UntilOption = "",
    log: LogOption = None,
) -> None:
    """
    Show everything that is known of one decision.

    'sidecar logs --request-id ID' finds a decision by the proxy's x-request-id.
    """
    query = span_query(since, until)
    if log is None:
        from sidecar.admin_client.client import path_to

        decision = client_of(call).get(path_to("decisions", id), query, extra_s=QUERY_S)
    else:
        from sidecar.cli.log_folder import LogFolder

        decision = LogFolder(log).decision(id, query)
    call.show(decision, lambda decision: print_fields(decision.items()))


@command(app, "explain")
def explain(call: Invocation, id: DecisionArgument, since: SinceOption = "", until: UntilOption = "") -> None:
    """
    Explain one decision step by step, by the record that decided and by the record now.

    Both use the present routes. 'sidecar simulate' replays many decisions against a changed record.
    """
    shown = call.get("decisions", id, "explanation", query=span_query(since, until), extra_s=QUERY_S)
    if call.is_json:
        call.print_json(shown)
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    logged = shown["decision"]
    console.print(_summary(logged, f"{logged['time']}  {logged['integration'] or 'unknown caller'}"))
    for title, decided in (("then", shown["then"]), ("now", shown["now"])):
        if decided is not None:
            console.print()
            console.print(_summary(decided, f"{title}, by version {decided['generation']} of the record"))
            print_steps(
                console, ((step["name"], step["outcome"], step["detail"]) for step in decided["steps"])
            )
    if shown["note"]:
        typer.echo(f"note: {shown['note']}", err=True)


def _summary(decided: dict[str, Any], origin: str) -> str:
    """A verdict with its reason, as a line with markup."""
    from rich.markup import escape

    color = "green" if decided["verdict"] == "ALLOW" else "red"
    would_deny = f" (in shadow: {decided['would_deny']})" if decided["would_deny"] else ""
    return (
        f"[bold {color}]{decided['verdict']}[/] {decided['reason']}{would_deny}  [dim]{escape(origin)}[/dim]"
    )


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

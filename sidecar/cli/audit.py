"""`sidecar audit`: list, export and verify the audit log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import Invocation, command
from sidecar.cli.decision_filters import Filters, span_query
from sidecar.cli.exits import EXIT_REFUSED, CommandError
from sidecar.cli.integrations import LimitOption
from sidecar.cli.tables import Column, counted, plain

app = typer.Typer(no_args_is_help=True, help="The audit log: who did what, when, from where and why.")

PATH = "/v1/audit"
VERIFY_TIMEOUT_S = 110.0
"""Added to --timeout: a verification reads the whole log."""
ENTRIES = (Column("when", is_whole=True), Column("who"), Column("what"), Column("entry", is_whole=True))
SinceOption = Annotated[
    str,
    typer.Option(
        "--since", metavar="WHEN", help="Entries from this time on: 2026-12-01T00:00Z, or 2h = two hours ago."
    ),
]
UntilOption = Annotated[str, typer.Option("--until", metavar="WHEN", help="Entries before this time.")]
IntegrationOption = Annotated[
    str, typer.Option("--integration", metavar="ID", help="Only entries about this integration.")
]
AnchorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--anchor",
        metavar="PLACES:DIGEST",
        help="An anchor that an earlier verification printed; may be repeated.",
    ),
]


@command(app, "list")
def list_entries(
    call: Invocation,
    integration: IntegrationOption = "",
    subject: Annotated[
        str,
        typer.Option(
            "--subject", metavar="KIND:ID", help="Only entries about this subject, such as administrator:ann."
        ),
    ] = "",
    actor: Annotated[
        str, typer.Option("--actor", metavar="ID", help="Only entries of this administrator.")
    ] = "",
    action: Annotated[
        str, typer.Option("--action", metavar="WORD", help="Only this action, such as integration.suspend.")
    ] = "",
    since: SinceOption = "",
    until: UntilOption = "",
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="List the oldest entries first.")
    ] = False,
    chain: Annotated[
        int | None,
        typer.Option(
            "--chain", metavar="N", min=0, help="The chain to list, in a registry that has several."
        ),
    ] = None,
    limit: LimitOption = 50,
) -> None:
    """
    List audit entries, the newest first.

    The registry of a Redis Cluster has several chains. Without --chain the entries of all chains are
    merged by time.
    """
    from sidecar.cli.views import print_listing

    query: Filters = {
        "integration": integration,
        "subject": subject,
        "actor": actor,
        "action": action,
        **span_query(since, until),
        "chain": chain,
        "newest_first": not oldest_first,
    }
    listing = call.client.listed(PATH, query, limit)
    print_listing(call, listing, ENTRIES, map(_row, listing.items), "no matching entries")


@command(app, "export")
def export(
    call: Invocation,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A new file. Default: standard output."),
    ] = None,
    integration: IntegrationOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
) -> None:
    """
    Write the audit log as it is stored, one entry per line, so that anyone can verify it offline.

    The file appears only once it is complete. Only an export of
    all entries from the first one on can be verified: an extract (--integration, --since, --until) has
    gaps, which 'audit verify FILE' reports. Keep the whole export beside it as the proof.
    """
    query = {"integration": integration, **span_query(since, until)}
    if output is None:
        call.client.copy_lines("/v1/audit/export", query, typer.echo)
        return
    from sidecar.cli.new_file import new_file

    with new_file(output) as file:
        count = call.client.copy_lines(
            "/v1/audit/export", query, lambda line: file.write(line.encode() + b"\n")
        )
    typer.echo(f"{output}: {counted(count, 'entry', 'entries')}", err=True)


@command(app, "verify")
def verify(
    call: Invocation,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="An export, verified here. Default: the registry, by the server."
        ),
    ] = None,
    anchor: AnchorOption = None,
) -> None:
    """
    Find audit entries that were altered, removed or moved, and records changed outside the log.

    With a FILE it checks the log without a server. Prints an anchor: store it elsewhere and pass it to the
    next verification, because a log alone cannot show that its end was cut off. Exits with 1 if anything is
    wrong.
    """
    report = _verified_by_server(call, anchor or []) if file is None else _verified_here(file, anchor or [])
    call.show(report, _print_report)
    if not report["is_intact"]:
        raise typer.Exit(EXIT_REFUSED)


def _verified_by_server(call: Invocation, anchors: list[str]) -> dict[str, Any]:
    return call.get("audit", "verify", query={"anchor": anchors}, extra_s=VERIFY_TIMEOUT_S)


def _verified_here(file: Path, anchors: list[str]) -> dict[str, Any]:
    from sidecar.cli.audit_file import AuditFileError, verify_file
    from sidecar.services.admin.verification import log_view

    try:
        return dict(log_view(verify_file(file, anchors)))
    except AuditFileError as error:
        raise CommandError(str(error)) from None


def _print_report(report: dict[str, Any]) -> None:
    for finding in report["findings"]:
        typer.echo(f"{finding['kind']}: {plain(finding['problem'])}")
    found = len(report["findings"])
    state = "intact" if report["is_intact"] else f"NOT intact: {counted(found, 'finding')}"
    entries = counted(report["entries"], "entry", "entries")
    typer.echo(f"{entries} in {counted(len(report['chains']), 'chain')}: {state}")
    if report["is_intact"] and report["anchor"]:
        typer.echo(f"anchor {report['anchor']}")


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    """The cells of an entry: four columns on a terminal, which fit into 80 characters; else one per value."""
    from sidecar.cli.times import shown

    place = f"{entry['chain']}:{entry['sequence']}"
    values = [entry[name] or "" for name in ("action", "subject", "summary", "reason", "source")]
    if not entry["is_readable"]:
        values[2] = "its body was altered: run 'sidecar audit verify'"
    when, who = shown(entry["at"]), entry["actor"] or "-"
    if not sys.stdout.isatty():
        return when, who, *values, place
    action, subject, summary, reason, source = values
    because = [f"reason: {reason}"] if reason else []
    return when, who, [f"{action} of {subject}", summary, *because, f"from {source}"], place

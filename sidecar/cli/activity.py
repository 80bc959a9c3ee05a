"""`sidecar activity`: what stands out in an integration's requests, with the counts behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Invocation, command
from sidecar.cli.integrations import IdArgument
from sidecar.cli.tables import Column, plain, print_table

FINDINGS = (Column("stands out", style="bold yellow"), Column("what, and what to do next"))
NOT_CHECKED = (Column("not checked", style="dim"), Column("why", style="dim"))
MISSING = (
    Column("rows missing", style="bold red"),
    Column("from", is_whole=True),
    Column("to", is_whole=True),
    Column("sidecar"),
)
REASONS = (Column("reason"), Column("requests", is_number=True), Column("4 weeks before", is_number=True))
SCOPES = (
    Column("scope"),
    Column("granted"),
    Column("requests", is_number=True),
    Column("refused", is_number=True),
    Column("last used"),
)


def _keys(head: str) -> Sequence[Column]:
    return (
        Column(head),
        Column("requests", is_number=True),
        Column("refused", is_number=True),
        Column("first seen", is_whole=True),
        Column("last seen", is_whole=True),
    )


def add_to(app: typer.Typer) -> None:
    """Register the command on *app*."""

    @command(app, "activity", panel=ADMINISTRATION)
    def activity(
        call: Invocation,
        id: IdArgument,
        since: Annotated[
            str, typer.Option("--since", metavar="DURATION", help="How far back the window goes, 1h to 31d.")
        ] = "24h",
        until: Annotated[
            str, typer.Option("--until", metavar="WHEN", help="The end of the window. Default: now.")
        ] = "",
        hours: Annotated[
            str,
            typer.Option(
                "--hours", metavar="HH-HH", help="The working hours, such as 08-18. Default: learned."
            ),
        ] = "",
        days: Annotated[
            str, typer.Option("--days", metavar="DAYS", help="The working days, such as mon-fri.")
        ] = "",
        time_zone: Annotated[
            str, typer.Option("--time-zone", metavar="NAME", help="The time zone of the working hours.")
        ] = "UTC",
    ) -> None:
        """
        Show what stands out in an integration's requests: volume, hours, networks, scopes, refusals, keys.

        Compares the window with the weeks before it. Every rule and its figures are in
        docs/administer/activity.md. Needs the setting decision_log.
        """
        from sidecar.cli.times import checked_duration, moment_ago

        found = call.get(
            "integrations",
            id,
            "activity",
            query={
                "since": checked_duration("--since", since),
                "until": moment_ago("--until", until) if until else None,
                "hours": hours,
                "days": days,
                "time_zone": time_zone,
            },
        )
        call.show(found, print_activity)


def print_activity(found: dict[str, Any]) -> None:
    """Print what stands out first, then what limits the answer, then the counts."""
    from sidecar.cli.times import shown

    typer.echo(
        f"{plain(found['integration_id'])}: {found['requests']:,} requests, {found['refused']:,} refused"
    )
    typer.echo(f"from {shown(found['since'])} to {shown(found['until'])}")
    if found["working_hours"]:
        hours = found["working_hours"]
        typer.echo(f"working hours: {hours['hours']} {hours['time_zone']} ({hours['source']})")
    _section(MISSING, _missing(found))
    if found["findings"]:
        _section(FINDINGS, map(_finding, found["findings"]))
    else:
        typer.echo("nothing stands out")
    _section(NOT_CHECKED, ((_rule(entry["rule"]), entry["message"]) for entry in found["not_checked"]))
    _section(
        REASONS,
        ((entry["reason"], entry["requests"], entry["baseline_requests"]) for entry in found["reasons"]),
    )
    for name, head in (("networks", "network"), ("routes", "route"), ("credentials", "credential")):
        _section(_keys(head), (_key(entry) for entry in found[name]))
    _section(
        SCOPES,
        (
            (
                entry["scope"],
                entry["is_granted"],
                entry["requests"],
                entry["refused"],
                shown(entry["last_used_at"], "not in 90 days"),
            )
            for entry in found["scopes"]
        ),
    )


def _section(columns: Sequence[Column], rows: Iterator[Sequence[object]]) -> None:
    """Print a table, if it has rows; piped, each row begins with the name of its table."""
    kept = list(rows)
    if not kept:
        return
    if sys.stdout.isatty():
        typer.echo()
        print_table(columns, kept, "")
    else:
        print_table(columns, [(columns[0].head, *row) for row in kept], "")


def _finding(finding: dict[str, Any]) -> Sequence[object]:
    if not sys.stdout.isatty():
        return finding["rule"], finding["message"], finding["next_step"]
    return _rule(finding["rule"]), [finding["message"], f"→ {finding['next_step']}"]


def _rule(rule: str) -> str:
    """A rule's name as a person reads it; piped, as the API writes it."""
    return rule.replace("_", " ") if sys.stdout.isatty() else rule


def _missing(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    from sidecar.cli.times import shown

    for name, where in (("missing", "in the window"), ("missing_before", "in the weeks before")):
        for span in found[name]:
            counts = [
                f"{count:,} {word}"
                for word, count in (("allowed", span["allowed"]), ("refused", span["refused"]))
                if count
            ]
            rows = " and ".join(counts) or "an unknown number"
            yield f"{rows} {where} ({span['cause']})", shown(span["from"]), shown(span["to"]), span["sidecar"]


def _minute(moment: str) -> str:
    """A time without its seconds, so that a line of counts fits into 80 characters."""
    from sidecar.cli.times import shown

    return shown(moment)[:16] + "Z"


def _key(entry: dict[str, Any]) -> Sequence[object]:
    return (
        entry["key"],
        entry["requests"],
        entry["refused"],
        _minute(entry["first_seen"]),
        _minute(entry["last_seen"]),
    )

"""`sidecar logs`: logged decisions as a table, as a file, or as they are recorded."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Invocation, command
from sidecar.cli.decision_filters import DecisionFilterOptions, Filters, LogOption
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.integrations import LimitOption
from sidecar.cli.tables import Column, plain

if TYPE_CHECKING:
    from sidecar.admin_client.client import AdminClient, Listing
    from sidecar.cli.following import Follower

PATH = "/v1/decisions"
QUERY_S = 10.0
"""Added to --timeout: how long the server may search for one page."""
EXPORT_S = 600.0
"""Added to --timeout: the server writes an export before it sends it."""
GAPS_SHOWN_MAX = 5
DECISIONS = (
    Column("time, decision", is_whole=True),
    Column("integration, key"),
    Column("reason"),
    Column("request"),
)
PIPED = (
    "time",
    "decision_id",
    "integration",
    "credential",
    "verdict",
    "reason",
    "would_deny",
    "method",
    "path",
    "scope",
    "client_address",
    "request_id",
    "sidecar",
)
"""The columns without a terminal, separated by tabs."""

Decision = dict[str, Any]


class Format(StrEnum):
    """The values of `--format`."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


def add_to(app: typer.Typer) -> None:
    """Register the command on *app*."""

    @command(app, "logs", DecisionFilterOptions, panel=ADMINISTRATION)
    def logs(
        call: Invocation,
        filters: DecisionFilterOptions,
        limit: LimitOption = 50,
        log: LogOption = None,
        follow: Annotated[
            bool, typer.Option("--follow", "-f", help="Print new decisions as they are written.")
        ] = False,
        export: Annotated[
            Path | None,
            typer.Option("--export", metavar="FILE", help="Write all matching decisions to a new file."),
        ] = None,
        format: Annotated[
            Format | None,
            typer.Option("--format", help="Format of the file. Default: by its suffix, else ndjson."),
        ] = None,
    ) -> None:
        """
        List the latest decisions, the newest first: who called, from where, with what, and the answer.

        Needs the setting 'decision_log'. Decisions appear within seconds. An export has the oldest
        decision first; the server records it in the audit log.
        """
        if export is not None and follow:
            raise CommandError("--follow and --export cannot be used together", EXIT_USAGE)
        if export is not None:
            _export(call, filters.query(), export, format, log)
        elif follow:
            _follow(call, filters.query(), limit, log)
        else:
            listing = _listed(call, filters.query(), limit, log)
            from sidecar.cli.views import print_listing

            partly = _searched_partly(listing, limit)
            empty = "no matching decisions in what was searched" if partly else "no matching decisions"
            print_listing(call, listing, DECISIONS, map(_row, listing.items), empty, partly)
            print_gaps(listing.rest)


def print_gaps(page: Mapping[str, Any]) -> None:
    """Print on standard error what *page* cannot have: rows that are missing or in another folder."""
    from sidecar.cli.times import shown

    elsewhere = page.get("sidecars_elsewhere") or []
    if elsewhere:
        typer.echo(
            f"note: live sidecars that write no decisions to this folder: {plain(elsewhere)}", err=True
        )
    spans, count = page.get("missing") or [], page.get("missing_spans", 0)
    for span in spans[-GAPS_SHOWN_MAX:]:
        lost = [f"{span[kind]} {kind}" for kind in ("allowed", "refused") if span[kind] is not None]
        typer.echo(
            f"note: {plain(span['sidecar'])} lost decisions from {shown(span['from'])} to"
            f" {shown(span['to'])}: {' and '.join(lost) or 'an unknown number'} ({plain(span['cause'])})",
            err=True,
        )
    if count > GAPS_SHOWN_MAX:
        typer.echo(f"note: decisions are missing in {count - GAPS_SHOWN_MAX} other spans of time", err=True)


def _searched_partly(listing: Listing, limit: int) -> str:
    """The note about a search that ended at its deadline, '' = it did not."""
    if listing.next_after is None or len(listing.items) >= limit:
        return ""
    from sidecar.services.admin.times import format_time

    since = format_time(int(listing.next_after.partition("-")[0]))
    return f"only the decisions since {since} were searched in time; for older ones pass --until {since}"


def client_of(call: Invocation) -> AdminClient:
    """
    Return the connection to the server.

    Raises:
        CommandError: the server or the token cannot be used; without a token the remedy names `--log`.
    """
    from sidecar.cli.connection import NoTokenError

    try:
        return call.client
    except NoTokenError as error:
        raise CommandError(f"{error}; '--log DIR' reads the files without a token", EXIT_USAGE) from None


def _listed(call: Invocation, query: Filters, limit: int, log: Path | None) -> Listing:
    if log is None:
        return client_of(call).listed(PATH, query, limit, extra_s=QUERY_S)
    from sidecar.cli.log_folder import LogFolder

    return LogFolder(log).listed(query, limit)


def _export(call: Invocation, query: Filters, file: Path, format: Format | None, log: Path | None) -> None:
    suffixes = {f".{known.value}": known for known in Format} | {".json": Format.NDJSON}
    chosen = format or suffixes.get(file.suffix.lower(), Format.NDJSON)
    if log is not None:
        from sidecar.cli.log_folder import LogFolder

        size = LogFolder(log).export(query, chosen.value, file)
    else:
        from sidecar.cli.new_file import new_file

        client = client_of(call)
        with new_file(file) as draft:
            size = client.copy_file(
                f"{PATH}/export", {**query, "format": chosen.value}, draft.write, extra_s=EXPORT_S
            )
    typer.echo(f"{file}: {size} bytes of {chosen.value}", err=True)


def _follow(call: Invocation, query: Filters, limit: int, log: Path | None) -> None:
    if query.get("until"):
        raise CommandError("--follow and --until cannot be used together", EXIT_USAGE)
    from sidecar.cli.following import Follower

    follower = Follower(lambda asked: _listed(call, {**query, **asked}, limit, log), _wait)
    print_new(follower, _line if not call.is_json else _json)


def _wait(wait_s: float) -> None:
    """
    Wait; notice at once when the reader of a pipe ends, as `head` does.

    Raises:
        BrokenPipeError: nobody reads standard output any more.
    """
    # A poll for no event returns only errors: that the other end is closed.
    waiting = select.poll()
    waiting.register(sys.stdout.fileno(), 0)
    if waiting.poll(wait_s * 1_000):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def print_new(follower: Follower, text: Callable[[Decision], str]) -> None:
    """Print decisions until interrupted; report a fault once while it lasts."""
    problem = ""
    while True:
        news = follower.poll()
        if news.problem and news.problem != problem:
            typer.echo(f"note: {news.problem}; trying again", err=True)
        problem = news.problem
        for decision in news.decisions:
            typer.echo(text(decision))
        if news.is_cut:
            typer.echo("note: more decisions than shown; use filters, or raise --limit", err=True)
        follower.pause()


def _row(decision: Decision) -> Sequence[object]:
    """The cells of a decision: four columns on a terminal, else one per value."""
    from sidecar.cli.times import shown

    if not sys.stdout.isatty():
        return [decision[name] for name in PIPED]
    reason = [decision["reason"]]
    if decision["would_deny"]:
        reason.append(f"shadow: {decision['would_deny']}")
    return (
        [shown(decision["time"]), decision["decision_id"]],
        [decision["integration"] or "-", decision["credential"] or "-"],
        reason,
        [f"{decision['method']} {decision['path']}", f"from {decision['client_address'] or 'unknown'}"],
    )


def _line(decision: Decision) -> str:
    """A decision on one line, for following."""
    return "\t".join(plain(decision[name]) for name in PIPED)


def _json(decision: Decision) -> str:
    import json

    return json.dumps(decision)

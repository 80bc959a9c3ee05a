"""`sidecar allowlist`: the addresses from which an integration may call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import Confirmed, IntegrationChange, Invocation, command
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.integrations import IdArgument, ShadowOption, in_shadow

app = typer.Typer(no_args_is_help=True, help="The IP addresses from which an integration may call.")

FILE_LINES_MAX = 1_000
EntriesArgument = Annotated[
    list[str], typer.Argument(metavar="CIDR", help="Such as 192.0.2.0/24 or 2001:db8::/32.")
]


@command(app, "show")
def show(call: Invocation, id: IdArgument) -> None:
    """
    Show the entries, whether the allowlist is on, and which callers it refused in the last 30 days.

    For each refused caller it shows the address, the API key, and the entries that would admit the address
    or its network. With a decision log these are all callers, also those that a shadow let through;
    without one, the latest 20.
    """
    from sidecar.cli.tables import Column, print_table
    from sidecar.cli.views import print_refused_callers

    record = call.get("integrations", id)
    entries, is_on = record["ip_allowlist"], record["is_allowlist_enabled"]
    callers = _callers_in_the_log(call, id) or record.get("refused_callers", [])
    if call.is_json:
        shown = {"is_allowlist_enabled": is_on, "ip_allowlist": entries, "refused_callers": callers}
        call.print_json(shown)
        return
    is_shadowed = "allowlist" in record["shadow"]
    state = "on: only these addresses may call" if is_on else "off: every address may call"
    if is_on and is_shadowed:
        state = "on, in shadow: other addresses may call, too"
    typer.echo(f"The allowlist of {id} is {state}.", err=True)
    print_table(
        [Column("entry", is_whole=True)], [[entry] for entry in entries], "the allowlist has no entry"
    )
    if callers:
        verb = "would be refused without shadow" if is_shadowed else "were refused"
        typer.echo(f"Calls of {id} from these addresses {verb}, latest first:", err=True)
        print_refused_callers(callers, "", err=not sys.stdout.isatty())


@command(app, "add", IntegrationChange)
def add(call: Invocation, id: IdArgument, cidr: EntriesArgument) -> None:
    """Add entries."""
    call.print_change(call.change("POST", "integrations", id, "allowlist", "add", body={"entries": cidr}))


@command(app, "remove", IntegrationChange)
def remove(call: Invocation, id: IdArgument, cidr: EntriesArgument) -> None:
    """Remove entries, written as in the list."""
    call.print_change(call.change("POST", "integrations", id, "allowlist", "remove", body={"entries": cidr}))


@command(app, "set", IntegrationChange)
def set_entries(
    call: Invocation,
    id: IdArgument,
    cidr: Annotated[
        list[str] | None, typer.Argument(metavar="CIDR", help="All entries of the new list.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Read the entries from a file, one per line; # begins a comment."
        ),
    ] = None,
) -> None:
    """Replace all entries; whether the allowlist is on stays as it is."""
    if (cidr is None) == (file is None):
        raise CommandError("no entries given: name them, or pass --file FILE", EXIT_USAGE)
    entries = cidr if file is None else _entries_in(file)
    call.print_change(call.change("POST", "integrations", id, "allowlist", "set", body={"entries": entries}))


@command(app, "enable", IntegrationChange)
def enable(call: Invocation, id: IdArgument, shadow: ShadowOption = None) -> None:
    """Turn the allowlist on: only its entries may call. Warns of recent callers that it locks out."""
    body = in_shadow(shadow)
    call.print_change(call.change("POST", "integrations", id, "allowlist", "enable", body=body))


@command(app, "disable", IntegrationChange, Confirmed)
def disable(call: Invocation, id: IdArgument) -> None:
    """Turn the allowlist off: every address may call. The entries are kept."""
    call.confirm(f"Turn the allowlist of {id} off? Its API keys then work from every address.")
    call.print_change(call.change("POST", "integrations", id, "allowlist", "disable", body={}))


def _callers_in_the_log(call: Invocation, id: str) -> list[dict[str, Any]]:
    """The callers that the allowlist refused, from the decision log; [] = it has none, or cannot be read."""
    from sidecar.admin_client.failures import AdminCallError
    from sidecar.cli.logs import QUERY_S

    try:
        listing = call.get("integrations", id, "refused-addresses", extra_s=QUERY_S)
    except AdminCallError as error:
        if (error.document or {}).get("code") != "decision_log_off":
            typer.echo(f"note: without the decision log: {error.lines[0]}", err=True)
        return []
    callers: list[dict[str, Any]] = listing["items"]
    if not listing["is_whole"]:
        typer.echo(f"note: only the latest {len(callers)} callers are shown", err=True)
    return callers


def _entries_in(file: Path) -> list[str]:
    """The entries in *file*, without comments and empty lines."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {error}", EXIT_USAGE) from None
    entries = [entry for line in lines if (entry := line.partition("#")[0].strip())]
    if len(entries) > FILE_LINES_MAX:
        raise CommandError(f"{file} has {len(entries)} entries; an allowlist holds at most 50", EXIT_USAGE)
    return entries

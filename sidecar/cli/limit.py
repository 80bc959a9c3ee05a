"""`sidecar limit`: the permanent and the temporary rate limit of an integration."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.admin_command import IntegrationChange, Invocation, command
from sidecar.cli.integrations import BurstOption, IdArgument, ShadowOption, in_shadow

app = typer.Typer(no_args_is_help=True, help="The permanent and the temporary rate limit of an integration.")

RpmArgument = Annotated[int, typer.Argument(metavar="RPM", help="Requests per minute, 1 to 10,000.")]


@command(app, "show")
def show(call: Invocation, id: IdArgument) -> None:
    """Show the limit in force, the permanent limit, a temporary raise, and whether the limit is in shadow."""
    from sidecar.cli.tables import print_fields
    from sidecar.cli.views import limit_fields, limit_of

    record = call.get("integrations", id)
    if call.is_json:
        call.print_json(limit_of(record))
        return
    shadow = [("in shadow", "yes: no limit refuses requests")] if "limit" in record["shadow"] else []
    print_fields([*limit_fields(record), *shadow])


@command(app, "set", IntegrationChange)
def set_limit(
    call: Invocation, id: IdArgument, rpm: RpmArgument, burst: BurstOption = None, shadow: ShadowOption = None
) -> None:
    """
    Set the permanent limit, in force at once; used tokens stay used, and a temporary raise ends.

    With --shadow no limit refuses requests; 'sidecar simulate' tries a limit while the present one holds.
    """
    body = {"rate_limit_rpm": rpm} | ({} if burst is None else {"burst": burst}) | in_shadow(shadow)
    call.print_change(call.change("POST", "integrations", id, "limit", "set", body=body))


@command(app, "raise", IntegrationChange)
def raise_limit(
    call: Invocation,
    id: IdArgument,
    rpm: RpmArgument,
    until: Annotated[
        str,
        typer.Option(
            "--until", metavar="WHEN", help="2026-12-01T00:00Z, or 2h from now; at most 90 days ahead."
        ),
    ],
    burst: BurstOption = None,
) -> None:
    """Raise the limit temporarily, for example for a migration; it then reverts automatically."""
    from sidecar.cli.times import Duration, parse_when

    when = parse_when("--until", until)
    end = {"duration": when.text} if isinstance(when, Duration) else {"until": when.text}
    body = {"rate_limit_rpm": rpm, **end, **({} if burst is None else {"burst": burst})}
    call.print_change(call.change("POST", "integrations", id, "limit", "raise", body=body))


@command(app, "end-raise", IntegrationChange)
def end_raise(call: Invocation, id: IdArgument) -> None:
    """End a temporary raise early."""
    call.print_change(call.change("POST", "integrations", id, "limit", "end-raise", body={}))

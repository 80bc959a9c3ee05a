"""Prints what a change did, its warnings, and which sidecars have confirmed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from sidecar.cli.tables import counted, plain

if TYPE_CHECKING:
    from sidecar.admin_client.client import Answer

SIDECARS_NAMED_MAX = 5


def print_change(answer: Answer, *, err: bool = False) -> None:
    """Print what a change did, on standard error if *err*; warnings always go to standard error."""
    data = answer.data
    subject = data.get("integration") or data.get("administrator") or {}
    summary = plain(data.get("summary") or "done")
    if data.get("is_dry_run"):
        summary = f"dry run, nothing was changed: {summary if data.get('is_change') else 'no change needed'}"
    elif answer.is_replay:
        summary = f"{summary} (by an earlier call with this idempotency key)"
    elif data.get("is_change") is False:
        summary = "no change needed"
    typer.echo(f"{plain(subject.get('id'))}: {summary}" if subject.get("id") else summary, err=err)
    for notice in data.get("notices") or ():
        typer.echo(f"note: {plain(notice.get('message'))}", err=True)
    if data.get("is_in_force") is False and not data.get("is_dry_run"):
        typer.echo(
            "note: the change is committed, but not yet in force on the sidecar that answered", err=True
        )
    print_durability(data)
    if data.get("confirmation") is not None:
        typer.echo(_confirmed(data["confirmation"]), err=err)


def print_durability(data: Mapping[str, Any]) -> None:
    """Print a note on standard error if too few replicas have a change, where replicas are known."""
    if data.get("lacks_replicas"):
        typer.echo(
            "note: too few replicas of the store have this change; a failover can lose it:"
            " see 'Durability' in docs/operate/registry-redis.md",
            err=True,
        )


def print_lost_secret(what: str) -> None:
    """Print that a secret exists but cannot be shown again, and what to do."""
    typer.echo(
        f"sidecar: {what} was shown by an earlier call with this idempotency key; it is not stored\n"
        "  if it is lost, revoke it and create another one",
        err=True,
    )


def _confirmed(confirmation: dict[str, Any]) -> str:
    took, sidecars = confirmation["took_ms"], counted(confirmation["sidecars"], "sidecar")
    if confirmation["is_complete"]:
        return f"in force on {sidecars} after {took} ms"
    if not confirmation["waiting_for"]:
        return (
            "committed, but the registry could not list the sidecars that confirmed: run 'sidecar sidecars'"
        )
    waiting = [plain(sidecar) for sidecar in confirmation["waiting_for"]]
    named = ", ".join(waiting[:SIDECARS_NAMED_MAX])
    more = f" and {len(waiting) - SIDECARS_NAMED_MAX} more" if len(waiting) > SIDECARS_NAMED_MAX else ""
    return (
        f"committed, but not confirmed within {took} ms by {len(waiting)} of {sidecars}: {named}{more};"
        " 'sidecar sidecars' shows their state"
    )

"""Applies a declared registry: shows the differences, asks, applies, reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import typer

from sidecar.cli.exits import EXIT_REFUSED, EXIT_USAGE, CommandError
from sidecar.cli.output import print_durability
from sidecar.cli.tables import counted, plain, terminal

SHOWN_MAX = 200
"""Integrations whose differences are shown; `--json` prints all of them."""
_FIELD_WIDTH = 20

Document = Mapping[str, Any]
"""A plan and its report, as in the admin API: `services.admin.apply.document.ApplyView`."""


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """The options of the command."""

    is_dry_run: bool
    is_confirmed: bool
    is_json: bool


class Line(NamedTuple):
    """One line of a diff, and the style in which a terminal shows it."""

    text: str
    style: str = ""


def declare(
    plan: Callable[[], Document],
    apply: Callable[[str], Document],
    options: ApplyOptions,
    confirm: Callable[[str], None],
) -> None:
    """
    Plan the changes, show the differences, ask, and apply exactly that plan.

    Args:
        plan: makes the plan and changes nothing.
        apply: applies the plan with the digest given.
        options: the options of the command.
        confirm: asks the user, and raises unless the answer is yes.

    Raises:
        CommandError: not a terminal, and --yes was not given.
        Exit: a change was refused, or the registry failed before the end.
    """
    if options.is_json and not (options.is_dry_run or options.is_confirmed):
        raise CommandError("--json does not ask for confirmation: add --yes or --dry-run", EXIT_USAGE)
    document = plan()
    for warning in document["warnings"]:
        typer.echo(f"warning: {plain(warning)}", err=True)
    counts = document["difference"]["counts"]
    if not options.is_json:
        show_plan(document["difference"])
    if counts["steps"] and not options.is_dry_run:
        if not options.is_confirmed:
            confirm(_question(counts))
        document = apply(document["plan"])
    if options.is_json:
        import json

        typer.echo(json.dumps({**document, "is_dry_run": options.is_dry_run}, indent=2))
    else:
        _print_outcome(document, options)
    report = document["report"]
    if counts["refused"] or (report is not None and (report["declined"] or report["error"])):
        raise typer.Exit(EXIT_REFUSED)


def show_plan(difference: Document) -> None:
    """Print what is removed, changed, rejected and added, in this order, and the counts."""
    console = terminal()
    for line in plan_lines(difference):
        console.print(line.text, style=line.style, soft_wrap=True)


def plan_lines(difference: Document) -> Iterator[Line]:
    """The diff of a plan, removals first; no value in it can control a terminal."""
    order = ("remove", "change", "none", "add")
    integrations = sorted(difference["integrations"], key=lambda member: order.index(member["change"]))
    for integration in integrations[:SHOWN_MAX]:
        yield from _integration_lines(integration)
    if len(integrations) > SHOWN_MAX:
        yield Line(f"… and {len(integrations) - SHOWN_MAX} more; --json prints all of them", "dim")
    if integrations:
        yield Line("")
    counts = difference["counts"]
    numbers = ", ".join(f"{counts[change]} to {change}" for change in ("add", "change", "remove"))
    refused = f", {counts['refused']} with rejected changes" if counts["refused"] else ""
    yield Line(f"{numbers}, {counts['unchanged']} unchanged{refused}", "bold")
    kept = difference["not_in_file"]
    if kept["integrations"] or kept["credentials"]:
        yield Line(
            f"not in the file, and kept: {counted(len(kept['integrations']), 'integration')},"
            f" {counted(len(kept['credentials']), 'live credential')}; --prune would remove them",
            "dim",
        )


_HEADS = {"add": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "bold red"), "none": (" ", "")}


def _integration_lines(integration: Document) -> Iterator[Line]:
    sign, style = _HEADS[integration["change"]]
    ending = "   permanently: its id cannot be reused" if integration["change"] == "remove" else ""
    yield Line(f"{sign} {plain(integration['id'])}   {plain(integration['name'])}{ending}", style)
    for change in integration["fields"]:
        before, after = change["before"], change["after"]
        if change["field"] == "name" and before is None:
            continue  # the first line shows it
        name = plain(change["field"]).ljust(_FIELD_WIDTH)
        if before is None:
            yield Line(f"    + {name} {_value(after)}", "green")
        elif after is None:
            yield Line(f"    - {name} {_value(before)}", "red")
        else:
            yield Line(f"    ~ {name} {_value(before)} → {_value(after)}", "yellow")
    for refusal in integration["refusals"]:
        action = f"{refusal['action']}: " if refusal["action"] else ""
        yield Line(f"    ! {action}{plain(refusal['message'])}: {plain(refusal['remedy'])}", "bold red")
    for remark in integration["remarks"]:
        yield Line(f"    note: {plain(remark)}", "dim")


def _value(value: object) -> str:
    return '""' if value == "" else plain(value)


def _question(counts: Document) -> str:
    removed = counts["remove"]
    deletions = f", {removed} of them permanent deletions" if removed else ""
    return f"Make {counted(counts['steps'], 'change')}{deletions}?"


def _print_outcome(document: Document, options: ApplyOptions) -> None:
    if document["report"] is not None:
        _print_report(document["report"])
    elif options.is_dry_run and document["difference"]["counts"]["steps"]:
        typer.echo("Dry run: nothing was changed.")
    else:
        typer.echo("Nothing to do.")


def _print_report(report: Document) -> None:
    typer.echo(f"Made {counted(report['steps_made'], 'change')} in {report['took_ms'] / 1_000:.1f} s.")
    print_durability(report)
    declined = report["declined"]
    for step in declined[:SHOWN_MAX]:
        typer.echo(f"refused: {plain(step['id'])}: {step['action']}: {plain(step['message'])}", err=True)
    if len(declined) > SHOWN_MAX:
        typer.echo(f"… and {len(declined) - SHOWN_MAX} more refused", err=True)
    not_tried = counted(report["steps_not_tried"], "change")
    if report["error"] is not None:
        doubt = "; some of them may have been made" if report["may_have_happened"] else ""
        typer.echo(f"sidecar: the registry failed: {plain(report['error'])}", err=True)
        typer.echo(f"  {not_tried} not made{doubt}; run the command again", err=True)
    elif report["steps_not_tried"]:
        typer.echo(
            f"{not_tried} not tried because an earlier one was refused; run the command again", err=True
        )

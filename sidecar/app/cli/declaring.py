"""A declared registry from start to end: the difference is shown, asked about, applied and told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import typer

from sidecar.app.cli.exits import EXIT_REFUSED, EXIT_USAGE, CommandError
from sidecar.app.cli.tables import plain, terminal

if TYPE_CHECKING:
    from sidecar.app.declaring.engine import Report
    from sidecar.app.declaring.target import ChangeTarget
    from sidecar.domain.declared import Declaration, Difference, Plan

SHOWN_MAX = 200
"""Integrations whose differences are shown one by one; the rest is counted, and `--json` tells all."""
_FIELD_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was asked for."""

    reason: str
    is_dry_run: bool
    is_confirmed: bool
    has_prune: bool
    is_json: bool


class Line(NamedTuple):
    """One line of a diff, and the style in which a terminal shows it."""

    text: str
    style: str = ""


def declare(
    target: ChangeTarget,
    declarations: Sequence[Declaration],
    asked: Asked,
    confirm: Callable[[str], None],
) -> None:
    """
    Make *target* hold what *declarations* say.

    Args:
        target: where the changes go.
        declarations: what the file declares.
        asked: the options of the command.
        confirm: asks, and raises unless the answer is yes.

    Raises:
        CommandError: nobody can be asked.
        TargetError: the target failed before anything was tried.
        Exit: something was refused, or was broken off.
    """
    from sidecar.app.declaring.engine import Wish, apply_plan, make_plan

    if asked.is_json and not (asked.is_dry_run or asked.is_confirmed):
        raise CommandError("--json shows no diff to say yes to: give --yes or --dry-run, too", EXIT_USAGE)
    plan = make_plan(target, Wish(declarations, asked.reason, asked.has_prune))
    if not asked.is_json:
        show_plan(plan)
    report = None
    if plan.steps and not asked.is_dry_run:
        if not asked.is_confirmed:
            confirm(_question(plan))
        report = apply_plan(target, plan)
    _tell(plan, report, asked)
    is_whole = report is None or not (report.declined or report.error)
    if plan.refused or not is_whole:
        raise typer.Exit(EXIT_REFUSED)


def show_plan(plan: Plan) -> None:
    """Print what would be removed, changed, refused and added, in this order, and the counts."""
    console = terminal()
    for line in plan_lines(plan):
        console.print(line.text, style=line.style, soft_wrap=True)


def plan_lines(plan: Plan) -> Iterator[Line]:
    """The diff of *plan*, what takes something away first; no value in it can steer a terminal."""
    from sidecar.domain.declared import Kind

    order = (Kind.REMOVE, Kind.CHANGE, Kind.NONE, Kind.ADD)
    differences = sorted(plan.differences, key=lambda one: order.index(one.kind))
    for difference in differences[:SHOWN_MAX]:
        yield from _difference_lines(difference)
    if len(differences) > SHOWN_MAX:
        yield Line(f"… and {len(differences) - SHOWN_MAX} more; --json tells all of them", "dim")
    if differences:
        yield Line("")
    counts = [f"{plan.count(kind)} to {kind.value}" for kind in (Kind.ADD, Kind.CHANGE, Kind.REMOVE)]
    refused = f", {plan.refused} with something that cannot be" if plan.refused else ""
    yield Line(f"{', '.join(counts)}, {plan.unchanged} unchanged{refused}", "bold")
    if plan.kept_integrations or plan.kept_credentials:
        yield Line(
            f"not in the file, and left alone: {_count(len(plan.kept_integrations), 'integration')},"
            f" {_count(len(plan.kept_credentials), 'live credential')}; --prune would end them",
            "dim",
        )


_HEADS = {"add": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "bold red"), "none": (" ", "")}


def _difference_lines(difference: Difference) -> Iterator[Line]:
    from sidecar.app.declaring.document import shown_field

    sign, style = _HEADS[difference.kind.value]
    ending = "   for ever: its id is never used again" if difference.kind.value == "remove" else ""
    yield Line(f"{sign} {plain(difference.integration_id)}   {plain(difference.name)}{ending}", style)
    for change in map(shown_field, difference.fields):
        if change.field == "name" and change.before is None:
            continue  # it stands in the head
        name = plain(change.field).ljust(_FIELD_WIDTH)
        if change.before is None:
            yield Line(f"    + {name} {_value(change.after)}", "green")
        elif change.after is None:
            yield Line(f"    - {name} {_value(change.before)}", "red")
        else:
            yield Line(f"    ~ {name} {_value(change.before)} → {_value(change.after)}", "yellow")
    for refusal in difference.refusals:
        what = f"{refusal.word}: " if refusal.word else ""
        yield Line(
            f"    ! {what}{plain(refusal.problem.message)}: {plain(refusal.problem.remedy)}", "bold red"
        )
    for remark in difference.remarks:
        yield Line(f"    note: {plain(remark)}", "dim")


def _value(value: object) -> str:
    return '""' if value == "" else plain(value)


def _question(plan: Plan) -> str:
    from sidecar.domain.declared import Kind

    removed = plan.count(Kind.REMOVE)
    ends = f", {removed} of them deletions for ever" if removed else ""
    return f"Make {_count(plan.steps, 'change')}{ends}?"


def _tell(plan: Plan, report: Report | None, asked: Asked) -> None:
    if asked.is_json:
        import json

        from sidecar.app.declaring.document import plan_document, report_document

        document = {**plan_document(plan), "is_dry_run": asked.is_dry_run, "report": report_document(report)}
        typer.echo(json.dumps(document, indent=2))
    elif report is not None:
        _tell_report(report)
    elif asked.is_dry_run and plan.steps:
        typer.echo("Dry run: nothing was changed.")
    else:
        typer.echo("Nothing to do.")


def _tell_report(report: Report) -> None:
    typer.echo(f"Made {_count(report.made, 'change')} in {report.took_s:.1f} s.")
    for one in report.declined[:SHOWN_MAX]:
        assert one.declined is not None
        word = one.difference.steps[one.made].command.word
        typer.echo(
            f"refused: {plain(one.difference.integration_id)}: {word}: {plain(one.declined.message)}",
            err=True,
        )
    if len(report.declined) > SHOWN_MAX:
        typer.echo(f"… and {len(report.declined) - SHOWN_MAX} more were refused", err=True)
    if report.error is not None:
        doubt = "; some of those may be in force all the same" if report.error.may_have_happened else ""
        typer.echo(f"sidecar: broken off: {report.error}", err=True)
        typer.echo(f"  {_count(report.unfinished, 'change')} not made{doubt}; run it again", err=True)
    elif report.unfinished:
        typer.echo(f"{_count(report.unfinished, 'change')} after those not tried; run it again", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ask_first(question: str) -> None:
    """
    Ask on the terminal.

    Raises:
        CommandError: the answer was no, or nobody can be asked.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(
            f"nothing was done, because nobody can be asked here: {question} Give --yes if you mean it",
            EXIT_USAGE,
        )
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was done")

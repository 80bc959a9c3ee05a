"""
Prints tables: drawn on a terminal, tab-separated when piped.

Values come from a registry that many people write to, so markup and control characters in them are escaped.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_FORMULA = ("=", "+", "-", "@")
_STYLES = {
    "active": "green",
    "suspended": "bold red",
    "invalidated": "dim",
    "expired": "dim",
    "overlapping": "yellow",
    "removed": "dim",
}


class Column(NamedTuple):
    """
    A column: its heading, and how a terminal shows its values.

    `is_whole` values stay on one line: ids and times, which people copy. `style` is of Rich.
    """

    head: str
    is_whole: bool = False
    is_number: bool = False
    style: str = ""


def plain(value: object) -> str:
    """*value* on one line without control characters; None is empty, lists are joined with spaces."""
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "" if value is None else str(value)
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def counted(count: int, singular: str, plural: str = "") -> str:
    """
    Return *count* with its noun; *plural* '' = with an s.

    >>> counted(1, "change"), counted(2, "entry", "entries")
    ('1 change', '2 entries')
    """
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def print_table(
    columns: Sequence[Column], rows: Iterable[Sequence[object]], empty: str, *, err: bool = False
) -> None:
    """
    Print *rows* under the headings of *columns*; without rows, print *empty* on standard error.

    A list is printed one member per line, or joined with spaces when piped. *err* = print plain rows on
    standard error.
    """
    kept = list(rows)
    if not kept:
        typer.echo(empty, err=True)
    elif sys.stdout.isatty() and not err:
        _draw(columns, [list(map(_drawn, row)) for row in kept], terminal())
    else:
        for row in kept:
            typer.echo("\t".join(map(plain, row)), err=err)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one name with its value per line; tab-separated when piped."""
    cells = [(name, plain(value)) for name, value in fields]
    if not sys.stdout.isatty():
        for name, value in cells:
            typer.echo(f"{name}\t{value}")
        return
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in cells:
        grid.add_row(name, _styled(value or "-"))
    terminal().print(grid)


def print_csv(heads: Sequence[str], rows: Iterable[Sequence[object]], out: TextIO | None = None) -> None:
    """
    Print RFC 4180 CSV, with a heading.

    A value that a spreadsheet would run as a formula gets an apostrophe in front: names are free text.
    """
    writer = csv.writer(out or sys.stdout)
    writer.writerow(heads)
    for row in rows:
        writer.writerow([_no_formula(plain(value)) for value in row])


def terminal() -> Console:
    """The console for tables; honors NO_COLOR, COLUMNS and the terminal's width."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def _draw(columns: Sequence[Column], cells: Sequence[Sequence[str]], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column.head,
            no_wrap=column.is_whole,
            overflow="fold",
            justify="right" if column.is_number else "left",
            style=column.style,
        )
    for row in cells:
        table.add_row(*map(_styled, row))
    console.print(table)


def _drawn(value: object) -> str:
    return "\n".join(map(plain, value)) if isinstance(value, list | tuple) else plain(value)


def _styled(value: str) -> Text:
    from rich.text import Text

    return Text(value, style=_STYLES.get(value, ""))


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text

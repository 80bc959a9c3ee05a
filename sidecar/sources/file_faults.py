"""Mistakes in a file that a person wrote: all of them together, each with its place and its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FAULTS_SHOWN_MAX = 20
"""More would scroll the first ones away; the total is still told."""

PROBLEM_CHARS_MAX = 500
"""Some mistakes quote what is wrong, and that may be of any length."""

_QUOTED_CHARS_MAX = 80


class FileFault(NamedTuple):
    """
    One mistake.

    `line` counts from 1, None = it belongs to no line; `field` is a dotted path such as
    `listen.grpc[0].tls`, '' = the file as a whole; `problem` says what is wrong and what to write.
    """

    file: str
    line: int | None
    field: str
    problem: str

    def __str__(self) -> str:
        """One line: `file:line: field: problem`."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.field}: {self.problem}" if self.field else f"{place}: {self.problem}"


class FileFaultsError(ValueError):
    """
    A file holds mistakes; `faults` are the first `FAULTS_SHOWN_MAX`, `total` counts all of them.

    `is_cut` = the rest of a file was not read, because it holds too many. `is_unreadable` = a file could
    not be read, which may pass: what it says is not known.
    """

    def __init__(
        self, faults: Iterable[FileFault], total: int, is_unreadable: bool = False, is_cut: bool = False
    ) -> None:
        """Put one mistake on each line of the message."""
        self.is_unreadable = is_unreadable
        self.is_cut = is_cut
        self.faults = tuple(faults)
        self.total = total
        super().__init__("\n".join(self.lines()))

    def lines(self) -> Iterator[str]:
        """The mistakes as they are printed, and how many more there are."""
        yield from map(str, self.faults)
        left = self.total - len(self.faults)
        if self.is_cut:
            yield f"... and {left} more up to here, the rest was not read; fix these first"
        elif left:
            yield f"... and {left} more; fix these first"


class FaultList:
    """Collects the mistakes of one file; keeps the first `FAULTS_SHOWN_MAX` and counts the others."""

    def __init__(self, file: str) -> None:
        """Collect for *file*, named as the user named it."""
        self.file = file
        self.faults: list[FileFault] = []
        self.total = 0
        self.is_unreadable = False
        self.is_cut = False

    def __len__(self) -> int:
        """How many mistakes were found, those not kept included."""
        return self.total

    def add(self, line: int | None, field: str, problem: str) -> None:
        """Note one mistake at *line* of the file."""
        self.put(FileFault(self.file, line, field, problem))

    def add_unreadable(self, error: OSError) -> None:
        """Note that the file could not be read now."""
        self.is_unreadable = True
        self.add(None, "", f"cannot be read ({error.strerror}); check the path and its permissions")

    def put(self, fault: FileFault) -> None:
        """Note one mistake, which may be in another file."""
        self.total += 1
        if len(self.faults) >= FAULTS_SHOWN_MAX:
            return
        if len(fault.problem) > PROBLEM_CHARS_MAX:
            fault = fault._replace(problem=f"{fault.problem[:PROBLEM_CHARS_MAX]}...")
        self.faults.append(fault)

    def extend(self, error: FileFaultsError) -> None:
        """Note the mistakes of *error*, too."""
        for fault in error.faults:
            self.put(fault)
        self.total += error.total - len(error.faults)
        self.is_unreadable = self.is_unreadable or error.is_unreadable
        self.is_cut = self.is_cut or error.is_cut

    def raise_any(self) -> None:
        """
        End here if there were mistakes.

        Raises:
            FileFaultsError: at least one was noted.
        """
        if self.total:
            raise self.error()

    def error(self) -> FileFaultsError:
        """The mistakes as one error; there must be some."""
        return FileFaultsError(self.faults, self.total, self.is_unreadable, self.is_cut)


def quoted(text: object) -> str:
    """
    *text* as an error quotes it: one line of bounded length.

    >>> quoted("x" * 100)[-6:]
    'xxx...'
    """
    shown = repr(text)
    return shown if len(shown) <= _QUOTED_CHARS_MAX else f"{shown[:_QUOTED_CHARS_MAX]}..."


def unknown_key(key: str, known: Iterable[str]) -> str:
    """
    What to say about a key that does not exist.

    >>> unknown_key("burts", ("burst", "name"))
    "unknown key 'burts'; did you mean 'burst'?"
    """
    names = list(known)
    close = meant_key(key, names)
    if close is not None:
        return f"unknown key {quoted(key)}; did you mean {close!r}?"
    return f"unknown key {quoted(key)}; known here: {', '.join(names)}"


def meant_key(key: str, known: Iterable[str]) -> str | None:
    """The one of *known* that *key* was probably meant to be; None = it resembles none."""
    close = difflib.get_close_matches(key[:_QUOTED_CHARS_MAX], list(known), n=1)
    return close[0] if close else None

"""Collecting the mistakes of a file, each with its line, its field and its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FAULTS_SHOWN_MAX = 20
"""Maximum number of mistakes that are printed; more would scroll the first ones away."""

PROBLEM_CHARS_MAX = 500
"""Maximum length of a printed problem, which may quote a long value."""

_QUOTED_CHARS_MAX = 80


class FileFault(NamedTuple):
    """
    One mistake.

    `line` counts from 1, None = no line; `field` is a dotted path such as `listen.grpc[0].tls`, '' = the
    whole file; `problem` says what is wrong and what to write.
    """

    file: str
    line: int | None
    field: str
    problem: str

    def __str__(self) -> str:
        """Format as `file:line: field: problem`."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.field}: {self.problem}" if self.field else f"{place}: {self.problem}"


class FileFaultsError(ValueError):
    """
    A file has mistakes; `faults` are the first `FAULTS_SHOWN_MAX`, `total` counts all of them.

    `is_cut` = the rest of a file was not read because of too many mistakes. `is_unreadable` = a file could
    not be read, which may be temporary.
    """

    def __init__(
        self, faults: Iterable[FileFault], total: int, is_unreadable: bool = False, is_cut: bool = False
    ) -> None:
        self.is_unreadable = is_unreadable
        self.is_cut = is_cut
        self.faults = tuple(faults)
        self.total = total
        super().__init__("\n".join(self.lines()))

    def lines(self) -> Iterator[str]:
        """Yield the mistakes as text, and the number of further ones."""
        yield from map(str, self.faults)
        left = self.total - len(self.faults)
        if self.is_cut:
            yield f"... and {left} more; the rest of the file was not read; fix these first"
        elif left:
            yield f"... and {left} more; fix these first"


class FaultList:
    """Collects the mistakes of one file: keeps the first `FAULTS_SHOWN_MAX` and counts all."""

    def __init__(self, file: str) -> None:
        """Collect mistakes of *file*, the name that the user gave."""
        self.file = file
        self.faults: list[FileFault] = []
        self.total = 0
        self.is_unreadable = False
        self.is_cut = False

    def __len__(self) -> int:
        """The number of mistakes, including those not kept."""
        return self.total

    def add(self, line: int | None, field: str, problem: str) -> None:
        """Add one mistake at *line* of the file."""
        self.put(FileFault(self.file, line, field, problem))

    def add_unreadable(self, error: OSError) -> None:
        """Add the mistake that the file cannot be read."""
        self.is_unreadable = True
        self.add(None, "", f"cannot be read ({error.strerror}); check the path and its permissions")

    def put(self, fault: FileFault) -> None:
        """Add one mistake, which may be in another file."""
        self.total += 1
        if len(self.faults) >= FAULTS_SHOWN_MAX:
            return
        if len(fault.problem) > PROBLEM_CHARS_MAX:
            fault = fault._replace(problem=f"{fault.problem[:PROBLEM_CHARS_MAX]}...")
        self.faults.append(fault)

    def extend(self, error: FileFaultsError) -> None:
        """Add the mistakes of *error*."""
        for fault in error.faults:
            self.put(fault)
        self.total += error.total - len(error.faults)
        self.is_unreadable = self.is_unreadable or error.is_unreadable
        self.is_cut = self.is_cut or error.is_cut

    def raise_any(self) -> None:
        """
        Raise an error if there are mistakes.

        Raises:
            FileFaultsError: there is at least one mistake.
        """
        if self.total:
            raise self.error()

    def error(self) -> FileFaultsError:
        """The mistakes as one error; there must be at least one."""
        return FileFaultsError(self.faults, self.total, self.is_unreadable, self.is_cut)


def quoted(text: object) -> str:
    """
    Quote *text* for an error message: one line of bounded length.

    >>> quoted("x" * 100)[-6:]
    'xxx...'
    """
    shown = repr(text)
    return shown if len(shown) <= _QUOTED_CHARS_MAX else f"{shown[:_QUOTED_CHARS_MAX]}..."


def unknown_key(key: str, known: Iterable[str]) -> str:
    """
    The problem text for an unknown key.

    >>> unknown_key("burts", ("burst", "name"))
    "unknown key 'burts'; did you mean 'burst'?"
    """
    names = list(known)
    close = meant_key(key, names)
    if close is not None:
        return f"unknown key {quoted(key)}; did you mean {close!r}?"
    return f"unknown key {quoted(key)}; known here: {', '.join(names)}"


def meant_key(key: str, known: Iterable[str]) -> str | None:
    """The key of *known* that *key* resembles; None = it resembles none."""
    close = difflib.get_close_matches(key[:_QUOTED_CHARS_MAX], list(known), n=1)
    return close[0] if close else None

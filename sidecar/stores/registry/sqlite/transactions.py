"""Pieces of work on the registry file, and the transactions they run in."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, TypeAlias, TypeVar

from sidecar.domain.refusals import RefusedError
from sidecar.stores.registry.protocol import (
    RegistryDamagedError,
    RegistryError,
    RegistryUnavailableError,
)

Result = TypeVar("Result")
Work: TypeAlias = Callable[[sqlite3.Connection], Result]


class Durability(Enum):
    """How a piece of work is run."""

    READ = "read"
    """In a transaction that sees one moment."""
    LASTING = "lasting"
    """A write that is on disk when it returns."""
    LAX = "lax"
    """A write that a power cut may undo; it can never damage the file."""


class Job(Generic[Result]):
    """One call: its work, and what came of it: a result, or what to raise."""

    __slots__ = ("durability", "future", "has_begun", "outcome", "work")

    def __init__(self, work: Work[Result], durability: Durability, future: asyncio.Future[Result]) -> None:
        """Run *work*; its caller waits for *future*."""
        self.work = work
        self.durability = durability
        self.future = future
        self.has_begun = False
        self.outcome: Result | BaseException | None = None


class _CommitError(sqlite3.OperationalError):
    """The commit itself failed: whether it is on disk, only reopening the file can tell."""


def perform(database: sqlite3.Connection, jobs: list[Job[Any]]) -> bool:
    """
    Run *jobs*, all of one durability, in one transaction, and keep what came of each.

    Returns:
        True when something may have been written.
    """
    live = [job for job in jobs if not job.future.cancelled()]
    durability = jobs[0].durability
    try:
        if durability is Durability.READ:
            _read(database, live)
        else:
            _write(database, live, durability)
    except sqlite3.Error as error:
        _roll_back(database)
        failure = _failure(error)
        for job in live:
            job.outcome = failure
    return durability is not Durability.READ


def in_savepoint(database: sqlite3.Connection, work: Work[Result]) -> Result | BaseException:
    """
    Run *work* within the present transaction so that it is whole, or absent when it raises.

    Returns:
        Its result, or what it raised.

    Raises:
        sqlite3.Error: the file itself failed; the whole transaction must be rolled back.
    """
    database.execute("SAVEPOINT work")
    outcome = _attempt(work, database)
    if isinstance(outcome, BaseException):
        database.execute("ROLLBACK TO work")
    database.execute("RELEASE work")
    return outcome


def _read(database: sqlite3.Connection, jobs: list[Job[Any]]) -> None:
    for job in jobs:
        database.execute("BEGIN")
        job.outcome = _attempt(job.work, database)
        database.execute("ROLLBACK")


def _write(database: sqlite3.Connection, jobs: list[Job[Any]], durability: Durability) -> None:
    database.execute(f"PRAGMA synchronous = {'FULL' if durability is Durability.LASTING else 'NORMAL'}")
    database.execute("BEGIN IMMEDIATE")
    for job in jobs:
        job.outcome = in_savepoint(database, job.work)
    try:
        database.execute("COMMIT")
    except sqlite3.Error as error:
        raise _CommitError(str(error)) from error


def _attempt(work: Work[Result], database: sqlite3.Connection) -> Result | BaseException:
    """Run *work*; what it raises is its outcome, unless the file itself failed."""
    try:
        return work(database)
    except (RefusedError, RegistryError) as error:
        return error
    except sqlite3.IntegrityError as error:
        return RegistryDamagedError(
            f"a guard of the registry file refused the change ({error}): verify the audit log, and report it"
        )
    except sqlite3.Error:
        raise
    except Exception as error:
        # A fault of the program must reach its caller, and must not end the thread.
        return error


def _failure(error: sqlite3.Error) -> RegistryError:
    kind = RegistryUnavailableError if isinstance(error, sqlite3.OperationalError) else RegistryDamagedError
    return kind(
        f"the registry file failed ({error}): look at the disk and its space, and at processes that hold it",
        may_have_happened=isinstance(error, _CommitError),
    )


def _roll_back(database: sqlite3.Connection) -> None:
    if database.in_transaction:
        try:
            database.execute("ROLLBACK")
        except sqlite3.Error:
            return  # SQLite has rolled back by itself

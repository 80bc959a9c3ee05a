"""Calls that access the registry file, and the transactions they run in."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, TypeAlias, TypeVar

from sidecar.domain.refusals import RefusedError
from sidecar.stores.registry.protocol import RegistryDamagedError, RegistryError, RegistryUnavailableError

Result = TypeVar("Result")
Work: TypeAlias = Callable[[sqlite3.Connection], Result]


class Durability(Enum):
    """How a call runs."""

    READ = "read"
    """A read in a transaction."""
    LASTING = "lasting"
    """A write that is on disk when the call returns."""
    LAX = "lax"
    """A write that a power failure may undo; it cannot damage the file."""


class Job(Generic[Result]):
    """One call: its work and its outcome, a result or an exception."""

    __slots__ = ("durability", "future", "has_begun", "outcome", "work")

    def __init__(self, work: Work[Result], durability: Durability, future: asyncio.Future[Result]) -> None:
        """Run *work*; its caller waits for *future*."""
        self.work = work
        self.durability = durability
        self.future = future
        self.has_begun = False
        self.outcome: Result | BaseException | None = None


class _CommitError(sqlite3.OperationalError):
    """The commit failed: the write may be on disk."""


def perform(database: sqlite3.Connection, jobs: list[Job[Any]]) -> bool:
    """
    Run *jobs*, all of one durability, in one transaction, and set the outcome of each.

    Returns:
        True if the file may have been written.
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
    Run *work* atomically within the current transaction.

    Returns:
        Its result, or the exception that it raised and that undid its writes.

    Raises:
        sqlite3.Error: the file failed; the whole transaction must be rolled back.
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
    """Run *work* and return its result or exception; an error of the file is raised."""
    try:
        return work(database)
    except (RefusedError, RegistryError) as error:
        return error
    except sqlite3.IntegrityError as error:
        return RegistryDamagedError(
            f"a trigger of the registry file refused the change ({error}): verify the audit log, and report"
            " a bug"
        )
    except sqlite3.Error:
        raise
    except Exception as error:
        # A bug must reach the caller and must not end the thread.
        return error


def _failure(error: sqlite3.Error) -> RegistryError:
    kind = RegistryUnavailableError if isinstance(error, sqlite3.OperationalError) else RegistryDamagedError
    return kind(
        f"the registry file failed ({error}): check the disk, its free space, and processes that lock it",
        may_have_happened=isinstance(error, _CommitError),
    )


def _roll_back(database: sqlite3.Connection) -> None:
    if database.in_transaction:
        try:
            database.execute("ROLLBACK")
        except sqlite3.Error:
            return  # SQLite has rolled back by itself

"""The registry's SQLite file: opened with the durability and the guards that the registry promises."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from sidecar.stores.registry.protocol import RegistryDamagedError, RegistryUnavailableError
from sidecar.stores.registry.sqlite.schema import APPLICATION_ID, MIGRATIONS

BUSY_TIMEOUT_S = 5.0
"""How long one process waits for another to finish its transaction; transactions last milliseconds."""

Connect: TypeAlias = Callable[[Path], sqlite3.Connection]

_PRAGMAS = (
    "PRAGMA synchronous = FULL",  # a commit is on disk when it returns: WAL alone would sync at checkpoints
    "PRAGMA foreign_keys = ON",
    "PRAGMA recursive_triggers = ON",  # else REPLACE would delete rows past the triggers
    "PRAGMA secure_delete = ON",  # webhook secrets that ended leave no trace in free pages
    "PRAGMA cell_size_check = ON",
    "PRAGMA journal_size_limit = 67108864",
)


def connect(path: Path) -> sqlite3.Connection:
    """A connection in which transactions begin and end only as told."""
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=256)


def open_database(path: Path, connect: Connect = connect) -> sqlite3.Connection:
    """
    Open the registry file at *path*; a new one is made with mode 0600, an older one is migrated.

    Raises:
        RegistryUnavailableError: it cannot be opened, or others may read it.
        RegistryDamagedError: it is no registry, or one of a later version of the program.
    """
    _require_private(path)
    try:
        database = connect(path)
    except sqlite3.Error as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error}") from error
    try:
        _switch_to_wal(database)
        for pragma in _PRAGMAS:
            database.execute(pragma)
        _migrate(database, path)
    except sqlite3.Error as error:
        database.close()
        kind = (
            RegistryUnavailableError if isinstance(error, sqlite3.OperationalError) else RegistryDamagedError
        )
        raise kind(f"registry {path} cannot be used: {error}") from error
    except RegistryDamagedError:
        database.close()
        raise
    return database


def _require_private(path: Path) -> None:
    """Make the file, or check that no one else can read it: it holds digests and sealed secrets."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error.strerror}") from error
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    if mode & 0o077:
        raise RegistryUnavailableError(
            f"registry {path} has mode {mode:04o}, so others could read or change it: run chmod 600 {path}"
        )


def _switch_to_wal(database: sqlite3.Connection) -> None:
    """
    Switch the journal to WAL, which is kept in the file.

    Two processes that make the file at the same moment get 'locked' here without SQLite waiting for it.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.005)


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the present version, each step whole or absent."""
    while True:
        database.execute("BEGIN IMMEDIATE")
        try:
            version = _version(database, path)
            if version == len(MIGRATIONS):
                database.execute("ROLLBACK")
                return
            for statement in MIGRATIONS[version]:
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {version + 1}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def _version(database: sqlite3.Connection, path: Path) -> int:
    (application_id,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise RegistryDamagedError(f"{path} is a SQLite file, but not of a registry: name another file")
    if version > len(MIGRATIONS):
        raise RegistryDamagedError(
            f"registry {path} has version {version}, which is later than this program knows"
            f" ({len(MIGRATIONS)}): run the program that made it, or a later one"
        )
    return int(version)

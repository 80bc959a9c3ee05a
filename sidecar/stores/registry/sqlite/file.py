"""The registry's SQLite file: opened with the durability and the guards that the registry promises."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from sidecar.stores.registry.protocol import RegistryDamagedError, RegistryUnavailableError
from sidecar.stores.registry.sqlite.schema import APPLICATION_ID, MIGRATIONS

BUSY_TIMEOUT_S = 5.0
"""How long one process waits for another to finish its transaction; transactions last milliseconds."""

SQLITE_MAGIC = b"SQLite format 3\0"
TRACES = ("-wal", "-shm", "-journal", ".key")
"""What stands beside a registry: SQLite's own files, and the key that is made at the first start."""

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
    Open the registry file at *path*; a new one is created with mode 0600, an older one is migrated.

    Raises:
        RegistryUnavailableError: it cannot be opened, or others may read it.
        RegistryDamagedError: it is not a registry, it is one of a later version of the program, or it was
            lost: files beside it show that there was one.
    """
    if not _exists(path):
        _require_no_traces(path)
        _create(path, connect)
    _require_sound(path)
    try:
        database = connect(path)
    except sqlite3.Error as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error}") from error
    with _closing_on_error(database, path):
        _prepare(database, path)
    return database


def check_file(path: Path) -> None:
    """
    Raise what `open_database` would raise for *path*; nothing is created, migrated or written.

    Raises:
        RegistryUnavailableError, RegistryDamagedError: as `open_database`.
    """
    if not _exists(path):
        _require_no_traces(path)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise RegistryUnavailableError(
                f"registry {path} cannot be created: this user may not write its folder; change the folder's"
                " owner or mode"
            )
        return
    _require_sound(path)
    try:
        # Read-only, SQLite would leave a '-wal' and a '-shm' beside a file that nobody has open.
        is_open = path.with_name(f"{path.name}-wal").exists()
        uri = f"{path.absolute().as_uri()}?mode=ro{'' if is_open else '&immutable=1'}"
        database = sqlite3.connect(uri, timeout=BUSY_TIMEOUT_S, uri=True)
    except sqlite3.Error as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error}") from error
    with _closing_on_error(database, path):
        _version(database, path)
    database.close()


class FileWatch:
    """Notices that the file of an open registry was truncated, removed or replaced: changes would be lost."""

    def __init__(self, path: Path) -> None:
        """Remember which file is at *path* now."""
        self._path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """
        Look at the file; one that cannot be looked at now counts as unchanged.

        Raises:
            RegistryDamagedError: it is not the file that was opened, or it is empty.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            raise RegistryDamagedError(f"registry {self._path} was removed while it was open") from None
        except OSError:
            return
        if (status.st_dev, status.st_ino) != self._identity:
            raise RegistryDamagedError(f"registry {self._path} was replaced while it was open")
        if not status.st_size:
            raise RegistryDamagedError(f"registry {self._path} was emptied while it was open")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def _closing_on_error(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Close *database* where something fails, and say which file it was."""
    try:
        yield
    except sqlite3.Error as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise RegistryUnavailableError(f"registry {path} cannot be used: {error}") from error
        raise RegistryDamagedError(
            f"registry {path} cannot be used: {error}; restore a backup, or name another file"
        ) from error
    except RegistryDamagedError:
        database.close()
        raise


def _exists(path: Path) -> bool:
    """Whether there is a file; its folder must be there."""
    try:
        path.stat()
    except FileNotFoundError as error:
        if path.parent.is_dir():
            return False
        raise RegistryUnavailableError(
            f"registry {path} cannot be opened: {error.strerror}; create the folder {path.parent} first"
        ) from error
    except OSError as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error.strerror}") from error
    return True


def _require_no_traces(path: Path) -> None:
    """A registry that is gone leaves files beside it: no new one is created in its place."""
    for suffix in TRACES:
        trace = path.with_name(f"{path.name}{suffix}")
        if trace.exists():
            raise RegistryDamagedError(
                f"registry {path} is missing, and {trace.name} beside it shows that there was one: restore a"
                f" backup; to create a new registry instead, move {trace.name} away"
            )


def _create(path: Path, connect: Connect) -> None:
    """Create the file whole or not at all: an empty one is always a lost one."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            database = connect(draft)
            with _closing_on_error(database, path):
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                _prepare(database, path)
            database.close()
            with suppress(FileExistsError):  # another process was first: its registry is the one
                os.link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise RegistryUnavailableError(f"registry {path} cannot be created: {error.strerror}") from error


def _require_sound(path: Path) -> None:
    """
    Check that nobody else can read the file, and that it begins as a registry does.

    It holds digests and sealed secrets. SQLite takes an empty file for a new database.
    """
    try:
        # Asked first, because opening a pipe would wait for its reader.
        if not stat.S_ISREG(path.stat().st_mode):
            raise RegistryDamagedError(f"registry {path} is not a regular file: name another file")
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            begin = os.pread(descriptor, len(SQLITE_MAGIC), 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error.strerror}") from error
    if mode & 0o077:
        raise RegistryUnavailableError(
            f"registry {path} has mode {mode:04o}, so others could read or change it: run chmod 600 {path}"
        )
    if not begin:
        raise RegistryDamagedError(
            f"registry {path} is empty (0 bytes), so what it held is lost: restore a backup; to create a new"
            " registry instead, remove the file and what is beside it"
        )
    if begin != SQLITE_MAGIC:
        raise RegistryDamagedError(
            f"registry {path} cannot be used: it does not begin as a SQLite file; restore a backup, or name"
            " another file"
        )


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    _switch_to_wal(database)
    for pragma in _PRAGMAS:
        database.execute(pragma)
    _migrate(database, path)


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
            database.execute(f"PRAGMA user_version = {version + 1}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def _version(database: sqlite3.Connection, path: Path) -> int:
    (application_id,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise RegistryDamagedError(
            f"{path} is a SQLite file, but not of a registry: name another file, or restore a backup"
        )
    if version > len(MIGRATIONS):
        raise RegistryDamagedError(
            f"registry {path} has version {version}, which is later than this program knows"
            f" ({len(MIGRATIONS)}): run the program that made it, or a later one"
        )
    return int(version)

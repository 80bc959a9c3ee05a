"""Creating, checking, opening and migrating the registry's SQLite file."""

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
COMPANION_SUFFIXES = ("-wal", "-shm", "-journal", ".key")
"""Suffixes of the files beside a registry: SQLite's own, and the key created at the first start."""

Connect: TypeAlias = Callable[[Path], sqlite3.Connection]

_PRAGMAS = (
    "PRAGMA synchronous = FULL",  # sync at each commit, not only at checkpoints
    "PRAGMA foreign_keys = ON",
    "PRAGMA recursive_triggers = ON",  # else REPLACE would delete rows without running the triggers
    "PRAGMA secure_delete = ON",  # erase deleted webhook secrets from free pages
    "PRAGMA cell_size_check = ON",
    "PRAGMA journal_size_limit = 67108864",
)


def connect(path: Path) -> sqlite3.Connection:
    """Connect without implicit transactions."""
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=256)


def open_database(path: Path, connect: Connect = connect) -> sqlite3.Connection:
    """
    Open the registry file at *path*; a new file is created with mode 0600, an older one is migrated.

    Raises:
        RegistryUnavailableError: the file cannot be opened, or other users may read it. RegistryDamagedError:
        the file is not a registry, was written by a later version, or is missing although
            files beside it show that a registry existed.
    """
    if not _exists(path):
        _require_no_leftovers(path)
        _create(path, connect)
    _require_registry(path)
    try:
        database = connect(path)
    except sqlite3.Error as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error}") from error
    with _closing_on_error(database, path):
        _prepare(database, path)
    return database


def check_file(path: Path) -> None:
    """
    Raise the error that `open_database` would raise for *path*; create, migrate and write nothing.

    Raises:
        RegistryUnavailableError, RegistryDamagedError: as `open_database`.
    """
    if not _exists(path):
        _require_no_leftovers(path)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise RegistryUnavailableError(
                f"registry {path} cannot be created: this user may not write to its folder; change the"
                " folder's owner or mode"
            )
        return
    _require_registry(path)
    try:
        # Unless immutable, SQLite would leave '-wal' and '-shm' files beside a file that is not open.
        is_open = path.with_name(f"{path.name}-wal").exists()
        uri = f"{path.absolute().as_uri()}?mode=ro{'' if is_open else '&immutable=1'}"
        database = sqlite3.connect(uri, timeout=BUSY_TIMEOUT_S, uri=True)
    except sqlite3.Error as error:
        raise RegistryUnavailableError(f"registry {path} cannot be opened: {error}") from error
    with _closing_on_error(database, path):
        _version(database, path)
    database.close()


class FileWatch:
    """Detects that the file of an open registry was truncated, removed or replaced: changes would be lost."""

    def __init__(self, path: Path) -> None:
        """Store the identity of the file at *path*."""
        self._path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """
        Check the file; a temporary error of stat counts as unchanged.

        Raises:
            RegistryDamagedError: the file was removed, replaced or emptied.
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
    """Close *database* on an error, and name the file in the error."""
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
    """Whether the file exists; its folder must exist."""
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


def _require_no_leftovers(path: Path) -> None:
    """Refuse to create a new registry beside files of a lost one."""
    for suffix in COMPANION_SUFFIXES:
        trace = path.with_name(f"{path.name}{suffix}")
        if trace.exists():
            raise RegistryDamagedError(
                f"registry {path} is missing, but {trace.name} beside it shows that it existed: restore a"
                f" backup; to create a new registry instead, move {trace.name} away"
            )


def _create(path: Path, connect: Connect) -> None:
    """Create the file atomically, so that an empty file always means a lost registry."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            database = connect(draft)
            with _closing_on_error(database, path):
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                _prepare(database, path)
            database.close()
            with suppress(FileExistsError):  # another process has created the registry: use that one
                os.link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise RegistryUnavailableError(f"registry {path} cannot be created: {error.strerror}") from error


def _require_registry(path: Path) -> None:
    """
    Check that other users cannot read the file, and that it is a SQLite file.

    The file contains digests and sealed secrets. SQLite would accept an empty file as a new database.
    """
    try:
        # Checked before opening, because opening a pipe would wait for its reader.
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
            f"registry {path} has mode {mode:04o}, so other users can read or change it: run chmod 600 {path}"
        )
    if not begin:
        raise RegistryDamagedError(
            f"registry {path} is empty (0 bytes), so its content is lost: restore a backup; to create a new"
            " registry instead, remove the file and those beside it"
        )
    if begin != SQLITE_MAGIC:
        raise RegistryDamagedError(
            f"registry {path} cannot be used: it is not a SQLite file; restore a backup, or name another file"
        )


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    _switch_to_wal(database)
    for pragma in _PRAGMAS:
        database.execute(pragma)
    _migrate(database, path)


def _switch_to_wal(database: sqlite3.Connection) -> None:
    """
    Switch the journal to WAL, which the file stores.

    If two processes create the file at the same time, SQLite reports 'locked' here without waiting.
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
    """Migrate the file to the current version, each step in one transaction."""
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
            f"{path} is a SQLite file, but not a registry: name another file, or restore a backup"
        )
    if version > len(MIGRATIONS):
        raise RegistryDamagedError(
            f"registry {path} has version {version}; this sidecar supports versions up to {len(MIGRATIONS)}:"
            " run the sidecar version that wrote the file, or a later one"
        )
    return int(version)

"""The registry's SQLite file: whose it is, what it accepts to be, and that several processes share it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.domain.changes import Committed
from sidecar.stores.registry.protocol import RegistryDamagedError, RegistryError, RegistryUnavailableError
from sidecar.stores.registry.sqlite.file import COMPANION_SUFFIXES, check_file, connect, open_database
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.sqlite.schema import MIGRATIONS
from tests.administration import LIFECYCLE, create, request
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import RegistryHarness, SqliteBackend, found


@pytest.fixture
def harness(tmp_path: Path, clock: ManualClock, runner: asyncio.Runner) -> Iterator[RegistryHarness]:
    """A founded registry in a SQLite file."""
    made = RegistryHarness(SqliteBackend(tmp_path, clock), clock, runner)
    yield made
    made.run(made.registry.aclose())


def path_of(harness: RegistryHarness) -> Path:
    """The file of *harness*."""
    assert isinstance(harness.backend, SqliteBackend)
    return harness.backend.path


def pragma(path: Path, name: str) -> object:
    """One setting of the file."""
    with closing(connect(path)) as database:
        return database.execute(f"PRAGMA {name}").fetchone()[0]


def test_open__nobody_else_can_read_it(harness: RegistryHarness, tmp_path: Path) -> None:
    """The file and what SQLite puts beside it have mode 0600 from the first moment, whatever the umask."""
    harness.apply(create())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"registry.db": 0o600, "registry.db-wal": 0o600, "registry.db-shm": 0o600}


@pytest.mark.parametrize("mode", [0o640, 0o644, 0o606])
def test_open__a_file_that_others_can_read_is_refused(harness: RegistryHarness, mode: int) -> None:
    """A loose mode is reported with the command that fixes it."""
    path = path_of(harness)
    path.chmod(mode)
    for open_or_check in (check_file, open_database):
        with pytest.raises(RegistryUnavailableError, match="chmod 600"):
            open_or_check(path)
    path.chmod(0o600)


def test_open__settings_that_durability_rests_on(harness: RegistryHarness, runner: asyncio.Runner) -> None:
    """Write-ahead log in the file; full sync, foreign keys and recursive triggers on every connection."""
    path = path_of(harness)
    assert pragma(path, "journal_mode") == "wal"
    assert pragma(path, "user_version") == len(MIGRATIONS)
    with closing(open_database(path)) as database:
        settings = ("synchronous", "foreign_keys", "recursive_triggers", "secure_delete")
        assert [database.execute(f"PRAGMA {name}").fetchone()[0] for name in settings] == [2, 1, 1, 1]


@pytest.mark.parametrize("open_or_check", [open_database, check_file])
def test_open__missing_folder(tmp_path: Path, open_or_check: Callable[[Path], object]) -> None:
    """A path whose folder is missing is reported, and nothing is created."""
    with pytest.raises(RegistryUnavailableError, match="create the folder"):
        open_or_check(tmp_path / "nosuch" / "registry.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("open_or_check", [open_database, check_file])
@pytest.mark.parametrize("content", [b"", b"SQLite", b"not a database" * 100, b"\0" * 4096])
def test_open__a_file_that_lost_its_beginning(
    tmp_path: Path, open_or_check: Callable[[Path], object], content: bytes
) -> None:
    """A file that was truncated or overwritten is never taken for a new one, and stays as it was."""
    path = tmp_path / "registry.db"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RegistryDamagedError, match="restore a backup"):
        open_or_check(path)
    assert (path.read_bytes(), [file.name for file in tmp_path.iterdir()]) == (content, ["registry.db"])


@pytest.mark.parametrize("bytes_kept", [100, 512, 4096, 8192, -4096])
def test_open__a_file_that_lost_its_end(harness: RegistryHarness, bytes_kept: int) -> None:
    """A registry that was cut anywhere is refused as damaged, by the check too."""
    harness.apply(create())
    harness.run(harness.registry.aclose())
    path = path_of(harness)
    whole = path.read_bytes()
    path.write_bytes(whole[:bytes_kept])
    for open_or_check in (check_file, open_database):
        with pytest.raises(RegistryDamagedError, match="restore a backup"):
            open_or_check(path)
    path.write_bytes(whole)
    harness.registry = harness.run(harness.backend.open())


@pytest.mark.parametrize("open_or_check", [open_database, check_file])
@pytest.mark.parametrize("suffix", COMPANION_SUFFIXES)
def test_open__a_registry_that_is_gone(
    tmp_path: Path, open_or_check: Callable[[Path], object], suffix: str
) -> None:
    """What is beside a registry shows that there was one: no new one is created in its place."""
    (tmp_path / f"registry.db{suffix}").touch()
    with pytest.raises(RegistryDamagedError, match=f"registry.db{suffix} beside it shows"):
        open_or_check(tmp_path / "registry.db")
    assert [file.name for file in tmp_path.iterdir()] == [f"registry.db{suffix}"]


def test_open__an_empty_database_is_no_new_registry(tmp_path: Path) -> None:
    """A SQLite file without a table is not of ours either."""
    path = tmp_path / "registry.db"
    path.touch(0o600)
    with closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM")
        database.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(RegistryDamagedError, match="not a registry"):
        open_database(path)


def test_open__a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    """A new file is there whole or not at all: a half-made one would count as lost."""

    def failing(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_CREATE_TRIGGER else 0
        )
        return database

    with pytest.raises(RegistryError):
        open_database(tmp_path / "registry.db", failing)
    assert list(tmp_path.iterdir()) == []
    open_database(tmp_path / "registry.db").close()


@pytest.mark.parametrize("what", ["emptied", "removed", "replaced"])
def test_open__a_file_that_is_lost_while_open(harness: RegistryHarness, what: str) -> None:
    """Changes of a file that is not there any more would be lost: they are refused, with the cause."""
    path = path_of(harness)
    harness.apply(create())
    if what == "emptied":
        path.write_bytes(b"")
    else:
        path.rename(path.with_name("moved.db"))
    if what == "replaced":
        path.write_bytes(b"")
    with pytest.raises(RegistryUnavailableError, match=f"was {what} while it was open"):
        harness.apply(create("other"))
    with pytest.raises(RegistryUnavailableError, match=f"was {what} while it was open"):
        harness.run(harness.registry.load_all())


def test_check__changes_nothing(harness: RegistryHarness, tmp_path: Path) -> None:
    """The check reads a registry that is in use, one that is closed, and makes no file."""
    harness.apply(create())
    check_file(path_of(harness))
    harness.run(harness.registry.aclose())
    before = path_of(harness).read_bytes()
    check_file(path_of(harness))
    assert path_of(harness).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["registry.db"]
    check_file(tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    harness.registry = harness.run(harness.backend.open())


def test_open__the_database_of_another_program(tmp_path: Path) -> None:
    """A SQLite file with other tables is refused and gets none of ours."""
    path = tmp_path / "other.db"
    path.touch(0o600)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (a)")
    with pytest.raises(RegistryDamagedError, match="not a registry"):
        open_database(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


def test_open__a_registry_of_a_later_version(harness: RegistryHarness) -> None:
    """An older program does not touch what it does not know."""
    path = path_of(harness)
    with closing(connect(path)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for open_or_check in (check_file, open_database):
        with pytest.raises(RegistryDamagedError, match="this sidecar supports versions up to"):
            open_or_check(path)


async def test_open__many_at_once_make_one_registry(tmp_path: Path) -> None:
    """Processes that start together on a new file all get the same registry."""
    clock = ManualClock()

    backend = SqliteBackend(tmp_path, clock)
    registries = await asyncio.gather(*(backend.open() for _ in range(6)))
    try:
        await found(registries[0], clock)
        made = await asyncio.gather(
            *(registry.apply(request(create(f"i{n}"))) for n, registry in enumerate(registries))
        )
        assert all(isinstance(result, Committed) for result in made)
        assert {len((await registry.load_all()).records) for registry in registries} == {6}
    finally:
        await asyncio.gather(*(registry.aclose() for registry in registries))


def test_open__a_failure_leaves_nothing_open(tmp_path: Path, runner: asyncio.Runner) -> None:
    """An attempt that fails ends its thread and closes the file."""
    path = tmp_path / "registry.db"
    path.touch(0o644)
    path.chmod(0o644)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(RegistryError):
            runner.run(SqliteRegistry.open(path, LIFECYCLE))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_close__folds_the_log_into_the_file(harness: RegistryHarness, tmp_path: Path) -> None:
    """After the last handle is closed one file remains: copying it is a backup."""
    harness.apply(create())
    harness.run(harness.registry.aclose())
    assert [path.name for path in tmp_path.iterdir()] == ["registry.db"]
    harness.registry = harness.run(harness.backend.open())
    assert harness.get("acme").name == "Acme"

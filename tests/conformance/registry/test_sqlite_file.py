"""The registry's SQLite file: whose it is, what it accepts to be, and that several processes share it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.domain.changes import Committed
from sidecar.stores.registry.protocol import (
    RegistryDamagedError,
    RegistryError,
    RegistryUnavailableError,
)
from sidecar.stores.registry.sqlite.file import connect, open_database
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.sqlite.schema import MIGRATIONS
from tests.administration import LIFECYCLE, ManualClock, create, request
from tests.conformance.registry.world import SqliteBackend, World, found


@pytest.fixture
def world(tmp_path: Path, clock: ManualClock, runner: asyncio.Runner) -> Iterator[World]:
    """A founded registry in a SQLite file."""
    made = World(SqliteBackend(tmp_path, clock), clock, runner)
    yield made
    made.run(made.registry.aclose())


def path_of(world: World) -> Path:
    """The file of *world*."""
    assert isinstance(world.backend, SqliteBackend)
    return world.backend.path


def pragma(path: Path, name: str) -> object:
    """One setting of the file."""
    with closing(connect(path)) as database:
        return database.execute(f"PRAGMA {name}").fetchone()[0]


def test_open__nobody_else_can_read_it(world: World, tmp_path: Path) -> None:
    """The file and what SQLite puts beside it have mode 0600 from the first moment, whatever the umask."""
    world.apply(create())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"registry.db": 0o600, "registry.db-wal": 0o600, "registry.db-shm": 0o600}


@pytest.mark.parametrize("mode", [0o640, 0o644, 0o606])
def test_open__a_file_that_others_can_read_is_refused(world: World, mode: int) -> None:
    """A loose mode is told with the command that mends it."""
    path = path_of(world)
    path.chmod(mode)
    with pytest.raises(RegistryUnavailableError, match="chmod 600"):
        world.run(world.backend.open())
    path.chmod(0o600)


def test_open__settings_that_durability_rests_on(world: World, runner: asyncio.Runner) -> None:
    """Write-ahead log in the file; full sync, foreign keys and recursive triggers on every connection."""
    path = path_of(world)
    assert pragma(path, "journal_mode") == "wal"
    assert pragma(path, "user_version") == len(MIGRATIONS)
    with closing(open_database(path)) as database:
        settings = ("synchronous", "foreign_keys", "recursive_triggers", "secure_delete")
        assert [database.execute(f"PRAGMA {name}").fetchone()[0] for name in settings] == [2, 1, 1, 1]


def test_open__missing_folder(tmp_path: Path) -> None:
    """A path that cannot be made is told, and nothing is made."""
    with pytest.raises(RegistryUnavailableError, match="No such file or directory"):
        open_database(tmp_path / "nosuch" / "registry.db")


def test_open__a_file_that_is_no_database(tmp_path: Path) -> None:
    """Some other file is refused and stays as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("not a database" * 100)
    path.chmod(0o600)
    with pytest.raises(RegistryDamagedError, match="cannot be used"):
        open_database(path)
    assert path.read_text() == "not a database" * 100


def test_open__the_database_of_another_program(tmp_path: Path) -> None:
    """A SQLite file with other tables is refused and gets none of ours."""
    path = tmp_path / "other.db"
    path.touch(0o600)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (a)")
    with pytest.raises(RegistryDamagedError, match="not of a registry"):
        open_database(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


def test_open__a_registry_of_a_later_version(world: World) -> None:
    """An older program does not touch what it does not know."""
    path = path_of(world)
    with closing(connect(path)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(RegistryDamagedError, match="later than this program knows"):
        world.run(world.backend.open())


def test_open__many_at_once_make_one_registry(tmp_path: Path, runner: asyncio.Runner) -> None:
    """Processes that start together on a new file all get the same registry."""
    clock = ManualClock()

    async def start() -> None:
        backend = SqliteBackend(tmp_path, clock)
        registries = await asyncio.gather(*(backend.open() for _ in range(6)))
        try:
            await found(registries[0], clock)
            made = await asyncio.gather(
                *(one.apply(request(create(f"i{n}"))) for n, one in enumerate(registries))
            )
            assert all(isinstance(one, Committed) for one in made)
            assert {len((await one.load_all()).records) for one in registries} == {6}
        finally:
            await asyncio.gather(*(one.aclose() for one in registries))

    runner.run(start())


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


def test_close__folds_the_log_into_the_file(world: World, tmp_path: Path) -> None:
    """After the last handle is closed one file remains: copying it is a backup."""
    world.apply(create())
    world.run(world.registry.aclose())
    assert [path.name for path in tmp_path.iterdir()] == ["registry.db"]
    world.registry = world.run(world.backend.open())
    assert world.get("acme").name == "Acme"

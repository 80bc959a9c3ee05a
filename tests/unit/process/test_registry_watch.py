"""Keeping the registry in force up to date with its file, on a running event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics
from sidecar.process import file_watch
from sidecar.process.readiness import Readiness
from sidecar.process.registry_source import LoadedRegistry, RegistrySource
from sidecar.process.registry_watch import RELEASED_PER_TURN, RegistryWatch, release_retired, retired_by
from sidecar.services.decider import Decider
from tests.building import make_decider, make_integration, make_metrics
from tests.waiting import PATIENCE_S, until

NEVER_S = 1_000.0


class Watched:
    """A watch over a registry file, and the decider that it feeds."""

    def __init__(self, path: Path, poll_interval_s: float) -> None:
        """Load *path* and watch it."""
        self.path = path
        self.metrics: Metrics = make_metrics()
        self.decider: Decider = make_decider()
        self.source = RegistrySource(path, "registry.yaml", ScopeCatalogue())
        first = self.source.load(self.decider.snapshot)
        assert first is not None
        self.attempts: list[None] = []
        load = self.source.load

        def counted(previous: Snapshot) -> LoadedRegistry | None:
            self.attempts.append(None)
            return load(previous)

        self.source.load = counted  # type: ignore[method-assign]
        self.decider.snapshot = first.snapshot
        self.watch = RegistryWatch(self.source, self.decider, self.metrics, poll_interval_s)

    def count(self, result: str) -> int:
        """Reloads that ended so."""
        return self.metrics.value("sidecar_registry_reloads_total", result)

    async def reload(self, result: str) -> None:
        """Ask for a reload and wait until it has ended, as *result*."""
        before = self.count(result)
        self.watch.reload()
        await until(lambda: self.count(result) > before)


def write(path: Path, *names: str) -> None:
    """Replace the registry by integrations of these names."""
    draft = path.with_suffix(".new")
    lines = [f"  - {{id: i{number}, name: {name}}}\n" for number, name in enumerate(names)]
    draft.write_text("integrations:\n" + "".join(lines))
    draft.replace(path)


@asynccontextmanager
async def watching(tmp_path: Path, poll_interval_s: float) -> AsyncIterator[Watched]:
    """A watch that runs, over a registry of one integration called First."""
    path = tmp_path / "registry.yaml"
    write(path, "First")
    watched = Watched(path, poll_interval_s)
    task = asyncio.create_task(watched.watch.run())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE_S)


def run(
    tmp_path: Path, scenario: Callable[[Watched], Awaitable[None]], poll_interval_s: float = NEVER_S
) -> None:
    """Run *scenario* over a watch."""

    async def whole() -> None:
        async with watching(tmp_path, poll_interval_s) as watched:
            await asyncio.wait_for(scenario(watched), PATIENCE_S)

    asyncio.run(whole())


def names(decider: Decider) -> list[str]:
    """The integrations in force."""
    return [integration.name for integration in decider.snapshot.integrations.values()]


def test_registry_watch__reloads_when_asked(tmp_path: Path) -> None:
    """A reload puts the new content into force, and the metrics show it."""

    async def scenario(watched: Watched) -> None:
        write(watched.path, "Second", "Third")
        await watched.reload("ok")
        assert names(watched.decider) == ["Second", "Third"]
        assert watched.metrics.value("sidecar_registry_integrations") == 2
        assert watched.metrics.value("sidecar_registry_loaded_timestamp_seconds") > 0

    run(tmp_path, scenario)


def test_registry_watch__a_file_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line at the begin and one at the end; meanwhile the metric counts it and the registry stays."""

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "sidecar.files"]

    async def scenario(watched: Watched) -> None:
        readiness = Readiness(watched.metrics, ())
        hidden = watched.path.with_suffix(".hidden")
        write(hidden, "Second")
        watched.path.unlink()
        unreadable = partial(watched.metrics.value, "sidecar_files_unreadable", "registry")
        await until(lambda: unreadable() == 1)
        assert names(watched.decider) == ["First"]
        assert readiness.is_ready
        assert "registry" in readiness.components["files"].state
        await until(lambda: len(watched.attempts) > 5)
        assert (len(lines()), watched.count("failed")) == (1, 1)
        hidden.rename(watched.path)
        await until(lambda: names(watched.decider) == ["Second"])
        assert (unreadable(), len(lines()), readiness.components) == (0, 2, {})

    with caplog.at_level("INFO"):
        run(tmp_path, scenario, poll_interval_s=0.001)


def test_registry_watch__counts_a_reload_of_the_same(tmp_path: Path) -> None:
    """A reload that was asked for and changed nothing is counted as that."""

    async def scenario(watched: Watched) -> None:
        before = watched.decider.snapshot
        await watched.reload("unchanged")
        assert watched.decider.snapshot is before

    run(tmp_path, scenario)


def test_registry_watch__sees_changes_by_itself(tmp_path: Path) -> None:
    """Nobody has to send a signal."""

    async def scenario(watched: Watched) -> None:
        write(watched.path, "Second")
        await until(lambda: watched.count("ok") == 1)
        assert names(watched.decider) == ["Second"]
        assert (watched.count("unchanged"), watched.count("failed")) == (0, 0)

    run(tmp_path, scenario, poll_interval_s=0.005)


def test_registry_watch__a_bad_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The registry in force stays, the mistake is counted and logged with its place; then it goes on."""

    async def scenario(watched: Watched) -> None:
        before = watched.decider.snapshot
        watched.path.write_text("integrations:\n  - {id: a}\n")
        await watched.reload("failed")
        assert watched.decider.snapshot is before
        write(watched.path, "Mended")
        await watched.reload("ok")
        assert names(watched.decider) == ["Mended"]

    with caplog.at_level("ERROR"):
        run(tmp_path, scenario)
    [record] = caplog.records
    assert record.getMessage() == "registry file rejected; the previous registry stays in force"
    fields = record.__dict__["event_fields"]
    assert fields["faults"] == ["registry.yaml:2: integrations[0] (a): 'name' is missing; add it"]


def test_registry_watch__survives_a_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks while loading, the watch goes on and the registry stays."""

    async def scenario(watched: Watched) -> None:
        def broken(previous: Snapshot) -> LoadedRegistry | None:
            raise RuntimeError("broken")

        before = watched.decider.snapshot
        with monkeypatch.context() as patch:
            patch.setattr(watched.source, "load", broken)
            await watched.reload("failed")
        assert watched.decider.snapshot is before
        write(watched.path, "Second")
        await watched.reload("ok")

    run(tmp_path, scenario)
    assert "RuntimeError: broken" in caplog.text


def test_registry_watch__the_loop_turns_while_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that hangs is reported and holds up no decision; a reload asked for meanwhile is done after."""
    monkeypatch.setattr(file_watch, "SLOW_LOAD_S", 0.001)

    async def scenario(watched: Watched) -> None:
        may_go_on, load = threading.Event(), watched.source.load
        monkeypatch.setattr(
            watched.source, "load", lambda previous: (may_go_on.wait(PATIENCE_S), load(previous))[1]
        )
        write(watched.path, "Second")
        watched.watch.reload()
        await until(lambda: "reading the registry is slow" in caplog.text)
        assert names(watched.decider) == ["First"]
        watched.watch.reload()
        may_go_on.set()
        await until(lambda: watched.count("ok") == 1 and watched.count("unchanged") == 1)
        assert names(watched.decider) == ["Second"]

    run(tmp_path, scenario)


def test_registry_watch__retires_only_what_changed() -> None:
    """Integrations that were taken over stay as they are."""
    kept, changed, removed = (make_integration(id=id) for id in ("kept", "changed", "removed"))
    before = Snapshot.compile((kept, changed, removed))
    after = Snapshot.compile((kept, make_integration(id="changed", name="X")), before)
    assert [item.id for item in retired_by(before, after)] == ["changed", "removed"]


def test_registry_watch__lets_go_without_the_collector() -> None:
    """Retired integrations are freed by counting alone, some each turn of the loop."""
    records = [make_integration(id=f"i{number}") for number in range(2 * RELEASED_PER_TURN + 1)]

    class Weak:
        """Hangs on an integration as its fragments do; can be watched."""

    async def scenario() -> int:
        before: Snapshot | None = Snapshot.compile(records)
        assert before is not None
        weak = []
        for compiled in before.integrations.values():
            fragment = Weak()
            compiled.fragments["x"] = (fragment, compiled)  # a cycle, as answers make them
            weak.append(weakref.ref(fragment))
            del fragment
        del compiled
        retired = retired_by(before, Snapshot.empty())
        before = None
        await release_retired(retired)
        return sum(item() is not None for item in weak)

    gc.disable()
    try:
        assert asyncio.run(scenario()) == 0
    finally:
        gc.enable()

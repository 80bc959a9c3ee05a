"""The registry file as a source of snapshots."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.domain.integrations import Status
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.process.registry_source import LOADING_SWITCH_INTERVAL_S, LoadedRegistry, RegistrySource
from sidecar.sources.file_faults import FileFaultsError
from sidecar.sources.yaml_nodes import YamlCancelledError
from sidecar.stores.registry.file import registry_file
from tests.house.source import ROOT

EMPTY = Snapshot.empty()


def write(path: Path, *integrations: str) -> None:
    """Replace the registry by one of *integrations*, each in YAML's flow style."""
    draft = path.with_suffix(".new")
    draft.write_text("integrations:\n" + "".join(f"  - {{{integration}}}\n" for integration in integrations))
    draft.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A registry of two integrations."""
    path = tmp_path / "registry.yaml"
    write(path, "id: a, name: A", "id: b, name: B")
    return path


@pytest.fixture
def source(path: Path) -> RegistrySource:
    """A source of that registry."""
    return RegistrySource(path, "registry.yaml", ScopeCatalogue())


def loaded(result: LoadedRegistry | None) -> Snapshot:
    """The snapshot of a load that read the file."""
    assert result is not None
    return result.snapshot


def generations(snapshot: Snapshot) -> dict[str, int]:
    """The generation of each integration."""
    return {id: integration.generation for id, integration in snapshot.integrations.items()}


def test_registry_source__numbers_changes(path: Path, source: RegistrySource) -> None:
    """A changed integration gets a higher generation, an unchanged one is taken over as it is."""
    first = loaded(source.load(EMPTY))
    write(path, "id: a, name: A", "id: b, name: B changed")
    second = loaded(source.load(first))
    write(path, "id: a, name: A", "id: b, name: B")
    third = loaded(source.load(second))
    assert [generations(snapshot) for snapshot in (first, second, third)] == [
        {"a": 1, "b": 1},
        {"a": 1, "b": 2},
        {"a": 1, "b": 3},
    ]
    assert first.integrations["a"] is second.integrations["a"] is third.integrations["a"]


def test_registry_source__an_id_that_comes_back_counts_on(path: Path, source: RegistrySource) -> None:
    """An integration that was removed and comes back has a higher generation than ever before."""
    first = loaded(source.load(EMPTY))
    write(path, "id: a, name: A", "id: b, name: B changed")
    second = loaded(source.load(first))
    write(path, "id: a, name: A")
    third = loaded(source.load(second))
    write(path, "id: a, name: A", "id: b, name: B")
    assert generations(loaded(source.load(third))) == {"a": 1, "b": 3}


def test_registry_source__the_same_content_is_no_load(path: Path, source: RegistrySource) -> None:
    """A file that was only touched or written again changes nothing."""
    first = loaded(source.load(EMPTY))
    write(path, "id: a, name: A", "id: b, name: B")
    assert source.load(first) is None


def test_registry_source__looks_are_quiet_while_nothing_changes(source: RegistrySource) -> None:
    """Looking at an unchanged file reads nothing and settles nothing."""
    first = loaded(source.load(EMPTY))
    assert [source.poll(first), source.poll(first)] == [None, None]
    assert not source.is_settling


def test_registry_source__waits_until_a_file_has_settled(path: Path, source: RegistrySource) -> None:
    """While a file is being written it changes from look to look; it is read when two looks agree."""
    first = loaded(source.load(EMPTY))
    whole = "integrations:\n  - {id: a, name: A}\n  - {id: c, name: C}\n"
    path.write_text(whole[:40])  # half of it, and valid
    assert source.poll(first) is None
    assert source.is_settling
    path.write_text(whole)
    assert source.poll(first) is None
    assert source.is_settling
    assert sorted(loaded(source.poll(first)).integrations) == ["a", "c"]
    assert not source.is_settling


def test_registry_source__a_bad_file_is_reported_once(path: Path, source: RegistrySource) -> None:
    """Each change is judged once; the corrected file is taken up."""
    first = loaded(source.load(EMPTY))
    path.write_text("integrations: [{id: A, name: A}]")
    assert source.poll(first) is None
    with pytest.raises(FileFaultsError):
        source.poll(first)
    assert [source.poll(first), source.poll(first)] == [None, None]
    write(path, "id: z, name: Z")
    assert source.poll(first) is None
    assert sorted(loaded(source.poll(first)).integrations) == ["z"]


def test_registry_source__a_vanished_file_is_tried_again(path: Path, source: RegistrySource) -> None:
    """A removed file is an error of reading: each poll tries again, also when it is back unchanged."""
    first = loaded(source.load(EMPTY))
    content, status = path.read_bytes(), path.stat()
    path.unlink()
    assert source.poll(first) is None  # a file that is being replaced may be gone for a moment
    for _ in range(3):
        with pytest.raises(FileFaultsError, match="cannot be read") as caught:
            source.poll(first)
        assert (caught.value.is_unreadable, source.is_unreadable) == (True, True)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.poll(first) is None
    assert not source.is_unreadable


PASSING = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EACCES, errno.ENOENT]


@pytest.mark.parametrize("code", PASSING, ids=errno.errorcode.get)
def test_registry_source__a_change_that_could_not_be_read(
    path: Path, source: RegistrySource, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspension that was written while reading failed is in force once reading works, without a change."""
    first = loaded(source.load(EMPTY))
    write(path, "id: a, name: A, status: suspended")

    def failing(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr("sidecar.observe.file_reading.os.open", failing)
        assert source.poll(first) is None
        for _ in range(2):
            with pytest.raises(FileFaultsError, match="cannot be read"):
                source.poll(first)
    assert loaded(source.poll(first)).integrations["a"].record.status is Status.SUSPENDED


def test_registry_source__a_load_can_be_cancelled(path: Path, source: RegistrySource) -> None:
    """A stop need not wait until a large file is read: reading ends at once, and nothing changes."""
    first = loaded(source.load(EMPTY))
    write(path, *(f"id: i{n}, name: N" for n in range(1_000)))
    source.cancel()
    with pytest.raises(YamlCancelledError):
        source.load(first)


REFUSED_FILES = {
    "junk items": "- a\n" * 100_000,
    "a mistake at the end": "".join(
        f"- {{id: i{n}, name: N, scopes: [orders:read]}}\n" for n in range(2_000)
    ),
    "cut": "".join(f"- {{id: i{n}, name: N, scopes: [orders:read]}}\n" for n in range(2_000)) + "- {",
    "only mistakes": "".join(f"- {{id: i{n}, name: N, burst: 0}}\n" for n in range(2_000)),
}
_LOAD_AGAIN = """
import sys
from pathlib import Path
from sidecar.process.registry_source import RegistrySource
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.sources.file_faults import FileFaultsError

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

source = RegistrySource(Path(sys.argv[1]), "FILE", ScopeCatalogue())
for number in range(13):
    if number == 3:
        before = resident()
    try:
        source.load(Snapshot.empty())
        sys.exit("was loaded")
    except FileFaultsError:
        pass
print((resident() - before) >> 20, resident() >> 20)
"""


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_registry_source__refused_files_leave_nothing_behind(tmp_path: Path, name: str) -> None:
    """Ten refused files take no memory that is not given back, and no file takes much."""
    path = tmp_path / "registry.yaml"
    path.write_text(f"integrations:\n{REFUSED_FILES[name]}{'- {id: late}' if 'end' in name else ''}\n")
    result = subprocess.run(
        [sys.executable, "-c", _LOAD_AGAIN, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    grown_mib, resident_mib = map(int, result.stdout.split())
    assert grown_mib <= 4
    assert resident_mib <= 150


def test_registry_source__a_folder_in_its_place(path: Path, source: RegistrySource) -> None:
    """A mount that is away leaves a folder: that is not an invalid registry."""
    first = loaded(source.load(EMPTY))
    path.unlink()
    path.mkdir()
    with pytest.raises(FileFaultsError, match="not a regular file") as caught:
        source.load(first)
    assert caught.value.is_unreadable


def test_registry_source__a_rename_is_seen_whatever_its_time(path: Path, source: RegistrySource) -> None:
    """A file moved into place counts as changed even with the old one's time and size."""
    first = loaded(source.load(EMPTY))
    before = path.stat()
    write(path, "id: a, name: A", "id: b, name: X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert source.poll(first) is None
    assert loaded(source.poll(first)).integrations["b"].name == "X"


def test_registry_source__a_swapped_link_is_seen(tmp_path: Path) -> None:
    """Kubernetes swaps a symbolic link: what the name leads to is what counts."""
    for number in (1, 2):
        (tmp_path / f"{number}.yaml").write_text(f"integrations: [{{id: a, name: Name {number}}}]")
    link = tmp_path / "registry.yaml"
    link.symlink_to("1.yaml")
    source = RegistrySource(link, "registry.yaml", ScopeCatalogue())
    first = loaded(source.load(EMPTY))
    swap = tmp_path / "swap"
    swap.symlink_to("2.yaml")
    swap.replace(link)
    assert source.poll(first) is None
    assert loaded(source.poll(first)).integrations["a"].name == "Name 2"


def test_registry_source__leaves_the_interpreter_as_it_was(source: RegistrySource) -> None:
    """Loading borrows the collector and the switch interval, also when the file is bad."""
    interval_s = sys.getswitchinterval()
    assert interval_s > LOADING_SWITCH_INTERVAL_S
    source.load(EMPTY)
    assert (sys.getswitchinterval(), gc.isenabled()) == (interval_s, True)
    source.path.write_text("nonsense")
    with pytest.raises(FileFaultsError):
        source.load(EMPTY)
    assert (sys.getswitchinterval(), gc.isenabled()) == (interval_s, True)


def test_registry_source__loading_makes_no_garbage(path: Path, source: RegistrySource) -> None:
    """What is parsed and compiled is freed by counting alone, so nothing is lost to a frozen collector."""
    gc.unfreeze()  # what other tests froze
    gc.collect()
    snapshot: Snapshot | None = loaded(source.load(EMPTY))
    gc.unfreeze()
    assert snapshot is not None
    assert gc.collect() == 0


def test_registry_source__ten_thousand_integrations(tmp_path: Path) -> None:
    """A large registry is loaded whole: every integration, every key, well within the size bound."""
    path = tmp_path / "registry.yaml"
    path.write_text(
        "integrations:\n"
        + "".join(
            f"  - {{id: i{n}, name: N, scopes: [orders:read],"
            f" credentials: [{{id: k{n}, digest: 'sha256:{n:064x}'}}]}}\n"
            for n in range(10_000)
        )
    )
    assert path.stat().st_size < registry_file.REGISTRY_BYTES_MAX / 20
    snapshot = loaded(RegistrySource(path, "FILE", ScopeCatalogue()).load(EMPTY))
    assert (len(snapshot.integrations), len(snapshot.credentials)) == (10_000, 10_000)


def test_registry_source__the_example_loads() -> None:
    """The shipped example is a registry."""
    path = ROOT / "deploy" / "example" / "registry.yaml"
    assert len(loaded(RegistrySource(path, "FILE", ScopeCatalogue()).load(EMPTY)).credentials) == 4

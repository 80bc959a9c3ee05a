"""One folder for each sidecar, however many of the same name write to the log at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sidecar.stores.decisions.log_folder import (
    SIDECARS_PER_NAME_MAX,
    FolderTakenError,
    LogFolder,
    host_of,
)
from sidecar.stores.decisions.segments import Contents, Segment

NOW_US = 1_764_000_000_000_000


def test_folder__a_second_sidecar_takes_the_next_name(tmp_path: Path) -> None:
    """A name is free again when its sidecar has ended; a restarted writer gets its own folder back."""
    first = LogFolder.open(tmp_path, "box", NOW_US)
    second = LogFolder.open(tmp_path, "box", NOW_US)
    assert [first.path.name, second.path.name] == ["box", "box-2"]
    first.close()
    second.close()
    again = LogFolder.open(tmp_path, "box", NOW_US, preferred="box-2")
    assert again.path.name == "box-2"
    assert host_of(again.path) == socket.gethostname()[:64]
    again.close()
    assert host_of(again.path) == socket.gethostname()[:64]
    assert host_of(tmp_path) == ""


def test_folder__names_are_bounded(tmp_path: Path) -> None:
    """A name that everybody uses is a mistake, and the error says what to set."""
    taken = [LogFolder.open(tmp_path, "box", NOW_US) for _ in range(SIDECARS_PER_NAME_MAX)]
    with pytest.raises(FolderTakenError, match=r"decision_log\.name"):
        LogFolder.open(tmp_path, "box", NOW_US)
    for folder in taken:
        folder.close()


def test_folder__numbers_go_on_after_every_file(tmp_path: Path) -> None:
    """Also after a rollup whose rows are gone: no number is used twice."""
    folder = LogFolder.open(tmp_path, "box", NOW_US)
    assert folder.next_number() == 1
    (folder.path / Segment(Contents.ROWS, 1, 3, 5, 9).name).touch()
    (folder.path / Segment(Contents.ROLLUP, 4, 7, 5, 9).name).touch()
    assert folder.next_number() == 8
    folder.close()


def test_folder__incomplete_files_are_removed(tmp_path: Path) -> None:
    """What a killed writer began, and DuckDB's folder for sorting."""
    (tmp_path / "box" / ".writing-sort").mkdir(parents=True)
    (tmp_path / "box" / ".writing-rows.parquet").touch()
    folder = LogFolder.open(tmp_path, "box", NOW_US)
    assert [path.name for path in folder.path.iterdir()] == ["lock"]
    folder.close()

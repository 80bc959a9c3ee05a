"""What gets installed is whole: every module, every data file, and the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.house.source import ROOT, project_files

TIMEOUT_S = 100.0
DATA = (".py", ".pyi", ".typed", ".lua", ".yaml")


def test_wheel__holds_every_file_of_the_program(tmp_path: Path) -> None:
    """The wheel has each tracked module and data file of `sidecar`, the console command, and nothing else."""
    source = tmp_path / "source"
    for path in project_files():
        if path.startswith(("sidecar/", "loadtest/")) or path in ("pyproject.toml", "README.md", "LICENSE"):
            target = source / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / path).read_bytes())
    command = "-m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir"
    subprocess.run(
        [sys.executable, *command.split(), str(tmp_path), str(source)],
        check=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    (wheel,) = tmp_path.glob("sidecar-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        commands = archive.read(entry_points).decode()
    expected = {path for path in project_files() if path.startswith("sidecar/") and path.endswith(DATA)}
    assert expected - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sidecar"}
    assert any(name.endswith("/LICENSE") for name in names)
    assert "sidecar = sidecar.cli:main" in commands

"""The set-up scripts say in plain words what is missing and which command brings it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0
NEEDED = dict(
    pair.split(":")
    for line in (ROOT / "scripts/system-packages.sh").read_text().splitlines()
    if line.startswith("NEEDED=")
    for pair in line.partition("=")[2].strip("'").split()
)
"""The package of each program, as the script lists them."""
INSTALL = "install --yes --no-install-recommends " + " ".join(NEEDED.values())
TOOLS = ("sh", "dirname", "id", "cksum", "cat", "chmod", "grep", "mktemp", "rm")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what `make setup` reads, with the programs of `bin`, then `tools`, and no others."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    # Stand-ins have a folder without links: written over one, they would replace the machine's program.
    (tmp_path / "bin").mkdir()
    (tmp_path / "tools").mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path is not None, f"{tool} is missing"
        (tmp_path / "tools" / tool).symlink_to(path)
    return tmp_path


def program(checkout: Path, name: str, script: str) -> None:
    """Put a shell script called *name* where the set-up finds it."""
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(checkout: Path, *command: str) -> tuple[int, str]:
    """Run one of the scripts as a stranger's machine would; return its exit code and what it complained."""
    result = subprocess.run(
        [f"scripts/{command[0]}", *command[1:]],
        cwd=checkout,
        env={"PATH": f"{checkout}/bin:{checkout}/tools"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    return result.returncode, result.stderr


def test_setup__no_python_at_all(checkout: Path) -> None:
    """Without any Python, the packages of each distribution are named."""
    code, complaint = run(checkout, "setup.sh", "runtime")
    assert code == 1
    assert "no Python 3.11 or newer found" in complaint
    assert "apt-get install python3 python3-venv" in complaint


def test_setup__only_an_old_python(checkout: Path) -> None:
    """An interpreter that is too old, or a stand-in that does not work, counts as none."""
    program(checkout, "python3", "exit 1")
    program(checkout, "python3.12", "echo 'not installed' >&2; exit 127")
    code, complaint = run(checkout, "setup.sh", "runtime")
    assert (code, "no Python 3.11 or newer found" in complaint) == (1, True)
    assert "not installed" not in complaint


def test_setup__no_venv_module(checkout: Path) -> None:
    """Debian's Python without python3-venv is recognized, and the very package is named."""
    program(checkout, "python3", 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.11;; *) exit 0;; esac')
    code, complaint = run(checkout, "setup.sh", "runtime")
    assert code == 1
    assert "has no venv module" in complaint
    assert "apt-get install python3.11-venv" in complaint
    assert not (checkout / ".venv").exists()


def test_setup__unknown_kind(checkout: Path) -> None:
    """A typing error is reported, and nothing is installed."""
    code, complaint = run(checkout, "setup.sh", "everything")
    assert (code, "unknown kind 'everything'" in complaint) == (2, True)


def test_system_packages__nothing_missing(checkout: Path) -> None:
    """With every program there, nothing is said."""
    for name in NEEDED:
        program(checkout, name, "exit 0")
    assert run(checkout, "system-packages.sh") == (0, "")


def test_system_packages__missing_without_a_way_to_install(checkout: Path) -> None:
    """Who may not install gets the one command for somebody who may."""
    code, complaint = run(checkout, "system-packages.sh")
    assert code == 1
    assert f"apt-get update && apt-get {INSTALL}" in complaint


def test_system_packages__missing_and_installed_by_root(checkout: Path) -> None:
    """Root's apt-get is called for what is missing, without a question."""
    program(checkout, "id", "echo 0")
    program(checkout, "apt-get", f'echo "$@" >> {checkout}/asked')
    assert run(checkout, "system-packages.sh") == (0, "")
    asked = (checkout / "asked").read_text().splitlines()
    assert asked == ["update", INSTALL]


def test_system_packages__only_what_is_missing(checkout: Path) -> None:
    """What is there already is not asked for again."""
    program(checkout, "h2load", "exit 0")
    code, complaint = run(checkout, "system-packages.sh")
    others = " ".join(package for name, package in NEEDED.items() if name != "h2load")
    assert (code, f"recommends {others}\n" in complaint) == (1, True)


def test_system_packages__a_failed_installation_is_shown(checkout: Path) -> None:
    """When apt-get fails, what it said reaches the terminal and the exit code says so."""
    program(checkout, "id", "echo 0")
    program(checkout, "apt-get", "echo 'no network' >&2; exit 100")
    code, complaint = run(checkout, "system-packages.sh")
    assert (code, "no network" in complaint) == (1, True)

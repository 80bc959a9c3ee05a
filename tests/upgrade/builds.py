"""Builds of the sidecar from commits, installed side by side."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

FORMER = "0c19eee"
"""The build to upgrade from: of 2026-12-01, before the decision log and the present layout of Redis."""
TIMEOUT_S = 300.0


def install(commit: str, folder: Path) -> Path:
    """
    Build the wheel of *commit* and install it into *folder*; return its command `sidecar`.

    Its dependencies are those of the running interpreter.

    Raises:
        subprocess.CalledProcessError: the commit does not exist (a shallow clone), or cannot be built.
    """
    source, environment = folder / "source", folder / "environment"
    source.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", commit], stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
    ).stdout
    subprocess.run(
        ["tar", "--extract", "--directory", str(source)], input=archive, check=True, timeout=TIMEOUT_S
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    _run([*pip, "wheel", *options, str(source)])
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("sidecar-*.whl")
    _run([*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)])
    return environment / "bin" / "sidecar"


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)

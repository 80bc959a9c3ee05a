"""The generated code is what proto/ says, and the check that says so finds every difference."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def check(project: Path) -> subprocess.CompletedProcess[str]:
    """Run `make proto-check`'s command in *project*."""
    command = [sys.executable, str(project / "proto" / "generate.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_generate__the_committed_code_is_up_to_date() -> None:
    """Regenerating changes no byte."""
    result = check(ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_generate__every_difference_is_found(tmp_path: Path) -> None:
    """A changed, a missing and a left-over file each get a line, and the remedy is reported."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    generated = tmp_path / "sidecar" / "v1"
    shutil.copytree(ROOT / "sidecar" / "v1", generated)
    with (generated / "decision_pb2.py").open("a") as changed:
        changed.write("\n")
    (generated / "decision_pb2.pyi").unlink()
    (generated / "old_pb2.py").touch()
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "sidecar/v1/decision_pb2.py: is not what proto/ says",
        "sidecar/v1/decision_pb2.pyi: is missing",
        "sidecar/v1/old_pb2.py: belongs to no .proto file",
        "run 'make proto' and commit what it writes",
    ]

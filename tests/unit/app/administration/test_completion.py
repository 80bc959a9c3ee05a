"""Shell completion, in a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def bash(script: str, home: Path, shell: str = "bash") -> str:
    """What *script* prints in a bash whose `sidecar` is this one."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
    }
    result = subprocess.run(
        [shell, "--norc", "--noprofile", "-c", f"{script}\ntrue"],
        env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return result.stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("integ", ["integrations"]),
        ("integrations c", ["create"]),
        ("suspend acme --rea", ["--reason"]),
        ("admin token ", ["issue", "revoke"]),
        ("integrations list --status ", ["active", "suspended"]),
    ],
)
def test_completion__of_what_show_completion_prints(tmp_path: Path, words: str, wanted: list[str]) -> None:
    """Commands, options and their values complete, with the script that a user would put into a file."""
    typed = ["sidecar", *words.split(" ")]
    quoted = " ".join(f"'{word}'" for word in typed)
    script = (
        "sidecar --show-completion > completion.sh; . ./completion.sh\n"
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(typed) - 1}\n"
        '_sidecar_completion sidecar; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert bash(f"cd '{tmp_path}'\n{script}", tmp_path).split() == wanted


def test_completion__installs_itself(tmp_path: Path) -> None:
    """--install-completion writes the script and one line into the start-up file, once."""
    told = bash("sidecar --install-completion", tmp_path)
    assert "completion installed" in told
    assert (
        "bash_completion" in (tmp_path / ".bashrc").read_text()
        or "sidecar" in (tmp_path / ".bashrc").read_text()
    )

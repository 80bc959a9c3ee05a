"""Shell completion, in a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASES = {
    "sidecar integ": "integrations",
    "sidecar integrations c": "create",
    "sidecar suspend acme --rea": "--reason",
    "sidecar admin token ": "issue revoke",
    "sidecar integrations list --status ": "active suspended",
}
"""What is typed, and what Tab offers then."""


def bash(script: str, home: Path) -> str:
    """What *script* prints in a bash whose `sidecar` is this one."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", f"{script}\ntrue"],
        env={"PATH": path, "HOME": str(home), "LANG": "C.UTF-8"},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    return result.stdout


def typed(words: str) -> str:
    """What bash does when Tab is pressed after *words*; the offers are printed on one line."""
    split = words.split(" ")
    quoted = " ".join(f"'{word}'" for word in split)
    return (
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(split) - 1}; _sidecar_completion sidecar\n"
        'printf "%s " "${COMPREPLY[@]}"; echo'
    )


def test_completion__of_what_show_completion_prints(tmp_path: Path) -> None:
    """Commands, options and their values complete, with the script that a user would put into a file."""
    script = "\n".join(["sidecar --show-completion > completion.sh; . ./completion.sh", *map(typed, CASES)])
    offered = [line.strip() for line in bash(script, tmp_path).splitlines()]
    assert dict(zip(CASES, offered, strict=True)) == CASES


def test_completion__installs_itself(tmp_path: Path) -> None:
    """--install-completion puts the script where a new bash finds it by its start-up file."""
    assert "completion installed" in bash("sidecar --install-completion", tmp_path)
    assert "_sidecar_completion" in bash(". ./.bashrc; declare -F", tmp_path)

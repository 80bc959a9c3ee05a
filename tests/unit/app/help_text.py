"""What `--help` prints, at the width that docs/cli.md shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.house.source import ROOT

PAGE = ROOT / "docs" / "cli.md"

COMMANDS = (
    "",
    "serve",
    "check-config",
    "decide",
    "ask",
    "keys",
    "keys new",
    "admin",
    "admin bootstrap",
    "version",
)
WIDTH = 100
_PLAIN = {"TERM": "dumb", "COLUMNS": str(WIDTH), "NO_COLOR": "1", "LANG": "C.UTF-8"}


def help_of(command: str) -> str:
    """The help of one command, '' = of `sidecar` itself, without white space at the ends of lines."""
    result = subprocess.run(
        [sys.executable, "-m", "sidecar.app.cli", *command.split(), "--help"],
        env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8", **_PLAIN},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").splitlines()).strip("\n")


def block_of(command: str) -> str:
    """The fenced block of docs/cli.md for one command."""
    typed = " ".join(["sidecar", *command.split(), "--help"])
    return f"```console\n$ {typed}\n{help_of(command)}\n```\n"


def refresh(page: str) -> str:
    """*page* with the block of each command as it is now."""
    for command in COMMANDS:
        typed = " ".join(["sidecar", *command.split(), "--help"])
        pattern = rf"```console\n\$ {re.escape(typed)}\n.*?\n```\n"
        page = re.sub(pattern, block_of(command).replace("\\", r"\\"), page, flags=re.DOTALL)
    return page


if __name__ == "__main__":  # python -m tests.unit.app.help_text
    PAGE.write_text(refresh(PAGE.read_text()))

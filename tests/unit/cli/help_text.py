"""
What `--help` prints, at the width that docs/reference/cli.md shows it.

The commands that call the admin API share two groups of options, which the page shows once; below each of
them stands a line in their place.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from tests.house.source import ROOT

PAGE = ROOT / "docs" / "reference" / "cli.md"

WIDTH = 100
_PLAIN = {"TERM": "dumb", "COLUMNS": str(WIDTH), "NO_COLOR": "1", "LANG": "C.UTF-8"}
_PRINT_ALL = """
import json
import typer.main
from typer.testing import CliRunner
from sidecar.cli.root import app

def paths(command, path):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from paths(inner, [*path, name])

run = CliRunner().invoke
helps = {" ".join(path): run(app, [*path, "--help"], prog_name="sidecar").output
         for path in paths(typer.main.get_command(app), [])}
print(json.dumps(helps))
"""
SHARED_BY = "scopes add"
"""A command that has both shared groups, as they are in all others."""
SHARED = {"Change": "every change of an integration", "Connection": "every command that calls the admin API"}


@functools.cache
def helps() -> Mapping[str, str]:
    """The help of every command there is, '' = of `sidecar` itself, without white space at ends of lines."""
    result = subprocess.run(
        [sys.executable, "-c", _PRINT_ALL],
        env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8", **_PLAIN},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    printed: dict[str, str] = json.loads(result.stdout)
    return {command: _trimmed(text) for command, text in printed.items()}


def panel_of(text: str, title: str) -> str:
    """The box with this title in a help text, '' = there is none."""
    found = re.search(rf"╭─ {title} ─.*?\n╰─+╯", text, re.DOTALL)
    return found[0] if found else ""


def shown_help(command: str) -> str:
    """The help of *command* as the page shows it: shared groups, where they are the usual ones, are named."""
    text = helps()[command]
    usual = helps()[SHARED_BY]
    named = [
        title for title in SHARED if panel_of(text, title) and panel_of(text, title) == panel_of(usual, title)
    ]
    for title in named:
        text = text.replace(panel_of(text, title) + "\n", "").replace(panel_of(text, title), "")
    if named:
        text = (
            text.strip("\n") + f"\n\n And the options of {' and of '.join(SHARED[title] for title in named)}."
        )
    return text.strip("\n")


def block_of(command: str) -> str:
    """The fenced block of docs/reference/cli.md for one command."""
    typed = " ".join(["sidecar", *command.split(), "--help"])
    return f"```console\n$ {typed}\n{shown_help(command)}\n```\n"


def shared_block(title: str) -> str:
    """The fenced block of docs/reference/cli.md for one group of options that many commands have."""
    return f"```\n{panel_of(helps()[SHARED_BY], title)}\n```\n"


def refresh(page: str) -> str:
    """*page* with the block of each command, and of each shared group, as it is now."""
    for command in helps():
        typed = " ".join(["sidecar", *command.split(), "--help"])
        pattern = rf"```console\n\$ {re.escape(typed)}\n.*?\n```\n"
        page = re.sub(pattern, block_of(command).replace("\\", r"\\"), page, flags=re.DOTALL)
    for title in SHARED:
        page = re.sub(rf"```\n╭─ {title} ─.*?\n```\n", shared_block(title), page, flags=re.DOTALL)
    return page


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).strip("\n")


if __name__ == "__main__":  # python -m tests.unit.cli.help_text
    PAGE.write_text(refresh(PAGE.read_text()))

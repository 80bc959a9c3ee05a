"""Tables of results, for the terminal and docs/develop/benchmarks.md."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

REPORT = Path("docs/develop/benchmarks.md")
PACKAGES = ("grpcio", "ngh2", "uvloop", "protobuf", "redis", "hiredis", "pytricia")


@dataclass(frozen=True, slots=True)
class Row:
    """One result: what was measured, the figure with its unit, the compared figure and the ratio."""

    what: str
    figure: str
    beside: str = ""
    ratio: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark: its title, its method, its rows."""

    title: str
    method: str
    rows: Sequence[Row]


def to_markdown(sections: Sequence[Section], command: str) -> str:
    """Return the report as Markdown; *command* is the command that produces it."""
    return "\n".join([heading(command), *map(table, sections)])


def heading(command: str) -> str:
    """Return the top of the report as Markdown; *command* is the command that produces it."""
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"Written by `{command}`; run it again to repeat them. Ratios are within one run on one machine;",
            "absolute figures hold for this machine only.",
            "",
            f"- {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, Python {platform.python_version()}",
            f"- {processor()}, one core for the server and one for the load",
            "- " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
            "",
        ]
    )


def table(section: Section) -> str:
    """Return *section* as Markdown."""
    rows = [f"| {row.what} | {row.figure} | {row.beside} | {row.ratio} |" for row in section.rows]
    columns = ["| what | figure | beside | ratio |", "|---|---|---|---|"]
    return "\n".join([f"## {section.title}", "", section.method, "", *columns, *rows, ""])


def commit() -> str:
    """Return the short name of the commit that is checked out, or 'unknown'."""
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10
    )
    return result.stdout.strip() or "unknown"


def processor() -> str:
    """Return the model of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()

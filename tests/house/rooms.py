"""
The figure of the rooms in docs/develop/architecture.md, drawn from the imports.

`python -m tests.house.rooms` writes it again after a room was added or an import changed direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.house.source import ROOT, code_lines, python_sources
from tests.house.test_import_order import BELOW, imported

PAGE = ROOT / "docs" / "develop" / "architecture.md"
BEGIN = "<!-- rooms: begin -->\n"
END = "<!-- rooms: end -->\n"


def arrows() -> Mapping[str, Counter[str]]:
    """For each room, how many of its imports name each other room."""
    found: dict[str, Counter[str]] = {room: Counter() for room in BELOW}
    for source in python_sources():
        if len(source.module) < 2 or source.module[0] != "sidecar":
            continue
        room = source.module[1]
        modules = {parts[:3] for _, parts in imported(source) if parts[0] == "sidecar" and len(parts) > 1}
        for parts in modules:
            if parts[1] in BELOW and parts[1] != room:
                found[room][parts[1]] += 1
    return found


def sizes() -> Mapping[str, tuple[int, int]]:
    """For each room, its files and its lines of code, without blank lines, comments and docstrings."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for source in python_sources():
        if len(source.module) > 1 and source.module[0] == "sidecar" and source.module[1] in BELOW:
            files[source.module[1]] += 1
            lines[source.module[1]] += len(code_lines(source.text))
    return {room: (files[room], lines[room]) for room in BELOW}


def figure() -> str:
    """The figure as a Mermaid flow chart; an arrow that follows from two others is left out."""
    drawn = arrows()
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {room}" for room in reversed(BELOW)]
    for room in reversed(BELOW):
        others = set(drawn[room])
        implied = {below for other in others for below in _reached(other, drawn)}
        lines += [f"    {room} --> {other}" for other in BELOW if other in others - implied]
    return "\n".join([*lines, "```", ""])


def _reached(room: str, drawn: Mapping[str, Counter[str]]) -> set[str]:
    return set(drawn[room]) | {below for other in drawn[room] for below in _reached(other, drawn)}


def replaced(page: str) -> str:
    """*page* with the figure of today."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{figure()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))

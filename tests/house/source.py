"""The project's own files, read and parsed once."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("sidecar/v1/",)
"""Folders of generated code, which follows its generator's rules instead of ours."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, with '/', and its text."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return _parsed(self.text)

    @property
    def is_test(self) -> bool:
        """Whether it belongs to the tests."""
        return self.path.startswith("tests/")

    @property
    def module(self) -> tuple[str, ...]:
        """The dotted name, in parts; a package's own file has the package's name."""
        parts = self.path.removesuffix(".py").split("/")
        return tuple(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> tuple[str, ...]:
        """The package that relative imports of this file start from."""
        return self.module if self.path.endswith("/__init__.py") else self.module[:-1]


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def project_files() -> tuple[str, ...]:
    """Every file that belongs to the project, by its path from the root: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return tuple(sorted(path for path in set(listing.stdout.split("\0")) if path and (ROOT / path).is_file()))


@cache
def text_of(path: str) -> str:
    """The text of one project file; bytes that are no UTF-8 are replaced."""
    return (ROOT / path).read_text(errors="replace")


@cache
def python_sources() -> tuple[Source, ...]:
    """Every Python file that people wrote."""
    return tuple(
        Source(path, text_of(path))
        for path in project_files()
        if path.endswith(".py") and not path.startswith(GENERATED)
    )


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method of *tree*, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@cache
def code_lines(text: str) -> frozenset[int]:
    """The numbers of the lines that hold code: no blank lines, no comments, no docstrings."""
    tree = _parsed(text)
    written = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = {number for number, line in written if line and not line.startswith("#")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
            lines.update(range(node.lineno, node.end_lineno + 1))
    return frozenset(lines - _docstring_lines(tree))


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                lines.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return lines


def called_name(call: ast.Call) -> str:
    """The dotted name that *call* calls, such as 'time.sleep'; '' for anything more complicated."""
    parts: list[str] = []
    node = call.func
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def report(faults: list[str]) -> None:
    """Fail with one fault a line."""
    assert not faults, "\n".join(["", *faults])

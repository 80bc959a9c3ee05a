"""Every module, public class, public function and test says what it promises."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.source import Documented, Function, Source, python_sources, report


def documented(tree: ast.Module | ast.ClassDef) -> Iterator[Documented]:
    """The public classes, functions and methods below *tree*, and every test; not what functions hold."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from documented(node)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def faults_of(source: Source) -> list[str]:
    """One line for each thing in *source* that lacks its docstring."""
    faults = [] if ast.get_docstring(source.tree) else [f"{source.path}:1: the module has no docstring"]
    for node in documented(source.tree):
        if not ast.get_docstring(node) and not _repeats(node):
            faults.append(f"{source.path}:{node.lineno}: {node.name} has no docstring")
    return faults


def _repeats(node: Documented) -> bool:
    """Whether another definition carries the docstring: overloads, and setters of a property."""
    names = {ast.unparse(decorator) for decorator in node.decorator_list}
    return any(name.endswith(("overload", ".setter")) for name in names)


def test_docstrings__everything_public_has_one() -> None:
    """A reader learns what a thing promises without reading how it does it."""
    report([fault for source in python_sources() for fault in faults_of(source)])


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        '"""Doc."""\ndef f(): ...',
        '"""Doc."""\nasync def test_a__b(): ...',
        '"""Doc."""\nclass A: ...',
        '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): ...',
    ],
)
def test_docstrings__a_missing_one_is_found(text: str) -> None:
    """The check itself looks at modules, functions, classes and methods."""
    assert len(faults_of(Source("sidecar/a.py", text))) == 1


def test_docstrings__private_and_inner_things_need_none() -> None:
    """The check itself leaves private names and functions inside functions alone."""
    text = '"""Doc."""\ndef _f(): ...\ndef g():\n    """Doc."""\n    def inner(): ...\nclass _A: ...\n'
    assert faults_of(Source("sidecar/a.py", text)) == []

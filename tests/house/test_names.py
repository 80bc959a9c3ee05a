"""Names say what a thing is for; some say nothing."""

from __future__ import annotations

import ast
import re

import pytest

from tests.house.source import Source, python_sources, report

EMPTY_WORDS = re.compile(
    r"(^|_)(utils?|helpers?|managers?)(_|$)|^(common|misc)$|(Utils?|Helpers?|Managers?)($|(?=[A-Z]))|^My[A-Z]"
)
"""In snake case and in camel case. `common_name` is a word of X.509 and may stay."""

ROOMS_WITHOUT_ONE = (
    "deploy/",
    "loadtest/",
    "sidecar/admin_client/",
    "sidecar/cli/",
    "sidecar/domain/",
    "sidecar/observe/",
    "sidecar/process/",
    "sidecar/rpc/",
    "sidecar/services/",
    "sidecar/sources/",
    "sidecar/stores/",
    "sidecar/transports/",
    "sidecar/verify/",
    "tests/",
)
"""Folders in which no loop calls its variable `one`; add a folder once it is clean."""


def faults_of(source: Source) -> list[str]:
    """One line for each file, class or function of *source* with a name that says nothing."""
    named: list[tuple[int, str]] = [(1, part) for part in source.module]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            named.append((node.lineno, node.name))
    return [
        f"{source.path}:{line}: '{name}' says nothing: name it after what it is for"
        for line, name in named
        if EMPTY_WORDS.search(name)
    ]


def loops_over_one(source: Source) -> list[str]:
    """One line for each loop and comprehension of *source* whose variable is called `one`."""
    return [
        f"{source.path}:{loop.target.lineno}: name the loop variable after the thing, not 'one'"
        for loop in ast.walk(source.tree)
        if isinstance(loop, ast.For | ast.AsyncFor | ast.comprehension)
        if any(isinstance(node, ast.Name) and node.id == "one" for node in ast.walk(loop.target))
    ]


def test_names__no_loop_variable_is_called_one() -> None:
    """`for credential in credentials` says what it is about."""
    rooms = [source for source in python_sources() if str(source.path).startswith(ROOMS_WITHOUT_ONE)]
    report([fault for source in rooms for fault in loops_over_one(source)])


def test_names__a_loop_over_one_is_found() -> None:
    """Loops and comprehensions, in tuples of variables, too."""
    text = "for one in a: ...\nx = [one for key, one in b]\ny = [each for each in one]"
    assert len(loops_over_one(Source("sidecar/cli/a.py", text))) == 2


def test_names__none_is_empty() -> None:
    """No utils, helpers, managers or common: each of them is a drawer that nobody can find a thing in."""
    report([fault for source in python_sources() for fault in faults_of(source)])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sidecar/utils.py", ""),
        ("sidecar/common/a.py", ""),
        ("sidecar/a.py", "class ConnectionManager: ..."),
        ("sidecar/a.py", "def test_helper(): ..."),
        ("sidecar/a.py", "class MyServer: ..."),
    ],
)
def test_names__an_empty_one_is_found(path: str, text: str) -> None:
    """The check itself looks at folders, files, classes and functions."""
    assert len(faults_of(Source(path, text))) == 1


def test_names__each_class_of_the_tests_has_its_own() -> None:
    """No two harnesses share a name; a class within a function may."""
    places: dict[str, list[str]] = {}
    for source in python_sources():
        for node in source.tree.body:
            if source.is_test and isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(source.path)
    report(
        [
            f"{name} in {', '.join(paths)}: name each after its field"
            for name, paths in places.items()
            if paths[1:]
        ]
    )

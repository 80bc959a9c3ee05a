"""Tests never sleep, are never left out, use public names, and say what they promise."""

from __future__ import annotations

import ast
import re

import pytest

from tests.house.source import Source, called_name, functions, python_sources, report

SLEEPS = frozenset({"time.sleep", "asyncio.sleep", "anyio.sleep", "trio.sleep", "sleep"})
LEFT_OUT = re.compile(
    r"(pytest\.)?(mark\.)?(skip|skipif|xfail|importorskip)$|(unittest\.)?(skip|skipIf|SkipTest)$"
)
PUBLIC = frozenset(
    {"_replace", "_asdict", "_fields", "_make", "_field_defaults", "_name_", "_value_", "_exit"}
)
"""Names with an underscore that are documented: of named tuples, of enumerations, and os._exit."""
OWN = frozenset({"self", "cls"})
TEST_NAME = re.compile(r"test_[a-z0-9_]*[a-z0-9]__[a-z0-9][a-z0-9_]*")


def faults_of(source: Source) -> list[str]:
    """One line for each habit in *source* that makes a test slow, shaky or empty."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and called_name(node) in SLEEPS and not _is_zero(node):
            found.append(
                (node.lineno, "waits by the clock: wait for the fact, with tests.waiting.eventually")
            )
        elif isinstance(node, ast.Attribute | ast.Name) and LEFT_OUT.fullmatch(ast.unparse(node)):
            found.append(
                (node.lineno, f"leaves a test out with {ast.unparse(node)}: mend it or take it away")
            )
        elif isinstance(node, ast.Attribute) and is_private(node):
            found.append(
                (node.lineno, f"uses {ast.unparse(node)}: inject the part, or give it a public name")
            )
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and node.test.value:
            found.append((node.lineno, "asserts a constant, which cannot fail"))
    for test in functions(source.tree):
        if test.name.startswith("test_") and not TEST_NAME.fullmatch(test.name):
            found.append((test.lineno, f"{test.name}: name it test_<unit>__<case>"))
    return [f"{source.path}:{line}: {complaint}" for line, complaint in sorted(set(found))]


def is_private(node: ast.Attribute) -> bool:
    """Whether *node* is a private name of another class or module."""
    is_own = isinstance(node.value, ast.Name) and node.value.id in OWN
    return re.match(r"_(?!_)", node.attr) is not None and node.attr not in PUBLIC and not is_own


def _is_zero(call: ast.Call) -> bool:
    """Whether it only lets other tasks run: asyncio.sleep(0)."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def test_tests__neither_sleep_nor_look_away() -> None:
    """No test waits by the clock, is skipped or may fail, asserts a constant, or uses a private name."""
    report([fault for source in python_sources() if source.is_test for fault in faults_of(source)])


@pytest.mark.parametrize(
    "text",
    [
        "import time\ntime.sleep(0.1)",
        "async def f():\n    await asyncio.sleep(1)",
        "from time import sleep\nsleep(seconds)",
        "@pytest.mark.skipif(True, reason='x')\ndef test_a__b(): ...",
        "pytest.skip('later')",
        "pytestmark = pytest.mark.xfail",
        "assert True",
        "assert rig._parts == []",
        "rig.parts._first.close()",
        "def test_bucket(): ...",
    ],
)
def test_tests__a_bad_habit_is_found(text: str) -> None:
    """The check itself finds each of them."""
    assert faults_of(Source("tests/unit/test_a.py", text))


@pytest.mark.parametrize(
    "text", ["async def f():\n    await asyncio.sleep(0)", "self._parts = []", "taken._replace(admitted=1)"]
)
def test_tests__a_good_habit_is_not_found(text: str) -> None:
    """The check itself lets pass what waits for nothing, what is one's own, and documented names."""
    assert faults_of(Source("tests/unit/test_a.py", text)) == []

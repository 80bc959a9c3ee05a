"""What tables promise, the code keeps: reasons, metrics, label values and glossary terms are all in use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from sidecar.domain.decisions import Reason
from sidecar.observe.table import TABLE
from tests.house.source import Source, project_files, python_sources, report, text_of

METRICS = "sidecar/observe/table.py"
REASONS = "sidecar/domain/decisions.py"
GLOSSARY = "docs/glossary.md"
TERM = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)


def code() -> Iterator[Source]:
    """The files of the program, without the table of metrics."""
    return (
        source for source in python_sources() if source.path.startswith("sidecar/") and source.path != METRICS
    )


def uses(source: Source) -> Iterator[str]:
    """Every 'Name.attribute' and every text in *source*, but no docstring and no value of an enum member."""
    pending: list[tuple[ast.AST, bool]] = [(source.tree, False)]
    while pending:
        node, is_member = pending.pop()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not is_member:
            yield node.value
        is_enum = isinstance(node, ast.ClassDef) and "Enum" in "".join(map(ast.unparse, node.bases))
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                pending.append((child, is_member or (is_enum and isinstance(child, ast.Assign))))


def members(source: Source) -> Iterator[tuple[str, str]]:
    """Each text that names an enum member in *source*, and the member as the code writes it."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and "Enum" in "".join(map(ast.unparse, node.bases)):
            for statement in node.body:
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    for part in ast.walk(statement.value):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield part.value, f"{node.name}.{statement.targets[0].id}"


def produced(sources: list[Source]) -> set[str]:
    """Every text that *sources* can produce, and every enum member that they use."""
    used = {use for source in sources for use in uses(source)}
    return used | {text for source in sources for text, member in members(source) if member in used}


@pytest.fixture(scope="module")
def words() -> set[str]:
    """What the program can produce."""
    return produced(list(code()))


def test_reasons__each_is_given() -> None:
    """No reason is documented that no decision has."""
    used = {use for source in code() if source.path != REASONS for use in uses(source)}
    report([f"nothing answers {reason}" for reason in Reason if str(reason) not in used])


def test_metrics__each_is_written(words: set[str]) -> None:
    """No metric and no label value is shown that nothing counts; numbers are worked out."""
    values = {(name, value) for spec in TABLE.specs for name, listed in spec.labels for value in listed}
    report(
        [
            *(f"nothing writes {spec.name}" for spec in TABLE.specs if spec.name not in words),
            *(
                f'no metric gets {name}="{value}"'
                for name, value in sorted(values)
                if not value.isdigit() and value not in words
            ),
        ]
    )


def test_glossary__each_term_is_used() -> None:
    """A term is in the glossary for as long as code or documents use it."""
    others = "\n".join(
        text_of(path)
        for path in project_files()
        if path.endswith((".py", ".md", ".lua", ".proto", ".yaml")) and path not in (GLOSSARY, "CHANGELOG.md")
    )
    terms = [term for row in TERM.findall(text_of(GLOSSARY))[2:] for term in re.split(r", | / ", row)]
    assert len(terms) > 50
    report(
        [
            f"{GLOSSARY}: nothing uses the term '{term}'"
            for term in terms
            if not re.search(r"[\s_-]+".join(map(re.escape, term.strip("` ").split())), others, re.IGNORECASE)
        ]
    )


def test_promises__the_check_tells_naming_from_producing() -> None:
    """A member that only its enum names is not produced; one that the code uses is. Docstrings do not."""
    enum = 'class Color(Enum):\n    """red"""\n    BLUE = "blue"\n    GREEN = ("green", 1)\n'
    found = produced([Source("sidecar/a.py", enum), Source("sidecar/b.py", 'pick(Color.GREEN, "black")')])
    assert found == {"Color.GREEN", "green", "black"}

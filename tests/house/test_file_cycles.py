"""No two files import each other, directly or through others: a file is understood with what is below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from tests.house.source import Source, python_sources
from tests.house.test_import_order import imported

Graph = Mapping[str, frozenset[str]]


def graph_of(sources: Iterable[Source]) -> Graph:
    """The modules of *sources*, and for each one the modules of *sources* that it imports."""
    files = {".".join(source.module): source for source in sources}
    return {
        name: frozenset(
            found for _, parts in imported(source) if (found := _module_of(parts, files)) and found != name
        )
        for name, source in files.items()
    }


def _module_of(parts: tuple[str, ...], files: Mapping[str, Source]) -> str:
    """The module that an import names: `a.b.c` is the module a.b.c, or a name in the module a.b."""
    name = ".".join(parts)
    if name in files:
        return name
    parent = ".".join(parts[:-1])
    return parent if parent in files else ""


def cycles_of(graph: Graph) -> list[list[str]]:
    """Each group of modules that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    cycles: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                cycles.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return cycles


def test_file_cycles__there_are_none() -> None:
    """Imports under TYPE_CHECKING and in functions count like any other."""
    assert cycles_of(graph_of(python_sources())) == []


@pytest.mark.parametrize(
    "text",
    [
        "from a import b",
        "import a.b",
        "if TYPE_CHECKING:\n    from a.b import name",
        "def f():\n    from . import b",
    ],
)
def test_file_cycles__one_is_found(text: str) -> None:
    """The check itself sees plain, relative, nested and type-only imports."""
    sources = [Source("a/b.py", "from a.c import x"), Source("a/c.py", "import a.d"), Source("a/d.py", text)]
    assert cycles_of(graph_of(sources)) == [["a.b", "a.c", "a.d"]]

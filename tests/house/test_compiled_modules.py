"""The modules that mypyc compiles keep to what compiles and then behaves alike (docs/adr/0022)."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterator

import pytest

from tests.house.source import Source, functions, python_sources, report, text_of

COMPILED = frozenset(tomllib.loads(text_of("pyproject.toml"))["tool"]["sidecar"]["compiled"])
SOURCES = {source.path: source for source in python_sources()}

Fault = tuple[int, str]


def _classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _bases(node: ast.ClassDef) -> set[str]:
    """The last names of the bases, without type arguments."""
    return {ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases}


def enums_with_init(source: Source) -> Iterator[Fault]:
    """Such a class compiles, and then fails at import."""
    for node in _classes(source.tree):
        if _bases(node) & {"Enum", "IntEnum", "StrEnum", "Flag"}:
            names = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if names & {"__init__", "__new__"}:
                yield node.lineno, f"{node.name} is an enum with an __init__: put it into a module of its own"


def named_tuples(source: Source) -> Iterator[Fault]:
    """A named tuple is no native class: creating one and reading its fields are calls of the interpreter."""
    for node in _classes(source.tree):
        if "NamedTuple" in _bases(node):
            yield node.lineno, f"{node.name} is a named tuple: use a Value or a frozen dataclass"


def ellipsis_defaults(source: Source) -> Iterator[Fault]:
    """Also in protocols, the default of a typed parameter is checked against its type at import."""
    for function in functions(source.tree):
        for default in (*function.args.defaults, *function.args.kw_defaults):
            if isinstance(default, ast.Constant) and default.value is Ellipsis:
                yield function.lineno, f"{function.name} has a default of '...': write the true default"


def errors_with_one_name(source: Source) -> Iterator[Fault]:
    """A local variable has one type: the second class of errors would be a TypeError."""
    for function in functions(source.tree):
        types: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                caught = ast.unparse(node.type)
                if types.setdefault(node.name, caught) != caught:
                    yield node.lineno, f"{function.name} names two kinds of errors {node.name!r}"


def untyped_locals(source: Source) -> Iterator[Fault]:
    """What comes out of an `Any` is boxed, and each use of it is a call of the interpreter."""
    lines = source.text.splitlines()
    for function in functions(source.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                is_any = "Any" in {
                    name.id for name in ast.walk(node.annotation) if isinstance(name, ast.Name)
                }
                if is_any and "# Any:" not in lines[node.lineno - 1]:
                    yield (
                        node.lineno,
                        f"{ast.unparse(node.target)} is Any: give a type, or the reason in a comment",
                    )


def changeable_constants(source: Source) -> Iterator[Fault]:
    """Reading a name of the module is a look-up in a dictionary, unless the name is Final."""
    for node in source.tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", target.id):
            yield node.lineno, f"{target.id} is a constant: declare it Final"


@pytest.mark.parametrize(
    "find",
    [
        enums_with_init,
        named_tuples,
        ellipsis_defaults,
        errors_with_one_name,
        untyped_locals,
        changeable_constants,
    ],
)
def test_compiled_modules__use_idioms_that_compile(find: Callable[[Source], Iterator[Fault]]) -> None:
    """None of the idioms that fail at import, behave differently or are slow."""
    report([f"{path}:{line}: {fault}" for path in sorted(COMPILED) for line, fault in find(SOURCES[path])])


def test_compiled_classes__have_no_interpreted_subclasses() -> None:
    """Only errors: making an instance of any other interpreted subclass of a native class is a TypeError."""
    native = {
        ".".join((*SOURCES[path].module, node.name))
        for path in COMPILED
        for node in _classes(SOURCES[path].tree)
    }
    faults = []
    for source in python_sources():
        if not source.path.startswith("sidecar/") or source.path in COMPILED:
            continue
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        faults += [
            f"{source.path}:{node.lineno}: {node.name} inherits from the compiled {base}"
            for node in _classes(source.tree)
            for base in _bases(node)
            if names.get(base) in native and not base.endswith("Error")
        ]
    report(faults)

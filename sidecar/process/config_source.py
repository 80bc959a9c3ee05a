"""
The sources of settings: a YAML file, overridden by environment variables.

Both become one tree of plain values with an *origin* for each value, so that a mistake found later is
reported with its file and line, or with its variable.

Each key is also a variable: `listen.grpc` is SIDECAR_LISTEN__GRPC. Its value is the text itself for keys that
are text, else a YAML scalar, or JSON or YAML if it begins with '[' or '{' or has several lines. A list may
also be written with commas. Empty = not set.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel

from sidecar.sources.file_faults import FaultList, FileFault, meant_key, quoted
from sidecar.sources.yaml_nodes import (
    SYNTAX_HINT,
    YamlError,
    YamlList,
    YamlMap,
    YamlNode,
    read_yaml,
    scalar_value,
)

PREFIX = "SIDECAR_"
CONFIG_BYTES_MAX = 1 << 20
"""A thousand routes take 100 kB."""

RESERVED = frozenset({"SIDECAR_CONFIG", "SIDECAR_API_KEY", "SIDECAR_SERVER", "SIDECAR_ADMIN_TOKEN"})
"""Variables of the command line, which are not settings."""

# Kubernetes sets these in every pod for each Service of its namespace, here for a Service 'sidecar' or
# 'sidecar-<anything>'. The pattern includes the value, so that a mistyped setting is still an error.
_SERVICE_LINK = re.compile(
    r"SIDECAR_(?:[A-Z0-9_]+_)?(?:"
    r"(?:SERVICE_HOST|PORT_\d+_(?:TCP|UDP|SCTP)_ADDR)=[0-9a-fA-F.:]+"
    r"|(?:SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)_PORT)=\d{1,5}"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)_PROTO=(?:tcp|udp|sctp)"
    r"|PORT(?:_\d+_(?:TCP|UDP|SCTP))?=(?:tcp|udp|sctp)://\S+)"
)

_IPV6_FIRST = re.compile(r"\[[0-9a-fA-F]*:[0-9a-fA-F.]*:[0-9a-fA-F:.]*(?:%[^]]*)?\]")
"""An address such as '[::]:9194' begins like a list."""
_IPV6_UNQUOTED = re.compile(rf"(?<!['\"]){_IPV6_FIRST.pattern}:\d")

KeyPath: TypeAlias = tuple[str | int, ...]
"""A dotted path in parts: ('listen', 'grpc', 0)."""


def dotted(path: KeyPath) -> str:
    """
    *path* as text.

    >>> dotted(("listen", "grpc", 0, "tls"))
    'listen.grpc[0].tls'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def variable(path: KeyPath) -> str:
    """
    The environment variable of a key.

    >>> variable(("listen", "grpc"))
    'SIDECAR_LISTEN__GRPC'
    """
    return PREFIX + "__".join(map(str, path)).upper()


@dataclass(slots=True)
class ConfigTree:
    """The configured values, and their origins: (file or variable, line)."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, tuple[str, int | None]] = field(default_factory=dict)

    def fault(self, path: KeyPath, problem: str) -> FileFault:
        """A mistake at *path*, with the origin of the nearest configured value."""
        known = path
        while known and known not in self.origins:
            known = known[:-1]
        file, line = self.origins.get(known, (self.file, None))
        return FileFault(file, line, dotted(path), problem)

    def put(self, path: KeyPath, value: object, origin: tuple[str, int | None]) -> None:
        """Set the value at *path* (mappings only)."""
        inner = self.values
        for depth, part in enumerate(path[:-1], 1):
            following = inner.get(str(part))
            if not isinstance(following, dict):
                following = inner[str(part)] = {}
                self._forget(path[:depth])
                self.origins[path[:depth]] = origin
            inner = following
        inner[str(path[-1])] = value
        self._forget(path)
        self.origins[path] = origin

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]


def read_config_file(path: Path, file: str, faults: FaultList) -> ConfigTree:
    """Read the YAML file at *path*, called *file* in messages; add mistakes to *faults*."""
    tree = ConfigTree(file)
    try:
        with path.open("rb") as stream:
            content = stream.read(CONFIG_BYTES_MAX + 1)
        if len(content) > CONFIG_BYTES_MAX:
            faults.add(None, "", f"is larger than {CONFIG_BYTES_MAX >> 20} MiB; is it the right file?")
            return tree
        content.decode()
        root = read_yaml(content)
    except OSError as error:
        faults.add_unreadable(error)
    except UnicodeDecodeError:
        faults.add(None, "", "is not UTF-8 text; save it as UTF-8")
    except YamlError as error:
        faults.add(error.line, "", error.problem + _address_hint(content, error.line))
    else:
        if isinstance(root, YamlMap):
            tree.values = _plain(root, (), tree, faults)
        elif root is not None:
            faults.add(root.line, "", "must hold settings, one 'key: value' a line")
    return tree


def _address_hint(content: bytes, line: int) -> str:
    """A hint for a YAML mistake at *line*: an IPv6 address without quotes looks like a list."""
    lines = content.splitlines()[max(0, line - 2) : line]
    if any(_IPV6_UNQUOTED.search(text.decode(errors="replace")) for text in lines):
        return "; put an IPv6 address in quotes: '[::]:9194'"
    return ""


def _plain(node: YamlNode, path: KeyPath, tree: ConfigTree, faults: FaultList) -> Any:
    if isinstance(node, YamlMap):
        for key, line in node.repeated:
            faults.add(line, dotted((*path, key)), "is given more than once; keep one")
        values = {}
        for key, (line, inner) in node.entries.items():
            tree.origins[(*path, key)] = tree.file, line
            value = _plain(inner, (*path, key), tree, faults)
            if value is not None:
                values[key] = value
        return values
    if isinstance(node, YamlList):
        for index, item in enumerate(node.items):
            tree.origins[(*path, index)] = tree.file, item.line
        return tuple(_plain(item, (*path, index), tree, faults) for index, item in enumerate(node.items))
    return scalar_value(node.text) if node.is_plain else node.text


def add_environment(
    tree: ConfigTree, environ: Mapping[str, str], model: type[BaseModel], faults: FaultList
) -> None:
    """Override the settings in *tree* with those in *environ*; add mistakes to *faults*."""
    kinds = dict(settings_of(model))
    paths = {variable(path): path for path in kinds}
    for name in sorted(environ):  # a mapping comes before its keys
        if not name.startswith(PREFIX) or name in RESERVED:
            continue
        if name not in paths:
            if not _SERVICE_LINK.fullmatch(f"{name}={environ[name]}"):
                faults.put(FileFault(name, None, "", _unknown_variable(name, paths)))
        elif environ[name].strip():
            path = paths[name]
            value = _environment_value(environ[name], kinds[path], name, faults)
            tree.put(path, value, (name, None))


def _unknown_variable(name: str, known: Mapping[str, object]) -> str:
    meant = meant_key(
        name.removeprefix(PREFIX).upper(), [variable.removeprefix(PREFIX) for variable in known]
    )
    if meant is not None:
        return f"is not a setting; did you mean {PREFIX}{meant}?"
    return (
        "is not a setting; unset it, or see docs/reference/configuration.md for the settings (in Kubernetes,"
        " 'enableServiceLinks: false' in the pod keeps variables of Services out)"
    )


def settings_of(model: type[BaseModel], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of *model* and of its sections, with its type; sections come before their keys."""
    for name, info in model.model_fields.items():
        yield (*path, name), info.annotation
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from settings_of(info.annotation, (*path, name))


def _environment_value(text: str, kind: Any, name: str, faults: FaultList) -> object:
    if _is_of_type(kind, str):
        return text
    text = text.strip()
    is_list, is_address = _is_of_type(kind, tuple), _IPV6_FIRST.match(text) is not None
    if "\n" in text or (text[0] in "[{" and not is_address):
        value = _yaml_value(text, name, faults)
        return (value,) if is_list and isinstance(value, dict) else value
    if is_list:
        return tuple(scalar_value(item) for part in text.split(",") if (item := part.strip()))
    return scalar_value(text)


def _yaml_value(text: str, name: str, faults: FaultList) -> object:
    """The value of a variable in YAML or JSON."""

    try:
        root = read_yaml(text)
    except YamlError as error:
        syntax = error.problem.removesuffix(SYNTAX_HINT)
        problem = f"{syntax}: {quoted(text)}; write JSON, with every address in quotes"
        faults.put(FileFault(name, error.line if "\n" in text else None, "", problem))
        return ()
    mistakes = FaultList(name)
    value = None if root is None else _plain(root, (), ConfigTree(name), mistakes)
    for fault in mistakes.faults:
        faults.put(fault)
    return value


def _is_of_type(kind: Any, wanted: type) -> bool:
    """Whether a field of type *kind* accepts a value of the type *wanted*."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _is_of_type(get_args(kind)[0], wanted)
    if origin in (Union, types.UnionType):
        return any(_is_of_type(inner, wanted) for inner in get_args(kind))
    return kind is wanted or origin is wanted

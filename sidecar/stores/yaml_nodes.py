"""
YAML as a small tree that remembers where everything stands.

The files that people write for us are read by their schema: a field that is text takes what is
written, whatever YAML would make of it (`no`, `1e3`, `0123456789`). So the tree holds text and line
numbers, and the reader of a field decides. It is built from parser events, which takes a fifth of
the time and of the memory of a full YAML load. No tag is ever followed to a Python type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import yaml

DEPTH_MAX = 32
"""Deepest nesting; the files need six, and the tree is built by recursion."""

SYNTAX_HINT = "; look at this line and the one before it"
"""Ends the problem of a `YamlError` that the parser found."""

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}

# libyaml, when PyYAML was built with it, is ten times as fast as the parser written in Python.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """A text is not YAML, or uses more of YAML than we read; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        """Keep the place and what is wrong there."""
        super().__init__(problem)
        self.line = line
        self.problem = problem


class YamlScalar(NamedTuple):
    """One value as written; `is_plain` = without quotes."""

    text: str
    is_plain: bool
    line: int


class YamlList(NamedTuple):
    """A sequence."""

    items: list[YamlNode]
    line: int


class YamlMap(NamedTuple):
    """
    A mapping; keys are text.

    `repeated` holds (key, line) of keys that stand twice: whoever reads the file reports them.
    """

    entries: dict[str, YamlEntry]
    repeated: list[tuple[str, int]]
    line: int


class YamlEntry(NamedTuple):
    """One value of a mapping, and the line of its key."""

    line: int
    node: YamlNode


YamlNode: TypeAlias = YamlScalar | YamlList | YamlMap


def read_yaml(text: str) -> YamlNode | None:
    """
    The tree of the one document in *text*; None = it is empty.

    Aliases share the anchor's node, so a short text stays a small tree.

    Raises:
        YamlError: not YAML, several documents, keys that are not text, or nested too deeply.
    """
    try:
        loader = _Loader(text)
        try:
            return _Composer(loader).document()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, _syntax_fault(error)) from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise YamlError(1, f"not YAML: {' '.join(str(error).split())}") from None


def _syntax_fault(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return f"not YAML: {', '.join(parts)}{SYNTAX_HINT}"


class _Composer:
    """Builds nodes from parser events."""

    def __init__(self, loader: Any) -> None:
        self._next = loader.get_event
        self._anchors: dict[str, YamlNode] = {}

    def document(self) -> YamlNode | None:
        self._next()  # the start of the stream
        if type(self._next()) is yaml.StreamEndEvent:
            return None
        node = self._node(self._next(), 0)
        self._next()  # the end of the document
        event = self._next()
        if type(event) is not yaml.StreamEndEvent:
            raise YamlError(
                event.start_mark.line + 1, "a second document starts here; keep one per file, without '---'"
            )
        return None if node == ("", True, node.line) else node

    def _node(self, event: Any, depth: int) -> YamlNode:
        line: int = event.start_mark.line + 1
        if depth > DEPTH_MAX:
            raise YamlError(line, f"nested deeper than {DEPTH_MAX} levels")
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self._aliased(event.anchor, line)
        node: YamlNode
        if kind is yaml.ScalarEvent:
            node = YamlScalar(event.value, event.implicit[0], line)
        elif kind is yaml.SequenceStartEvent:
            node = self._list(line, depth)
        else:
            node = self._map(line, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _aliased(self, anchor: str, line: int) -> YamlNode:
        try:
            return self._anchors[anchor]
        except KeyError:
            raise YamlError(line, f"no anchor '&{anchor}' stands before this alias") from None

    def _list(self, line: int, depth: int) -> YamlList:
        items = []
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            items.append(self._node(event, depth + 1))
        return YamlList(items, line)

    def _map(self, line: int, depth: int) -> YamlMap:
        entries: dict[str, YamlEntry] = {}
        repeated: list[tuple[str, int]] = []
        while type(event := self._next()) is not yaml.MappingEndEvent:
            key_line: int = event.start_mark.line + 1
            if type(event) is not yaml.ScalarEvent:
                raise YamlError(key_line, "a key must be plain text")
            if event.value in entries:
                repeated.append((event.value, key_line))
            entries[event.value] = YamlEntry(key_line, self._node(self._next(), depth + 1))
        return YamlMap(entries, repeated, line)


def node_of(value: object, line: int = 1) -> YamlNode:
    """The tree of plain data, as if it had been written on *line*; anything else becomes its text."""
    if isinstance(value, Mapping):
        entries = {str(key): YamlEntry(line, node_of(inner, line)) for key, inner in value.items()}
        return YamlMap(entries, [], line)
    if isinstance(value, list | tuple):
        return YamlList([node_of(inner, line) for inner in value], line)
    if value is None or isinstance(value, bool):
        return YamlScalar({None: "null", True: "true", False: "false"}[value], True, line)
    return YamlScalar(str(value), not isinstance(value, str), line)


def scalar_value(text: str) -> object:
    """
    What a plain scalar means where no schema says that it is text (YAML 1.2 core schema).

    >>> [scalar_value(text) for text in ("true", "no", "403", "0.5", "null", "10.0.0.0/8")]
    [True, 'no', 403, 0.5, None, '10.0.0.0/8']
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= 20 else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return text

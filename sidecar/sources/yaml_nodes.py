"""
Parsing YAML into a small tree of text and line numbers.

Configuration files are read by their schema: a text field gets the text as written, even if YAML would give
it another type (`no`, `1e3`, `0123456789`). So the tree stores text, and the reader of a field decides. The
tree is built from parser events, which takes a fifth of the time and memory of a full YAML load. Tags never
create Python objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import yaml

DEPTH_MAX = 32
"""Maximum nesting, including that of aliases; the files need six levels, and trees are read recursively."""

VALUES_MAX = 100_000
"""Maximum number of values of a tree, or of one item of an `ItemStream`; an alias counts as the values that
it repeats. A configuration with a thousand routes has ten thousand."""

ANCHORS_MAX = 1_000
"""Maximum number of anchors of a file: each is kept until the end of the file."""

SCALAR_CHARS_MAX = 65_536
"""Maximum length of a value or key; valid ones have at most a few hundred characters."""

CANCEL_CHECK_EVENTS = 256
"""Number of parser events between two checks for cancellation: about a millisecond."""

SYNTAX_HINT = "; check this line and the one before it"
"""The end of the problem of a `YamlError` that the parser found."""

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}

# libyaml, when PyYAML was built with it, is ten times as fast as the parser written in Python.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """The text is not YAML, or uses unsupported YAML; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


class YamlCancelledError(Exception):
    """Parsing was cancelled."""


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

    `repeated` holds (key, line) of keys given more than once, which the reader of the file reports.
    """

    entries: dict[str, YamlEntry]
    repeated: list[tuple[str, int]]
    line: int


class YamlEntry(NamedTuple):
    """One value of a mapping, and the line of its key."""

    line: int
    node: YamlNode


YamlNode: TypeAlias = YamlScalar | YamlList | YamlMap


class ItemStream(NamedTuple):
    """
    A list that is read item by item, so that the whole file is never in memory as a tree.

    `key` is the key of the list in the outermost mapping; `take` is called with the number and the node of
    each item, which is not kept. `values_max` bounds the values of the whole file.
    """

    key: str
    take: Callable[[int, YamlNode], None]
    values_max: int


def read_yaml(
    text: str | bytes,
    stream: ItemStream | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> YamlNode | None:
    """
    Parse the only document in *text* (bytes are UTF-8) into a tree; None = it is empty.

    Aliases share the anchor's node. The list that *stream* names has no items in the tree.

    Raises:
        YamlError: not YAML, several documents, keys that are not text, or a limit is exceeded.
        YamlCancelledError: *is_cancelled* returned True.
    """
    try:
        loader = _Loader(text)
        try:
            return _Composer(loader, stream, is_cancelled).document()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, _syntax_fault(error)) from None
    except yaml.reader.ReaderError as error:  # a character that YAML forbids, or bytes that are not UTF-8
        begin = text[: error.position]
        line = begin.count("\n" if isinstance(begin, str) else b"\n") + 1  # type: ignore[arg-type]
        raise YamlError(line, f"not YAML: {' '.join(str(error.reason).split())}") from None
    except yaml.YAMLError as error:
        raise YamlError(1, f"not YAML: {' '.join(str(error).split())}") from None


def _syntax_fault(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return f"not YAML: {', '.join(parts)}{SYNTAX_HINT}"


class _Anchored(NamedTuple):
    """The node of an anchor, its number of values, and its depth."""

    node: YamlNode
    values: int
    height: int


class _Composer:
    """Builds nodes from parser events, within the bounds."""

    def __init__(self, loader: Any, stream: ItemStream | None, is_cancelled: Callable[[], bool]) -> None:
        self._get_event = loader.get_event
        self._stream = stream
        self._is_cancelled = is_cancelled
        self._anchors: dict[str, _Anchored] = {}
        self._anchored = 0
        self._events = 0
        self._values = 0
        """Number of values so far, including those that aliases repeat."""
        self._values_before = 0
        """The part of `_values` in items that the stream has taken."""
        self._height = 0
        """Depth of the tree below the last composed node."""

    def _next(self) -> Any:
        self._events += 1
        if self._events % CANCEL_CHECK_EVENTS == 0 and self._is_cancelled():
            raise YamlCancelledError
        return self._get_event()

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
            return self._aliased(event.anchor, line, depth)
        before = self._values
        self._count(line, 1)
        node: YamlNode
        if kind is yaml.ScalarEvent:
            _check_length(event.value, line)
            node, self._height = YamlScalar(event.value, event.implicit[0], line), 0
        elif kind is yaml.SequenceStartEvent:
            node = self._list(line, depth)
        else:
            node = self._map(line, depth)
        if event.anchor:
            self._anchor(event.anchor, _Anchored(node, self._values - before, self._height), line)
        return node

    def _count(self, line: int, values: int) -> None:
        """Count *values* more, and check the limits of the tree and of the file."""
        self._values += values
        if self._values - self._values_before + self._anchored > VALUES_MAX:
            raise YamlError(
                line,
                f"more than {VALUES_MAX} values, aliases counted in full; check that this is the right file",
            )
        if self._stream is not None and self._values > self._stream.values_max:
            raise YamlError(line, f"the file has more than {self._stream.values_max} values: split it")

    def _anchor(self, name: str, anchored: _Anchored, line: int) -> None:
        if len(self._anchors) >= ANCHORS_MAX:
            raise YamlError(line, f"the file has more than {ANCHORS_MAX} anchors ('&{name}'): use fewer")
        if self._stream is not None:
            self._anchored += anchored.values
        self._anchors[name] = anchored

    def _aliased(self, anchor: str, line: int, depth: int) -> YamlNode:
        try:
            node, values, self._height = self._anchors[anchor]
        except KeyError:
            raise YamlError(line, f"there is no anchor '&{anchor}' before this alias") from None
        self._count(line, values)
        if depth + self._height > DEPTH_MAX:
            raise YamlError(line, f"nested deeper than {DEPTH_MAX} levels by the alias '*{anchor}'")
        return node

    def _list(self, line: int, depth: int) -> YamlList:
        items, height = [], 0
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            items.append(self._node(event, depth + 1))
            height = max(height, self._height)
        self._height = height + 1
        return YamlList(items, line)

    def _streamed(self, stream: ItemStream, line: int) -> YamlList:
        """Pass the items of the current list to the stream."""
        number = 0
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            self._values_before = self._values
            stream.take(number, self._node(event, 2))
            number += 1
        self._values_before = self._values
        self._height = 0
        return YamlList([], line)

    def _map(self, line: int, depth: int) -> YamlMap:
        entries: dict[str, YamlEntry] = {}
        repeated: list[tuple[str, int]] = []
        height, stream = 0, self._stream
        while type(event := self._next()) is not yaml.MappingEndEvent:
            key_line: int = event.start_mark.line + 1
            if type(event) is not yaml.ScalarEvent:
                raise YamlError(key_line, "a key must be plain text")
            key = event.value
            _check_length(key, key_line)
            if key in entries:
                repeated.append((key, key_line))
            event = self._next()
            if (
                stream is not None
                and depth == 0
                and key == stream.key
                and type(event) is yaml.SequenceStartEvent
            ):
                node: YamlNode = self._streamed(stream, key_line)
            else:
                node = self._node(event, depth + 1)
            entries[key] = YamlEntry(key_line, node)
            height = max(height, self._height)
        self._height = height + 1
        return YamlMap(entries, repeated, line)


def _check_length(text: str, line: int) -> None:
    if len(text) > SCALAR_CHARS_MAX:
        raise YamlError(
            line, f"a text of {len(text)} characters starts here; it must have at most {SCALAR_CHARS_MAX}"
        )


def node_of(value: object, line: int = 1) -> YamlNode:
    """Convert plain data to a tree, with all nodes on *line*; other objects become their text."""
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
    The value of a plain scalar for which no schema requires text (YAML 1.2 core schema).

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

"""Typed access to the values of a YAML tree, which reports each mistake with its place."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from sidecar.sources.file_faults import FaultList, meant_key, quoted, unknown_key
from sidecar.sources.yaml_nodes import YamlList, YamlMap, YamlNode, YamlScalar

_INTEGER_CHARS_MAX = 18


class Place(NamedTuple):
    """The place of a value: its path in the file, and the line of its key or item."""

    field: str
    line: int

    def key(self, name: str, line: int) -> Place:
        """The place of entry *name* of the mapping at this place."""
        return Place(f"{self.field}.{name}" if self.field else name, line)


Fields: TypeAlias = dict[str, tuple[Place, YamlNode]]
"""The entries of a mapping with known keys and values other than null."""


class NodeReader:
    """Reads values from nodes; adds mistakes to `faults` and continues."""

    def __init__(self, faults: FaultList) -> None:
        self.faults = faults
        self._mistyped: set[tuple[str, str]] = set()

    def wrong(self, place: Place, problem: str) -> None:
        """Add a mistake."""
        self.faults.add(place.line, place.field, problem)

    def fields(self, node: YamlMap, place: Place, known: tuple[str, ...]) -> Fields:
        """The entries of *node* with keys in *known*; other keys and repeated keys are mistakes."""
        for name, line in node.repeated:
            self.wrong(place.key(name, line), "is given more than once; keep one")
        fields: Fields = {}
        for name, (line, value) in node.entries.items():
            if name not in known:
                self.wrong(Place(place.field, line), unknown_key(name, known))
                self._mistyped.add((place.field, meant_key(name, known) or ""))
            elif not is_null(value):
                fields[name] = place.key(name, line), value
        return fields

    def text(self, place: Place, node: YamlNode) -> str | None:
        """The text of a scalar, exactly as written; None = a mistake."""
        if isinstance(node, YamlScalar):
            return node.text
        self.wrong(place, "must be text, not a list or a mapping")
        return None

    def required_text(self, fields: Fields, place: Place, name: str) -> str | None:
        """The text of a required key; None = missing or a mistake."""
        if name in fields:
            return self.text(*fields[name])
        self.missing(place, name, f"'{name}' is missing; add it")
        return None

    def missing(self, place: Place, name: str, problem: str) -> None:
        """Add the mistake that key *name* is missing, unless a misspelling of it was reported."""
        if (place.field, name) not in self._mistyped:
            self.wrong(place, problem)

    def integer(self, fields: Fields, name: str) -> int | None:
        """A whole number; None = absent or a mistake."""
        if name not in fields:
            return None
        place, node = fields[name]
        text = self.text(place, node)
        if text is None:
            return None
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) <= _INTEGER_CHARS_MAX:
            return int(text)
        self.wrong(place, f"must be a whole number, not {quoted(text)}")
        return None

    def items(self, fields: Fields, name: str) -> list[tuple[Place, YamlNode]]:
        """The items of a list, each with its place; empty = absent or a mistake."""
        if name not in fields:
            return []
        place, node = fields[name]
        if isinstance(node, YamlList):
            return [
                (Place(f"{place.field}[{index}]", item.line), item) for index, item in enumerate(node.items)
            ]
        self.wrong(place, "must be a list: [one, two], or one item per line after '- '")
        return []


def is_null(node: YamlNode) -> bool:
    """Whether the value is null: empty, '~' or 'null'."""
    return isinstance(node, YamlScalar) and node.is_plain and node.text in ("", "~", "null")

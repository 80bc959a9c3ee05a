"""Typed access to a YAML tree: each value by its schema, each mistake noted with its place."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from sidecar.sources.file_faults import FaultList, meant_key, quoted, unknown_key
from sidecar.sources.yaml_nodes import YamlList, YamlMap, YamlNode, YamlScalar

_INTEGER_CHARS_MAX = 18


class Place(NamedTuple):
    """Where a value stands: its path in the file, and the line of its key or item."""

    field: str
    line: int

    def key(self, name: str, line: int) -> Place:
        """The place of entry *name* of the mapping here."""
        return Place(f"{self.field}.{name}" if self.field else name, line)


Fields: TypeAlias = dict[str, tuple[Place, YamlNode]]
"""The entries of a mapping that its schema knows and that are not null."""


class NodeReader:
    """Reads values out of nodes; notes mistakes in `faults` and goes on."""

    def __init__(self, faults: FaultList) -> None:
        """Note mistakes in *faults*."""
        self.faults = faults
        self._mistyped: set[tuple[str, str]] = set()

    def wrong(self, place: Place, problem: str) -> None:
        """Note a mistake."""
        self.faults.add(place.line, place.field, problem)

    def fields(self, node: YamlMap, place: Place, known: tuple[str, ...]) -> Fields:
        """The entries of *node* by the keys in *known*; others, and repeated ones, are mistakes."""
        for name, line in node.repeated:
            self.wrong(place.key(name, line), "stands twice; keep one of the two")
        fields: Fields = {}
        for name, (line, value) in node.entries.items():
            if name not in known:
                self.wrong(Place(place.field, line), unknown_key(name, known))
                self._mistyped.add((place.field, meant_key(name, known) or ""))
            elif not is_null(value):
                fields[name] = place.key(name, line), value
        return fields

    def text(self, place: Place, node: YamlNode) -> str | None:
        """Text, exactly as written; None = it is none."""
        if isinstance(node, YamlScalar):
            return node.text
        self.wrong(place, "must be text, not a list or a mapping")
        return None

    def required_text(self, fields: Fields, place: Place, name: str) -> str | None:
        """Text that must be there; None = it is not, and that is noted."""
        if name in fields:
            return self.text(*fields[name])
        self.missing(place, name, f"'{name}' is missing; add it")
        return None

    def missing(self, place: Place, name: str, problem: str) -> None:
        """Note that key *name* is not there, unless it is there mistyped: that is one mistake, not two."""
        if (place.field, name) not in self._mistyped:
            self.wrong(place, problem)

    def integer(self, fields: Fields, name: str) -> int | None:
        """A whole number; None = absent, or a mistake that is noted."""
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
        """The items of a list, each with its place; empty = absent, or a mistake that is noted."""
        if name not in fields:
            return []
        place, node = fields[name]
        if isinstance(node, YamlList):
            return [
                (Place(f"{place.field}[{index}]", item.line), item) for index, item in enumerate(node.items)
            ]
        self.wrong(place, "must be a list: [one, two], or one item a line after '- '")
        return []


def is_null(node: YamlNode) -> bool:
    """True for a value that was left out: nothing, '~' or 'null'."""
    return isinstance(node, YamlScalar) and node.is_plain and node.text in ("", "~", "null")

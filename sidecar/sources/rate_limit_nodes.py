"""
Rate-limit files in the YAML of envoyproxy/ratelimit: one domain a file, every mistake with its place.

Text is what is written: `value: 010` is "010". Numbers and booleans are read as its YAML library reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sidecar.domain.rate_limits.counters import HITS_MAX, Algorithm
from sidecar.domain.rate_limits.rules import Domain, Limit, Node, RateLimits, Rule, Unit
from sidecar.sources.file_faults import FaultList, FileFault, meant_key, quoted, unknown_key
from sidecar.sources.node_fields import Fields, Place
from sidecar.sources.yaml_nodes import YamlError, YamlList, YamlMap, YamlNode, YamlScalar, read_yaml

ROOT_KEYS = ("domain", "descriptors")
DESCRIPTOR_KEYS = (
    "key",
    "value",
    "rate_limit",
    "descriptors",
    "shadow_mode",
    "quota_mode",
    "share_threshold",
    "detailed_metric",
    "value_to_metric",
    "metadata",
)
LIMIT_KEYS = ("unit", "requests_per_unit", "unlimited", "name", "replaces", "algorithm")
REPLACED_KEYS = ("name",)
PLACES = (
    (ROOT_KEYS, "at the top of the file"),
    (DESCRIPTOR_KEYS, "in a descriptor, beside 'key'"),
    (LIMIT_KEYS, "in 'rate_limit'"),
)
"""Where each key belongs."""

WARNINGS_MAX = 20

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset(
    spelling for word in ("y", "yes", "on", "true") for spelling in (word, word.capitalize(), word.upper())
)
_FALSE = frozenset(
    spelling for word in ("n", "no", "off", "false") for spelling in (word, word.capitalize(), word.upper())
)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_INTEGER = re.compile(r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0o?[0-7]+|[1-9][0-9]*|0)")
_INTEGER_CHARS_MAX = 70
_INT64_MAX = 2**63 - 1


def yaml_integer(text: str) -> int | None:
    """
    The number that the original's YAML library reads; None = the text is none.

    >>> [yaml_integer(text) for text in ("010", "0x10", "0b11", "0o17", "1_000", "+5", "12:30")]
    [8, 16, 3, 15, 1000, 5, None]
    """
    digits = text.replace("_", "")
    if len(digits) > _INTEGER_CHARS_MAX or not _INTEGER.fullmatch(digits):
        return None
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if digits[:2] in ("0b", "0x", "0o"):
        return sign * int(digits, 0)
    return sign * int(digits, 8 if digits.startswith("0") else 10)


def _looks_like_float(text: str) -> bool:
    number = yaml_integer(text)
    if number is not None:
        return not -_INT64_MAX <= number <= _INT64_MAX
    return _FLOAT.fullmatch(text.replace("_", "")) is not None


def _is_null(node: YamlNode) -> bool:
    return isinstance(node, YamlScalar) and node.is_plain and node.text in _NULLS


class RateLimitReader:
    """
    Reads files one after another into `domains`; mistakes go to `faults`, remarks to `warnings`.

    *algorithm_of* gives the algorithm of a domain; *merges* = several files may hold one domain.
    """

    def __init__(self, faults: FaultList, algorithm_of: Callable[[str], Algorithm], merges: bool) -> None:
        """Begin without domains."""
        self.faults = faults
        self.warnings: list[FileFault] = []
        self.domains: dict[str, Domain] = {}
        self._algorithm_of = algorithm_of
        self._merges = merges
        self._files: dict[str, str] = {}
        self._file = ""
        self._mistyped: set[tuple[str, str]] = set()

    def limits(self) -> RateLimits:
        """What was read."""
        return RateLimits(self.domains)

    def read(self, content: bytes, file: str) -> None:
        """Read one file, which messages call *file*."""
        self._file = file
        self._mistyped.clear()
        try:
            content.decode()
            root = read_yaml(content)
        except UnicodeDecodeError:
            self._wrong(Place("", 1), "is not UTF-8 text; save it as UTF-8")
        except YamlError as error:
            self._wrong(Place("", error.line), error.problem)
        else:
            self._root(root)

    def _wrong(self, place: Place, problem: str) -> None:
        self.faults.put(FileFault(self._file, place.line, place.field, problem))

    def _missing(self, key: str, place: Place, problem: str) -> None:
        """Report that *key* is missing, unless a misspelling of it was reported."""
        if (place.field, key) not in self._mistyped:
            self._wrong(place, problem)

    def _warn(self, place: Place, remark: str) -> None:
        if len(self.warnings) < WARNINGS_MAX:
            self.warnings.append(FileFault(self._file, place.line, place.field, remark))

    def _root(self, root: YamlNode | None) -> None:
        place = Place("", 1 if root is None else root.line)
        if root is not None and not isinstance(root, YamlMap):
            self._wrong(place, "must be a mapping with 'domain' and 'descriptors'")
            return
        fields = {} if root is None else self._fields(root, place, ROOT_KEYS)
        name = self._text(fields, "domain")
        if not name:
            if "domain" not in fields or name == "":
                self._missing(
                    "domain",
                    place,
                    "'domain' is missing or empty; write 'domain: <name>' (is it a rate-limit file?)",
                )
            return
        domain = self.domains.get(name)
        if domain is not None and not self._merges:
            self._wrong(
                fields["domain"][0],
                f"domain {quoted(name)} is also in {self._files[name]}; use one file for each domain, or set"
                " 'rate_limits.merge_domains: true'",
            )
            return
        if domain is None:
            domain = self.domains[name] = Domain(name, self._algorithm_of(name))
            self._files[name] = self._file
        self._descriptors(fields, domain.root, "")

    def _descriptors(self, fields: Fields, parent: Node, path: str) -> None:
        for place, node in self._items(fields, "descriptors"):
            if isinstance(node, YamlMap):
                self._descriptor(node, place, parent, path)
            else:
                self._wrong(place, "must be a mapping with 'key'")

    def _descriptor(self, node: YamlMap, place: Place, parent: Node, path: str) -> None:
        fields = self._fields(node, place, DESCRIPTOR_KEYS)
        key, value = self._text(fields, "key"), self._text(fields, "value")
        if not key:
            if "key" not in fields or key == "":
                self._missing("key", place, "'key' is missing or empty; write 'key: <name>'")
            return
        text = f"{key}_{value}" if value else key
        path = f"{path}.{text}" if path else text
        is_shared = self._bool(fields, "share_threshold")
        if is_shared and "*" not in text:
            self._wrong(
                fields["share_threshold"][0],
                f"needs a wildcard: {quoted(text)} has no '*', so there are no values to share a limit",
            )
        for name in ("detailed_metric", "value_to_metric"):
            if self._bool(fields, name):
                self._warn(fields[name][0], "has no effect: metrics name rules, never values of requests")
        rule = Rule(
            path,
            self._limit(fields),
            self._bool(fields, "shadow_mode"),
            self._bool(fields, "quota_mode"),
            text if is_shared else None,
            self._metadata(fields),
        )
        child = Node(rule)
        if not parent.add(text, child):
            self._wrong(
                place,
                f"{quoted(path)} is there already: another descriptor at this level has the same 'key' or"
                " 'key_value'; keep one of them",
            )
        self._descriptors(fields, child, path)

    def _limit(self, fields: Fields) -> Limit | None:
        if "rate_limit" not in fields:
            return None
        place, node = fields["rate_limit"]
        if not isinstance(node, YamlMap):
            self._wrong(place, "must be a mapping with 'unit' and 'requests_per_unit'")
            return None
        inner = self._fields(node, place, LIMIT_KEYS)
        name = self._text(inner, "name") or ""
        unit_text = self._text(inner, "unit") or ""
        unit = Unit.__members__.get(unit_text.upper())
        is_unlimited = self._bool(inner, "unlimited")
        requests = self._requests(inner)
        if is_unlimited and unit is not None:
            self._wrong(inner["unit"][0], "has no place beside 'unlimited: true'; remove one of the two")
        elif not is_unlimited and unit is None:
            units = ", ".join(unit.name.lower() for unit in Unit)
            at = inner["unit"][0] if "unit" in inner else place
            self._wrong(at, f"unit must be one of {units}, not {quoted(unit_text)}")
        elif not is_unlimited and "requests_per_unit" not in inner:
            self._warn(place, "'requests_per_unit' is missing, which means 0: every request is refused")
        if is_unlimited:
            for key in ("unit", "requests_per_unit"):
                if key in inner:
                    self._warn(inner[key][0], "has no effect beside 'unlimited: true'")
        return Limit(
            None if is_unlimited else unit,
            requests,
            name,
            self._replaces(inner, name),
            self._algorithm(inner),
        )

    def _requests(self, fields: Fields) -> int:
        if "requests_per_unit" not in fields:
            return 0
        place, node = fields["requests_per_unit"]
        number = yaml_integer(node.text) if isinstance(node, YamlScalar) and node.is_plain else None
        if number is None or not 0 <= number <= HITS_MAX:
            shown = quoted(node.text) if isinstance(node, YamlScalar) else "a list or a mapping"
            self._wrong(place, f"must be a whole number from 0 to {HITS_MAX} without quotes, not {shown}")
            return 0
        return number

    def _algorithm(self, fields: Fields) -> Algorithm | None:
        text = self._text(fields, "algorithm")
        if text is None:
            return None
        try:
            return Algorithm(text)
        except ValueError:
            known = " or ".join(algorithm.value for algorithm in Algorithm)
            self._wrong(fields["algorithm"][0], f"must be {known}, not {quoted(text)}")
            return None

    def _replaces(self, fields: Fields, own_name: str) -> frozenset[str]:
        names: set[str] = set()
        for place, node in self._items(fields, "replaces"):
            if not isinstance(node, YamlMap):
                self._wrong(place, "must be a mapping: '- name: <name of another limit>'")
                continue
            name = self._text(self._fields(node, place, REPLACED_KEYS), "name")
            if not name:
                self._wrong(place, "'name' is missing or empty; name the limit to replace")
            elif name == own_name:
                self._wrong(place, f"{quoted(name)} is this limit itself; name another one")
            else:
                names.add(name)
        return frozenset(names)

    def _metadata(self, fields: Fields) -> dict[str, Any]:
        if "metadata" not in fields:
            return {}
        place, node = fields["metadata"]
        if not isinstance(node, YamlMap):
            self._wrong(place, "must be a mapping")
            return {}
        values: dict[str, Any] = plain_value(node)
        return values

    # Values by their type.

    def _fields(self, node: YamlMap, place: Place, known: tuple[str, ...]) -> Fields:
        """The entries of *node*, merged ones ('<<') included; those that are null are absent."""
        for name, line in node.repeated:
            self._wrong(place.key(name, line), "is there twice; keep one of the two")
        fields: Fields = {}
        for name, (line, value) in node.entries.items():
            if name == "<<":
                for merged in self._merged(value, place.key(name, line)):
                    for inner, found in self._fields(merged, place, known).items():
                        fields.setdefault(inner, found)
            elif name not in known:
                self._wrong(Place(place.field, line), _unknown(name, known))
                self._mistyped.add((place.field, meant_key(name, known) or ""))
        for name, (line, value) in node.entries.items():
            if name in known:
                if _is_null(value):
                    fields.pop(name, None)
                else:
                    fields[name] = place.key(name, line), value
        return fields

    def _merged(self, node: YamlNode, place: Place) -> list[YamlMap]:
        nodes = node.items if isinstance(node, YamlList) else [node]
        merged = [each for each in nodes if isinstance(each, YamlMap)]
        if len(merged) != len(nodes):
            self._wrong(place, "must be a mapping, or a list of them")
        return merged

    def _text(self, fields: Fields, name: str) -> str | None:
        """Text as it is written; None = absent, or a mistake that is noted."""
        if name not in fields:
            return None
        place, node = fields[name]
        if not isinstance(node, YamlScalar):
            self._wrong(place, "must be text, not a list or a mapping")
            return None
        if node.is_plain and _looks_like_float(node.text):
            self._wrong(place, f"looks like a number with a fraction: {quoted(node.text)}; put it in quotes")
            return None
        return node.text

    def _bool(self, fields: Fields, name: str) -> bool:
        if name not in fields:
            return False
        place, node = fields[name]
        if isinstance(node, YamlScalar) and node.is_plain and node.text in _TRUE | _FALSE:
            return node.text in _TRUE
        shown = quoted(node.text) if isinstance(node, YamlScalar) else "a list or a mapping"
        self._wrong(place, f"must be true or false without quotes, not {shown}")
        return False

    def _items(self, fields: Fields, name: str) -> list[tuple[Place, YamlNode]]:
        if name not in fields:
            return []
        place, node = fields[name]
        if isinstance(node, YamlList):
            return [(Place(f"{place.field}[{i}]", item.line), item) for i, item in enumerate(node.items)]
        self._wrong(place, "must be a list, one item a line after '- '")
        return []


def _unknown(name: str, known: tuple[str, ...]) -> str:
    """What to say about a key that has no meaning here, although it may have one elsewhere."""
    for keys, place in PLACES:
        if name in keys:
            return f"{name!r} has no meaning here: it belongs {place}; move it there"
    return unknown_key(name, known)


def plain_value(node: YamlNode) -> Any:
    """What a node means where anything may be written: mappings, lists, text, numbers, booleans, None."""
    if isinstance(node, YamlMap):
        values: dict[str, Any] = {}
        for name, (_, value) in node.entries.items():
            if name == "<<":
                for merged in value.items if isinstance(value, YamlList) else [value]:
                    values = {**plain_value(merged), **values} if isinstance(merged, YamlMap) else values
        return {
            **values,
            **{name: plain_value(value) for name, (_, value) in node.entries.items() if name != "<<"},
        }
    if isinstance(node, YamlList):
        return [plain_value(item) for item in node.items]
    text = node.text
    if not node.is_plain:
        return text
    if text in _NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    number = yaml_integer(text)
    if number is not None:
        return number
    if _FLOAT.fullmatch(text.replace("_", "")) and "n" not in text.lower():
        return float(text.replace("_", ""))
    return text

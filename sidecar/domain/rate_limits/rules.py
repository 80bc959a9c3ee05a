"""
The rules of the rate-limit service: a tree of descriptors for each domain, and which rule a request meets.

At each level of the tree a request's entry finds, in this order, the node of exactly its key and value, the
first wildcard in file order, the node of its key alone. There is no way back from a node that was found, and
a limit counts only where the request ends. Source: envoyproxy/ratelimit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b
from typing import Final, TypeAlias, final

from sidecar.domain.rate_limits.counters import Algorithm

KEY_CHARS_MAX: Final = 160
"""A counter with a longer key is known by a hash of it, so that callers cannot fill the store's memory."""

Entries: TypeAlias = "Sequence[tuple[str, str]]"
"""The keys and values of one descriptor of a request."""


class Unit(IntEnum):
    """A unit of time, by its number in the protocol."""

    SECOND = 1
    MINUTE = 2
    HOUR = 3
    DAY = 4
    MONTH = 5
    YEAR = 6
    WEEK = 7

    @property
    def seconds(self) -> int:
        """How long it is: a month has 30 days, a year 365."""
        return UNIT_SECONDS[self]


UNIT_SECONDS: Final = {
    Unit.SECOND: 1,
    Unit.MINUTE: 60,
    Unit.HOUR: 3_600,
    Unit.DAY: 86_400,
    Unit.WEEK: 604_800,
    Unit.MONTH: 2_592_000,
    Unit.YEAR: 31_536_000,
}


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A number of requests per unit.

    `unit` None = unlimited. `replaces` names limits that are ignored in requests with this limit; `algorithm`
    None = that of the domain.
    """

    unit: Unit | None
    requests: int = 0
    name: str = ""
    replaces: frozenset[str] = frozenset()
    algorithm: Algorithm | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether it never refuses."""
        return self.unit is None


@dataclass(frozen=True, slots=True)
class Rule:
    """
    The rule of one configured descriptor.

    `path` names the rule in metrics and errors: 'key_value.key' of the nodes from the root. `shared_pattern`
    is the text that replaces the values of matching requests, None = each value has a separate counter.
    `metadata` is returned to the proxy.
    """

    path: str
    limit: Limit | None = None
    is_shadow: bool = False
    is_quota: bool = False
    shared_pattern: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)


class Node:
    """One level of a tree: a rule, and the nodes below it by the text of key and value."""

    __slots__ = ("_wildcards", "children", "rule")

    def __init__(self, rule: Rule) -> None:
        """Begin without nodes below."""
        self.rule = rule
        self.children: dict[str, Node] = {}
        self._wildcards: list[tuple[Wildcard, Node]] = []

    def add(self, text: str, node: Node) -> bool:
        """Add *node* as the child *text*, `key` or `key_value`; False = the child exists."""
        if text in self.children:
            return False
        self.children[text] = node
        if "*" in text:
            self._wildcards.append((Wildcard(text), node))
        return True

    def below(self, key: str, value: str) -> Node | None:
        """Return the child that matches a request's entry; None = no match."""
        text = f"{key}_{value}"
        found = self.children.get(text) if value else None
        if found is None:
            for wildcard, node in self._wildcards:
                if wildcard.fits(text):
                    return node
            return self.children.get(key)
        return found


@final
class Wildcard:
    """A pattern in which each '*' matches any number of characters."""

    __slots__ = ("_first", "_last", "_least", "_middle")

    def __init__(self, pattern: str) -> None:
        """
        Part *pattern* at each '*'; it holds at least one.

        >>> Wildcard("/v/*/run").fits("/v/1/2/run"), Wildcard("a*a").fits("a")
        (True, False)
        """
        self._first, *self._middle, self._last = pattern.split("*")
        self._least = len(self._first) + len(self._last)

    def fits(self, text: str) -> bool:
        """Whether the pieces are in *text* in order, without overlap, the outer ones at its ends."""
        if len(text) < self._least or not text.startswith(self._first) or not text.endswith(self._last):
            return False
        at, end = len(self._first), len(text) - len(self._last)
        for piece in self._middle:
            at = text.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


@final
class Match:
    """A rule that a descriptor has met, and the key of the counter without its limit."""

    __slots__ = ("counter", "rule")

    def __init__(self, rule: Rule, counter: str) -> None:
        """See the class."""
        self.rule = rule
        self.counter = counter


class Domain:
    """The tree of one domain."""

    __slots__ = ("algorithm", "name", "root")

    def __init__(self, name: str, algorithm: Algorithm = Algorithm.FIXED_WINDOW) -> None:
        """Begin without rules; limits that say nothing else count by *algorithm*."""
        self.name = name
        self.algorithm = algorithm
        self.root = Node(Rule(""))

    def match(self, entries: Entries) -> Match | None:
        """The limited rule that a descriptor meets; None = there is none, so nothing limits it."""
        node, parts = self.root, []
        for key, value in entries:
            found = node.below(key, value)
            if found is None:
                return None
            node = found
            pattern = node.rule.shared_pattern
            parts.append(part_of(key, value) if pattern is None else f"*{len(pattern)}:{pattern}")
        rule = node.rule
        if rule.limit is None or not entries:
            return None
        return Match(rule, bounded("".join(parts)))

    def rules(self) -> Iterator[Rule]:
        """Every rule with a limit that can refuse, in file order."""
        nodes = [self.root]
        while nodes:
            node = nodes.pop()
            if node.rule.limit is not None and not node.rule.limit.is_unlimited:
                yield node.rule
            nodes.extend(reversed(node.children.values()))


def part_of(key: str, value: str) -> str:
    """
    One entry in the key of a counter; two different lists of entries never have the same text.

    >>> part_of("a", "b_c") == part_of("a_b", "c")
    False
    """
    return f"{len(key)}:{key}{len(value)}:{value}"


def counter_of(entries: Entries) -> str:
    """The key of the counter of a descriptor that brings its own limit."""
    return bounded("".join(part_of(key, value) for key, value in entries))


def bounded(text: str) -> str:
    """*text*, or where it is long a hash of it."""
    if len(text) <= KEY_CHARS_MAX:
        return text
    return f"#{blake2b(text.encode(errors='surrogatepass'), digest_size=20).hexdigest()}"


class RateLimits:
    """Every domain; what is in force is replaced whole."""

    __slots__ = ("domains",)

    def __init__(self, domains: Mapping[str, Domain] | None = None) -> None:
        """See the class."""
        self.domains: Mapping[str, Domain] = domains or {}

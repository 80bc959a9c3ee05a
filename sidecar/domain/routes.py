"""
The route table: maps a method and a path to a target.

Routes are an ordered list, and the first match wins. The table finds it without iterating over the list: it
is a trie over path segments in which every node represents *all* routes that are still possible. A match
follows one branch, never backtracks, and takes one dictionary look-up per segment, whatever the number of
routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

from sidecar.domain.path_faults import PathRefusedError
from sidecar.domain.paths import normalize_path

T = TypeVar("T")

EDGES_MAX: Final = 200_000
"""Maximum edges of a compiled table. Ordinary lists need one edge per segment."""

_PARAM: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
_METHOD: Final = re.compile(r"[A-Z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 5.6.2, without lower case
_TAIL: Final = "**"


class RouteError(ValueError):
    """A route is invalid; the message says what is wrong and what to write instead."""


@dataclass(frozen=True, slots=True)
class RoutePattern:
    """
    The paths of a route.

    `segments` are literal text in the normal form of paths, or None for a parameter, which matches exactly
    one non-empty segment. `has_tail` = zero or more segments may follow. Patterns that match the same paths
    are equal; `text` is the pattern as configured.
    """

    segments: tuple[str | None, ...]
    has_tail: bool
    text: str = field(compare=False)

    def __str__(self) -> str:
        """The pattern as configured."""
        return self.text


def parse_route_path(text: str) -> RoutePattern:
    """
    Parse '/literal/{param}/**'; a trailing slash is ignored, also in the paths to match.

    >>> parse_route_path("/v1/orders/{order_id}/**").segments
    ('v1', 'orders', None)

    Raises:
        RouteError: *text* is not a pattern.
    """
    if not text.startswith("/"):
        raise _fault(text, "it must start with '/'")
    parts = text.removesuffix("/").split("/")[1:]
    has_tail = bool(parts) and parts[-1] == _TAIL
    segments: list[str | None] = []
    names = set()
    for part in parts[:-1] if has_tail else parts:
        param = _PARAM.fullmatch(part)
        if param is None:
            segments.append(_parse_literal(text, part))
            continue
        if param[1] in names:
            raise _fault(text, f"two parameters are named {param[1]!r}: rename one")
        names.add(param[1])
        segments.append(None)
    return RoutePattern(tuple(segments), has_tail, text)


def _parse_literal(text: str, part: str) -> str:
    if part == _TAIL:
        raise _fault(text, "'**' can only be the last segment")
    if "*" in part:
        raise _fault(
            text, "'*' is not a wildcard: write {name} for one segment or end with '/**' for any number"
        )
    if "{" in part or "}" in part:
        raise _fault(text, "a parameter is a whole segment: {name} of letters, digits, '_' and '-'")
    if part.startswith(":"):
        raise _fault(text, f"write {{{part[1:] or 'name'}}} for a parameter, not {part!r}")
    if "?" in part:
        raise _fault(text, "a route has no query: remove '?' and everything after it")
    if not part:
        raise _fault(text, "it has an empty segment ('//')")
    try:
        return normalize_path(f"/{part}")[1:]
    except PathRefusedError as error:
        raise _fault(text, f"segment {part!r}: {error}. {error.fault.remedy}") from None


def _fault(text: str, fault: str) -> RouteError:
    return RouteError(f"route path {text!r}: {fault}")


RouteEntry: TypeAlias = tuple[frozenset[str], RoutePattern, T]
"""
One route: methods, pattern, target.

Methods are upper case; no methods, or '*', means every method. An entry for GET also matches HEAD
(RFC 9110 9.3.2: the same request without a body); to treat HEAD differently, list it in an earlier entry.
OPTIONS is a method like any other.
"""


@dataclass(frozen=True, slots=True)
class UnreachableEntry:
    """Entry number `index` never wins, because the entries `hidden_by` win for all its paths and methods."""

    index: int
    hidden_by: tuple[int, ...]


class RouteTable(Generic[T]):
    """A compiled list of routes; a match begins at the state `start`."""

    __slots__ = ("_unreachable", "start")

    def __init__(self, entries: Iterable[RouteEntry[T]]) -> None:
        """
        Compile *entries*; the first match wins.

        Raises:
            RouteError: a method is not upper case, or the patterns overlap in too many ways.
        """
        compiler = _Compiler(tuple(entries))
        self.start = compiler.compile()
        self._unreachable = compiler.unreachable()

    def match(self, method: str, path: str) -> T | None:
        """
        Return the target of the first entry that matches; None = no entry matches.

        See `locate`. Methods are case-sensitive (RFC 9110 9.1).
        """
        return self.locate(path).match(method)

    def locate(self, path: str) -> RouteState[T]:
        """
        Return the state after the segments of *path*, with one look-up per segment.

        *path* is in the normal form of `normalize_path`; '/a/' has the state of '/a'.
        """
        segments = path.split("/")
        if not segments[-1]:
            segments.pop()
        state = self.start
        for segment in segments:
            edges = state.edges
            if edges is None:
                break
            state = edges.get(segment, state.other)
        return state

    def unreachable(self) -> tuple[UnreachableEntry, ...]:
        """Return the entries that no request can reach, in list order."""
        return self._unreachable


class RouteState(Generic[T]):
    """
    The state of a match after some segments of a path.

    `edges` maps the next segment to the next state, and `other` is the next state for any other segment;
    `edges` None = no further segment changes the state. If the path ends here, `targets` has the winner by
    method and `default` the winner for all other methods. `beyond` is the state of the entries that match
    only by their '**'; `is_exact` = other entries match, too.
    """

    __slots__ = ("beyond", "default", "edges", "is_exact", "other", "targets")

    def __init__(self, targets: Mapping[str, T], default: T | None, is_exact: bool) -> None:
        """Create a state without edges."""
        self.edges: dict[str, RouteState[T]] | None = None
        self.other: RouteState[T] = self
        self.beyond: RouteState[T] = self
        self.targets = targets
        self.default = default
        self.is_exact = is_exact

    def match(self, method: str) -> T | None:
        """Return the winner for *method* if the path ends here; None = no entry matches."""
        return self.targets.get(method, self.default)

    @property
    def has_entries(self) -> bool:
        """Whether an entry matches with any method if the path ends here."""
        return self.default is not None or bool(self.targets)


class _Node:
    """
    A node of the plain trie, for patterns that share the segments up to this node.

    `ends` are the entries whose pattern ends at this node. A '**' is a separate node (`tail`) that every
    segment leads back to (`is_tail`).
    """

    __slots__ = ("ends", "is_tail", "literals", "param", "tail")

    def __init__(self, is_tail: bool = False) -> None:
        """Create a node without children."""
        self.literals: dict[str, _Node] = {}
        self.param: _Node | None = None
        self.tail: _Node | None = None
        self.is_tail = is_tail
        self.ends: list[int] = []


_Nodes = frozenset[_Node]


class _Compiler(Generic[T]):
    """
    Builds the plain trie, then merges nodes that match at the same time (subset construction).

    A literal and a parameter can match the same segment; a match in the plain trie would have to try both, at
    every level. So the states of the table are *sets* of nodes of the plain trie.
    """

    def __init__(self, entries: tuple[RouteEntry[T], ...]) -> None:
        """Compile *entries* in order."""
        self._entries = entries
        self._methods = [_expand_methods(methods, pattern) for methods, pattern, _ in entries]
        self._states: dict[_Nodes, RouteState[T]] = {}
        self._pending: list[_Nodes] = []
        self._edges = 0
        # By entry: the entries that win where it matches.
        self._won_by: tuple[set[int], ...] = tuple(set() for _ in entries)
        self._unreachable: tuple[UnreachableEntry, ...] = ()

    def compile(self) -> RouteState[T]:
        """Return the state before the first '/'."""
        start = _Node()
        root = start.literals[""] = _Node()
        for index, (_, pattern, _) in enumerate(self._entries):
            _insert(root, pattern, index)
        start_state = self._state(frozenset([start]))
        while self._pending:
            self._connect(self._pending.pop())
        self._unreachable = tuple(
            UnreachableEntry(index, tuple(sorted(by)))
            for index, by in enumerate(self._won_by)
            if index not in by
        )
        for nodes in list(self._states):
            self._states[nodes].beyond = self._state(frozenset(node for node in nodes if node.is_tail))
        return start_state

    def unreachable(self) -> tuple[UnreachableEntry, ...]:
        """Return the entries that never win; call `compile` first."""
        return self._unreachable

    def _connect(self, nodes: _Nodes) -> None:
        """Add the edges of the state of *nodes*."""
        state = self._states[nodes]
        any_segment: set[_Node] = set()
        for node in nodes:
            if node.param is not None:
                _enter(node.param, any_segment)
            if node.is_tail:
                any_segment.add(node)
        literals = {literal for node in nodes for literal in node.literals}
        if not literals and any_segment == nodes:
            return
        self._edges += len(literals) + 1
        if self._edges > EDGES_MAX:
            raise RouteError(
                f"the routes overlap in too many ways (more than {EDGES_MAX:,} edges): use fewer "
                "{param} segments next to literal segments, or end patterns earlier with '/**'"
            )
        state.other = self._state(frozenset(any_segment))
        state.edges = {}
        for literal in literals:
            following = set(any_segment)
            for node in nodes:
                if literal in node.literals:
                    _enter(node.literals[literal], following)
            state.edges[literal] = self._state(frozenset(following))

    def _state(self, nodes: _Nodes) -> RouteState[T]:
        state = self._states.get(nodes)
        if state is None:
            winners, default = self._winners(sorted(index for node in nodes for index in node.ends))
            targets = {method: self._entries[index][2] for method, index in winners.items()}
            is_exact = any(node.ends and not node.is_tail for node in nodes)
            state = RouteState(targets, None if default is None else self._entries[default][2], is_exact)
            self._states[nodes] = state
            self._pending.append(nodes)
        return state

    def _winners(self, indexes: list[int]) -> tuple[dict[str, int], int | None]:
        """Return the winners by method and for all other methods, among entries that match the same path."""
        winners: dict[str, int] = {}
        default: int | None = None
        for index in indexes:
            for method in self._methods[index]:
                winner = winners.get(method, default)
                if winner is None:
                    winner = winners[method] = index
                self._won_by[index].add(winner)
            if not self._methods[index]:
                default = index if default is None else default
                self._won_by[index].update(winners.values(), (default,))
        return winners, default


def _expand_methods(methods: frozenset[str], pattern: RoutePattern) -> frozenset[str]:
    """Return *methods*, with HEAD if GET is present; empty = every method."""
    for method in methods:
        if not _METHOD.fullmatch(method):
            raise _fault(pattern.text, f"method {method!r} must be upper case, such as 'GET', or '*'")
    if "*" in methods:
        return frozenset()
    return methods | {"HEAD"} if "GET" in methods else methods


def _insert(root: _Node, pattern: RoutePattern, index: int) -> None:
    node = root
    for segment in pattern.segments:
        if segment is None:
            node.param = node.param or _Node()
            node = node.param
        else:
            node = node.literals.setdefault(segment, _Node())
    if pattern.has_tail:
        node.tail = node.tail or _Node(is_tail=True)
        node = node.tail
    node.ends.append(index)


def _enter(node: _Node, nodes: set[_Node]) -> None:
    """Add *node*, and its '**', which also matches zero segments."""
    nodes.add(node)
    if node.tail is not None:
        nodes.add(node.tail)

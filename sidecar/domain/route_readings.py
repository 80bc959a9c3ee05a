"""
Finds the route of a path under every common interpretation ("reading") of paths by upstreams.

Programs interpret three things differently before they route. Letter case: significant or not. Escapes: all
are decoded, or only those of unreserved characters (RFC 3986 6.2.2.2), or none. A trailing slash: '/a/' is
'/a', or another path with an empty last segment. The sidecar must decide by the route that the upstream
serves, so it looks every reading up in the route table, with the literal segments of the routes read in the
same way. If two readings lead to routes with different targets, the path is refused.

A reading without a route is ignored: an upstream with this reading serves nothing. The primary reading, which
must have a route, is that of the route list: every escape decoded, letter case significant (unless
`Case.INSENSITIVE`), '/a/' read as '/a' (unless `TrailingSlash.SIGNIFICANT`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Generic, TypeVar
from urllib.parse import quote, unquote

from sidecar.domain.path_faults import AmbiguousRouteError
from sidecar.domain.paths import (
    PATH_CHARS_MAX,
    PLAIN_TARGET,
    SIMPLE_TARGET,
    decode_unreserved,
    normalize_path,
)
from sidecar.domain.routes import RouteEntry, RoutePattern, RouteState, RouteTable, UnreachableEntry

T = TypeVar("T")


class Case(Enum):
    """Whether letter case is significant for the upstream's routes; `EITHER` = unknown."""

    SENSITIVE = "sensitive"
    INSENSITIVE = "insensitive"
    EITHER = "either"


class TrailingSlash(Enum):
    """Whether the upstream distinguishes '/a/' from '/a'; `EITHER` = unknown."""

    IGNORED = "ignored"
    SIGNIFICANT = "significant"
    EITHER = "either"


_UNESCAPED: Final = "/!$&'()*+,=:@"
"""Characters that a normal form never escapes, besides letters, digits, '-', '.', '_' and '~'."""


def _unchanged(text: str) -> str:
    return text


def _caseless(text: str) -> str:
    """Fold the case of *text*, including letters that are not ASCII."""
    return quote(unquote(text).casefold(), safe=_UNESCAPED) if "%" in text else text.lower()


_FOLDS: Final[dict[Case, tuple[Callable[[str], str], ...]]] = {
    Case.SENSITIVE: (_unchanged,),
    # Some programs fold only ASCII, others every letter: they read K (the Kelvin sign) as k.
    Case.INSENSITIVE: (_caseless, str.lower),
    Case.EITHER: (_unchanged, _caseless, str.lower),
}
"""The case foldings of path and routes; the first is the primary reading."""


class RouteReadings(Generic[T]):
    """
    A route list, compiled for every reading.

    All readings of a path without escapes, capitals and trailing slash are equal, so it takes one look-up if
    the routes have no capitals either. Other paths take a bounded number of look-ups, usually two.
    """

    __slots__ = (
        "_caseless",
        "_chars_max",
        "_depth",
        "_has_space",
        "_is_caseless",
        "_is_plain",
        "_primary",
        "_segment_chars",
        "_slash",
        "_tables",
        "has_entries",
    )

    def __init__(
        self,
        entries: Iterable[RouteEntry[T]],
        case: Case = Case.EITHER,
        trailing_slash: TrailingSlash = TrailingSlash.EITHER,
        chars_max: int = PATH_CHARS_MAX,
    ) -> None:
        """
        Compile *entries*; the earlier one wins. Targets are compared by `==`.

        Raises:
            RouteError: a method is not upper case, or the patterns overlap in too many ways.
        """
        entries = tuple(entries)
        self.has_entries = bool(entries)
        literals = {literal for _, pattern, _ in entries for literal in pattern.segments if literal}
        tables: dict[frozenset[tuple[str, str]], RouteTable[T]] = {}
        self._tables: list[tuple[Callable[[str], str], RouteTable[T]]] = []
        for fold in _FOLDS[case]:
            # Equal readings of the routes share one table.
            reading = frozenset((literal, fold(literal)) for literal in literals)
            table = tables.get(reading)
            if table is None:
                table = tables[reading] = RouteTable(
                    [(methods, _fold_pattern(pattern, fold), target) for methods, pattern, target in entries]
                )
            self._tables.append((fold, table))
        self._primary = self._tables[0][1]
        self._is_caseless = case is Case.INSENSITIVE
        # The other tables, for a path without escapes, whose lower case is the same in all of them.
        self._caseless = tuple({id(table): table for _, table in self._tables[1:]}.values())
        self._depth = max((len(pattern.segments) for _, pattern, _ in entries), default=0)
        # Nine characters, such as %E2%84%AA, are at least one character in every reading.
        self._segment_chars = 9 * max(map(len, literals), default=0) + 9
        self._has_space = any("%20" in literal for literal in literals)
        self._is_plain = len(tables) == 1 and not self._has_space
        self._slash = trailing_slash
        self._chars_max = chars_max

    def find(self, method: str, target: str) -> T | None:
        """
        Return the route of request target *target*, which may have a query; None = no route.

        Raises:
            PathRefusedError: programs could interpret the path differently.
        """
        is_simple = self._is_plain
        plain = SIMPLE_TARGET(target) if is_simple else None
        if plain is None:
            is_simple, plain = False, PLAIN_TARGET(target)
        if plain is not None:
            path: str = plain[1]
            # '/.' may be harmless: '/.well-known'
            if len(path) <= self._chars_max and "//" not in path and "/." not in path:
                if is_simple:
                    state = self._primary.locate(path)
                    return state.targets.get(method, state.default)
                if path[-1] != "/" and not self._has_space:
                    return self._compare_case(method, path)
        return self._compare(method, target)

    def normalize(self, target: str) -> str:
        """
        Normalize a path without looking its route up; see `normalize_path`.

        Raises:
            PathRefusedError: programs could interpret the path differently.
        """
        return normalize_path(target, self._chars_max)

    def has_path(self, target: str) -> bool:
        """Whether the path of *target*, which is not refused, has a route with any method."""
        fold, table = self._tables[0]
        return self._states(table, fold(self.normalize(target)))[0].has_entries

    def unreachable(self) -> tuple[UnreachableEntry, ...]:
        """See `RouteTable.unreachable`."""
        return self._primary.unreachable()

    def _compare_case(self, method: str, path: str) -> T | None:
        """Return the route of *path*, which has no escapes and no trailing '/', so that only case matters."""
        lower = path.lower()
        primary = self._primary.locate(lower if self._is_caseless else path).match(method)
        if primary is not None:
            for table in self._caseless:
                match = table.locate(lower).match(method)
                if match is not primary and match is not None and match != primary:
                    raise AmbiguousRouteError(primary, match)
        return primary

    def _compare(self, method: str, target: str) -> T | None:
        spellings = self.spellings(target)
        fold, table = self._tables[0]
        path = fold(spellings[0])
        states = self._states(table, path)
        primary = states[0].match(method)
        if primary is None:
            return None
        seen = {(id(table), path)}
        for fold, table in self._tables:
            for spelling in spellings:
                reading = id(table), fold(spelling)
                if reading not in seen:
                    seen.add(reading)
                    states += self._states(table, reading[1])
        for state in states:
            match = state.match(method)
            if match is not None and match != primary:
                raise AmbiguousRouteError(primary, match)
        return primary

    def _states(self, table: RouteTable[T], path: str) -> list[RouteState[T]]:
        """Return the states of *path* in *table*, one for each reading of a trailing '/'."""
        state = table.locate(path)
        if path[-1] != "/" or self._slash is TrailingSlash.IGNORED:
            return [state]
        if path == "/" and state.is_exact:
            return [state]  # a route for '/' itself has only one reading
        significant = [state.beyond, state.other]  # the empty segment matches '**' only, or a parameter
        return significant if self._slash is TrailingSlash.SIGNIFICANT else [state, *significant]

    def spellings(self, target: str) -> list[str]:
        """Return the decodings of *target*'s path by different programs, beginning with the normal form."""
        path, raw = self.normalize(target), target.partition("?")[0]
        spellings = [self._truncate(path)]
        if "%" in raw:
            undecoded = self._truncate(raw)
            spellings += [undecoded, decode_unreserved(undecoded)]
        if self._has_space and "+" in raw:  # some programs decode a path like a form
            spaced = normalize_path(raw.replace("+", "%20"), 3 * self._chars_max)
            spellings.append(self._truncate(spaced))
        return spellings

    def _truncate(self, path: str) -> str:
        """
        Cut *path* to the part that can match a literal, so that long paths compare as fast as short ones.

        Segments after those of the longest route, and segments longer than every literal, match only '**' and
        parameters.
        """
        segments = path.split("/", self._depth + 2)
        del segments[self._depth + 2 :]
        return "/".join([segment[: self._segment_chars] for segment in segments])


def _fold_pattern(pattern: RoutePattern, fold: Callable[[str], str]) -> RoutePattern:
    """Return *pattern* with *fold* applied to its literal segments."""
    segments = tuple(None if literal is None else fold(literal) for literal in pattern.segments)
    return RoutePattern(segments, pattern.has_tail, pattern.text)

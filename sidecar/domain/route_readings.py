"""
The route that an upstream will serve, whichever common way it has of reading a path.

Programs differ about three things before they route. Some ignore the case of letters, some do not. Some
decode every escape, some those of unreserved characters alone (RFC 3986 6.2.2.2), some none. And '/a/' is
'/a' to some, another path to others, whose last segment is empty. The route that this sidecar judges must be
the one that the upstream serves, so each of these readings is looked up in the route table, with the literal
segments of the routes read in the same way. Where two readings lead to routes with different targets, the
path is refused.

A reading that leads to no route counts for nothing: an upstream that reads so has nothing to serve. The
reading that must lead to a route is that of the route list itself: every escape decoded, the case of letters
as it is written (unless `Case.INSENSITIVE`), '/a/' as '/a' (unless `TrailingSlash.SIGNIFICANT`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Generic, TypeVar
from urllib.parse import quote, unquote

from sidecar.domain.paths import (
    PATH_CHARS_MAX,
    PLAIN_TARGET,
    SIMPLE_TARGET,
    AmbiguousRouteError,
    decode_unreserved,
    normalise_path,
)
from sidecar.domain.routes import RouteEntry, RoutePattern, RouteState, RouteTable, UnreachableEntry

T = TypeVar("T")


class Case(Enum):
    """Whether the upstream tells routes apart by the case of letters; `EITHER` = not known."""

    SENSITIVE = "sensitive"
    INSENSITIVE = "insensitive"
    EITHER = "either"


class TrailingSlash(Enum):
    """Whether '/a/' is another path than '/a' to the upstream; `EITHER` = not known."""

    IGNORED = "ignored"
    SIGNIFICANT = "significant"
    EITHER = "either"


_PLAIN = "/!$&'()*+,=:@"
"""What a normal form holds as it is, besides letters, digits, '-', '.', '_' and '~'."""


def _as_written(text: str) -> str:
    return text


def _caseless(text: str) -> str:
    """*text* without any difference of case, also of letters that are not ASCII."""
    return quote(unquote(text).casefold(), safe=_PLAIN) if "%" in text else text.lower()


_FOLDS: dict[Case, tuple[Callable[[str], str], ...]] = {
    Case.SENSITIVE: (_as_written,),
    # Some programs fold ASCII alone, others every letter: K (the Kelvin sign) is k to the latter.
    Case.INSENSITIVE: (_caseless, str.lower),
    Case.EITHER: (_as_written, _caseless, str.lower),
}
"""How the letters of path and routes are read; the first one is the reading of the route list itself."""


class RouteReadings(Generic[T]):
    """
    A route list, compiled for every reading that an upstream may have.

    A path without escapes, capitals and a slash at its end is read alike by all, so it takes one walk, if
    the routes have no capitals either. Other paths take a bounded number of walks, mostly two.
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
        literals = {literal for _, pattern, _ in entries for literal in pattern.segments if literal}
        tables: dict[frozenset[tuple[str, str]], RouteTable[T]] = {}
        self._tables: list[tuple[Callable[[str], str], RouteTable[T]]] = []
        for fold in _FOLDS[case]:
            # Readings of the routes that do not differ share one table.
            reading = frozenset((literal, fold(literal)) for literal in literals)
            table = tables.get(reading)
            if table is None:
                table = tables[reading] = RouteTable(
                    [(methods, _read(pattern, fold), target) for methods, pattern, target in entries]
                )
            self._tables.append((fold, table))
        self._primary = self._tables[0][1]
        self._is_caseless = case is Case.INSENSITIVE
        # To look up a path without escapes, which all of them read alike, in lower case.
        self._caseless = tuple({id(table): table for _, table in self._tables[1:]}.values())
        self._depth = max((len(pattern.segments) for _, pattern, _ in entries), default=0)
        # Nine characters, such as %E2%84%AA, are one at least in every reading.
        self._segment_chars = 9 * max(map(len, literals), default=0) + 9
        self._has_space = any("%20" in literal for literal in literals)
        self._is_plain = len(tables) == 1 and not self._has_space
        self._slash = trailing_slash
        self._chars_max = chars_max

    def find(self, method: str, target: str) -> T | None:
        """
        The route of request target *target*, which may hold a query; None = no entry is for it.

        Raises:
            PathRefusedError: the path could mean different things to different programs.
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

    def normalise(self, target: str) -> str:
        """
        See `normalise_path`: for a path that no route is looked up for.

        Raises:
            PathRefusedError: the path could mean different things to different programs.
        """
        return normalise_path(target, self._chars_max)

    def has_path(self, target: str) -> bool:
        """Whether an entry is for the path of *target*, which is not refused, with any method."""
        fold, table = self._tables[0]
        return self._states(table, fold(self.normalise(target)))[0].has_entries

    def unreachable(self) -> tuple[UnreachableEntry, ...]:
        """See `RouteTable.unreachable`."""
        return self._primary.unreachable()

    def _compare_case(self, method: str, path: str) -> T | None:
        """The route of *path*, which has no escapes and no '/' at its end, so that only case may matter."""
        lower = path.lower()
        primary = self._primary.locate(lower if self._is_caseless else path).match(method)
        if primary is not None:
            for table in self._caseless:
                match = table.locate(lower).match(method)
                if match is not primary and match is not None and match != primary:
                    raise AmbiguousRouteError(primary, match)
        return primary

    def _compare(self, method: str, target: str) -> T | None:
        spellings = self._spellings(target)
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
        """Where *path* leads in *table*, by each reading of a '/' at its end."""
        state = table.locate(path)
        if path[-1] != "/" or self._slash is TrailingSlash.IGNORED:
            return [state]
        if path == "/" and state.is_exact:
            return [state]  # a route for '/' itself needs no other reading
        significant = [state.beyond, state.other]  # the empty segment fills nothing, or a parameter
        return significant if self._slash is TrailingSlash.SIGNIFICANT else [state, *significant]

    def _spellings(self, target: str) -> list[str]:
        """The path of *target* in every way that programs decode it, first of all in its normal form."""
        path, raw = self.normalise(target), target.partition("?")[0]
        spellings = [self._told_apart(path)]
        if "%" in raw:
            undecoded = self._told_apart(raw)
            spellings += [undecoded, decode_unreserved(undecoded)]
        if self._has_space and "+" in raw:  # a space to those who decode a path as if it were a form
            spaced = normalise_path(raw.replace("+", "%20"), 3 * self._chars_max)
            spellings.append(self._told_apart(spaced))
        return spellings

    def _told_apart(self, path: str) -> str:
        """
        As much of *path* as the routes can tell apart, so that a long one takes no longer to compare.

        Segments behind those of the longest route, and what is longer than every literal segment, match
        nothing but '**' and parameters.
        """
        segments = path.split("/", self._depth + 2)
        del segments[self._depth + 2 :]
        return "/".join([segment[: self._segment_chars] for segment in segments])


def _read(pattern: RoutePattern, fold: Callable[[str], str]) -> RoutePattern:
    """*pattern* with its literal segments read by *fold*."""
    segments = tuple(None if literal is None else fold(literal) for literal in pattern.segments)
    return RoutePattern(segments, pattern.has_tail, pattern.text)

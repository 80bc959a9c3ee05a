"""The compiled route table against a walk through the list, for every list, method and path."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.domain.path_faults import PathRefusedError
from sidecar.domain.paths import normalize_path
from sidecar.domain.routes import RouteEntry, RoutePattern, RouteTable, parse_route_path

# Few literals and methods, so that patterns overlap and paths hit them.
LITERALS = ["a", "b", "c"]
METHODS = ["GET", "HEAD", "POST"]


@st.composite
def entries(draw: st.DrawFn, segments_max: int = 4) -> list[RouteEntry[int]]:
    """A list of entries whose targets are their numbers."""
    found: list[RouteEntry[int]] = []
    for number in range(draw(st.integers(0, 10))):
        parts = draw(st.lists(st.sampled_from([*LITERALS, "{}"]), max_size=segments_max))
        names = [f"{{p{at}}}" if part == "{}" else part for at, part in enumerate(parts)]
        tail = draw(st.sampled_from([[], [], ["**"]]))
        methods = frozenset(draw(st.lists(st.sampled_from([*METHODS, "*"]), max_size=2)))
        found.append((methods, parse_route_path("/" + "/".join([*names, *tail])), number))
    return found


paths = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + slash * bool(parts),
    st.lists(st.sampled_from([*LITERALS, "x"]), max_size=5),
    st.sampled_from(["", "/"]),
)
methods = st.sampled_from([*METHODS, "PUT"])


def pattern_matches(pattern: RoutePattern, path: str) -> bool:
    """One pattern against one path, segment by segment."""
    parts = path.removesuffix("/").split("/")[1:]
    wanted = pattern.segments
    if len(parts) < len(wanted) or (len(parts) > len(wanted) and not pattern.has_tail):
        return False
    return all(segment in (None, part) for segment, part in zip(wanted, parts, strict=False))


def method_matches(listed: frozenset[str], method: str) -> bool:
    """One entry's methods against one method."""
    return not listed or "*" in listed or method in listed or (method == "HEAD" and "GET" in listed)


def walk(listed: Sequence[RouteEntry[int]], method: str, path: str) -> int | None:
    """The first entry that matches, by looking at each in turn."""
    for allowed, pattern, target in listed:
        if method_matches(allowed, method) and pattern_matches(pattern, path):
            return target
    return None


@given(entries(), st.lists(st.tuples(methods, paths), min_size=1, max_size=12))
def test_route_table__agrees_with_a_walk_through_the_list(
    listed: list[RouteEntry[int]], requests: list[tuple[str, str]]
) -> None:
    """Every answer is that of the first entry in the list that matches."""
    compiled = RouteTable(listed)
    for method, path in requests:
        assert compiled.match(method, path) == walk(listed, method, path)


@given(entries(segments_max=2))
def test_unreachable__is_exactly_what_never_wins(listed: list[RouteEntry[int]]) -> None:
    """
    An entry is reported just when taking it out changes no answer that it gave.

    Its own paths, with every parameter and tail filled in all ways that the list can tell apart, and all
    methods, are asked of the walk; the entries named as hiding it are those that answer there.
    """
    compiled = RouteTable(listed)
    reported = {entry.index: set(entry.hidden_by) for entry in compiled.unreachable()}
    for number, (_, pattern, _) in enumerate(listed):
        answers = {
            walk(listed, method, path)
            for path in fillings(pattern)
            for method in [*METHODS, "PUT"]
            if method_matches(listed[number][0], method)
        }
        assert (number in answers) == (number not in reported)
        if number in reported:
            assert answers == reported[number]


def fillings(pattern: RoutePattern) -> list[str]:
    """Every path of *pattern* up to three segments, from literals in use and one that is not."""
    found = [""]
    for segment in pattern.segments:
        options = [*LITERALS, "x"] if segment is None else [segment]
        found = [f"{path}/{option}" for path in found for option in options]
    if pattern.has_tail:
        longer = found
        for _ in range(3 - len(pattern.segments)):
            longer = [f"{path}/{option}" for path in longer for option in [*LITERALS, "x"]]
            found = found + longer
    return [path or "/" for path in found]


@given(
    entries(),
    st.lists(st.sampled_from([*"abcx/.%", "%61", "%62", "%2e", "%2f", "/", "//", "/../"]), max_size=12),
)
@example([(frozenset(), parse_route_path("/a/**"), 0)], ["a", "/", "..", "/", "b"])
def test_normalize_and_match__never_widens(listed: list[RouteEntry[int]], pieces: list[str]) -> None:
    """A raw path that reaches a route has, decoded, the very segments that the route asks for."""
    raw = "/" + "".join(pieces)
    try:
        target = RouteTable(listed).match("GET", normalize_path(raw))
    except PathRefusedError:
        return
    if target is not None:
        decoded = [unquote(part) for part in raw.removesuffix("/").split("/")[1:]]
        assert pattern_matches(listed[target][1], "/" + "/".join(decoded))
        assert not {"", ".", ".."} & set(decoded)

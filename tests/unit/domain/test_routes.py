"""The route table: patterns, order, methods, unreachable entries and the cost of a match."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from sidecar.domain import routes
from sidecar.domain.routes import RouteEntry, RouteError, RouteTable, UnreachableEntry, parse_route_path


def entry(methods: str, path: str, target: str = "") -> RouteEntry[str]:
    """An entry from 'GET POST' and a path; its target is *target*, or the path itself."""
    return frozenset(methods.split()), parse_route_path(path), target or path


def table(*paths: str) -> RouteTable[str]:
    """A table of *paths* for every method; the targets are the paths."""
    return RouteTable(entry("", path) for path in paths)


class CountingDict(dict[str, Any]):
    """A state's edges that count how often they are looked at."""

    look_ups = 0

    def get(self, key: str, default: Any = None) -> Any:
        """Count, then look up."""
        CountingDict.look_ups += 1
        return super().get(key, default)


def count_look_ups(compiled: RouteTable[str], path: str) -> int:
    """How many states a match of *path* looks at."""
    pending, seen = [compiled.start], set()
    while pending:
        state = pending.pop()
        if state not in seen:
            seen.add(state)
            if state.edges is not None:
                pending += [*state.edges.values(), state.other]
                state.edges = CountingDict(state.edges)
    CountingDict.look_ups = 0
    compiled.match("GET", path)
    return CountingDict.look_ups


@pytest.mark.parametrize(
    ("text", "segments", "has_tail"),
    [
        ("/", (), False),
        ("/**", (), True),
        ("/v1/orders", ("v1", "orders"), False),
        ("/v1/orders/", ("v1", "orders"), False),
        ("/v1/{order_id}/lines/{line-no}", ("v1", None, "lines", None), False),
        ("/v1/{id}/**", ("v1", None), True),
        ("/caf%c3%a9/%61:go", ("caf%C3%A9", "a:go"), False),
    ],
)
def test_parse_route_path__reads(text: str, segments: tuple[str | None, ...], has_tail: bool) -> None:
    """Literals in the normal form of paths, parameters, a tail; a trailing slash means nothing."""
    pattern = parse_route_path(text)
    assert (pattern.segments, pattern.has_tail) == (segments, has_tail)
    assert str(pattern) == text


def test_route_pattern__equal_by_what_it_matches() -> None:
    """Names of parameters and spelling do not matter."""
    assert parse_route_path("/a/{x}/") == parse_route_path("/%61/{y}")
    assert parse_route_path("/a/**") != parse_route_path("/a")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must start with '/'"),
        ("v1/orders", "must start with '/'"),
        ("/a//b", "empty segment"),
        ("//", "empty segment"),
        ("/**/a", "'\\*\\*' can only be the last segment"),
        ("/a/*", "'\\*' is not a wildcard"),
        ("/a*", "'\\*' is not a wildcard"),
        ("/a**", "'\\*' is not a wildcard"),
        ("/{id}.json", "a parameter is a whole segment"),
        ("/v{id}", "a parameter is a whole segment"),
        ("/{}", "a parameter is a whole segment"),
        ("/{id", "a parameter is a whole segment"),
        ("/{a b}", "a parameter is a whole segment"),
        ("/{**}", "'\\*' is not a wildcard"),
        ("/{id}/x/{id}", "two parameters are named 'id'"),
        ("/orders/:id", "write {id} for a parameter, not ':id'"),
        ("/orders/:", "write {name} for a parameter"),
        ("/a?b=c", "query"),
        ("/a#b", "holds a '#'"),
        ("/a/../b", "'.' or '..'"),
        ("/a b", "percent-encoded"),
        ("/caf\N{LATIN SMALL LETTER E WITH ACUTE}", "not ASCII. Percent-encode"),
        ("/a%2fb", "encoded '/'"),
        ("/a;b", "';'"),
    ],
)
def test_parse_route_path__names_the_fault(text: str, fault: str) -> None:
    """What is no pattern is refused with the path, the fault and the remedy."""
    with pytest.raises(RouteError, match=fault) as caught:
        parse_route_path(text)
    assert repr(text) in str(caught.value)


def test_route_table__empty_matches_nothing() -> None:
    """Without entries there is no match."""
    assert RouteTable[str]([]).match("GET", "/") is None


def test_route_table__literals_params_and_tails() -> None:
    """A parameter takes exactly one segment, a tail any number, also none."""
    compiled = table("/a", "/b/{x}", "/c/**")
    assert compiled.match("GET", "/a") == "/a"
    assert compiled.match("GET", "/a/b") is None
    assert compiled.match("GET", "/b") is None
    assert compiled.match("GET", "/b/1") == "/b/{x}"
    assert compiled.match("GET", "/b/1/2") is None
    assert compiled.match("GET", "/c") == "/c/**"
    assert compiled.match("GET", "/c/1/2/3") == "/c/**"
    assert compiled.match("GET", "/cc") is None
    assert compiled.match("GET", "/") is None
    assert compiled.match("GET", "/A") is None


def test_route_table__trailing_slash_means_nothing() -> None:
    """'/a/' and '/a' are one path to every kind of pattern; a parameter is never empty."""
    compiled = table("/a", "/b/{x}", "/c/{x}/**", "/")
    assert compiled.match("GET", "/a/") == "/a"
    assert compiled.match("GET", "/b/") is None
    assert compiled.match("GET", "/b/1/") == "/b/{x}"
    assert compiled.match("GET", "/c/") is None
    assert compiled.match("GET", "/c/1/") == "/c/{x}/**"
    assert compiled.match("GET", "/") == "/"


@pytest.mark.parametrize("path", ["", "a", "*", "a/b"])
def test_route_table__only_absolute_paths_match(path: str) -> None:
    """What is no path matches nothing, not even '/**'."""
    assert table("/**").match("GET", path) is None


def test_route_table__the_earlier_entry_wins() -> None:
    """Order decides, not how specific a pattern is; a dead end in one falls back on another."""
    assert table("/a/{x}", "/a/b").match("GET", "/a/b") == "/a/{x}"
    assert table("/a/b", "/a/{x}").match("GET", "/a/b") == "/a/b"
    assert table("/**", "/a").match("GET", "/a") == "/**"
    assert table("/a/b/c", "/{x}/b/d", "/a/**").match("GET", "/a/b/d") == "/{x}/b/d"
    assert table("/a/b/c", "/a/**", "/{x}/b/d").match("GET", "/a/b/d") == "/a/**"
    assert table("/a/{x}/c", "/{x}/b/{y}").match("GET", "/a/b/d") == "/{x}/b/{y}"


def test_route_table__methods() -> None:
    """An entry counts only for its methods; empty and '*' mean all; case matters."""
    compiled = RouteTable(
        [
            entry("PUT PATCH", "/a", "write"),
            entry("GET", "/a", "read"),
            entry("*", "/a", "rest"),
            entry("", "/b"),
        ]
    )
    assert compiled.match("PUT", "/a") == "write"
    assert compiled.match("PATCH", "/a") == "write"
    assert compiled.match("GET", "/a") == "read"
    assert compiled.match("DELETE", "/a") == "rest"
    assert compiled.match("OPTIONS", "/a") == "rest"
    assert compiled.match("get", "/a") == "rest"
    assert compiled.match("PURGE", "/b") == "/b"


def test_route_table__a_method_without_entry_is_no_match() -> None:
    """A path that is listed for other methods only does not match; OPTIONS is no exception."""
    compiled = RouteTable([entry("GET", "/a"), entry("POST", "/{x}", "post")])
    assert compiled.match("PUT", "/a") is None
    assert compiled.match("OPTIONS", "/a") is None
    assert compiled.match("POST", "/a") == "post"


def test_route_table__head_is_get() -> None:
    """An entry for GET is one for HEAD; an earlier entry that lists HEAD takes precedence, as ever."""
    assert RouteTable([entry("GET", "/a")]).match("HEAD", "/a") == "/a"
    assert RouteTable([entry("POST", "/a")]).match("HEAD", "/a") is None
    listed = RouteTable([entry("HEAD", "/a", "head"), entry("GET", "/a", "get")])
    assert (listed.match("HEAD", "/a"), listed.match("GET", "/a")) == ("head", "get")
    late = RouteTable([entry("GET", "/a", "get"), entry("HEAD", "/a", "head")])
    assert late.match("HEAD", "/a") == "get"
    assert late.unreachable() == (UnreachableEntry(1, hidden_by=(0,)),)


@pytest.mark.parametrize("method", ["get", "Get", "GET POST", "", "G\r\n"])
def test_route_table__refuses_methods_that_never_match(method: str) -> None:
    """A method that is not upper case, or no token, is an error that names the route."""
    with pytest.raises(RouteError, match=r"'/a': method .* upper case"):
        RouteTable([(frozenset([method]), parse_route_path("/a"), "a")])


def test_unreachable__names_what_hides_an_entry() -> None:
    """An entry that can never win is reported with every entry that wins in its place; others are not."""
    compiled = RouteTable(
        [
            entry("GET", "/a/{x}"),
            entry("PUT", "/a/**"),
            entry("GET PUT", "/a/b"),
            entry("GET POST", "/a/b"),
            entry("*", "/c/**"),
            entry("", "/c/d/{x}"),
            entry("", "/{x}/d"),
            entry("", "/c"),
            entry("", "/a/{x}"),
            entry("", "/a/b"),
        ]
    )
    assert compiled.unreachable() == (
        UnreachableEntry(2, hidden_by=(0, 1)),
        UnreachableEntry(5, hidden_by=(4,)),
        UnreachableEntry(7, hidden_by=(4,)),
        UnreachableEntry(9, hidden_by=(0, 1, 3, 8)),
    )


def test_unreachable__an_entry_hidden_on_most_paths_only_is_reachable() -> None:
    """One path or one method left is enough."""
    assert table("/a/b", "/a/{x}").unreachable() == ()
    assert table("/{x}/**", "/**").unreachable() == ()
    assert RouteTable([entry("GET", "/a"), entry("", "/a")]).unreachable() == ()


@pytest.mark.pure
def test_route_table__match_looks_once_per_segment() -> None:
    """All ways to write a path of ten segments with literals and parameters: still one look-up each."""
    ways = ["/".join(["", *parts]) for parts in product(["a", "{x}"], repeat=10)]
    named = [way.replace("{x}", "{x%d}") % tuple(range(way.count("{x}"))) for way in ways]
    compiled = table(*reversed(named))
    assert count_look_ups(compiled, "/a" * 10) == 11
    assert count_look_ups(compiled, "/a" * 9 + "/b") == 11
    assert count_look_ups(compiled, "/a" * 500) == 12


@pytest.mark.pure
def test_route_table__match_does_not_grow_with_the_routes() -> None:
    """With a thousand routes a match looks at as many states as with one."""
    many = table(*(f"/v1/resource{number}/{{id}}/lines/{{line}}" for number in range(1_000)))
    path = "/v1/resource999/1/lines/2"
    assert many.match("GET", path) == "/v1/resource999/{id}/lines/{line}"
    assert count_look_ups(many, path) == count_look_ups(table("/v1/resource999/{id}/lines/{line}"), path) == 6


@pytest.mark.pure
def test_route_table__long_paths_end_early_below_a_tail() -> None:
    """Where no further segment can change the answer, none is looked at."""
    compiled = table("/a/**")
    assert count_look_ups(compiled, "/a" + "/b" * 4_000) == 3
    assert count_look_ups(compiled, "/b" * 4_000) == 2


@pytest.mark.pure
def test_route_table__refuses_lists_that_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns that would double the table with every segment are refused at the bound, with a remedy."""
    monkeypatch.setattr(routes, "EDGES_MAX", 2_000)
    paths = ["".join("/a" if at == here else f"/{{p{at}}}" for at in range(16)) for here in range(16)]
    with pytest.raises(RouteError, match="overlap in too many ways"):
        table(*paths)
    assert table(*paths[:4]).match("GET", "/b/a" + "/b" * 14) == paths[1]


def test_route_table__ordinary_lists_stay_far_below_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand resources with parameters and tails need a few edges each."""
    monkeypatch.setattr(routes, "EDGES_MAX", 15_000)
    paths = [
        f"/v1/resource{number}{rest}"
        for number in range(1_000)
        for rest in ("", "/search", "/{id}", "/{id}/lines/{line}", "/files/**")
    ]
    assert table("/{tenant}/health", *paths).match("GET", "/v1/resource7/search") == "/v1/resource7/search"

"""The route that every common reading of a path leads to, and the paths that are refused over it."""

from __future__ import annotations

import contextlib
import doctest

import pytest

from sidecar.domain import paths
from sidecar.domain.path_faults import PathFault, PathRefusedError
from sidecar.domain.route_readings import Case, RouteReadings, TrailingSlash
from sidecar.domain.routes import RouteTable, parse_route_path

ADMIN = ["/admin/**", "/**"]
USERS = ["/users/@me", "/users/{id}"]
ORDERS = ["/orders", "/orders/{id}"]


def readings(
    listed: list[str],
    case: Case = Case.EITHER,
    trailing_slash: TrailingSlash = TrailingSlash.EITHER,
    chars_max: int = 8_192,
) -> RouteReadings[str]:
    """A table for all methods; each route's target is its path."""
    entries = [(frozenset[str](), parse_route_path(path), path) for path in listed]
    return RouteReadings(entries, case, trailing_slash, chars_max)


def is_refused(table: RouteReadings[str], path: str) -> bool:
    """Whether *path* leads to different targets."""
    try:
        table.find("GET", path)
    except PathRefusedError as error:
        assert error.fault is PathFault.AMBIGUOUS_ROUTE
        return True
    return False


@pytest.mark.pure
def test_paths__examples_in_its_docstrings() -> None:
    """The examples in the module are true."""
    assert doctest.testmod(paths) == doctest.TestResults(failed=0, attempted=2)


@pytest.mark.parametrize(
    ("listed", "path"),
    [
        (ADMIN, "/Admin/x"),
        (ADMIN, "/aDMIN"),
        (ADMIN, "/%61dmin/x"),
        (ADMIN, "/%41dmin/x"),
        (["/Admin/**", "/**"], "/admin/x"),
        (["/Admin/**", "/**"], "/ADMIN/x"),
        (["/admin/**", "/Admin/**"], "/Admin/x"),
        (USERS, "/users/%40me"),
        (USERS, "/%75sers/%40me"),
        (USERS, "/users/@ME"),
        (["/a/%2B", "/a/{x}"], "/a/%2B"),
        (["/caf%C3%A9", "/{x}"], "/caf%c3%a9"),
        (["/caf%C3%A9", "/{x}"], "/CAF%C3%89"),
        (["/k", "/{x}"], "/%E2%84%AA"),
        (["/a%20b", "/{x}"], "/a+b"),
        (ORDERS, "/orders/"),
        (["/orders", "/orders/**"], "/orders/"),
        (["/orders", "/**"], "/orders/"),
        (["/{x}", "/**"], "/"),
    ],
)
def test_find__refuses_a_path_that_leads_to_two_targets(listed: list[str], path: str) -> None:
    """Some program serves another route than some other program would."""
    assert is_refused(readings(listed), path)


@pytest.mark.parametrize(
    ("listed", "path", "expected"),
    [
        (ADMIN, "/admin/x", "/admin/**"),
        (ADMIN, "/admin/X%20Y/", "/admin/**"),
        (ADMIN, "/administration", "/**"),
        (["/admin/**", "/Admin/**"], "/admin/x", "/admin/**"),
        (ADMIN, "/other/01HZX", "/**"),
        (USERS, "/users/@me", "/users/@me"),
        (USERS, "/users/@me?x=%40ME", "/users/@me"),
        (USERS, "/users/me%40example.com", "/users/{id}"),
        (USERS, "/users/%40you", "/users/{id}"),
        (USERS, "/users/42/", "/users/{id}"),
        (USERS, "/%75sers/42", "/users/{id}"),
        (ORDERS, "/orders", "/orders"),
        (ORDERS, "/orders/42", "/orders/{id}"),
        (["/orders"], "/orders/", "/orders"),
        (["/caf%C3%A9", "/{x}"], "/caf%C3%A9", "/caf%C3%A9"),
        (["/a+b", "/{x}"], "/a+b", "/a+b"),
        (["/.well-known/**"], "/.well-known/x", "/.well-known/**"),
        (["/", "/{x}"], "/", "/"),
        (["/a.b.Greeter/SayHello"], "/a.b.Greeter/SayHello", "/a.b.Greeter/SayHello"),
    ],
)
def test_find__passes_what_all_programs_read_alike(listed: list[str], path: str, expected: str) -> None:
    """Or what leads nowhere in every other reading."""
    assert readings(listed).find("GET", path) == expected


@pytest.mark.parametrize(
    ("listed", "path"), [(["/admin"], "/ADMIN"), (["/Admin"], "/admin"), (ORDERS[1:], "/orders/"), ([], "/")]
)
def test_find__the_route_list_s_own_reading_must_match(listed: list[str], path: str) -> None:
    """What matches only in another reading is no route: never opened by a guess, and not ambiguous."""
    assert readings(listed).find("GET", path) is None
    assert not readings(listed).has_path(path)


def test_find__equal_targets_are_not_ambiguous() -> None:
    """It is the scope that matters, not which of the routes asks for it."""
    entries = [(frozenset[str](), parse_route_path(path), "scope") for path in ORDERS]
    assert RouteReadings(entries).find("GET", "/orders/") == "scope"


def test_find__methods_are_compared_apart() -> None:
    """A route of another method is not what this request would be served by."""
    entries = [
        (frozenset({"POST"}), parse_route_path("/users/@me"), "own"),
        (frozenset({"GET"}), parse_route_path("/users/{id}"), "any"),
    ]
    table = RouteReadings(entries)
    assert table.find("GET", "/users/%40me") == "any"
    assert table.find("PUT", "/users/%40me") is None
    assert table.has_path("/users/%40me")
    assert not table.has_path("/users")


@pytest.mark.parametrize(
    ("case", "path", "expected"),
    [
        (Case.SENSITIVE, "/admin/x", "/admin/**"),
        (Case.SENSITIVE, "/ADMIN/x", "/**"),
        (Case.INSENSITIVE, "/ADMIN/x", "/admin/**"),
        (Case.INSENSITIVE, "/Other", "/**"),
    ],
)
def test_find__case_of_a_known_upstream(case: Case, path: str, expected: str) -> None:
    """Where it is known how the upstream reads, there is one reading, and nothing to refuse."""
    assert readings(ADMIN, case).find("GET", path) == expected


def test_find__routes_of_a_caseless_upstream_are_the_same_in_any_case() -> None:
    """The route that is listed first wins, and the other one is reported as never matching."""
    table = readings(["/Caf%C3%89", "/caf%c3%a9", "/**"], Case.INSENSITIVE)
    for path in ("/CAF%C3%89", "/caf%c3%89"):
        assert table.find("GET", path) == "/Caf%C3%89"
    assert is_refused(table, "/caf%C3%A9")  # the second route, to those who ignore the case of ASCII alone
    assert [entry.index for entry in table.unreachable()] == [1]
    assert [entry.index for entry in readings(["/A", "/a"], Case.SENSITIVE).unreachable()] == []


@pytest.mark.parametrize(
    ("slash", "listed", "path", "expected"),
    [
        (TrailingSlash.IGNORED, ORDERS, "/orders/", "/orders"),
        (TrailingSlash.IGNORED, ["/{x}", "/**"], "/", "/**"),
        (TrailingSlash.SIGNIFICANT, ["/orders", "/**"], "/orders/", "/**"),
        (TrailingSlash.SIGNIFICANT, ["/orders"], "/orders/", None),
        (TrailingSlash.SIGNIFICANT, ORDERS, "/orders/", None),
        (TrailingSlash.SIGNIFICANT, ["/"], "/", "/"),
        (TrailingSlash.SIGNIFICANT, ["/orders/**"], "/orders/", "/orders/**"),
    ],
)
def test_find__trailing_slash_of_a_known_upstream(
    slash: TrailingSlash, listed: list[str], path: str, expected: str | None
) -> None:
    """'/a/' is '/a', or a separate path that only '**' is sure to match."""
    table = readings(listed, trailing_slash=slash)
    assert table.find("GET", path) == expected
    assert table.has_path(path) == (expected is not None)


def test_find__an_empty_segment_may_fill_a_parameter() -> None:
    """Also to an upstream that distinguishes '/a/' from '/a'."""
    table = readings(["/orders/{id}", "/**"], trailing_slash=TrailingSlash.SIGNIFICANT)
    assert is_refused(table, "/orders/")


def test_find__the_bound_is_that_of_the_path() -> None:
    """The query does not count, on the short way and on the long one."""
    table = readings(["/**"], chars_max=64)
    for longest in ("/".ljust(64, "a"), "/".ljust(64, "A")):
        assert table.find("GET", f"{longest}?{longest}") == "/**"
        with pytest.raises(PathRefusedError) as refused:
            table.find("GET", f"{longest}a")
        assert refused.value.fault is PathFault.TOO_LONG


@pytest.mark.parametrize("tail", ["", "/", "/A%C3%89" * 500, "/" + "%E2%84%AA" * 800])
def test_find__long_paths_are_read_as_far_as_routes_tell_them_apart(tail: str) -> None:
    """What follows cannot change the answer, nor how much is compared for it."""
    table = readings(["/users/@me/**", "/users/{id}/**", "/%E2%84%AA", "/{x}/**"])
    for path, expected in (("/users/42", "/users/{id}/**"), ("/users/%41", "/users/{id}/**")):
        assert table.find("GET", path + tail) == expected
    assert is_refused(table, f"/users/%40me{tail}")
    assert max(map(len, table.spellings(f"/users/%40me{tail}"))) < 400


@pytest.mark.pure
def test_find__an_ordinary_path_takes_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a path with capitals two; the worst takes ten."""
    walked: list[str] = []
    real = RouteTable.locate

    def locate(self: RouteTable[str], path: str) -> object:
        walked.append(path)
        return real(self, path)

    monkeypatch.setattr(RouteTable, "locate", locate)
    worst = ["/caf%C3%89/A%20b", "/caf%c3%a9/{x}", "/**"]
    for listed, path, walks in (
        (ADMIN, "/admin/x?A=%20", 1),
        (ADMIN, "/.well-known/x", 1),
        (ADMIN, "/other/01HZX", 2),
        (worst, "/%63af%c3%A9/A+b%2B/", 10),
    ):
        walked.clear()
        with contextlib.suppress(PathRefusedError):
            readings(listed).find("GET", path)
        assert len(walked) == walks

"""The route that is judged is the route that is served, by real routers and however a path is spelled."""

from __future__ import annotations

import random
import shutil
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.path_faults import PathRefusedError
from sidecar.domain.route_readings import Case, RouteReadings, TrailingSlash
from sidecar.domain.routes import parse_route_path
from tests.property.routers import RouterServer, Table, found_routers

TABLES: list[Table] = [
    ["/v1/admin/**", "/**"],
    ["/users/@me", "/users/{id}"],
    ["/orders", "/orders/{id}", "/orders/{id}/lines", "/{other}"],
    ["/", "/{tenant}", "/{tenant}/Admin/{id}", "/{tenant}/{area}/{id}"],
    ["/caf%C3%A9/{id}", "/{place}/{id}"],
    ["/a%20b", "/{x}"],
    ["/demo.Stock/Read", "/demo.Stock/{method}", "/{service}/{method}"],
]
"""Each route needs a different scope, so that serving another one than was judged is always a fault."""

READS = {
    "starlette": (Case.SENSITIVE, TrailingSlash.SIGNIFICANT),
    "nginx": (Case.SENSITIVE, TrailingSlash.SIGNIFICANT),
    "nginx-caseless": (Case.INSENSITIVE, TrailingSlash.IGNORED),
    "nginx-empty-parameters": (Case.SENSITIVE, TrailingSlash.SIGNIFICANT),
    "go": (Case.SENSITIVE, TrailingSlash.SIGNIFICANT),
    "express": (Case.INSENSITIVE, TrailingSlash.IGNORED),
}
"""What docs/reference/configuration.md says of each."""

ROUTERS = found_routers()


@pytest.fixture(scope="module", params=sorted(ROUTERS))
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, RouterServer]]:
    """One router of this machine, serving `TABLES`, and its name."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-routers-"))  # short: a socket's path has 107 bytes
    try:
        router = ROUTERS[request.param](TABLES, folder)
        yield request.param, router
        router.stop()
    finally:
        shutil.rmtree(folder)


def compiled(case: Case, trailing_slash: TrailingSlash) -> list[RouteReadings[int]]:
    """`TABLES` for an upstream that reads so; targets are the routes' numbers."""
    return [
        RouteReadings(
            [(frozenset(), parse_route_path(pattern), number) for number, pattern in enumerate(table)],
            case,
            trailing_slash,
        )
        for table in TABLES
    ]


UNKNOWN = compiled(Case.EITHER, TrailingSlash.EITHER)
KNOWN = {name: compiled(*reads) for name, reads in READS.items()}


FILLINGS = ["42", "x", "Ab", "a+b", "a b", "@me", "admin", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
PLAIN = string.ascii_letters + string.digits + "@+-_~."


def request_of(seed: int) -> tuple[int, str]:
    """A table, and a path near one of its routes: segments changed, left out, added, respelled."""
    draw = random.Random(seed)
    number = draw.randrange(len(TABLES))
    segments = []
    for part in draw.choice(TABLES[number])[1:].split("/"):
        if part == "**":
            segments += draw.choices(FILLINGS, k=draw.randrange(3))
        else:
            is_filled = part.startswith("{") or draw.random() < 0.1
            segments.append(draw.choice(FILLINGS) if is_filled else unquote(part))
    if draw.random() < 0.25:
        segments.append("")
    return number, "/" + "/".join(spelled(draw, segment) for segment in segments)


def spelled(draw: random.Random, segment: str) -> str:
    """*segment* in some spelling: another case here and there, escapes where they are needed or not."""
    text = ""
    for character in segment:
        if draw.random() < 0.1:
            character = character.swapcase()
        if character == "." or (character in PLAIN and draw.random() < 0.9):
            text += character
        else:
            text += "".join(draw.choice((f"%{octet:02X}", f"%{octet:02x}")) for octet in character.encode())
    return text


@given(seed=st.integers(0, 2**32))
def test_served_routes__are_those_that_were_judged(served: tuple[str, RouterServer], seed: int) -> None:
    """With the default settings, and with those of the router: never another one."""
    name, router = served
    number, path = request_of(seed)
    reached = router.route_of(number, path)
    for tables in (UNKNOWN, KNOWN[name]):
        try:
            judged = tables[number].find("GET", path)
        except PathRefusedError:
            continue
        if judged is not None and reached is not None:
            assert reached == judged


@pytest.mark.parametrize("known", [False, True])
def test_served_routes__an_ordinary_path_is_not_refused(
    served: tuple[str, RouterServer], known: bool
) -> None:
    """What clients send as the documentation of an API writes it reaches its route, and is judged by it."""
    name, router = served
    tables = KNOWN[name] if known else UNKNOWN
    for number, table in enumerate(TABLES):
        for index, pattern in enumerate(table):
            path = pattern.replace("{id}", "42").replace("{tenant}", "acme").replace("/**", "/x/y")
            path = path.replace("{other}", "other").replace("{area}", "area").replace("{place}", "bar")
            path = path.replace("{x}", "x").replace("{method}", "Other").replace("{service}", "x.Other")
            assert router.route_of(number, path) == index, path
            assert tables[number].find("GET", path) == index, path


def test_served_routes__every_router_is_documented() -> None:
    """The settings of each are in the table of docs/reference/configuration.md."""
    assert set(ROUTERS) <= set(READS)

"""Paths: what is normal, what becomes normal, what is refused and why."""

from __future__ import annotations

import pytest

from sidecar.domain.paths import (
    PATH_CHARS_MAX,
    PathFault,
    PathRefusedError,
    decode_unreserved,
    normalize_path,
)

UNRESERVED_AND_MORE = "ABCXYZabcxyz0189-_~!$&'()*+,=:@"


def fault_of(raw: str) -> PathFault:
    """Why *raw* is refused."""
    with pytest.raises(PathRefusedError) as caught:
        normalize_path(raw)
    return caught.value.fault


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/orders",
        "/v1/orders/",
        "/.well-known/x",
        "/a.b/c..d/...",
        "/..a/.b/a.",
        f"/{UNRESERVED_AND_MORE}",
        "/caf%C3%A9/%20/%5B%3F%23%5D",
        "/*",
    ],
)
def test_normalize_path__keeps_what_is_normal(path: str) -> None:
    """A path in normal form is returned as it is, a trailing slash included."""
    assert normalize_path(path) == path


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("/a?b=c", "/a"),
        ("/a?", "/a"),
        ("/a/?x=/../;%2f%zz\\?//", "/a/"),
        ("/?a", "/"),
        ("/%61%62%7a%5A%30%2d%5f%7E", "/abzZ0-_~"),
        ("/bob%40example.com", "/bob@example.com"),
        ("/42%3acancel%21", "/42:cancel!"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/%e2%82%ac%20x", "/%E2%82%AC%20x"),
    ],
)
def test_normalize_path__has_one_form(raw: str, normal: str) -> None:
    """The query goes, escapes of plain characters are decoded, the others are upper case."""
    assert normalize_path(raw) == normal


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ("", PathFault.NOT_ABSOLUTE),
        ("*", PathFault.NOT_ABSOLUTE),
        ("?a", PathFault.NOT_ABSOLUTE),
        ("a/b", PathFault.NOT_ABSOLUTE),
        ("http://host/a", PathFault.NOT_ABSOLUTE),
        ("%2fa", PathFault.NOT_ABSOLUTE),
        ("//", PathFault.EMPTY_SEGMENT),
        ("//host/a", PathFault.EMPTY_SEGMENT),
        ("/a//b", PathFault.EMPTY_SEGMENT),
        ("/a//?q", PathFault.EMPTY_SEGMENT),
        ("/.", PathFault.DOT_SEGMENT),
        ("/..", PathFault.DOT_SEGMENT),
        ("/a/./b", PathFault.DOT_SEGMENT),
        ("/a/../b", PathFault.DOT_SEGMENT),
        ("/a/..?q", PathFault.DOT_SEGMENT),
        ("/a/..;/b", PathFault.PATH_PARAMETER),
        ("/a;v=1", PathFault.PATH_PARAMETER),
        ("/a%3Bv=1", PathFault.PATH_PARAMETER),
        ("/a%3bv=1", PathFault.PATH_PARAMETER),
        ("/a\\b", PathFault.BACKSLASH),
        ("/\\..\\b", PathFault.BACKSLASH),
        ("/%2e%2E/b", PathFault.ENCODED_SEPARATOR),
        ("/.%2e/b", PathFault.ENCODED_SEPARATOR),
        ("/a%2eb", PathFault.ENCODED_SEPARATOR),
        ("/a%2Fb", PathFault.ENCODED_SEPARATOR),
        ("/a%2fb", PathFault.ENCODED_SEPARATOR),
        ("/a%5Cb", PathFault.ENCODED_SEPARATOR),
        ("/a%5cb", PathFault.ENCODED_SEPARATOR),
        ("/a%252fb", PathFault.ENCODED_SEPARATOR),
        ("/a%00", PathFault.ENCODED_CONTROL),
        ("/a%0d%0aX-API-Key:%20allow", PathFault.ENCODED_CONTROL),
        ("/a%1F", PathFault.ENCODED_CONTROL),
        ("/a%7f", PathFault.ENCODED_CONTROL),
        ("/a%", PathFault.MALFORMED_ESCAPE),
        ("/a%4", PathFault.MALFORMED_ESCAPE),
        ("/a%4/1", PathFault.MALFORMED_ESCAPE),
        ("/a%zz", PathFault.MALFORMED_ESCAPE),
        ("/a%u002e", PathFault.MALFORMED_ESCAPE),
        ("/a%%41", PathFault.MALFORMED_ESCAPE),
        ("/%c0%af", PathFault.NOT_UTF8),
        ("/%c0%ae%c0%ae/", PathFault.NOT_UTF8),
        ("/caf%e9", PathFault.NOT_UTF8),
        ("/%c3x%a9", PathFault.NOT_UTF8),
        ("/%ed%a0%80", PathFault.NOT_UTF8),
        ("/a#b", PathFault.FRAGMENT),
        ("/a?b#c", PathFault.FRAGMENT),
        ("/a b", PathFault.ILLEGAL_CHARACTER),
        ("/a?b c", PathFault.ILLEGAL_QUERY),
        ("/a\r\nb", PathFault.ILLEGAL_CHARACTER),
        ("/a\n", PathFault.ILLEGAL_CHARACTER),
        ("/a?\n", PathFault.ILLEGAL_QUERY),
        ("/..\n", PathFault.ILLEGAL_CHARACTER),
        ("/a\0", PathFault.ILLEGAL_CHARACTER),
        ("/a\x7f", PathFault.ILLEGAL_CHARACTER),
        ("/caf\N{LATIN SMALL LETTER E WITH ACUTE}", PathFault.NOT_ASCII),
        ("/a?\N{SNOWMAN}", PathFault.ILLEGAL_QUERY),
        ("/\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/", PathFault.NOT_ASCII),
        ("/a\udcff", PathFault.NOT_ASCII),
        ("/a|b", PathFault.ILLEGAL_CHARACTER),
        ("/{id}", PathFault.ILLEGAL_CHARACTER),
        ('/"a"', PathFault.ILLEGAL_CHARACTER),
        ("/<a>", PathFault.ILLEGAL_CHARACTER),
        ("/[a]", PathFault.ILLEGAL_CHARACTER),
        ("/a^`", PathFault.ILLEGAL_CHARACTER),
    ],
)
def test_normalize_path__refuses(raw: str, fault: PathFault) -> None:
    """Whatever two programs could read differently is refused for its own reason, never repaired."""
    assert fault_of(raw) is fault


def test_normalize_path__length_bound() -> None:
    """The longest path passes, with any query; one character more is refused, with the bound in the text."""
    longest = "/" + "a" * (PATH_CHARS_MAX - 1)
    assert normalize_path(longest) == normalize_path(f"{longest}?{longest}") == longest
    assert normalize_path("/a?" + "b" * 2 * PATH_CHARS_MAX) == "/a"
    assert fault_of(longest + "a") is PathFault.TOO_LONG
    assert fault_of(longest + "a?b") is PathFault.TOO_LONG
    assert fault_of("/%61" + "b" * (PATH_CHARS_MAX - 3)) is PathFault.TOO_LONG
    assert normalize_path("/abc?defg", 4) == "/abc"
    with pytest.raises(PathRefusedError, match="too long: at most 4 characters are accepted, without the qu"):
        normalize_path("/abcd", 4)


@pytest.mark.parametrize("fault", PathFault, ids=lambda fault: fault.name.lower())
def test_path_refused_error__says_what_is_wrong_and_what_to_do(fault: PathFault) -> None:
    """Every fault has two sentences that nothing else uses: 'The path ...' and what to send instead."""
    error = PathRefusedError(fault, 64 if fault is PathFault.TOO_LONG else 0)
    assert error.advice.startswith(f"The path {fault.text}")
    assert error.advice.endswith(f". {fault.remedy}")
    assert fault.remedy.endswith(".")
    assert len({fault.text for fault in PathFault}) == len(PathFault)


@pytest.mark.parametrize(
    ("path", "decoded"), [("/%75sers/%40me", "/users/%40me"), ("/%c3%a9%7e%2B", "/%C3%A9~%2B"), ("/a", "/a")]
)
def test_decode_unreserved__leaves_all_other_escapes(path: str, decoded: str) -> None:
    """RFC 3986 6.2.2.2: letters, digits, '-', '_' and '~', no more; hex digits are upper case."""
    assert decode_unreserved(path) == decoded


def test_path_refused_error__never_quotes_the_path() -> None:
    """The message is a sentence of our own words: printable ASCII for every fault."""
    for fault in PathFault:
        message = str(PathRefusedError(fault))
        assert message.startswith("the path ")
        assert message.isascii()
        assert message.isprintable()

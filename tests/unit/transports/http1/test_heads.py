"""Which request heads are served, and with which status the others are refused."""

from __future__ import annotations

import pytest

from sidecar.transports.http1.heads import find_head, parse_head
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import CHUNKED, HttpError, Request

LIMITS = HttpLimits()


def parse(head: str, limits: HttpLimits = LIMITS) -> Request:
    """The request with the lines of *head*."""
    return parse_head(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n", limits, None, False)


def test_parse_head__gives_everything_as_it_was_sent() -> None:
    """Header names in lower case, path and query undecoded, repeated headers in order."""
    request = parse("POST /a%20b//c?d=%2F HTTP/1.1\nHost: x\nX-A: 1\nx-a: 2\nContent-Length: 5")
    assert (request.method, request.target) == ("POST", b"/a%20b//c?d=%2F")
    assert (request.path, request.query) == (b"/a%20b//c", b"d=%2F")
    assert request.values(b"x-a") == [b"1", b"2"]
    assert (request.body_bytes, request.is_kept_alive, request.version) == (5, True, "1.1")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", b"/", b""),
        ("//a//b", b"//a//b", b""),
        ("/a?b?c", b"/a", b"b?c"),
        ("http://x", b"/", b""),
        ("http://x?y", b"/", b"y"),
        ("http://x/v1//w", b"/v1//w", b""),
    ],
)
def test_parse_head__targets(target: str, path: bytes, query: bytes) -> None:
    """Origin form and absolute form (RFC 9112 3.2)."""
    request = parse(f"GET {target} HTTP/1.1\nHost: x")
    assert (request.path, request.query) == (path, query)


@pytest.mark.parametrize(
    ("head", "is_kept_alive"),
    [
        ("GET / HTTP/1.1\nHost: x", True),
        ("GET / HTTP/1.1\nHost: x\nConnection: Close, x", False),
        ("GET / HTTP/1.0", False),
        ("GET / HTTP/1.0\nConnection: keep-alive", True),
        ("GET / HTTP/1.0\nConnection: keep-alive\nConnection: close", False),
    ],
)
def test_parse_head__whether_the_connection_stays(head: str, is_kept_alive: bool) -> None:
    """RFC 9112 9.3."""
    assert parse(head).is_kept_alive is is_kept_alive


def test_parse_head__an_upgrade_is_ignored() -> None:
    """RFC 9110 7.8: it is an offer."""
    request = parse("GET /a HTTP/1.1\nHost: x\nUpgrade: websocket\nConnection: upgrade")
    assert (request.path, request.is_kept_alive) == (b"/a", True)


def test_parse_head__chunks() -> None:
    """The only transfer coding there is."""
    assert parse("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: Chunked").body_bytes == CHUNKED


@pytest.mark.parametrize(
    ("status", "head"),
    [
        (400, "nonsense"),
        (400, "get / HTTP/1.1\nHost: x"),
        (400, "GET /a b HTTP/1.1\nHost: x"),
        (400, "GET / HTTP/1.1"),
        (400, "GET / HTTP/1.1\nHost: x\nHost: x"),
        (400, "GET / HTTP/1.0\nHost: x\nHost: y"),
        (400, "GET / HTTP/1.1\nHost: x\nno colon"),
        (400, "GET / HTTP/1.1\nHost: x\n: no name"),
        (400, "GET / HTTP/1.1\nHost : x"),
        (400, "GET / HTTP/1.1\nHost: x\nA: b\n folded"),
        (400, "GET / HTTP/1.1\nHost: x\nA: \x00"),
        (400, "GET / HTTP/1.1\nHost: x\nA: \x80\x7f"),
        (400, "GET /\xff HTTP/1.1\nHost: x"),
        (400, "GET x HTTP/1.1\nHost: x"),
        (400, "OPTIONS * HTTP/1.1\nHost: x"),
        (400, "GET /a#b HTTP/1.1\nHost: x"),
        (400, "GET ftp://x/a HTTP/1.1\nHost: x"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: 5\nContent-Length: 5"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: 5, 5"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: +5"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: -5"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: 0x5"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: 99999999999999999999999"),
        (400, "POST / HTTP/1.1\nHost: x\nContent-Length: 5\nTransfer-Encoding: chunked"),
        (400, "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked"),
        (400, "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: xchunked"),
        (400, "POST / HTTP/1.0\nTransfer-Encoding: chunked"),
        (505, "PRI * HTTP/2.0"),
        (413, "POST / HTTP/1.1\nHost: x\nContent-Length: 99999999"),
        (417, "POST / HTTP/1.1\nHost: x\nExpect: a-miracle"),
        (501, "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: gzip, chunked"),
        (501, "CONNECT x:1 HTTP/1.1\nHost: x"),
        (505, "GET / HTTP/2.0\nHost: x"),
        (505, "GET / HTTP/0.9\nHost: x"),
    ],
)
def test_parse_head__what_is_refused(status: int, head: str) -> None:
    """Malformed requests, and those that two readers might read differently."""
    with pytest.raises(HttpError) as caught:
        parse(head)
    assert caught.value.status == status


def test_parse_head__bare_line_feeds_are_refused() -> None:
    """A line ends with CR LF: whoever accepts less may see another message."""
    for head in (b"GET / HTTP/1.1\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n"):
        with pytest.raises(HttpError) as caught:
            parse_head(head, LIMITS, None, False)
        assert caught.value.status == 400


def test_parse_head__the_number_of_fields_has_a_bound() -> None:
    """The last one that is allowed, and one more."""
    limits = HttpLimits(header_fields_max=5)
    fields = "\n".join(f"X-{number}: y" for number in range(4))
    assert len(parse(f"GET / HTTP/1.1\nHost: x\n{fields}", limits).headers) == 5
    with pytest.raises(HttpError) as caught:
        parse(f"GET / HTTP/1.1\nHost: x\n{fields}\nX: y", limits)
    assert caught.value.status == 431


def test_find_head__bounds_to_the_byte() -> None:
    """Of the request line and of the whole head, whether their ends have come or not."""
    limits = HttpLimits(request_line_bytes_max=20, head_bytes_max=40)
    line = b"GET /12345 HTTP/1.1\r"
    assert find_head(bytearray(line), 0, limits) == 0
    head = line + b"\nA: 123456789012\r\n\r\n"
    assert find_head(bytearray(head), 0, limits) == len(head) == 40
    assert find_head(bytearray(head + b"more"), 0, limits) == 40
    for inbox, status in (
        (b"GET /1234567 HTTP/1.1\r\n\r\n", 414),
        (b"X" * 22, 414),
        (line + b"\nA: 1234567890123\r\n\r\n", 431),
        (line + b"\n" + b"y" * 20, 431),
    ):
        with pytest.raises(HttpError) as caught:
            find_head(bytearray(inbox), 0, limits)
        assert caught.value.status == status


@pytest.mark.parametrize("begin", [b"\x16\x03\x01", b"\x00", b" GET", b"get", b"\rG"])
def test_find_head__what_begins_as_no_request_is_refused_at_once(begin: bytes) -> None:
    """TLS to a plain listener, for one: nobody waits for the end of its head."""
    with pytest.raises(HttpError) as caught:
        find_head(bytearray(begin), 0, LIMITS)
    assert caught.value.status == 400
    assert find_head(bytearray(b"\r"), 0, LIMITS) == 0


def test_find_head__goes_on_where_it_stopped() -> None:
    """The end of a head is found although the search before ended within it."""
    head = bytearray(b"GET / HTTP/1.1\r\n\r\n")
    for searched in range(len(head)):
        assert find_head(head, searched, LIMITS) == len(head)

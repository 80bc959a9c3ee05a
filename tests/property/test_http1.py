"""HTTP/1.1 requests under every way of cutting their bytes, and bytes that are no requests."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.transports.http1.core import READ_BYTES
from sidecar.transports.http1.limits import HttpLimits
from tests.unit.transports.http1.rig import HttpClient, HttpRig
from tests.unit.transports.http1.test_connection import reader

SMALL = HttpLimits(
    request_line_bytes_max=60,
    head_bytes_max=150,
    header_fields_max=4,
    body_bytes_max=40,
    body_window_bytes=16,
    chunk_line_bytes_max=20,
    trailer_bytes_max=30,
    trailer_fields_max=2,
)

HOST = b"Host: x\r\n"
requests = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\r\n\r\nGET /a?b HTTP/1.1\r\n" + HOST + b"X: y\r\n\r\n",
        b"POST /c HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
        b"POST /d HTTP/1.1\r\n" + HOST + b"Content-Length: 33\r\n\r\n" + b"x" * 33,
        b"POST /e HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n12;a=b\r\n"
        + b"y" * 18 + b"\r\n0\r\nT: u\r\n\r\n",
        b"POST /f HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        b"HEAD /g HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]
)  # fmt: skip
spoilt = st.one_of(
    requests,
    requests.flatmap(lambda data: st.integers(0, len(data)).map(lambda end: data[:end])),
    st.tuples(requests, st.integers(0, 200), st.binary(max_size=3)).map(
        lambda case: case[0][: case[1]] + case[2] + case[0][case[1] + len(case[2]) :]
    ),
    st.sampled_from(
        [
            b"\r\n",
            b"\r",
            b"\n",
            b"0\r\n\r\n",
            b"x" * 200,
            b"GET /" + b"y" * 100,
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 9,
        ]
    ),
    st.binary(max_size=40),
)


def outcome(pieces: list[bytes]) -> tuple[bytes, bool]:
    """Everything that a client receives that sends *pieces* and then no more, without dates."""
    rig = HttpRig(reader, SMALL)
    client = rig.connect()
    for piece in pieces:
        client.say(piece)
        check_bounds(client)
    client.hang_up()
    lines = bytes(client.transport.output).splitlines(keepends=True)
    is_closed = client.is_closed
    rig.loop.advance(200)
    assert rig.core.connections == {} and rig.core.requests == 0 and rig.loop.timers == 0
    return b"".join(line for line in lines if not line.startswith(b"date: ")), is_closed


def check_bounds(client: HttpClient) -> None:
    """Nothing is kept beyond a head and a read."""
    assert client.buffered_bytes <= SMALL.head_bytes_max + READ_BYTES


@given(st.lists(spoilt, max_size=5), st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=150)
def test_http1__the_cuts_do_not_matter(parts: list[bytes], places: list[int]) -> None:
    """In pieces, in single bytes and whole, the same bytes get the same answers, and leave nothing behind."""
    data = b"".join(parts)
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    whole = outcome([data])
    assert outcome([data[start:end] for start, end in itertools.pairwise(edges)]) == whole
    assert outcome([data[index : index + 1] for index in range(len(data))]) == whole


@given(st.lists(requests, min_size=1, max_size=6))
def test_http1__valid_requests_are_all_answered(parts: list[bytes]) -> None:
    """In order, one answer each, and the connection stays."""
    client = HttpRig(reader, SMALL).connect()
    client.say(b"".join(parts))
    assert client.transport.output.count(b"HTTP/1.1 200 OK\r\n") == len(parts)
    assert not client.is_closed


def test_http1__one_request_cut_at_every_byte() -> None:
    """Every pair of pieces of a pipeline of all kinds."""
    data = (
        b"GET /a HTTP/1.1\r\n" + HOST + b"\r\nPOST /e HTTP/1.1\r\n" + HOST
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nPOST /c HTTP/1.1\r\n" + HOST
        + b"Content-Length: 5\r\n\r\nhelloGET /b HTTP/1.0\r\n\r\n"
    )  # fmt: skip
    whole = outcome([data])
    assert whole[0].count(b"HTTP/1.1 200 OK\r\n") == 4
    for cut in range(len(data)):
        assert outcome([data[:cut], data[cut:]]) == whole

"""Ready-made frames: an independent HTTP/2 library reads what they say, and every answer is judged."""

from __future__ import annotations

import struct

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded

from loadtest.bench.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_BYTES,
    WINDOW_UPDATE,
    Answers,
    Requests,
    WireError,
    frame,
    opening,
)

GOOD, BAD = b"\x00\x00\x00\x00\x02ok", b"\x00\x00\x00\x00\x02no"
METHOD = "/bench.Service/Call"


def served() -> tuple[H2Connection, list[Event]]:
    """A server of another library that has read the client's opening."""
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    return server, server.receive_data(opening())


def judged(reader: Answers) -> list[tuple[int, int]]:
    """The streams that ended and when that was read, where GOOD alone is a good answer."""
    ended: list[tuple[int, int]] = []
    reader.judge(lambda payload: payload == GOOD, lambda stream, read_ns: ended.append((stream, read_ns)))
    return ended


def answer(stream: int, message: bytes = GOOD) -> bytes:
    """Headers, one message and trailers."""
    return (
        frame(HEADERS, END_HEADERS, stream, b"\x88")
        + frame(DATA, 0, stream, message)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x88")
    )


def test_requests__first_and_further_ones_say_the_same() -> None:
    """The header block of six indexes means what the first one spelt out; each has its own message."""
    requests = Requests(METHOD, [b"alpha", b"beta"])
    server, _ = served()
    events = server.receive_data(requests.first(1, 0))
    for stream, number in ((3, 1), (5, 0)):
        events += server.receive_data(requests.next(stream, number))
    heads = [event.headers for event in events if isinstance(event, RequestReceived)]
    assert (
        heads
        == [
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", METHOD.encode()),
                (b":authority", b"localhost"),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            ]
        ]
        * 3
    )
    bodies = {event.stream_id: event.data for event in events if isinstance(event, DataReceived)}
    assert bodies == {
        1: b"\0\0\0\0\5alpha",
        3: b"\0\0\0\0\4beta",
        5: b"\0\0\0\0\5alpha",
    }
    assert [event.stream_id for event in events if isinstance(event, StreamEnded)] == [1, 3, 5]
    assert requests.sizes == [10, 9]


@pytest.mark.parametrize("step", [1, 7, 1_000])
def test_answers__are_counted_however_the_bytes_are_cut(step: int) -> None:
    """Frames end where they say, not where a read does; an answer counts from the read that ends it."""
    reader, counted = Answers(), []
    data = b"".join(map(answer, (1, 3, 5)))
    for at in range(0, len(data), step):
        before = reader.answers
        reader.feed(data[at : at + step], at)
        counted += [at] * (reader.answers - before)
    assert reader.answers == 3
    assert judged(reader) == list(zip((1, 3, 5), counted, strict=True))


def test_answers__an_empty_last_frame_is_no_message() -> None:
    """grpc-core may end a stream by an empty DATA frame: the answer came before."""
    reader = Answers()
    reader.feed(
        frame(HEADERS, END_HEADERS, 1, b"\x88") + frame(DATA, 0, 1, GOOD) + frame(DATA, END_STREAM, 1, b""), 5
    )
    assert judged(reader) == [(1, 5)]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (answer(1, BAD), "an answer is not what this load must get"),
        (answer(1, GOOD[:-1]), "an answer is not what this load must get"),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88"), "a call ended without a message"),
        (frame(RST_STREAM, 0, 1, bytes(4)), "the server ended a stream or the connection"),
        (frame(GOAWAY, 0, 0, bytes(8)), "the server ended a stream or the connection"),
    ],
)
def test_answers__whatever_is_no_good_answer_ends_the_load(data: bytes, fault: str) -> None:
    """A benchmark that counted denials or failures as answers would be fast and wrong."""
    reader = Answers()
    with pytest.raises(WireError, match=fault):
        reader.feed(data, 0)
        judged(reader)


def test_answers__what_must_be_acknowledged_is() -> None:
    """SETTINGS and PING are answered, their acknowledgements are not, and windows grow."""
    reader = Answers()
    reader.feed(frame(SETTINGS, 0, 0, b"") + frame(PING, 0, 0, b"12345678"), 0)
    reader.feed(frame(SETTINGS, 1, 0, b"") + frame(PING, 1, 0, b"87654321"), 0)
    assert bytes(reader.to_send) == frame(SETTINGS, 1, 0, b"") + frame(PING, 1, 0, b"12345678")
    reader.feed(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1_000)), 0)
    assert reader.window_bytes == WINDOW_BYTES + 1_000

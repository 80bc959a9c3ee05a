"""The HTTP/2 client: an independent library reads its frames and answers them, however the bytes are cut."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded

from loadtest.driver.connection import Call, Ended
from loadtest.driver.frames import Requests
from loadtest.driver.http2 import Http2Connection
from sidecar.verify.check_link import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    connection_preface,
    frame,
)

METHOD = "/bench.Service/Call"
MESSAGE = b"\x00\x00\x00\x00\x02ok"
NO_TABLE = struct.pack(">HI", 1, 0)
TWO_STREAMS = struct.pack(">HI", 3, 2)
REFUSED_STREAM, CANCEL = struct.pack(">I", 7), struct.pack(">I", 8)


@contextmanager
def connected(settings: bytes = b"", streams: int = 8) -> Iterator[tuple[Http2Connection, socket.socket]]:
    """A client that has read the settings of its server, and the server's socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(60)
    with ours, theirs:
        client = Http2Connection(ours, Requests(METHOD, [b"alpha", b"beta"]), streams)
        assert client.room == 0
        theirs.sendall(frame(SETTINGS, 0, 0, settings))
        assert client.read() == []
        yield client, theirs


def calls(*numbers: int) -> list[Call]:
    """Calls with messages of *numbers*, due one nanosecond after another."""
    return [Call(due_ns, 0, number, 0) for due_ns, number in enumerate(numbers, 1)]


def answer(stream: int, message: bytes = MESSAGE) -> bytes:
    """Headers, one message and trailers."""
    return (
        frame(HEADERS, END_HEADERS, stream, b"\x88")
        + frame(DATA, 0, stream, message)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x88")
    )


def seen_by_server(data: bytes, table_bytes: int = 4_096) -> list[Event]:
    """The events that a server of another library makes of *data*."""
    server = H2Connection(H2Configuration(client_side=False))
    server.decoder.max_allowed_table_size = table_bytes
    server.initiate_connection()
    return server.receive_data(data)


@pytest.mark.parametrize("settings", [b"", NO_TABLE])
def test_http2__every_request_says_the_same(settings: bytes) -> None:
    """Whether a header block has indexes or is spelled out, it means the same; each has its own message."""
    with connected(settings) as (client, theirs):
        client.send(calls(0, 1, 0))
        events = seen_by_server(theirs.recv(65_536), 0 if settings else 4_096)
    heads = [event.headers for event in events if isinstance(event, RequestReceived)]
    expected = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", METHOD.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    assert heads == [expected] * 3
    bodies = {event.stream_id: event.data for event in events if isinstance(event, DataReceived)}
    assert bodies == {1: b"\0\0\0\0\5alpha", 3: b"\0\0\0\0\4beta", 5: b"\0\0\0\0\5alpha"}
    assert [event.stream_id for event in events if isinstance(event, StreamEnded)] == [1, 3, 5]


@pytest.mark.parametrize("step", [1, 7, 1_000])
def test_http2__answers_are_the_same_however_the_bytes_are_cut(step: int) -> None:
    """Frames end where they say, not where a read does."""
    data = b"".join(map(answer, (1, 3, 5)))
    found: list[Ended] = []
    with connected() as (client, theirs):
        client.send(calls(0, 1, 0))
        for at in range(0, len(data), step):
            theirs.sendall(data[at : at + step])
            found += client.read()
        assert client.in_flight == 0
    assert found == [(call, b"ok") for call in calls(0, 1, 0)]


def test_http2__a_message_may_be_cut_padded_or_missing() -> None:
    """Two DATA frames are one message without padding; a gRPC error has none; a message may be empty."""
    with connected() as (client, theirs):
        client.send(calls(0, 0, 0))
        theirs.sendall(
            frame(HEADERS, END_HEADERS, 1, b"\x88")
            + frame(DATA, PADDED, 1, b"\x02" + MESSAGE[:6] + b"\0\0")
            + frame(DATA, END_STREAM, 1, MESSAGE[6:])
            + frame(HEADERS, END_HEADERS | END_STREAM, 3, b"\x88")
            + answer(5, bytes(5))
        )
        assert [message for _, message in client.read()] == [b"ok", None, b""]


def test_http2__room_is_what_both_sides_allow() -> None:
    """The server's maximum of streams bounds the calls in flight; an answer makes room again."""
    with connected(TWO_STREAMS) as (client, theirs):
        assert client.room == 2
        client.send(calls(0, 0))
        assert client.room == 0
        theirs.sendall(answer(1))
        client.read()
        assert client.room == 1


def test_http2__settings_and_pings_are_acknowledged() -> None:
    """A server that gets no acknowledgment closes the connection."""
    with connected() as (client, theirs):
        theirs.sendall(frame(PING, 0, 0, b"12345678") + frame(PING, 1, 0, b"87654321"))
        client.read()
        received = theirs.recv(65_536)
    assert received.removeprefix(connection_preface()) == frame(SETTINGS, 1, 0) + frame(
        PING, 1, 0, b"12345678"
    )


def test_http2__a_going_server_gives_back_what_it_did_not_handle() -> None:
    """Calls above the last stream were not handled and may be sent again; others are still answered."""
    with connected() as (client, theirs):
        client.send(calls(0, 0, 0))
        theirs.sendall(frame(GOAWAY, 0, 0, struct.pack(">II", 3, 0)))
        client.read()
        assert (client.is_draining, client.room, client.in_flight) == (True, 0, 2)
        assert [call.due_ns for call in client.refused] == [3]


@pytest.mark.parametrize(("code", "is_refused"), [(REFUSED_STREAM, True), (CANCEL, False)])
def test_http2__a_reset_call_is_refused_or_lost(code: bytes, is_refused: bool) -> None:
    """Only REFUSED_STREAM promises that the server did nothing."""
    with connected() as (client, theirs):
        client.send(calls(0))
        theirs.sendall(frame(RST_STREAM, 0, 1, code))
        client.read()
        assert (len(client.refused), len(client.lost)) == ((1, 0) if is_refused else (0, 1))


def test_http2__a_closed_connection_loses_its_calls() -> None:
    """They may have been handled, so they are not sent again."""
    with connected() as (client, theirs):
        client.send(calls(0, 1))
        theirs.close()
        client.read()
        assert client.is_closed
        assert client.lost == calls(0, 1)

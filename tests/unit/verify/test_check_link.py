"""The client's side of HTTP/2: each call has one result, and windows are kept on both sides."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from sidecar.verify import check_link as module
from sidecar.verify.check_link import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    CheckLink,
    Frame,
    FrameError,
    FrameReader,
    connection_preface,
    frame,
)

MESSAGE = b"m" * 100
ANSWER = b"answer"


class CheckTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.written = b""
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def abort(self) -> None:
        """Note it."""
        self.is_aborted = True

    def frames(self) -> list[Frame]:
        """What was written since the last look, without the preface."""
        data, self.written = self.written.removeprefix(connection_preface()), b""
        return list(FrameReader().feed(data))


class OpenLink:
    """An open link, and its results."""

    def __init__(self) -> None:
        """Open it."""
        self.reported: list[tuple[int, bytes]] = []
        self.closed = 0
        self.link = CheckLink(
            "sidecar", lambda tag, message, sent: self.reported.append((tag, message)), self._end
        )
        self.transport = CheckTransport()
        self.link.connection_made(cast(Any, self.transport))
        assert self.transport.frames() == []

    def _end(self) -> None:
        self.closed += 1

    def call(self, *tags: int) -> None:
        """Begin calls."""
        for tag in tags:
            self.link.call(MESSAGE, tag)
        self.link.flush()

    def receive(self, *frames: bytes) -> None:
        """Frames from the server."""
        self.link.data_received(b"".join(frames))


def answer(stream: int, message: bytes = ANSWER) -> bytes:
    """A whole answer: headers, one message, trailers."""
    body = b"\0" + len(message).to_bytes(4, "big") + message
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x88")
    return frame(HEADERS, END_HEADERS, stream, b"\x88") + frame(DATA, 0, stream, body) + trailers


def test_call__leaves_as_headers_and_data_on_odd_streams() -> None:
    """Calls begun in one turn leave in one write, each on the next stream of a client."""
    open_link = OpenLink()
    open_link.call(7, 8)
    frames = open_link.transport.frames()
    assert [(received.kind, received.stream) for received in frames] == [
        (HEADERS, 1),
        (DATA, 1),
        (HEADERS, 3),
        (DATA, 3),
    ]
    assert frames[1].payload == b"\0" + (100).to_bytes(4, "big") + MESSAGE
    assert frames[1].flags == END_STREAM


@pytest.mark.parametrize("size", [1, 5, 1_000])
def test_answer__however_it_is_cut(size: int) -> None:
    """Answers are reported by their tag, in any order, whatever pieces they come in."""
    open_link = OpenLink()
    open_link.call(7, 8)
    data = answer(3, b"second") + answer(1, b"first")
    for at in range(0, len(data), size):
        open_link.link.data_received(data[at : at + size])
    assert open_link.reported == [(8, b"second"), (7, b"first")]
    assert open_link.link.in_flight == 0


def test_answer__padding_is_cut_off() -> None:
    """RFC 9113 6.1: padding is no data."""
    open_link = OpenLink()
    open_link.call(7)
    body = b"\0" + len(ANSWER).to_bytes(4, "big") + ANSWER
    open_link.receive(frame(DATA, PADDED | END_STREAM, 1, b"\x03" + body + b"\0\0\0"))
    assert open_link.reported == [(7, ANSWER)]


@pytest.mark.parametrize(
    "end",
    [
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88"),
        frame(RST_STREAM, 0, 1, (8).to_bytes(4, "big")),
        frame(DATA, 0, 1, b"\0\0\0\0\x06ans") + frame(RST_STREAM, 0, 1, (8).to_bytes(4, "big")),
    ],
)
def test_answer__none_is_reported_as_none(end: bytes) -> None:
    """An error of gRPC and a reset, also in the middle of an answer, are no answers."""
    open_link = OpenLink()
    open_link.call(7)
    open_link.receive(end)
    assert open_link.reported == [(7, b"")]


def test_loss__every_call_under_way_is_reported_once() -> None:
    """A lost connection ends each call without an answer, and then itself."""
    open_link = OpenLink()
    open_link.call(7, 8)
    open_link.receive(answer(1))
    open_link.link.connection_lost(None)
    assert open_link.reported == [(7, ANSWER), (8, b"")]
    assert (open_link.closed, open_link.link.is_open, open_link.link.in_flight) == (1, False, 0)


def test_window__of_the_server_is_kept() -> None:
    """No call is begun that the server's window has no room for, until it opens it again."""
    open_link = OpenLink()
    begun = 0
    while open_link.link.has_room:
        open_link.call(begun)
        begun += 1
    sent = sum(len(received.payload) for received in open_link.transport.frames() if received.kind == DATA)
    assert sent <= 65_535
    open_link.receive(frame(WINDOW_UPDATE, 0, 0, (65_535).to_bytes(4, "big")))
    assert open_link.link.has_room


def test_window__of_ours_is_opened_by_what_was_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credit is given for data alone: more would lift the window above 2^31 - 1, which ends connections."""
    monkeypatch.setattr(module, "CREDIT_BYTES", 20)
    open_link = OpenLink()
    open_link.call(7, 8)
    open_link.transport.frames()
    open_link.receive(answer(1))
    assert open_link.transport.frames() == []
    open_link.receive(answer(3))
    [update] = open_link.transport.frames()
    assert (update.kind, update.stream) == (WINDOW_UPDATE, 0)
    assert int.from_bytes(update.payload, "big") == 2 * (5 + len(ANSWER))


def test_connection__settings_and_pings_are_acknowledged() -> None:
    """RFC 9113 6.5.3 and 6.7; acknowledgements are not."""
    open_link = OpenLink()
    open_link.receive(frame(SETTINGS, 0, 0), frame(PING, 0, 0, b"12345678"))
    open_link.receive(frame(SETTINGS, ACK, 0), frame(PING, ACK, 0, b"12345678"))
    assert open_link.transport.frames() == [Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"12345678")]


def test_goaway__takes_no_further_call() -> None:
    """Calls under way are still answered."""
    open_link = OpenLink()
    open_link.call(7)
    open_link.receive(frame(GOAWAY, 0, 0, b"\0" * 8))
    assert not open_link.link.has_room
    open_link.receive(answer(1))
    assert open_link.reported == [(7, ANSWER)]


def test_bounds__of_what_a_server_may_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame or an answer beyond its bound ends the connection instead of filling memory."""
    open_link = OpenLink()
    open_link.receive((16_385).to_bytes(3, "big") + bytes(6))
    assert open_link.transport.is_aborted
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 10)
    open_link = OpenLink()
    open_link.call(7)
    open_link.receive(frame(DATA, 0, 1, b"x" * 11))
    assert open_link.transport.is_aborted


def test_bounds__of_a_message_and_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is one frame; a connection ends before its stream ids do."""
    with pytest.raises(ValueError, match="at most 16379"):
        OpenLink().link.call(b"m" * 16_380, 0)
    monkeypatch.setattr(module, "STREAM_MAX", 5)
    open_link = OpenLink()
    open_link.call(0, 1)
    assert not open_link.link.is_open


def test_reader__keeps_one_unfinished_frame_at_most() -> None:
    """What is cut is kept, what is whole is given away."""
    reader = FrameReader()
    whole = frame(PING, 0, 0, b"12345678")
    assert [received.kind for received in reader.feed(whole * 3 + whole[:10])] == [PING] * 3
    assert [received.payload for received in reader.feed(whole[10:])] == [b"12345678"]
    with pytest.raises(FrameError, match="16384"):
        list(reader.feed((1 << 20).to_bytes(3, "big") + bytes(6)))


def test_connect__to_nobody() -> None:
    """Where nobody listens there is an OSError, in time."""

    async def scenario() -> None:
        link = CheckLink("sidecar", lambda tag, message, sent: None, lambda: None)
        await module.connect(link, "unix:/nonexistent/sidecar.sock", 5)

    with pytest.raises(OSError, match="No such file"):
        asyncio.run(scenario())

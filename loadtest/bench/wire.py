"""
Unary gRPC calls as prepared HTTP/2 frames, so that plain Python can send many requests per second.

Every request on a connection has the same header block: the first request puts its headers into the peer's
dynamic table, and all others have six indexes into the table (RFC 7541 6.1, 6.2.1). So a request is a few
constant bytes, the stream id twice, and the message. During the load only the frame headers of answers are
read; the content is checked afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
FRAME_HEAD = struct.Struct(">IBI")  # length and type share the first word
HEAD_BYTES = FRAME_HEAD.size
STREAM_ID_MAX = 2**31 - 1
WINDOW_BYTES = 65_535
RECEIVE_WINDOW_BYTES = 2**31 - 1
"""More than a load receives on one connection, so no WINDOW_UPDATE is needed."""

_POST_HTTP = b"\x83\x86"  # :method POST and :scheme http of the static table
_INDEXED = _POST_HTTP + b"\xc1\xc0\xbf\xbe"  # the four that the first block has put into the dynamic table


class WireError(Exception):
    """The server behaved unexpectedly, so the results are invalid."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Encode a frame (RFC 9113 4.1)."""
    return FRAME_HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def opening() -> bytes:
    """Return a client's first frames: no server push, and a large receive window."""
    grow = struct.pack(">I", RECEIVE_WINDOW_BYTES - WINDOW_BYTES)
    settings = struct.pack(">HI", 2, 0)
    return PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, grow)


class Requests:
    """The calls of one run: one method, several messages."""

    def __init__(self, method: str, messages: Sequence[bytes]) -> None:
        """Prepare calls of *method* with each of *messages*."""
        self._first_block = _POST_HTTP + b"".join(
            (
                b"\x44" + _text(method),
                b"\x41" + _text("localhost"),
                b"\x5f" + _text("application/grpc"),
                b"\x40" + _text("te") + _text("trailers"),
            )
        )
        self._messages = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
        self._head = _frame_head(HEADERS, END_HEADERS, len(_INDEXED))
        self._middles = [_INDEXED + _frame_head(DATA, END_STREAM, len(body)) for body in self._messages]
        self.sizes = [len(body) for body in self._messages]
        self.size_max = max(self.sizes)

    def first(self, stream: int, number: int) -> bytes:
        """Return the first request of a connection, with message *number*."""
        return frame(HEADERS, END_HEADERS, stream, self._first_block) + frame(
            DATA, END_STREAM, stream, self._messages[number]
        )

    def next(self, stream: int, number: int) -> bytes:
        """Return a further request."""
        stream_id = stream.to_bytes(4, "big")
        return b"".join((self._head, stream_id, self._middles[number], stream_id, self._messages[number]))


class Answers:
    """
    Reads the server's frames on one connection.

    `answers` counts complete answers; `to_send` has acknowledgments to send; `window_bytes` is the server's
    receive window. All frames are stored for `judge`.
    """

    def __init__(self) -> None:
        """Start without answers."""
        self._rest = b""
        self._kept: list[tuple[int, bytes]] = []
        self.answers = 0
        self.window_bytes = WINDOW_BYTES
        self.to_send = bytearray()

    def feed(self, data: bytes, read_ns: int) -> None:
        """
        Count the answers that *data*, read at *read_ns*, completes.

        Raises:
            WireError: the server resets a stream or closes the connection.
        """
        data = self._rest + data if self._rest else data
        at, size, answers, unpack = 0, len(data), 0, FRAME_HEAD.unpack_from
        while at + HEAD_BYTES <= size:
            head, flags, _ = unpack(data, at)
            end = at + HEAD_BYTES + (head >> 8)
            if end > size:
                break
            kind = head & 0xFF
            if kind > HEADERS:
                self._control(kind, flags, data[at + HEAD_BYTES : end])
            elif flags & END_STREAM:
                answers += 1
            at = end
        self.answers += answers
        self._kept.append((read_ns, data[:at]))
        self._rest = data[at:]

    def judge(self, is_good: Callable[[bytes], bool], ended: Callable[[int, int], None]) -> None:
        """
        Check every message with *is_good*; call *ended* with each answer's stream and the time of its end.

        Raises:
            WireError: an answer is not good, or has no message.
        """
        messages = answers = 0
        for read_ns, kind, flags, stream, payload in self._frames():
            if kind == DATA and payload:  # grpc-core may end a stream by an empty frame
                if int.from_bytes(payload[1:5], "big") != len(payload) - 5 or not is_good(payload):
                    raise WireError(f"an answer is not what this load must get: {payload[:200]!r}")
                messages += 1
            if kind <= HEADERS and flags & END_STREAM:
                answers += 1
                if messages < answers:
                    raise WireError(f"a call ended without a message: it failed, {payload!r}")
                ended(stream, read_ns)

    def _frames(self) -> Iterator[tuple[int, int, int, int, bytes]]:
        """Yield all frames: the read time, type, flags, stream and payload."""
        for read_ns, data in self._kept:
            at = 0
            while at < len(data):
                head, flags, stream = FRAME_HEAD.unpack_from(data, at)
                begin = at + HEAD_BYTES
                at = begin + (head >> 8)
                yield read_ns, head & 0xFF, flags, stream, data[begin:at]

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self.window_bytes += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self.to_send += frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self.to_send += frame(PING, ACK, 0, payload)
        elif kind in (RST_STREAM, GOAWAY):
            raise WireError(f"the server ended a stream or the connection: frame {kind}, {payload!r}")


def _frame_head(kind: int, flags: int, length: int) -> bytes:
    """Encode a frame header without the stream id."""
    return struct.pack(">IB", length << 8 | kind, flags)


def _text(value: str) -> bytes:
    """Encode a string literal without Huffman coding (RFC 7541 5.2), shorter than 127 bytes."""
    return bytes((len(value),)) + value.encode()

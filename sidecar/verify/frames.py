"""
The few frames of HTTP/2 that a client of unary gRPC calls needs (RFC 9113).

A load generator shares its cores with what it measures, so it must cost little: header blocks are
made once a connection, and those of answers are not read. What a call found is in its message; one that
ends without a message got no answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8

HEAD_BYTES = 9
FRAME_BYTES_MAX = 16_384
"""RFC 9113 6.5.2, SETTINGS_MAX_FRAME_SIZE: we announce no other, so nothing longer may come."""
WINDOW_DEFAULT = 65_535
WINDOW_MAX = 2**31 - 1
GRPC_PREFIX_BYTES = 5

_INITIAL_WINDOW_SIZE = 0x4
_ENABLE_PUSH = 0x2


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class FrameError(ConnectionError):
    """The peer sent what no server of HTTP/2 may send."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def opening() -> bytes:
    """What a client says first: its preface, its settings, and windows that answers never fill."""
    settings = _setting(_ENABLE_PUSH, 0) + _setting(_INITIAL_WINDOW_SIZE, WINDOW_MAX)
    whole = window_update(0, WINDOW_MAX - WINDOW_DEFAULT)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + whole


def window_update(stream: int, credit: int) -> bytes:
    """Let the peer send *credit* more bytes."""
    return frame(WINDOW_UPDATE, 0, stream, credit.to_bytes(4, "big"))


def header_block(path: str, authority: str, timeout_ms: int) -> bytes:
    """
    The header block of a gRPC call, in HPACK without indexing or Huffman codes (RFC 7541 6.2.2).

    So it means the same whatever was sent before, and is made once. *timeout_ms* is `grpc-timeout`.
    """
    method_post, scheme_http = b"\x83", b"\x86"  # RFC 7541, appendix A: 3 and 6
    fields = (
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"grpc-timeout", b"%dm" % timeout_ms),
    )
    return (
        method_post + scheme_http + b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
    )


def call_frames(block: bytes, stream: int, message: bytes) -> bytes:
    """A whole call: its headers and its message, which fits into one frame."""
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def data_of(one: Frame) -> bytes:
    """The data of a DATA frame, without its padding (RFC 9113 6.1)."""
    if not one.flags & PADDED:
        return one.payload
    return one.payload[1 : len(one.payload) - one.payload[0]]


class FrameReader:
    """Cuts the bytes of a connection into frames; keeps no more than one unfinished frame."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """
        The frames that are complete now.

        Raises:
            FrameError: a frame is longer than we allowed.
        """
        buffer = self._rest + data if self._rest else data
        at, end = 0, len(buffer)
        while end - at >= HEAD_BYTES:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"a frame of {length} bytes, where {FRAME_BYTES_MAX} are allowed")
            after = at + HEAD_BYTES + length
            if after > end:
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big") & WINDOW_MAX
            yield Frame(buffer[at + 3], buffer[at + 4], stream, buffer[at + HEAD_BYTES : after])
            at = after
        self._rest = buffer[at:]


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _text(text: bytes) -> bytes:
    """A string literal; the lengths here need no more than HPACK's 7-bit prefix and one more byte."""
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    if length - 0x7F >= 0x80:
        raise ValueError(f"a header of {length} bytes is longer than a call of ours needs: {text[:60]!r}")
    return bytes((0x7F, length - 0x7F)) + text

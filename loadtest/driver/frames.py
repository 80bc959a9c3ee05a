"""
Unary gRPC calls as prepared HTTP/2 frames, so that plain Python can send many requests per second.

Every request on a connection has the same header block: the first request puts its headers into the peer's
dynamic table, and all others have six indexes into the table (RFC 7541 6.1, 6.2.1). So a request is a few
constant bytes, the stream id twice, and the message.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sidecar.verify.check_link import DATA, END_HEADERS, END_STREAM, HEADERS, frame

FRAME_HEAD = struct.Struct(">IBI")
"""A frame's header (RFC 9113 4.1): length and type share the first word."""
TABLE_BYTES_MIN = 4_096
"""A peer with a smaller header table (SETTINGS_HEADER_TABLE_SIZE) gets every header block in full."""

_POST_HTTP = b"\x83\x86"  # :method POST and :scheme http of the static table
_INDEXED = _POST_HTTP + b"\xc1\xc0\xbf\xbe"  # the four that the first block has put into the dynamic table


class Requests:
    """The calls of one run: one method, several messages."""

    def __init__(self, method: str, messages: Sequence[bytes], authority: str = "localhost") -> None:
        """Prepare calls of *method* with each of *messages*."""
        self._first_block = _POST_HTTP + b"".join(
            (
                b"\x44" + _text(method),
                b"\x41" + _text(authority),
                b"\x5f" + _text("application/grpc"),
                b"\x40" + _text("te") + _text("trailers"),
            )
        )
        self._full_block = b"\x20" + self._first_block  # RFC 7541 4.2: the table's new size, 0
        self._messages = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
        self._head = _frame_head(HEADERS, END_HEADERS, len(_INDEXED))
        self._middles = [_INDEXED + _frame_head(DATA, END_STREAM, len(body)) for body in self._messages]
        self.sizes = [len(body) for body in self._messages]
        self.size_max = max(self.sizes)

    def first(self, stream: int, number: int) -> bytes:
        """Return the first request of a connection, with message *number*."""
        return self._whole(self._first_block, stream, number)

    def full(self, stream: int, number: int) -> bytes:
        """Return a request for a peer without a header table."""
        return self._whole(self._full_block, stream, number)

    def next(self, stream: int, number: int) -> bytes:
        """Return a further request."""
        stream_id = stream.to_bytes(4, "big")
        return b"".join((self._head, stream_id, self._middles[number], stream_id, self._messages[number]))

    def _whole(self, block: bytes, stream: int, number: int) -> bytes:
        return frame(HEADERS, END_HEADERS, stream, block) + frame(
            DATA, END_STREAM, stream, self._messages[number]
        )


def _frame_head(kind: int, flags: int, length: int) -> bytes:
    """Encode a frame header without the stream id."""
    return struct.pack(">IB", length << 8 | kind, flags)


def _text(value: str) -> bytes:
    """Encode a string literal without Huffman coding (RFC 7541 5.2), shorter than 127 bytes."""
    return bytes((len(value),)) + value.encode()

"""
The length-prefixed message of gRPC: one flag byte, four bytes of length, the message.

Messages are independent of DATA frames: a message may arrive in any number of pieces. Source:
grpc/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message"; compression.md for the flag.
"""

from __future__ import annotations

import struct
from typing import Final

from sidecar.rpc.statuses import StatusCode

PREFIX: Final = struct.Struct(">BI")
"""Compressed-flag and length."""
PREFIX_BYTES: Final = 5


class FramingError(Exception):
    """The request is not exactly one uncompressed message; has the status for the caller."""

    def __init__(self, code: StatusCode, detail: str) -> None:
        """Store *code* and a *detail* that is safe to publish."""
        super().__init__(detail)
        self.code = code
        self.detail = detail


class CompressedError(FramingError):
    """The message has an unsupported compression: the answer must name the supported encodings."""


def frame_message(message: bytes) -> bytes:
    """
    Return *message* with its prefix; answers are never compressed.

    >>> frame_message(b"ab")
    b'\\x00\\x00\\x00\\x00\\x02ab'
    """
    return len(message).to_bytes(PREFIX_BYTES, "big") + message


class MessageReader:
    """
    Assembles the message of a request from pieces.

    Its memory is bounded by the message limit and one piece. `received` counts the bytes with the prefix,
    `pieces` the calls of `feed`, for the limit on tiny DATA frames.
    """

    __slots__ = ("_buffer", "_bytes_max", "_is_encoded", "_size", "pieces", "received")

    def __init__(self, bytes_max: int, *, is_encoded: bool = False) -> None:
        """
        Accept a message of at most *bytes_max*.

        Args:
            is_encoded: the request has a `grpc-encoding` other than identity, so a set compressed-flag means
                an unsupported encoding and not a contradiction.
        """
        self._bytes_max = bytes_max
        self._is_encoded = is_encoded
        self._buffer = bytearray()
        self._size = -1  # -1 = the prefix is not complete
        self.pieces = 0
        self.received = 0

    def feed(self, piece: bytes) -> None:
        """
        Add the next piece.

        Raises:
            FramingError: the prefix is invalid, or there is more than one message.
        """
        self.pieces += 1
        self.received += len(piece)
        self._buffer += piece
        if self._size < 0 and len(self._buffer) >= PREFIX_BYTES:
            flag, size = PREFIX.unpack_from(self._buffer)
            self._check_prefix(flag, size)
            self._size = size
        if 0 <= self._size < len(self._buffer) - PREFIX_BYTES:
            # statuscodes.md: a cardinality violation of a method with one request message.
            raise FramingError(StatusCode.UNIMPLEMENTED, "the request has more than one message")

    def _check_prefix(self, flag: int, size: int) -> None:
        if flag == 1 and self._is_encoded:
            raise CompressedError(StatusCode.UNIMPLEMENTED, "the message's compression is not supported")
        if flag == 1:
            raise FramingError(
                StatusCode.INTERNAL,
                "the message is marked as compressed but the request has no grpc-encoding",
            )
        if flag != 0:
            raise FramingError(StatusCode.INTERNAL, f"the compressed-flag is {flag}; it must be 0 or 1")
        if size > self._bytes_max:
            raise FramingError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"the message has {size} bytes; this server takes at most {self._bytes_max}",
            )

    def finish(self) -> bytes:
        """
        Return the message, at the end of the request.

        Raises:
            FramingError: the message is missing or incomplete.
        """
        if not self._buffer:
            raise FramingError(StatusCode.UNIMPLEMENTED, "the request has no message")
        if self._size < 0 or len(self._buffer) < PREFIX_BYTES + self._size:
            raise FramingError(StatusCode.INTERNAL, "the request ends inside its message")
        return bytes(self._buffer[PREFIX_BYTES:])


class ExchangeReader(MessageReader):
    """
    Splits the request of an exchange into messages, and buffers the incomplete one.

    `received` and `pieces` count for the incomplete message, `messages` counts complete messages.
    """

    __slots__ = ("messages",)

    def __init__(self, bytes_max: int, *, is_encoded: bool = False) -> None:
        """See `MessageReader`."""
        super().__init__(bytes_max, is_encoded=is_encoded)
        self.messages = 0

    def split(self, piece: bytes) -> list[bytes]:
        """
        Return the messages that *piece* completes, in order.

        Raises:
            FramingError: a prefix is invalid.
        """
        buffer = self._buffer
        buffer += piece
        found: list[bytes] = []
        start = 0
        while len(buffer) - start >= PREFIX_BYTES:
            flag, size = PREFIX.unpack_from(buffer, start)
            self._check_prefix(flag, size)
            end = start + PREFIX_BYTES + size
            if end > len(buffer):
                break
            found.append(bytes(buffer[start + PREFIX_BYTES : end]))
            start = end
        del buffer[:start]
        self.pieces = 0 if found else self.pieces + 1
        self.received = len(buffer)
        self.messages += len(found)
        return found

    def finish(self) -> bytes:
        """
        Check that the request ends after a message.

        Raises:
            FramingError: the request has no message, or ends inside a message.
        """
        if self._buffer:
            raise FramingError(StatusCode.INTERNAL, "the request ends inside a message")
        if not self.messages:
            raise FramingError(StatusCode.UNIMPLEMENTED, "the request has no message")
        return b""

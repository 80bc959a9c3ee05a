"""Reads the body of a request from the connection's buffer, by its length or in chunks."""

from __future__ import annotations

import re
from typing import Protocol

from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import CHUNKED, HttpError

LINES_PER_READ = 64
"""Chunk lines that one read handles before other connections are served."""

FRAMING_PER_BYTE = 8
"""Maximum bytes of chunk lines per byte of the body; a chunk of one byte has five."""

FRAMING_BYTES_MIN = 16_384
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\x09\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\x09\x20-\x7e\x80-\xff]*")


class Body(Protocol):
    """The body of one request while it is received."""

    @property
    def is_whole(self) -> bool:
        """Whether the last byte was read."""

    def take(self, inbox: bytearray, bytes_max: int) -> bytes:
        """
        Remove up to *bytes_max* bytes of the body from *inbox* and return them.

        Raises:
            HttpError: the body is malformed or too large.
        """


def body_of(body_bytes: int, limits: HttpLimits) -> Body:
    """Return the reader for `Request.body_bytes`."""
    return ChunkedBody(limits) if body_bytes == CHUNKED else SizedBody(body_bytes)


class SizedBody:
    """A body with a Content-Length."""

    __slots__ = ("left_bytes",)

    def __init__(self, length: int) -> None:
        """Expect *length* bytes."""
        self.left_bytes = length

    @property
    def is_whole(self) -> bool:
        """See `Body.is_whole`."""
        return not self.left_bytes

    def take(self, inbox: bytearray, bytes_max: int) -> bytes:
        """See `Body.take`."""
        taken = bytes(inbox[: min(bytes_max, self.left_bytes)])
        del inbox[: len(taken)]
        self.left_bytes -= len(taken)
        return taken


class ChunkedBody:
    """A chunked body (RFC 9112 7.1); extensions and trailers are limited and ignored."""

    __slots__ = (
        "_body_bytes", "_chunk_bytes", "_framing_bytes", "_is_after_data", "_is_in_trailers", "_limits",
        "_trailer_bytes", "_trailers", "is_whole",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits) -> None:
        """Expect the first chunk, within *limits*."""
        self.is_whole = False
        self._limits = limits
        self._chunk_bytes = 0
        self._body_bytes = 0
        self._framing_bytes = 0
        self._trailer_bytes = 0
        self._trailers = 0
        self._is_after_data = False
        self._is_in_trailers = False

    def take(self, inbox: bytearray, bytes_max: int) -> bytes:
        """See `Body.take`."""
        taken = bytearray()
        lines = 0
        while not self.is_whole and lines < LINES_PER_READ:
            if self._chunk_bytes:
                part = inbox[: min(self._chunk_bytes, bytes_max - len(taken))]
                if not part:
                    break
                taken += part
                del inbox[: len(part)]
                self._chunk_bytes -= len(part)
                self._is_after_data = not self._chunk_bytes
            else:
                line = self._line(inbox)
                if line is None:
                    break
                lines += 1
                self._handle(line)
        return bytes(taken)

    def _line(self, inbox: bytearray) -> bytes | None:
        """Remove the next line from *inbox* and return it without its end; None = the line is incomplete."""
        left = self._limits.trailer_bytes_max - self._trailer_bytes
        bytes_max = left if self._is_in_trailers else self._limits.chunk_line_bytes_max
        end = inbox.find(b"\r\n", 0, bytes_max + 2)
        if end < 0:
            if len(inbox) >= bytes_max + 2:
                what = "trailers have" if self._is_in_trailers else "size line of a chunk has"
                raise HttpError(400, f"The {what} more than {bytes_max} bytes.")
            return None
        line = bytes(inbox[:end])
        del inbox[: end + 2]
        self._framing_bytes += end + 2
        if self._framing_bytes > FRAMING_BYTES_MIN + FRAMING_PER_BYTE * self._body_bytes:
            raise HttpError(
                400, f"The chunk sizes and extensions exceed {FRAMING_PER_BYTE} bytes per byte of the body."
            )
        return line

    def _handle(self, line: bytes) -> None:
        if self._is_after_data:
            if line:
                raise HttpError(400, "A chunk of the body is longer than its size says.")
            self._is_after_data = False
        elif self._is_in_trailers:
            self._handle_trailer(line)
        else:
            self._begin_chunk(line)

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise HttpError(400, "A chunk of the body has no valid size.")
        self._chunk_bytes = int(match[1], 16)
        self._body_bytes += self._chunk_bytes
        if self._body_bytes > self._limits.body_bytes_max:
            raise HttpError(413, f"The body has more than {self._limits.body_bytes_max} bytes.")
        self._is_in_trailers = not self._chunk_bytes

    def _handle_trailer(self, line: bytes) -> None:
        if not line:
            self.is_whole = True
            return
        self._trailers += 1
        self._trailer_bytes += len(line) + 2
        if self._trailers > self._limits.trailer_fields_max:
            raise HttpError(400, f"The body has more than {self._limits.trailer_fields_max} trailers.")
        if not _TRAILER.fullmatch(line):
            raise HttpError(400, "A trailer of the body is malformed.")

"""
Supports requests whose `:authority` is not a host: a socket path, an empty text, or missing.

grpc-java and older grpc-go send the path of a Unix socket. No decision depends on the authority, but nghttp2
resets such streams before this program sees them, and ngh2 has no option for it. So the first requests of a
connection are decoded here as well. While their authorities are valid, nghttp2 gets all bytes unchanged, and
after `REQUESTS_INSPECTED` requests the inspection ends, because a client has one authority. From the first
invalid authority on, all headers of the connection are re-encoded with a valid authority.

All other errors are left to nghttp2. Source: RFC 7541, RFC 9113 4.1, 6.2, 8.3.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import hpack

from sidecar.transports.server import TransportLimits

REQUESTS_INSPECTED: Final = 16
"""Inspected requests of a connection with valid authorities; decoding a request takes about 50 µs."""

PLACEHOLDER_HOST: Final = b"localhost"
"""The authority that nghttp2 gets instead of an invalid authority."""

PREFACE_BYTES: Final = 24
FRAME_HEADER_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384  # this server advertises no larger SETTINGS_MAX_FRAME_SIZE
CONTINUATIONS_MAX: Final = 8  # as in `engine.configuration`
HELD_BYTES_MAX: Final = 65_536  # of one header block; nghttp2 refuses longer ones

_HEADERS, _CONTINUATION = 1, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_UNREADABLE_BLOCK: Final = b"\x80"
"""An index of 0, which ends a connection with COMPRESSION_ERROR (RFC 7541 6.1)."""

_HOST: Final = re.compile(rb"[A-Za-z0-9._~%:\[\]-]+")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")

Fields = Sequence[tuple[bytes, bytes]]


class AuthorityFilter:
    """
    Filters the input of one connection before nghttp2.

    `is_done` = the inspection has ended, so the input needs no filter.
    """

    __slots__ = (
        "_buffer",
        "_continuations",
        "_decoder",
        "_is_rewriting",
        "_pass_bytes",
        "_requests",
        "is_done",
    )

    def __init__(self, limits: TransportLimits) -> None:
        """Expect the connection preface."""
        self._buffer = bytearray()
        self._pass_bytes = PREFACE_BYTES
        self._continuations = 0
        self._requests = 0
        self._is_rewriting = False
        self._decoder = hpack.Decoder(max_header_list_size=4 * limits.header_list_bytes_max)
        self.is_done = False

    def feed(self, data: bytes | memoryview) -> bytes:
        """Return the bytes for nghttp2 after *data*; an incomplete header block is buffered."""
        self._buffer += data
        output = bytearray()
        while not self.is_done and (self._pass(output) or self._take_block(output)):
            pass
        if self.is_done:
            output += self._buffer
            self._buffer.clear()
        return bytes(output)

    def _pass(self, output: bytearray) -> bool:
        """Forward anything but header blocks; False = a block, or an incomplete frame header, is next."""
        buffer = self._buffer
        if not self._pass_bytes and len(buffer) >= FRAME_HEADER_BYTES and buffer[3] != _HEADERS:
            # Including an unexpected CONTINUATION, which nghttp2 refuses.
            self._pass_bytes = FRAME_HEADER_BYTES + int.from_bytes(buffer[:3])
        passed = min(self._pass_bytes, len(buffer))
        output += buffer[:passed]
        del buffer[:passed]
        self._pass_bytes -= passed
        return passed > 0

    def _take_block(self, output: bytearray) -> bool:
        """Forward the next header block; False = the block is incomplete."""
        buffer = self._buffer
        block, end, frames = bytearray(), 0, 0
        while len(buffer) >= end + FRAME_HEADER_BYTES:
            size = int.from_bytes(buffer[end : end + 3])
            kind, flags = buffer[end + 3], buffer[end + 4]
            is_expected = kind == (_CONTINUATION if frames else _HEADERS) and (
                buffer[end + 5 : end + 9] == buffer[5:9]
            )
            if (
                not is_expected
                or size > FRAME_BYTES_MAX
                or frames > CONTINUATIONS_MAX
                or end > HELD_BYTES_MAX
            ):
                self._stop(output)
                return False
            if len(buffer) < end + FRAME_HEADER_BYTES + size:
                return False
            payload = bytes(buffer[end + FRAME_HEADER_BYTES : end + FRAME_HEADER_BYTES + size])
            block += payload if frames else _fragment(payload, flags)
            frames += 1
            end += FRAME_HEADER_BYTES + size
            if flags & _END_HEADERS:
                self._forward_block(bytes(block), end, output)
                return True
        return False

    def _forward_block(self, block: bytes, end: int, output: bytearray) -> None:
        """Forward a complete header block, the first *end* bytes of the buffer, unchanged or re-encoded."""
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.HPACKError:
            self._stop(output)
            return
        valid = _with_host(fields)
        self._is_rewriting = self._is_rewriting or valid is not fields
        buffer = self._buffer
        if self._is_rewriting:
            output += _frames(bytes(buffer[5:9]), buffer[4] & _END_STREAM, _encoded(valid))
        else:
            output += buffer[:end]
            self._requests += 1
            self.is_done = self._requests >= REQUESTS_INSPECTED
        del buffer[:end]

    def _stop(self, output: bytearray) -> None:
        """End the inspection at an invalid header block, which nghttp2 refuses."""
        if self._is_rewriting:  # nghttp2's table differs from the client's, so it could misread the block
            output += _frames(bytes(self._buffer[5:9]), 0, _UNREADABLE_BLOCK)
            self._buffer.clear()
        self.is_done = True


def _fragment(payload: bytes, flags: int) -> bytes:
    """Return the header block fragment of a HEADERS frame; b'' = invalid padding, which nghttp2 refuses."""
    start, end = 0, len(payload)
    if flags & _PADDED:
        start, end = 1, end - (payload[0] if payload else 0)
    if flags & _PRIORITY:
        start += 5
    return payload[start:end] if start <= end else b""


def _with_host(fields: Fields) -> Fields:
    """Return *fields* itself if nghttp2 accepts the authority, otherwise a copy with a valid authority."""
    names = [name for name, _ in fields]
    if b":path" not in names or names.count(b":authority") > 1:
        return fields  # trailers, or malformed
    bad = {
        name
        for name, value in fields
        if name in (b":authority", b"host") and not _HOST.fullmatch(value) and not _CONTROL.search(value)
    }
    has_host = b":authority" in names or b"host" in names
    if has_host and not bad:
        return fields
    kept = [field for field in fields if field[0] not in bad]
    if any(name in (b":authority", b"host") for name, _ in kept):
        return kept
    return [(b":authority", PLACEHOLDER_HOST), *kept]


def _encoded(fields: Fields) -> bytes:
    """Encode *fields* as literals without indexing (RFC 7541 6.2.2)."""
    return b"".join(
        b"\0" + _integer(len(name)) + name + _integer(len(value)) + value for name, value in fields
    )


def _integer(number: int) -> bytes:
    """Encode the length of a string that is not Huffman-coded, with a 7-bit prefix (RFC 7541 5.1)."""
    if number < 127:
        return bytes((number,))
    octets = bytearray((127,))
    number -= 127
    while number >= 128:
        octets.append(number & 127 | 128)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def _frames(stream_id: bytes, end_stream: int, block: bytes) -> bytes:
    """Return a HEADERS frame, and CONTINUATION frames if necessary."""
    parts = [block[start : start + FRAME_BYTES_MAX] for start in range(0, len(block), FRAME_BYTES_MAX)]
    output = bytearray()
    for number, part in enumerate(parts):
        flags = (0 if number else end_stream) | (_END_HEADERS if number == len(parts) - 1 else 0)
        kind = _CONTINUATION if number else _HEADERS
        output += len(part).to_bytes(3) + bytes((kind, flags)) + stream_id + part
    return bytes(output)

"""
One HTTP/2 connection to a sidecar for Check calls (RFC 9113).

A load generator shares its cores with the sidecar, so it must cost little: the header block is encoded once
a connection, and answer headers are not read. The answer's message holds the result; a call that ends
without a message counts as unanswered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import NamedTuple, TypeAlias, cast

from sidecar.services.ext_authz import CHECK

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8

HEAD_BYTES = 9
FRAME_BYTES_MAX = 16_384
"""The default SETTINGS_MAX_FRAME_SIZE (RFC 9113 6.5.2): we keep it, so a longer frame is an error."""
WINDOW_DEFAULT = 65_535
WINDOW_MAX = 2**31 - 1
GRPC_PREFIX_BYTES = 5

_INITIAL_WINDOW_SIZE = 0x4
_ENABLE_PUSH = 0x2


class Frame(NamedTuple):
    """One HTTP/2 frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class FrameError(ConnectionError):
    """The peer violated HTTP/2."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def connection_preface() -> bytes:
    """The client's first bytes: preface, settings, and windows that answers never fill."""
    settings = _setting(_ENABLE_PUSH, 0) + _setting(_INITIAL_WINDOW_SIZE, WINDOW_MAX)
    connection_window = window_update(0, WINDOW_MAX - WINDOW_DEFAULT)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + connection_window


def window_update(stream: int, credit: int) -> bytes:
    """Encode a WINDOW_UPDATE that lets the peer send *credit* more bytes."""
    return frame(WINDOW_UPDATE, 0, stream, credit.to_bytes(4, "big"))


def header_block(path: str, authority: str, timeout_ms: int) -> bytes:
    """
    The header block of a gRPC call, in HPACK without indexing or Huffman codes (RFC 7541 6.2.2).

    It does not depend on earlier headers, so it is encoded once. *timeout_ms* is `grpc-timeout`.
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
    """The frames of a call: its headers and its message, which must fit one frame."""
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def data_of(received: Frame) -> bytes:
    """The data of a DATA frame, without its padding (RFC 9113 6.1)."""
    if not received.flags & PADDED:
        return received.payload
    return received.payload[1 : len(received.payload) - received.payload[0]]


class FrameReader:
    """Splits the bytes of a connection into frames; buffers at most one incomplete frame."""

    def __init__(self) -> None:
        """Start with an empty buffer."""
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """
        Yield the frames that *data* completes.

        Raises:
            FrameError: a frame is longer than `FRAME_BYTES_MAX`.
        """
        buffer = self._rest + data if self._rest else data
        at, end = 0, len(buffer)
        while end - at >= HEAD_BYTES:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed")
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
    """An HPACK string literal whose length fits the 7-bit prefix and one more byte."""
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    if length - 0x7F >= 0x80:
        raise ValueError(f"header of {length} bytes; at most {0x7F + 0x7F} are supported: {text[:60]!r}")
    return bytes((0x7F, length - 0x7F)) + text


CALL_TIMEOUT_MS = 4_000
"""`grpc-timeout` of each call: a sidecar must answer within it even if its store is down."""
CREDIT_BYTES = 1 << 24
"""Bytes received before the connection's window is extended; far below the window of 2 GiB."""
ANSWER_BYTES_MAX = 65_536
STREAM_MAX = 2**30
"""The connection is replaced at this stream id; ids end at 2^31 (RFC 9113 5.1.1)."""

OnCallEnd: TypeAlias = Callable[[int, bytes, int], None]
"""Called at each call's end: its tag, the answer's message (b'' = no answer), and when it was sent (ns)."""


class CheckLink(asyncio.Protocol):
    """
    Sends Check calls and reads their answers; `in_flight` counts unanswered calls.

    `is_open` False = no further call is accepted: not connected yet, closing (GOAWAY), or closed.
    """

    def __init__(self, authority: str, on_end: OnCallEnd, on_closed: Callable[[], None]) -> None:
        """Call *on_end* at each call's end, and *on_closed* once after the connection and its calls ended."""
        self.is_open = False
        self.received_ns = 0
        """When the last bytes were received, on the monotonic clock."""
        self._block = header_block(CHECK, authority, CALL_TIMEOUT_MS)
        self._on_end = on_end
        self._on_closed = on_closed
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, tuple[int, int, list[bytes]]] = {}
        self._next_stream = 1
        self._window = WINDOW_DEFAULT
        self._uncredited = 0
        self._out: list[bytes] = []

    @property
    def in_flight(self) -> int:
        """The number of unanswered calls."""
        return len(self._calls)

    @property
    def has_room(self) -> bool:
        """Whether `call` may be called: the connection is open, and its window has room for any message."""
        return self.is_open and self._window >= FRAME_BYTES_MAX

    def call(self, message: bytes, tag: int) -> None:
        """
        Queue a call, to be sent by `flush`; *tag* is passed to `on_end`.

        Raises:
            ValueError: the message does not fit one frame.
        """
        cost = len(message) + GRPC_PREFIX_BYTES
        if cost > FRAME_BYTES_MAX:
            raise ValueError(
                f"message of {len(message)} bytes; at most {FRAME_BYTES_MAX - GRPC_PREFIX_BYTES}"
            )
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._window -= cost
        self._calls[stream] = (tag, monotonic_ns(), [])
        self._out.append(call_frames(self._block, stream, message))
        self.is_open = self._next_stream < STREAM_MAX

    def flush(self) -> None:
        """Send the queued calls in one write."""
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def abort(self) -> None:
        """Close the connection at once; unanswered calls end without an answer."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol: calls are accepted at once, before the server's settings (RFC 9113 3.4)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not a subclass
        self.received_ns = monotonic_ns()
        self._transport.write(connection_preface())
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.received_ns = monotonic_ns()
        try:
            for received in self._reader.feed(data):
                self._handle_frame(received)
        except FrameError:
            self.abort()
            return
        if self._uncredited >= CREDIT_BYTES:
            self._out.append(window_update(0, self._uncredited))
            self._uncredited = 0
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol: unanswered calls end without an answer."""
        self.is_open = False
        self._transport = None
        calls, self._calls = self._calls, {}
        for tag, sent_ns, _ in calls.values():
            self._on_end(tag, b"", sent_ns)
        self._on_closed()

    def _handle_frame(self, received: Frame) -> None:
        if received.kind == DATA:
            self._handle_data(received)
        elif received.kind == HEADERS:
            if received.flags & END_STREAM:
                self._end(received.stream)
        elif received.kind == RST_STREAM:
            self._end(received.stream, is_reset=True)
        elif received.kind == WINDOW_UPDATE:
            if received.stream == 0:
                self._window += int.from_bytes(received.payload, "big")
        elif received.kind in (SETTINGS, PING) and not received.flags & ACK:
            self._out.append(frame(received.kind, ACK, 0, received.payload if received.kind == PING else b""))
        elif received.kind == GOAWAY:
            self.is_open = False

    def _handle_data(self, received: Frame) -> None:
        self._uncredited += len(received.payload)  # padding counts, frame headers do not (RFC 9113 6.9.1)
        call = self._calls.get(received.stream)
        if call is not None:
            call[2].append(data_of(received))
            if sum(map(len, call[2])) > ANSWER_BYTES_MAX:
                raise FrameError(f"answer of more than {ANSWER_BYTES_MAX} bytes")
        if received.flags & END_STREAM:
            self._end(received.stream)

    def _end(self, stream: int, is_reset: bool = False) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            tag, sent_ns, parts = call
            message = parts[0] if len(parts) == 1 else b"".join(parts)
            self._on_end(tag, b"" if is_reset else message[GRPC_PREFIX_BYTES:], sent_ns)


async def connect(link: CheckLink, target: str, timeout_s: float) -> None:
    """
    Connect *link* to *target*, 'host:port' or 'unix:/path'.

    Raises:
        OSError: *target* cannot be reached (a TimeoutError: not within *timeout_s*).
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        if target.startswith("unix:"):
            await loop.create_unix_connection(lambda: link, target.removeprefix("unix:"))
            return
        host, _, port = target.rpartition(":")
        await loop.create_connection(lambda: link, host.strip("[]"), int(port))

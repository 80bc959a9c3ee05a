"""
A client that says exactly the bytes it is told to, also wrong ones, and reports what came back.

Frames are built by hand and read with hyperframe; header blocks are coded by hpack. Nothing is
validated on the way out. Every read has a deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import hpack
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from sidecar.transports.server import Endpoint
from tests.waiting import PATIENCE_S

from .probe import path

AMPLE_S = 2.0
"""A timeout of a server that a test lets expire; what comes before takes less, on a busy machine, too."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8

Field = tuple[bytes | str, bytes | str]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, whatever its parts (RFC 9113 4.1)."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream_id) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def message(body: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its five-byte prefix."""
    return struct.pack(">BI", flag, len(body)) + body


def fields(method: str = "Echo", **changed: str | None) -> list[Field]:
    """
    The header list of a good call, with some of it changed.

    In names of *changed*, a leading '_' stands for ':' and other '_' for '-'; None leaves a field out.
    """
    block = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path(method),
        ":authority": "probe",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changed.items():
        real = (":" + name[1:] if name.startswith("_") else name).replace("_", "-")
        if value is None:
            del block[real]
        else:
            block[real] = value
    return list(block.items())


@dataclass
class Received:
    """What came back on one stream."""

    blocks: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    is_ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The grpc-status, from whichever block carries it."""
        for block in self.blocks:
            if "grpc-status" in block:
                return int(block["grpc-status"])
        return None

    @property
    def outcome(self) -> str | None:
        """How the stream ended, in the words of the rules; None = it has not."""
        if self.is_ended:
            http = self.blocks[0][":status"]
            if http != "200":
                return f"http {http}"
            return "served" if self.status == 0 else f"status {self.status}"
        return None if self.reset is None else f"rst {ErrorCodes(self.reset).name}"


class Wire:
    """One connection on which a test says what it likes."""

    def __init__(self, endpoint: Endpoint, *, byte_by_byte: bool = False, tls: ssl.SSLContext | None = None):
        """Connect; *byte_by_byte* makes the server read each byte on its own (Unix sockets only)."""
        if endpoint.path:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_S)
            self.socket.connect(endpoint.path)
        else:
            self.socket = socket.create_connection((endpoint.host, endpoint.port), PATIENCE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._byte_by_byte = byte_by_byte
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._buffer = b""
        self._block = b""
        self.streams: dict[int, Received] = {}
        self.settings: list[dict[int, int]] = []
        self.settings_acks = 0
        self.pings: list[bytes] = []
        self.ping_acks: list[bytes] = []
        self.goaways: list[GoAwayFrame] = []
        self.is_closed = False
        self.acknowledges_settings = True
        self.acknowledges_pings = True

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # What is said.

    def start(self, *pairs: tuple[int, int]) -> None:
        """Say the preface and SETTINGS, and wait for the server's."""
        self.send_preface(*pairs)
        self.read_until(lambda: self.settings and self.settings_acks)

    def send_preface(self, *pairs: tuple[int, int]) -> None:
        """Say the preface and SETTINGS, and do not wait."""
        self.send(PREFACE + settings(*pairs))

    def send(self, data: bytes) -> None:
        """Send *data*; that a server has closed already is found out when reading."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not self._byte_by_byte:
                self.socket.sendall(data)
                return
            for position in range(len(data)):
                self.socket.sendall(data[position : position + 1])
                self._await_consumption()

    def _await_consumption(self) -> None:
        """Until the server has read all: SIOCOUTQ of a Unix socket counts what its peer has not."""
        until_s = time.monotonic() + PATIENCE_S
        unread = bytearray(4)
        while fcntl.ioctl(self.socket, termios.TIOCOUTQ, unread) == 0 and unread != b"\0\0\0\0":
            assert time.monotonic() < until_s, "the server does not read"

    def block(self, header_list: Iterable[Field]) -> bytes:
        """Encode a header list."""
        return self._encoder.encode(list(header_list))

    def headers(self, stream_id: int, header_list: Iterable[Field], *, end: bool = False) -> None:
        """One HEADERS frame."""
        flags = END_HEADERS | (END_STREAM if end else 0)
        self.send(frame(HEADERS, flags, stream_id, self.block(header_list)))

    def data(self, stream_id: int, payload: bytes, *, end: bool = True) -> None:
        """One DATA frame."""
        self.send(frame(DATA, END_STREAM if end else 0, stream_id, payload))

    def request(
        self, stream_id: int = 1, body: bytes = b"hello", method: str = "Echo", **changed: str | None
    ) -> None:
        """A whole good call, or one with changed fields (see `fields`)."""
        self.headers(stream_id, fields(method, **changed))
        self.data(stream_id, message(body))

    def reset(self, stream_id: int, code: int = ErrorCodes.CANCEL) -> None:
        """RST_STREAM."""
        self.send(frame(RST, 0, stream_id, struct.pack(">I", code)))

    def credit(self, stream_id: int, amount: int) -> None:
        """WINDOW_UPDATE."""
        self.send(frame(WINDOW, 0, stream_id, struct.pack(">I", amount)))

    def ping(self, payload: bytes = b"pingpong") -> None:
        """PING, and wait for its acknowledgement."""
        expected = len(self.ping_acks) + 1
        self.send(frame(PING, 0, 0, payload))
        self.read_until(lambda: len(self.ping_acks) >= expected)

    def acknowledge_pings(self) -> None:
        """Acknowledge all the server's PINGs, those of the past and those to come."""
        self.acknowledges_pings = True
        for payload in self.pings:
            self.send(frame(PING, ACK, 0, payload))

    # What comes back.

    def stream(self, stream_id: int) -> Received:
        """What has come back on *stream_id* so far."""
        return self.streams.setdefault(stream_id, Received())

    def read_until(self, condition: object, patience_s: float = PATIENCE_S) -> bool:
        """
        Read frames until `condition()` holds or the server closes.

        Returns:
            Whether the condition holds.
        """
        assert callable(condition)
        until_s = time.monotonic() + patience_s
        while not condition():
            if self.is_closed:
                return False
            remaining_s = until_s - time.monotonic()
            if remaining_s <= 0:
                raise AssertionError(f"nothing decisive within {patience_s:g} s: {self.describe()}")
            self._read_frame(remaining_s)
        return True

    def describe(self) -> str:
        """What came back so far, for messages."""
        return f"streams {self.streams}, goaways {self.goaways}, closed {self.is_closed}"

    def read_to_end(self, patience_s: float = PATIENCE_S) -> None:
        """Read until the server closes."""
        self.read_until(lambda: self.is_closed, patience_s)

    def finish(self, stream_id: int) -> Received:
        """Read until *stream_id* has ended; the connection must live that long."""
        self.read_until(lambda: self.stream(stream_id).outcome)
        assert self.stream(stream_id).outcome, f"the connection closed first: {self.describe()}"
        return self.stream(stream_id)

    def outcome(self, stream_id: int) -> str:
        """How *stream_id* ended, or else how the connection did."""
        self.read_until(lambda: self.stream(stream_id).outcome or self.goaway_error is not None)
        ended = self.stream(stream_id).outcome
        if ended:
            return ended
        self.read_to_end()
        return self.ending

    @property
    def ending(self) -> str:
        """How the server ended the connection: with the error of its last GOAWAY, or without a word."""
        return f"goaway {ErrorCodes(self.goaways[-1].error_code).name}" if self.goaways else "closed"

    @property
    def goaway_error(self) -> int | None:
        """The code of a GOAWAY that was no polite one."""
        codes = [goaway.error_code for goaway in self.goaways if goaway.error_code]
        return codes[0] if codes else None

    def _read_frame(self, patience_s: float) -> None:
        while not self._has_frame():
            self.socket.settimeout(patience_s)
            try:
                received = self.socket.recv(65_536)
            except TimeoutError:
                raise AssertionError(f"no frame within {patience_s:.1f} s: {self.describe()}") from None
            except ConnectionResetError:
                received = b""
            if not received:
                self.is_closed = True
                return
            self._buffer += received
        size = 9 + int.from_bytes(self._buffer[:3], "big")
        read, _ = Frame.parse_frame_header(memoryview(self._buffer[:9]))
        read.parse_body(memoryview(self._buffer[9:size]))
        self._buffer = self._buffer[size:]
        self._take(read)

    def _has_frame(self) -> bool:
        return len(self._buffer) >= 9 and len(self._buffer) >= 9 + int.from_bytes(self._buffer[:3], "big")

    def _take(self, read: Frame) -> None:
        match read:
            case DataFrame():
                self.stream(read.stream_id).data += read.data
            case HeadersFrame() | ContinuationFrame():
                self._take_block(read)
            case RstStreamFrame():
                self.stream(read.stream_id).reset = read.error_code
            case SettingsFrame():
                self._take_settings(read)
            case PingFrame():
                self._take_ping(read)
            case GoAwayFrame():
                self.goaways.append(read)
        if "END_STREAM" in read.flags:
            self.stream(read.stream_id).is_ended = True

    def _take_block(self, read: HeadersFrame | ContinuationFrame) -> None:
        self._block += read.data
        if "END_HEADERS" in read.flags:
            self.stream(read.stream_id).blocks.append(dict(self._decoder.decode(self._block)))
            self._block = b""

    def _take_settings(self, read: SettingsFrame) -> None:
        if "ACK" in read.flags:
            self.settings_acks += 1
            return
        self.settings.append(read.settings)
        if self.acknowledges_settings:
            self.send(frame(SETTINGS, ACK, 0))

    def _take_ping(self, read: PingFrame) -> None:
        if "ACK" in read.flags:
            self.ping_acks.append(read.opaque_data)
            return
        self.pings.append(read.opaque_data)
        if self.acknowledges_pings:
            self.send(frame(PING, ACK, 0, read.opaque_data))

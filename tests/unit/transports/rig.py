"""
One connection of the fast transport without a socket: the loop, the transport and the client by hand.

    rig = Rig()
    rig.request()
    assert rig.stream(1).status == 0

The connection, ngh2 and the handlers are real. The client says exactly the bytes it is told to say,
also wrong ones, and reads what comes back with hyperframe and hpack. Time moves when told to.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.observe.transport_metrics import CLOSE_REASONS
from sidecar.rpc.calls import Method, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.transports.fast.connection import Connection
from sidecar.transports.fast.core import Core
from sidecar.transports.server import TransportLimits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4

Fields = list[tuple[str | bytes, str | bytes]]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, whatever its parts (RFC 9113 4.1)."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream_id) + payload


def settings_frame(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def reset(stream_id: int, code: int = 8) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4))


def window_update(stream_id: int, amount: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", amount))


def message(body: bytes = b"hello", flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(body)) + body


class LoopTimer(TimerHandle):
    """A timer of `ManualLoop`."""

    def fire(self) -> None:
        """Run its callback."""
        self._run()


class ManualLoop:
    """An event loop turned by hand."""

    def __init__(self) -> None:
        """Stand at 1000 s with nothing to do."""
        self.now_s = 1_000.0
        self._ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._timers: list[tuple[float, int, LoopTimer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        """The time."""
        return self.now_s

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Run *callback* in the next turn."""
        self._ready.append((callback, args))

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> TimerHandle:
        """Run *callback* when the time has come."""
        handle = LoopTimer(when, callback, args, cast(Any, self))
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def get_debug(self) -> bool:
        """Asked by `TimerHandle`."""
        return False

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """Told by `TimerHandle`."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Told by `TimerHandle` when a callback fails: so does the test."""
        raise context["exception"]

    @property
    def timers(self) -> int:
        """How many timers are pending."""
        return sum(not handle.cancelled() for _, _, handle in self._timers)

    def turn(self) -> None:
        """One turn: run what was ready before it, not what that adds."""
        for _ in range(len(self._ready)):
            callback, args = self._ready.popleft()
            callback(*args)

    def settle(self) -> None:
        """Turn until nothing is ready."""
        while self._ready:
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass; timers fire in order, each at its time."""
        until_s = self.now_s + seconds
        self.settle()
        while self._timers and self._timers[0][0] <= until_s:
            when_s, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                self.now_s = max(self.now_s, when_s)
                handle.fire()
                self.settle()
        self.now_s = until_s


class FakeTransport:
    """The server's end of a connection whose peer may stop reading."""

    def __init__(self, loop: ManualLoop, ssl_object: object = None) -> None:
        """An open transport; *ssl_object* makes it TLS."""
        self._loop = loop
        self._ssl_object = ssl_object
        self._high = 65_536
        self._is_lost = False
        self.protocol: Connection | None = None
        self.output = bytearray()
        self.unread = bytearray()
        self.writes = 0
        self.is_peer_reading = True
        self.is_reading = True
        self.has_written_eof = False
        self.is_aborted = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Only whether there is TLS."""
        return self._ssl_object if name == "ssl_object" else default

    def set_write_buffer_limits(self, high: int) -> None:
        """When to call pause_writing."""
        self._high = high

    def get_write_buffer_size(self) -> int:
        """What the peer has not read."""
        return len(self.unread)

    def write(self, data: bytes) -> None:
        """Deliver, or keep while the peer does not read."""
        assert not self.has_written_eof, "written after the end"
        if self._is_lost or not data:
            return
        self.writes += 1
        if self.is_peer_reading:
            self.output += data
            return
        was_high = len(self.unread) > self._high
        self.unread += data
        if len(self.unread) > self._high and not was_high and self.protocol:
            self.protocol.pause_writing()

    def peer_reads(self) -> None:
        """The peer reads all and goes on reading."""
        self.is_peer_reading = True
        was_high = len(self.unread) > self._high
        self.output += self.unread
        self.unread.clear()
        if was_high and self.protocol:
            self.protocol.resume_writing()

    def pause_reading(self) -> None:
        """Nothing more comes in."""
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        """Bytes may come in again."""
        assert not self.is_reading
        self.is_reading = True

    def can_write_eof(self) -> bool:
        """TLS cannot."""
        return self._ssl_object is None

    def write_eof(self) -> None:
        """Half-close."""
        self.has_written_eof = True

    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._is_lost

    def close(self) -> None:
        """Close once all is written."""
        if not self.unread:
            self._lose()

    def abort(self) -> None:
        """Close at once."""
        self.is_aborted = True
        self._lose()

    def _lose(self) -> None:
        if not self._is_lost and self.protocol:
            self._is_lost = True
            self._loop.call_soon(self.protocol.connection_lost, None)


@dataclass
class Stream:
    """What came back on one stream."""

    blocks: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    data_frames: int = 0
    is_ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The grpc-status; None = it has not come."""
        return next((int(block["grpc-status"]) for block in self.blocks if "grpc-status" in block), None)

    @property
    def detail(self) -> str:
        """The grpc-message as it was sent."""
        return next((block["grpc-message"] for block in self.blocks if "grpc-message" in block), "")

    @property
    def is_trailers_only(self) -> bool:
        """Whether one header block was all."""
        return len(self.blocks) == 1 and self.is_ended and not self.data_frames


class KeptCalls:
    """A handler that keeps every call."""

    def __init__(self) -> None:
        """None yet; `cancelled` counts calls of on_cancel."""
        self.calls: list[Any] = []
        self.messages: list[bytes] = []
        self.cancelled = 0

    def __call__(self, request: bytes, call: Any) -> None:
        """Keep *call*."""
        self.calls.append(call)
        self.messages.append(request)
        call.on_cancel = self._count

    def _count(self) -> None:
        self.cancelled += 1

    def reply_all(self, answer: bytes = b"late") -> None:
        """Answer every unary call."""
        for call in self.calls:
            call.reply(answer)
        self.calls.clear()


def _echo(request: bytes, call: UnaryCall) -> bytes:
    return request


def _refuse(request: bytes, call: UnaryCall) -> bytes:
    raise RpcError(StatusCode.NOT_FOUND, request.decode())


def _break(request: bytes, call: UnaryCall) -> bytes:
    raise ValueError("secret")


class Rig:
    """A connection, its loop, its transport and its client; see the module."""

    def __init__(
        self,
        limits: TransportLimits | None = None,
        methods: Iterable[Method] = (),
        *,
        starts: bool = True,
        core: Core | None = None,
        ssl_object: object = None,
        window_bytes: int | None = None,
        http_error_delay_s: float = 0.0,
    ) -> None:
        """
        Connect.

        Args:
            starts: say preface, SETTINGS and its ACK.
            core: share it with another rig: two connections of one server.
            window_bytes: the client's INITIAL_WINDOW_SIZE.
        """
        self.kept = KeptCalls()
        self.watched = KeptCalls()
        self.loop = cast(ManualLoop, core.loop) if core else ManualLoop()
        self.metrics = Metrics(TABLE) if core is None else Metrics(TABLE, core.values)
        self.core = core or Core(
            (
                UnaryMethod("/t/Echo", _echo),
                UnaryMethod("/t/Keep", self.kept),
                UnaryMethod("/t/Refuse", _refuse),
                UnaryMethod("/t/Break", _break),
                StreamMethod("/t/Watch", self.watched),
                *methods,
            ),
            limits or TransportLimits(),
            self.metrics,
            self.loop,
            Random(1),
            http_error_delay_s,
            self.loop.time,
        )
        assert self.core.admit("")
        self.connection = Connection(self.core)
        self.transport = FakeTransport(self.loop, ssl_object)
        self.transport.protocol = self.connection
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._streams: dict[int, Stream] = {}
        self._frames: list[Frame] = []
        self._next_stream_id = 1
        self.connection.connection_made(cast(Any, self.transport))
        if starts:
            pairs = () if window_bytes is None else ((4, window_bytes),)
            self.say(PREFACE + settings_frame(*pairs) + frame(SETTINGS, ACK, 0))

    # What the client says.

    def say(self, data: bytes, *, byte_by_byte: bool = False) -> None:
        """Have the server read *data*, as far as it reads, then finish the turn."""
        while data:
            if self.transport.is_closing():
                return
            assert self.transport.is_reading, "the server does not read"
            step = 1 if byte_by_byte else len(self.connection.get_buffer(-1))
            self._feed(data[:step])
            data = data[step:]
            self.loop.settle()

    def _feed(self, data: bytes) -> None:
        buffer = self.connection.get_buffer(-1)
        buffer[: len(data)] = data
        self.connection.buffer_updated(len(data))

    def say_unread(self, data: bytes) -> None:
        """Have the server read *data* in one read and run nothing after it."""
        self._feed(data)

    def hang_up(self) -> None:
        """Close the client's end."""
        self.connection.eof_received()
        self.transport.close()
        self.loop.settle()

    def stream_id(self) -> int:
        """The next free stream id."""
        self._next_stream_id += 2
        return self._next_stream_id - 2

    def fields(self, path: str = "/t/Echo", **changed: str | None) -> Fields:
        """A good call's header list; in names '_' stands for '-', a leading one for ':'; None = left out."""
        block: dict[str, str] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        for name, value in changed.items():
            real = (":" + name[1:] if name.startswith("_") else name).replace("_", "-")
            if value is None:
                block.pop(real)
            else:
                block[real] = value
        return list(block.items())

    def block(self, fields: Fields) -> bytes:
        """Encode a header list."""
        return cast(bytes, self._encoder.encode(fields))

    def headers(self, stream_id: int, fields: Fields | None = None, *, end: bool = False) -> bytes:
        """A HEADERS frame."""
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream_id, self.block(fields or self.fields()))

    def data(self, stream_id: int, payload: bytes, *, end: bool = True) -> bytes:
        """A DATA frame."""
        return frame(DATA, END_STREAM if end else 0, stream_id, payload)

    def call_bytes(
        self, path: str = "/t/Echo", body: bytes = b"hello", **changed: str | None
    ) -> tuple[int, bytes]:
        """A whole call on the next stream, as (stream id, bytes)."""
        stream_id = self.stream_id()
        head = self.headers(stream_id, self.fields(path, **changed))
        return stream_id, head + self.data(stream_id, message(body))

    def request(self, path: str = "/t/Echo", body: bytes = b"hello", **changed: str | None) -> Stream:
        """Make a whole call and return what has come back on it."""
        stream_id, call = self.call_bytes(path, body, **changed)
        self.say(call)
        return self.stream(stream_id)

    # What came back.

    @property
    def frames(self) -> list[Frame]:
        """Every frame so far."""
        self._read()
        return self._frames

    def stream(self, stream_id: int) -> Stream:
        """What came back on one stream so far; the same object each time."""
        self._read()
        return self._streams.setdefault(stream_id, Stream())

    @property
    def goaways(self) -> list[GoAwayFrame]:
        """Every GOAWAY so far."""
        return [each for each in self.frames if isinstance(each, GoAwayFrame)]

    @property
    def goaway_codes(self) -> list[int]:
        """The codes of all GOAWAYs so far."""
        return [each.error_code for each in self.goaways]

    @property
    def pings(self) -> list[bytes]:
        """The payloads of the server's own PINGs."""
        return [
            each.opaque_data
            for each in self.frames
            if isinstance(each, PingFrame) and "ACK" not in each.flags
        ]

    @property
    def closed_for(self) -> list[str]:
        """The reasons counted for closed connections."""
        return [
            reason
            for reason in CLOSE_REASONS
            for _ in range(self.metrics.value("sidecar_connections_closed_total", reason))
        ]

    def ended(self, code: int) -> int:
        """How many calls were counted with *code*."""
        return self.metrics.value("sidecar_calls_total", str(code))

    def _read(self) -> None:
        output = self.transport.output
        while len(output) >= 9:
            header, length = Frame.parse_frame_header(memoryview(bytes(output[:9])))
            if len(output) < 9 + length:
                return
            header.parse_body(memoryview(bytes(output[9 : 9 + length])))
            del output[: 9 + length]
            self._frames.append(header)
            self._take(header)

    def _take(self, received: Frame) -> None:
        stream = self._streams.setdefault(received.stream_id, Stream())
        if isinstance(received, HeadersFrame):
            decoded = self._decoder.decode(received.data)
            stream.blocks.append({_text(name): _text(value) for name, value in decoded})
        elif isinstance(received, DataFrame):
            stream.data += received.data
            stream.data_frames += 1
        elif isinstance(received, RstStreamFrame):
            stream.reset = received.error_code
        if "END_STREAM" in received.flags:
            stream.is_ended = True


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADERS",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "FakeTransport",
    "KeptCalls",
    "ManualLoop",
    "Rig",
    "SettingsFrame",
    "Stream",
    "StreamCall",
    "WindowUpdateFrame",
    "frame",
    "message",
    "settings_frame",
    "window_update",
]

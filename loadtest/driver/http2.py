"""The HTTP/2 client: unary gRPC calls on one connection (RFC 9113)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from socket import socket

from loadtest.driver.connection import Call, Connection, Ended
from loadtest.driver.frames import FRAME_HEAD, TABLE_BYTES_MIN, Requests
from sidecar.verify.check_link import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    GRPC_PREFIX_BYTES,
    HEAD_BYTES,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    WINDOW_UPDATE,
    connection_preface,
    frame,
    window_update,
)

CREDIT_BYTES = 2**29
"""After so many bytes of messages the server's window is replenished."""
_HEADER_TABLE_SIZE, _STREAMS_MAX = 1, 3  # RFC 9113 6.5.2
_REFUSED_STREAM = 7  # RFC 9113 8.7: the request was not processed


class Http2Connection(Connection):
    """At most *streams* gRPC calls in flight on one connection."""

    def __init__(self, connected: socket, requests: Requests, streams: int, target: int = 0) -> None:
        """Begin the connection; it has no room before the server's settings have arrived."""
        super().__init__(connected, target)
        self._requests = requests
        self._streams = streams
        self._streams_now = 0
        self._next_stream = 1
        self._window_bytes = WINDOW_DEFAULT
        self._table_bytes = TABLE_BYTES_MIN
        self._taken_bytes = 0
        self._rest = b""
        self._bodies: dict[int, bytes] = {}
        self._is_eof = False
        self.flush(connection_preface())

    @property
    def room(self) -> int:
        """How many calls may be sent now, by the limits of both sides."""
        if self.is_draining or self.unsent:
            return 0
        return min(self._streams_now - len(self._calls), self._window_bytes // self._requests.size_max)

    def send(self, calls: Sequence[Call]) -> None:
        """Send *calls*, at most `room`."""
        requests, pieces = self._requests, []
        stream = self._next_stream
        for call in calls:
            number = call.number
            if self._table_bytes < TABLE_BYTES_MIN:
                pieces.append(requests.full(stream, number))
            elif stream == 1:
                pieces.append(requests.first(stream, number))
            else:
                pieces.append(requests.next(stream, number))
            self._calls[stream] = call
            self._window_bytes -= requests.sizes[number]
            stream += 2
        self._next_stream = stream
        if stream + 2 * self._streams > WINDOW_MAX:
            self.is_draining = True
        self.flush(b"".join(pieces))

    def read(self) -> list[Ended]:
        """Read what has arrived; return the answered calls."""
        data = self._rest + self._received() if self._rest else self._received()
        at, size, unpack, bodies = 0, len(data), FRAME_HEAD.unpack_from, self._bodies
        ended: list[Ended] = []
        while at + HEAD_BYTES <= size:
            head, flags, stream = unpack(data, at)
            begin = at + HEAD_BYTES
            at = begin + (head >> 8)
            if at > size:
                at = begin - HEAD_BYTES
                break
            kind = head & 0xFF
            if kind == DATA:
                payload = data[begin:at]
                self._taken_bytes += at - begin
                if flags & PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                bodies[stream] = bodies[stream] + payload if stream in bodies else payload
            elif kind != HEADERS:
                self._control(kind, flags, stream, data[begin:at])
                continue
            if flags & END_STREAM:
                call = self._calls.pop(stream, None)
                body = bodies.pop(stream, b"")
                if call is not None:
                    ended.append((call, body[GRPC_PREFIX_BYTES:] if body else None))
        self._rest = data[at:]
        self._replenish()
        if self._is_eof:
            self.close()
        return ended

    def _replenish(self) -> None:
        if self._taken_bytes >= CREDIT_BYTES:
            self.flush(window_update(0, self._taken_bytes))
            self._taken_bytes = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._window_bytes += 0 if stream else int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self._apply_settings(payload)
            self.flush(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.flush(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            call = self._calls.pop(stream, None)
            self._bodies.pop(stream, None)
            if call is not None:
                is_refused = int.from_bytes(payload, "big") == _REFUSED_STREAM
                (self.refused if is_refused else self.lost).append(call)
        elif kind == GOAWAY:
            self.is_draining = True
            last = int.from_bytes(payload[:4], "big")
            for unhandled in [number for number in self._calls if number > last]:
                self.refused.append(self._calls.pop(unhandled))

    def _apply_settings(self, payload: bytes) -> None:
        settings = dict(struct.iter_unpack(">HI", payload))
        self._streams_now = min(self._streams, settings.get(_STREAMS_MAX, self._streams))
        self._table_bytes = settings.get(_HEADER_TABLE_SIZE, self._table_bytes)

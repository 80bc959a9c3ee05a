"""One connection of the load generator: what is due on it, what is under way, and what was answered."""

from __future__ import annotations

import socket
from array import array
from collections import deque
from collections.abc import Iterator

from loadtest.bench.wire import Answers, Requests, WireError, opening

ANSWER_TIMEOUT_S = 20.0
READ_BYTES = 65_536
STREAMS_MAX = 256
"""Calls under way on one connection in an open loop; later ones wait, and their wait counts."""


def is_allow(payload: bytes) -> bool:
    """Whether a gRPC message holds a CheckResponse with status 0 and an ok_response (fields 1 and 3)."""
    return payload.startswith((b"\x0a\x00\x1a", b"\x1a"), 5)


def is_late(payload: bytes) -> bool:
    """Whether a gRPC message is the denial of a sidecar whose store did not answer in time."""
    return b"store_unavailable" in payload


class CallConnection:
    """
    One connection: what is due on it, under way, and answered.

    `due` counts calls whose moment has come and that are not yet sent; `late` those that were judged to be.
    """

    def __init__(self, target: str, requests: Requests, picks: Iterator[int]) -> None:
        self.socket = connect(target)
        self.due = 0
        self.under_way = 0
        self.late = 0
        self._requests = requests
        self._picks = picks
        self._planned: deque[tuple[bytes, int]] = deque()
        self._moments_ns = array("q")  # of call n, which is on stream 2n + 1
        self._answers = Answers()
        self._stream = 1
        self.socket.sendall(opening())

    def plan(self, moment_ns: int) -> None:
        """Make one more call ready to be sent, which will be due at *moment_ns*."""
        self._moments_ns.append(moment_ns)
        self._planned.append(self._next_request())

    def _next_request(self) -> tuple[bytes, int]:
        """The next request, and what it takes of the server's window."""
        number, stream = next(self._picks), self._stream
        self._stream += 2
        make = self._requests.first if stream == 1 else self._requests.next
        return make(stream, number), self._requests.sizes[number]

    def send(self, count: int) -> None:
        """Make *count* calls, those that are planned first."""
        answers, planned = self._answers, self._planned
        pieces = [bytes(answers.to_send)]
        answers.to_send.clear()
        for _ in range(count):
            request, window_bytes = planned.popleft() if planned else self._next_request()
            pieces.append(request)
            answers.window_bytes -= window_bytes
        if answers.window_bytes < 0:
            raise WireError("the server's window is used up: it is not reading what it is sent")
        self.under_way += count
        self.socket.sendall(b"".join(pieces))

    def send_due(self) -> None:
        """Make the calls that are due, as far as the connection takes them."""
        room = self._answers.window_bytes // self._requests.size_max
        count = min(self.due, STREAMS_MAX - self.under_way, room)
        if count > 0:
            self.due -= count
            self.send(count)

    def read(self, read_ns: int = 0) -> int:
        """Read at *read_ns* what has come; how many answers ended."""
        before = self._answers.answers
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise WireError("the server closed a connection")
        self._answers.feed(data, read_ns)
        ended = self._answers.answers - before
        self.under_way -= ended
        return ended

    def judge(self) -> list[tuple[int, int]]:
        """
        Judge all answers; when each planned call was due and when its answer was read.

        Raises:
            WireError: one is neither an allow nor late.
        """
        calls: list[tuple[int, int]] = []
        moments_ns = self._moments_ns

        def ended(stream: int, read_ns: int) -> None:
            if moments_ns:
                calls.append((moments_ns[stream >> 1], read_ns))

        self._answers.judge(self._is_good, ended)
        return calls

    def _is_good(self, payload: bytes) -> bool:
        if is_allow(payload):
            return True
        self.late += 1
        return is_late(payload)


def connect(target: str) -> socket.socket:
    """A connection to *target*, 'host:port' or 'unix:path', whose calls end in `ANSWER_TIMEOUT_S`."""
    if target.startswith("unix:"):
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(ANSWER_TIMEOUT_S)
        connected.connect(target.removeprefix("unix:"))
        return connected
    host, _, port = target.rpartition(":")
    connected = socket.create_connection((host, int(port)), ANSWER_TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected

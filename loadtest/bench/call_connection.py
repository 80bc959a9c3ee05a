"""One connection of the load generator: its due calls, calls in flight and answers."""

from __future__ import annotations

import socket
from array import array
from collections import deque
from collections.abc import Iterator

from loadtest.bench.wire import Answers, Requests, WireError, opening

ANSWER_TIMEOUT_S = 20.0
READ_BYTES = 65_536
STREAMS_MAX = 256
"""Maximum calls in flight on one connection in an open loop; the wait of further calls counts."""


def is_allow(payload: bytes) -> bool:
    """Return whether a gRPC message is a CheckResponse with status 0 and an ok_response (fields 1 and 3)."""
    return payload.startswith((b"\x0a\x00\x1a", b"\x1a"), 5)


def is_late(payload: bytes) -> bool:
    """Return whether a gRPC message is a denial because the store did not answer in time."""
    return b"store_unavailable" in payload


class CallConnection:
    """
    One connection of the load generator.

    `due` counts calls that are due and not sent yet; `late` counts late answers, see `is_late`.
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
        """Prepare a call that is due at *moment_ns*."""
        self._moments_ns.append(moment_ns)
        self._planned.append(self._next_request())

    def _next_request(self) -> tuple[bytes, int]:
        """Return the next request, and its size in the server's window."""
        number, stream = next(self._picks), self._stream
        self._stream += 2
        make = self._requests.first if stream == 1 else self._requests.next
        return make(stream, number), self._requests.sizes[number]

    def send(self, count: int) -> None:
        """Send *count* calls, planned ones first."""
        answers, planned = self._answers, self._planned
        pieces = [bytes(answers.to_send)]
        answers.to_send.clear()
        for _ in range(count):
            request, window_bytes = planned.popleft() if planned else self._next_request()
            pieces.append(request)
            answers.window_bytes -= window_bytes
        if answers.window_bytes < 0:
            raise WireError("the server's window is exhausted: the server does not read")
        self.under_way += count
        self.socket.sendall(b"".join(pieces))

    def send_due(self) -> None:
        """Send the due calls, within the connection's limits."""
        room = self._answers.window_bytes // self._requests.size_max
        count = min(self.due, STREAMS_MAX - self.under_way, room)
        if count > 0:
            self.due -= count
            self.send(count)

    def read(self, read_ns: int = 0) -> int:
        """Read at *read_ns*; return the number of completed answers."""
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
        Check all answers; return the due time and the read time of each planned call.

        Raises:
            WireError: an answer is neither an allow nor late.
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
    """Connect to *target*, 'host:port' or 'unix:path', with the time-out `ANSWER_TIMEOUT_S`."""
    if target.startswith("unix:"):
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(ANSWER_TIMEOUT_S)
        connected.connect(target.removeprefix("unix:"))
        return connected
    host, _, port = target.rpartition(":")
    connected = socket.create_connection((host, int(port)), ANSWER_TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected

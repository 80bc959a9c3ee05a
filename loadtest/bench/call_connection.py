"""One connection of the load generator: what is due on it, what is under way, and what was answered."""

from __future__ import annotations

import socket
from array import array
from collections import deque
from collections.abc import Iterator
from time import perf_counter_ns

from loadtest.bench.wire import Answers, Requests, WireError, opening

ANSWER_TIMEOUT_S = 20.0
READ_BYTES = 262_144
STREAMS_MAX = 256
"""Calls under way on one connection in an open loop; later ones wait, and their wait counts."""


def is_allow(payload: bytes) -> bool:
    """Whether a gRPC message holds a CheckResponse with status 0 and an ok_response (fields 1 and 3)."""
    return payload.startswith((b"\x0a\x00\x1a", b"\x1a"), 5)


def is_late(payload: bytes) -> bool:
    """Whether a gRPC message is the denial of a sidecar whose store did not answer in time."""
    return b"store_unavailable" in payload


class CallConnection:
    """One connection: what is due on it, under way, and answered."""

    def __init__(self, target: str, requests: Requests, picks: Iterator[int]) -> None:
        self.socket = connect(target)
        self.due_ns: deque[int] = deque()
        self.under_way = 0
        self.late = 0
        self.kept_from_ns = 0
        self._dues_ns = array("q")  # of call n, which is on stream 2n + 1
        self._latencies_ns = array("q")
        self._measured_dues_ns = array("q")  # of each of those
        self._messages: list[bytes] = []
        self._requests = requests
        self._picks = picks
        self._answers = Answers(self._keep, self._ended)
        self._stream = 1
        self.socket.sendall(opening())

    def _keep(self, payload: bytes) -> bool:
        """Judge it when the load is over."""
        self._messages.append(payload)
        return True

    def judge(self) -> None:
        """
        Judge all answers; count late ones.

        Raises:
            WireError: one is not an allow.
        """
        for payload in self._messages:
            if not is_allow(payload):
                if not is_late(payload):
                    raise WireError(f"an answer is not what this load must get: {payload[:200]!r}")
                self.late += 1

    def measured(self) -> Iterator[tuple[int, int]]:
        """When each call was due that was made at a time, and its latency, both in nanoseconds."""
        return zip(self._measured_dues_ns, self._latencies_ns, strict=True)

    def _ended(self, stream: int) -> None:
        self.under_way -= 1
        if self._dues_ns:
            due_ns = self._dues_ns[stream >> 1]
            if due_ns >= self.kept_from_ns:
                self._latencies_ns.append(perf_counter_ns() - due_ns)
                self._measured_dues_ns.append(due_ns)

    def send(self, count: int) -> None:
        """Call *count* times; calls that were due at a time take theirs along."""
        pieces: list[bytes] = [bytes(self._answers.to_send)]
        self._answers.to_send.clear()
        for _ in range(count):
            number = next(self._picks)
            if self._stream == 1:
                pieces.append(self._requests.first(1, number))
            else:
                pieces += self._requests.next(self._stream, number)
            self._answers.window_bytes -= self._requests.sizes[number]
            if self.due_ns:
                self._dues_ns.append(self.due_ns.popleft())
            self._stream += 2
        if self._answers.window_bytes < 0:
            raise WireError("the server's window is used up: it is not reading what it is sent")
        self.under_way += count
        self.socket.sendall(b"".join(pieces))

    def read(self) -> int:
        """Read what has come; how many answers ended."""
        before = self._answers.answers
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise WireError("the server closed a connection")
        self._answers.feed(data)
        return self._answers.answers - before

    def send_due(self) -> None:
        """Send the calls that are due, as far as the connection takes them."""
        count = min(len(self.due_ns), STREAMS_MAX - self.under_way)
        room = self._answers.window_bytes // self._requests.size_max
        if count > 0 and room > 0:
            self.send(min(count, room))


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

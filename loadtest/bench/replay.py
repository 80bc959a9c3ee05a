"""
A load generator for calls with many different messages: `python -m loadtest.bench.replay FOLDER`.

Two ways to load: as fast as the server answers, with a fixed number of calls under way (closed loop);
or at a given rate whether it answers or not, latency counted from when a call was due, so that a server
that stops pays for every call it delays (open loop, no coordinated omission). The run is described by
files in FOLDER, see `Run`; the result goes to standard output as JSON.
"""

from __future__ import annotations

import json
import random
import select
import socket
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time

from loadtest.bench.processes import LOAD_CORE, BenchError
from loadtest.bench.wire import Answers, Requests, WireError, opening

ANSWER_TIMEOUT_S = 20.0
READ_BYTES = 262_144
STREAMS_MAX = 256
"""Calls under way on one connection in an open loop; later ones wait, and their wait counts."""
SHARES = (0.5, 0.99, 0.999)
LATE_SHARE_MAX = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """
    One load: *calls* to *method* of *target*, over *connections*.

    `rate_per_s` 0 = a closed loop with *streams* calls under way on each connection.
    """

    target: str
    method: str
    calls: int
    connections: int
    streams: int
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """
    What came of it: every call was answered, and every answer was an allow.

    But for `late` ones: denials because the store was late, which another program on the machine, or
    the machine itself, can bring about by holding it up for 50 ms. More than 1 % of them is a failure.
    """

    calls: int
    late: int
    elapsed_s: float
    load_cpu_s: float
    latencies_us: dict[str, float]

    @property
    def calls_per_s(self) -> float:
        """Calls answered a second."""
        return self.calls / self.elapsed_s

    @property
    def load_busy(self) -> float:
        """The share of its core that the load generator used."""
        return self.load_cpu_s / self.elapsed_s


def replay(folder: Path, run: Run, messages: Sequence[bytes], picks: array[int]) -> Replayed:
    """
    Run the load in a process of its own on the load core; *picks* are numbers of *messages*, repeated.

    Raises:
        BenchError: a call was not answered, or not by an allow; see `Replayed`.
    """
    (folder / "run.json").write_text(json.dumps(asdict(run)))
    (folder / "picks").write_bytes(picks.tobytes())
    with (folder / "messages").open("wb") as file:
        for message in messages:
            file.write(len(message).to_bytes(4, "big") + message)
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", __name__, str(folder)]
    expected_s = run.calls / run.rate_per_s if run.rate_per_s else 60.0
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=expected_s + 60)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"the load did not end within {error.timeout:g} s") from None
    if result.returncode:
        raise BenchError(f"the load failed: {result.stderr.strip().rpartition(chr(10))[2]}")
    return Replayed(**json.loads(result.stdout))


def is_allow(payload: bytes) -> bool:
    """Whether a gRPC message holds a CheckResponse with status 0 and an ok_response (fields 1 and 3)."""
    return payload.startswith((b"\x0a\x00\x1a", b"\x1a"), 5)


def is_late(payload: bytes) -> bool:
    """Whether a gRPC message is the denial of a sidecar whose store did not answer in time."""
    return b"store_unavailable" in payload


class _Connection:
    def __init__(self, target: str, requests: Requests, picks: Iterator[int]) -> None:
        self.socket = _connect(target)
        self.due_ns: deque[int] = deque()
        self.started_ns: dict[int, int] = {}
        self.under_way = 0
        self.late = 0
        self.latencies_ns = array("q")
        self._requests = requests
        self._picks = picks
        self._answers = Answers(self._judge, self._ended)
        self._stream = 1
        self.socket.sendall(opening())

    def _judge(self, payload: bytes) -> bool:
        if is_allow(payload):
            return True
        self.late += is_late(payload)
        return is_late(payload)

    def _ended(self, stream: int) -> None:
        self.under_way -= 1
        due_ns = self.started_ns.pop(stream, 0)
        if due_ns:
            self.latencies_ns.append(perf_counter_ns() - due_ns)

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
                self.started_ns[self._stream] = self.due_ns.popleft()
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
        room = self._answers.window_bytes // max(self._requests.sizes)
        if count > 0 and room > 0:
            self.send(min(count, room))


def _connect(target: str) -> socket.socket:
    if target.startswith("unix:"):
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(ANSWER_TIMEOUT_S)
        connected.connect(target.removeprefix("unix:"))
        return connected
    host, _, port = target.rpartition(":")
    connected = socket.create_connection((host, int(port)), ANSWER_TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _closed_loop(run: Run, connections: Sequence[_Connection]) -> None:
    """Keep `streams` calls under way on every connection until all are answered."""
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    unsent = unanswered = run.calls
    with select.epoll() as poller:
        for fd, connection in by_fd.items():
            poller.register(fd, select.EPOLLIN)
            count = min(run.streams, unsent)
            connection.send(count)
            unsent -= count
        while unanswered:
            for fd in _wait(poller):
                ended = by_fd[fd].read()
                unanswered -= ended
                count = min(ended, unsent)
                by_fd[fd].send(count)
                unsent -= count


def _open_loop(moments_ns: Sequence[int], connections: Sequence[_Connection]) -> None:
    """Call at *moments_ns* from now on, whatever is answered."""
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    fds = list(by_fd)
    turns = cycle(connections)
    unanswered = len(moments_ns)
    started_ns = perf_counter_ns()
    dues_ns = deque(started_ns + moment_ns for moment_ns in moments_ns)
    while unanswered:
        now_ns = perf_counter_ns()
        while dues_ns and dues_ns[0] <= now_ns:
            next(turns).due_ns.append(dues_ns.popleft())
        for connection in connections:
            if connection.due_ns:
                connection.send_due()
        wait_s = max(0.0, (dues_ns[0] - perf_counter_ns()) / 1e9) if dues_ns else ANSWER_TIMEOUT_S
        ready, _, _ = select.select(fds, (), (), wait_s)
        if not ready and not dues_ns:
            raise WireError(f"no answer came for {ANSWER_TIMEOUT_S:g} s")
        for fd in ready:
            unanswered -= by_fd[fd].read()


def _moments_ns(run: Run) -> list[int]:
    """When each call is due, from the start on: as a Poisson process with that many events spreads them."""
    length_ns = run.calls / run.rate_per_s * 1e9
    source = random.Random(run.calls)
    return sorted(int(source.random() * length_ns) for _ in range(run.calls))


def _percentiles_us(ordered_ns: Sequence[int]) -> dict[str, float]:
    """The latency that each of `SHARES` of the calls kept within; none where none was measured."""
    last = len(ordered_ns) - 1
    return {
        f"{share:g}": ordered_ns[min(last, int(len(ordered_ns) * share))] / 1e3
        for share in SHARES
        if ordered_ns
    }


def _wait(poller: select.epoll) -> list[int]:
    events = poller.poll(ANSWER_TIMEOUT_S)
    if not events:
        raise WireError(f"no answer came for {ANSWER_TIMEOUT_S:g} s")
    return [fd for fd, _ in events]


def _read_messages(file: Path) -> list[bytes]:
    data, messages, at = file.read_bytes(), [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        messages.append(data[at + 4 : end])
        at = end
    return messages


def carry_out(run: Run, messages: Sequence[bytes], picks: array[int]) -> Replayed:
    """
    Run the load in this process.

    Raises:
        WireError: a call was not answered, or not by an allow.
    """
    requests, source = Requests(run.method, messages), cycle(picks)
    with ExitStack() as open_connections:
        connections = [_Connection(run.target, requests, source) for _ in range(run.connections)]
        for connection in connections:
            open_connections.enter_context(connection.socket)
        moments_ns = _moments_ns(run) if run.rate_per_s else []
        started_s, cpu_s = perf_counter(), process_time()
        if run.rate_per_s:
            _open_loop(moments_ns, connections)
        else:
            _closed_loop(run, connections)
        elapsed_s, cpu_s = perf_counter() - started_s, process_time() - cpu_s
    late = sum(connection.late for connection in connections)
    if late > LATE_SHARE_MAX * run.calls:
        raise WireError(
            f"the store was late for {late} of {run.calls} calls: it, or the machine, was overloaded"
        )
    ordered = sorted(latency for connection in connections for latency in connection.latencies_ns)
    return Replayed(run.calls, late, elapsed_s, cpu_s, _percentiles_us(ordered))


def main(folder: Path) -> None:
    """Run what *folder* describes and print the result."""
    run = Run(**json.loads((folder / "run.json").read_text()))
    picks: array[int] = array("H", (folder / "picks").read_bytes())
    print(json.dumps(asdict(carry_out(run, _read_messages(folder / "messages"), picks))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

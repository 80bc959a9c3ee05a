"""
A load generator for calls with many different messages: `python -m loadtest.bench.replay FOLDER`.

A closed loop keeps a fixed number of calls in flight. An open loop sends calls at a given rate, whether the
server answers or not, and measures latency from the scheduled time of each call, so that a stall counts for
every delayed call (no coordinated omission). Files in FOLDER describe the run, see `Run`; the result is JSON
on standard output.

In an open loop the generator encodes requests before the load and decodes answers after the load. It sleeps
until a call is due or an answer arrives: a generator that is never idle would delay other programs on its
core, and thereby the server.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns, process_time

from loadtest.bench.awake import awake
from loadtest.bench.call_connection import ANSWER_TIMEOUT_S, CallConnection
from loadtest.bench.processes import LOAD_CORE, BenchError
from loadtest.bench.wire import Requests, WireError

SHARES = (0.5, 0.99, 0.999)
TENTH_NS = 100_000_000
LATE_SHARE_MAX = 0.01


class Manner(StrEnum):
    """
    The scheduling of an open loop on its core.

    `equal`: normal priority. `last`: idle priority, so that a server or its store on the same core does not
    wait for the load generator.
    """

    EQUAL = "equal"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Run:
    """
    One load: *calls* to *method* of *target*, over *connections*.

    `rate_per_s` 0 = a closed loop with *streams* calls in flight on each connection. In an open loop the
    latency of calls in the first `warm_up_s` is ignored, and `manner` is the scheduling.
    """

    target: str
    method: str
    calls: int
    connections: int
    streams: int
    rate_per_s: float = 0.0
    warm_up_s: float = 0.0
    manner: Manner = Manner.EQUAL


@dataclass(frozen=True, slots=True)
class Replayed:
    """
    The result of a load in which every call was answered with an allow.

    Exceptions are `late` answers: denials because the store did not answer within 50 ms, which another
    program on the machine can cause. More than 1 % late answers are an error.

    `latencies_us` are percentiles of all calls. `typical_us` are the percentiles of the calls in one tenth
    of a second, the median over all tenths, so that stalls of the machine do not affect them.
    """

    calls: int
    late: int
    elapsed_s: float
    load_cpu_s: float
    latencies_us: dict[str, float]
    typical_us: dict[str, float]

    @property
    def calls_per_s(self) -> float:
        """Answered calls per second."""
        return self.calls / self.elapsed_s

    @property
    def load_busy(self) -> float:
        """The load generator's use of its core."""
        return self.load_cpu_s / self.elapsed_s


def replay(
    folder: Path, run: Run, messages: Sequence[bytes], picks: array[int], core: int = LOAD_CORE
) -> Replayed:
    """
    Run the load in a new process on *core*; *picks* are indexes of *messages*, repeated.

    Raises:
        BenchError: a call was not answered, or not with an allow; see `Replayed`.
    """
    (folder / "run.json").write_text(json.dumps(asdict(run)))
    (folder / "picks").write_bytes(picks.tobytes())
    with (folder / "messages").open("wb") as file:
        for message in messages:
            file.write(len(message).to_bytes(4, "big") + message)
    command = ["taskset", "-c", str(core), sys.executable, "-m", __name__, str(folder)]
    expected_s = run.calls / run.rate_per_s if run.rate_per_s else 60.0
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=expected_s + 60)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"the load did not end within {error.timeout:g} s") from None
    if result.returncode:
        raise BenchError(f"the load failed: {result.stderr.strip().rpartition(chr(10))[2]}")
    return Replayed(**json.loads(result.stdout))


def _closed_loop(run: Run, connections: Sequence[CallConnection]) -> None:
    """Keep `streams` calls in flight on every connection until all are answered."""
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


def _open_loop(connections: Sequence[CallConnection], moments_ns: Iterable[int], manner: Manner) -> None:
    """Call at *moments_ns*, over the connections in turn, without waiting for answers."""
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    turns, waiting = cycle(connections), deque(moments_ns)
    with awake(), _in_manner(manner):
        unanswered = len(waiting)
        heard_ns = started_ns = perf_counter_ns()
        while unanswered:
            now_ns = perf_counter_ns()
            while waiting and started_ns + waiting[0] <= now_ns:
                waiting.popleft()
                next(turns).due += 1
            for connection in connections:
                if connection.due:
                    connection.send_due()
            until_ns = started_ns + waiting[0] if waiting else heard_ns + int(ANSWER_TIMEOUT_S * 1e9)
            # `select`, because `epoll` has a resolution of a millisecond.
            ready, _, _ = select.select(by_fd, (), (), max(0.0, (until_ns - perf_counter_ns()) / 1e9))
            for fd in ready:
                heard_ns = perf_counter_ns()
                unanswered -= by_fd[fd].read(heard_ns - started_ns)
            if not waiting and perf_counter_ns() - heard_ns > ANSWER_TIMEOUT_S * 1e9:
                raise WireError(f"no answer came for {ANSWER_TIMEOUT_S:g} s")


@contextmanager
def _in_manner(manner: Manner) -> Iterator[None]:
    """Disable garbage collection and set the scheduling of *manner* in the block."""
    policy = os.sched_getscheduler(0)
    gc.disable()
    if manner == Manner.LAST:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        gc.enable()


def _moments_ns(run: Run) -> list[int]:
    """Return the time of each call since the start, by a Poisson process."""
    length_ns = run.calls / run.rate_per_s * 1e9
    source = random.Random(run.calls)
    return sorted(int(source.random() * length_ns) for _ in range(run.calls))


def _percentiles_us(ordered_ns: Sequence[int]) -> dict[str, float]:
    """Return the percentiles `SHARES` of latencies; empty without latencies."""
    last = len(ordered_ns) - 1
    return {
        f"{share:g}": ordered_ns[min(last, int(len(ordered_ns) * share))] / 1e3
        for share in SHARES
        if ordered_ns
    }


def typical_latencies_us(calls: Iterable[tuple[int, int]]) -> dict[str, float]:
    """Return `Replayed.typical_us`; *calls* are scheduled times and latencies, both in nanoseconds."""
    tenths: dict[int, list[int]] = {}
    for due_ns, latency_ns in calls:
        tenths.setdefault(due_ns // TENTH_NS, []).append(latency_ns)
    results = [_percentiles_us(sorted(latencies_ns)) for latencies_ns in tenths.values()]
    return {
        f"{share:g}": median(percentiles[f"{share:g}"] for percentiles in results)
        for share in SHARES
        if results
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
        WireError: a call was not answered, or not with an allow.
    """
    requests, source = Requests(run.method, messages), cycle(picks)
    with ExitStack() as open_connections:
        connections = [CallConnection(run.target, requests, source) for _ in range(run.connections)]
        for connection in connections:
            open_connections.enter_context(connection.socket)
        moments_ns = _moments_ns(run) if run.rate_per_s else []
        for moment_ns, connection in zip(moments_ns, cycle(connections)):
            connection.plan(moment_ns)
        started_s, cpu_s = perf_counter(), process_time()
        if moments_ns:
            _open_loop(connections, moments_ns, run.manner)
        else:
            _closed_loop(run, connections)
        elapsed_s, cpu_s = perf_counter() - started_s, process_time() - cpu_s
    calls = [call for connection in connections for call in connection.judge()]
    late = sum(connection.late for connection in connections)
    if late > LATE_SHARE_MAX * run.calls:
        raise WireError(
            f"the store was late for {late} of {run.calls} calls: the store or the machine was overloaded"
        )
    kept = [(due_ns, read_ns - due_ns) for due_ns, read_ns in calls if due_ns >= run.warm_up_s * 1e9]
    ordered = sorted(latency_ns for _, latency_ns in kept)
    return Replayed(run.calls, late, elapsed_s, cpu_s, _percentiles_us(ordered), typical_latencies_us(kept))


def main(folder: Path) -> None:
    """Run the load in *folder* and print the result."""
    run = Run(**json.loads((folder / "run.json").read_text()))
    picks: array[int] = array("H", (folder / "picks").read_bytes())
    print(json.dumps(asdict(carry_out(run, _read_messages(folder / "messages"), picks))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""
A load generator for calls with many different messages: `python -m loadtest.bench.replay FOLDER`.

A closed loop keeps a fixed number of calls in flight. An open loop sends calls at a given rate, whether the
server answers or not, and measures latency from the scheduled time of each call, so that a stall counts for
every delayed call (no coordinated omission). Files in FOLDER describe the run, see `Run`; the result is JSON
on standard output.

The generator sleeps until a call is due or an answer arrives: a generator that is never idle would delay
other programs on its core, and thereby the server.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns, process_time

from loadtest.bench.processes import LOAD_CORE, BenchError
from loadtest.driver.awake import awake
from loadtest.driver.connection import Call
from loadtest.driver.frames import Requests
from loadtest.driver.http2 import Http2Connection
from loadtest.driver.loops import Limits, Loop
from loadtest.driver.schedule import due_times_ns, segments_of
from loadtest.driver.targets import Target, parse_target

ANSWER_TIMEOUT_S = 20.0
STREAMS_MAX = 256
"""Maximum calls in flight on one connection in an open loop; the wait of further calls counts."""
SHARES = (0.5, 0.99, 0.999)
TENTH_NS = 100_000_000
LATE_SHARE_MAX = 0.01


class WireError(Exception):
    """The server behaved unexpectedly, so the results are invalid."""


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


def _read_messages(file: Path) -> list[bytes]:
    data, messages, at = file.read_bytes(), [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        messages.append(data[at + 4 : end])
        at = end
    return messages


class _AllowedLoad:
    """Sends messages in the order of the picks; every answer must be an allow. Implements `loops.Load`."""

    def __init__(self, picks: array[int]) -> None:
        self._picks = cycle(picks)
        self.start_ns = 0
        self.late = 0
        self.calls: list[tuple[int, int]] = []
        """The due time since the start and the latency of each call."""

    def next_call(self, now_ns: int) -> tuple[int, int]:
        return next(self._picks), 0

    def ended(self, call: Call, message: bytes | None, read_ns: int) -> None:
        if not message:
            raise WireError(f"a call ended without a message, or not within {ANSWER_TIMEOUT_S:g} s")
        if not is_allow(message):
            if b"store_unavailable" not in message:
                raise WireError(f"an answer is not what this load must get: {message[:200]!r}")
            self.late += 1
        self.calls.append((call.due_ns - self.start_ns, read_ns - call.due_ns))

    def withdrawn(self, call: Call) -> None:
        raise WireError("the server refused a call: it stops")

    def lagged(self, due_ns: int, lag_ns: int) -> None:
        """The latency counts from the due time, so a lag needs no handling."""

    def tick(self, now_ns: int) -> None:
        """Nothing is reported before the end."""


def is_allow(message: bytes) -> bool:
    """Return whether *message* is a CheckResponse with status 0 and an ok_response (fields 1 and 3)."""
    return message.startswith((b"\x0a\x00\x1a", b"\x1a"))


def carry_out(run: Run, messages: Sequence[bytes], picks: array[int]) -> Replayed:
    """
    Run the load in this process.

    Raises:
        WireError: a call was not answered, or not with an allow.
    """
    requests, target = Requests(run.method, messages), parse_target(run.target)
    streams = STREAMS_MAX if run.rate_per_s else run.streams
    load = _AllowedLoad(picks)
    openings = [partial(_open, target, requests, streams)] * run.connections
    loop = Loop(openings, load, perf_counter_ns, Limits(ANSWER_TIMEOUT_S, run.calls))
    started_s, cpu_s = perf_counter(), process_time()
    load.start_ns = perf_counter_ns()
    with closing(loop):
        if run.rate_per_s:
            enough_s = 2 * run.calls / run.rate_per_s  # arrivals are random, their number is not
            segments = segments_of("constant", enough_s, run.rate_per_s, 0.0, 1)
            schedule = islice(due_times_ns(segments, "poisson", run.calls), run.calls)
            with awake(), _in_manner(run.manner):
                loop.run_open(schedule, load.start_ns)
        else:
            loop.run_closed(load.start_ns)
        elapsed_s, cpu_s = perf_counter() - started_s, process_time() - cpu_s
    if load.late > LATE_SHARE_MAX * run.calls:
        raise WireError(
            f"the store was late for {load.late} of {run.calls} calls: the store or the machine was"
            " overloaded"
        )
    measured = load.calls if run.rate_per_s else []
    kept = [(due_ns, latency_ns) for due_ns, latency_ns in measured if due_ns >= run.warm_up_s * 1e9]
    ordered = sorted(latency_ns for _, latency_ns in kept)
    return Replayed(
        run.calls, load.late, elapsed_s, cpu_s, _percentiles_us(ordered), typical_latencies_us(kept)
    )


def _open(target: Target, requests: Requests, streams: int) -> Http2Connection:
    return Http2Connection(target.connect(), requests, streams)


def main(folder: Path) -> None:
    """Run the load in *folder* and print the result."""
    run = Run(**json.loads((folder / "run.json").read_text()))
    picks: array[int] = array("I", (folder / "picks").read_bytes())
    print(json.dumps(asdict(carry_out(run, _read_messages(folder / "messages"), picks))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

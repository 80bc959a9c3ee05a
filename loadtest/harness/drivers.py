"""Driver processes: each opens its share of the connections and sends its share of the load."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from time import monotonic_ns, process_time, sleep

from loadtest.driver.awake import awake
from loadtest.driver.connection import Connection
from loadtest.driver.frames import Requests
from loadtest.driver.http1 import Http1Connection
from loadtest.driver.http2 import Http2Connection
from loadtest.driver.loops import Limits, Loop
from loadtest.driver.schedule import due_times_ns
from loadtest.driver.targets import Target
from loadtest.harness.answers import READERS
from loadtest.harness.scenario import Scenario, ScenarioError
from loadtest.harness.tally import Focus, Rules, Second, Tally, TallyingLoad
from loadtest.harness.usage import waited_s
from loadtest.harness.workload import Keys, make_workload

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
SETTLE_S = 1.0
"""A lost call ends a moment after its time-out."""
_ALL = 2**62


class DriverError(Exception):
    """A driver process failed; the message has its error."""


@dataclass(frozen=True)
class Job:
    """
    What one driver process does: number *part* of *parts*, on *cores*; () = any.

    `focus` is shared memory with the integration that is suspended next; see `TrafficSettings.focus_share`.
    """

    scenario: Scenario
    keys: Keys
    targets: Sequence[Target]
    rules: Rules
    part: int
    parts: int
    cores: Sequence[int] = ()
    focus: Focus | None = None


class Driver:
    """A driver process, seen from the program that started it."""

    def __init__(self, job: Job) -> None:
        """Start the process; it connects and waits for `start`."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_drive, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def wait_ready(self) -> None:
        """
        Wait until all connections are open.

        Raises:
            DriverError: the process failed or is not ready within `START_TIMEOUT_S`.
        """
        if not self.pipe.poll(START_TIMEOUT_S):
            raise DriverError(f"a driver process is not ready within {START_TIMEOUT_S:g} s")
        self.receive()

    def start(self, start_ns: int) -> None:
        """Let the load start at *start_ns* (CLOCK_MONOTONIC)."""
        self.pipe.send(start_ns)

    def receive(self) -> dict[int, Second] | Tally | None:
        """
        Return what the process sent: None = ready, its seconds as they end, at last its tally.

        Raises:
            DriverError: it failed.
        """
        try:
            received: dict[int, Second] | Tally | str | None = self.pipe.recv()
        except EOFError:
            raise DriverError("a driver process ended without a result") from None
        if isinstance(received, str):
            raise DriverError(received)
        return received

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self._process.terminate()
        self._process.join(STOP_TIMEOUT_S)


def _drive(job: Job, pipe: Pipe) -> None:
    """Run in the driver process: do the job and send what `Driver.receive` returns."""

    def await_start() -> int:
        pipe.send(None)
        start_ns: int = pipe.recv()
        return start_ns

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it ends it
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    try:
        pipe.send(carry_out(job, pipe.send, await_start))
    except (DriverError, ScenarioError) as error:
        pipe.send(str(error))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def carry_out(job: Job, report: Callable[[dict[int, Second]], None], await_start: Callable[[], int]) -> Tally:
    """
    Do *job* in this process and return its tally; *report* gets its seconds as they end.

    *await_start* is called when all connections are open; it returns when the load starts (CLOCK_MONOTONIC).

    Raises:
        DriverError: a connection cannot be opened.
        ScenarioError: see `make_workload`.
    """
    scenario, target = job.scenario, job.targets[0]
    workload = make_workload(scenario, job.keys, target, job.part)
    timeout_s, streams = scenario.connections.answer_timeout_s, scenario.connections.streams
    reader = READERS[scenario.protocol]
    load = TallyingLoad(
        workload, reader, job.rules, report=report, settle_s=timeout_s + SETTLE_S, focus=job.focus
    )
    requests = Requests(workload.method, workload.messages, target.authority) if workload.method else None

    def connect(number: int) -> Connection:
        connected = job.targets[number].connect()
        if requests is None:
            return Http1Connection(connected, workload.messages, number)
        return Http2Connection(connected, requests, streams, number)

    own = range(job.part, scenario.connections.connections, job.parts)
    openings = [partial(connect, number % len(job.targets)) for number in own]
    with ExitStack() as stack:
        limits = Limits(timeout_s, seconds=scenario.load.duration_s)
        try:
            loop = stack.enter_context(closing(Loop(openings, load, monotonic_ns, limits)))
        except OSError as error:
            addresses = ", ".join(map(str, job.targets))
            raise DriverError(
                f"cannot connect to {addresses}: {error.strerror or error}; is the server running?"
            ) from error
        load.start_ns = start_ns = await_start()
        stack.enter_context(awake())
        stack.enter_context(_without_collections())
        cpu_s, waiting_s = process_time(), waited_s()
        if scenario.load.loop == "open":
            settings = scenario.load
            due = due_times_ns(settings.segments, settings.arrivals, scenario.seed, job.part, job.parts)
            loop.run_open(due, start_ns)
        else:
            sleep(max(0.0, (start_ns - monotonic_ns()) / 1e9))
            loop.run_closed(start_ns)
        tally = load.tally
        tally.cpu_s, tally.waited_s = process_time() - cpu_s, max(0.0, waited_s() - waiting_s)
        tally.reconnects = loop.reconnects
        tally.span_s = (monotonic_ns() - start_ns) / 1e9
    report(load.pop_seconds(_ALL))
    return tally


@contextmanager
def _without_collections() -> Iterator[None]:
    """Disable garbage collection, whose pauses would be latency; the loop makes no cycles."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

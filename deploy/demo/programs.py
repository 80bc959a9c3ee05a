"""Runs child processes, with a deadline for every wait, and always stops them."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeVar

Fact = TypeVar("Fact")

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
TICK_S, TICK_S_MAX = 0.005, 0.05
LOG_TAIL_BYTES = 8_000


PORTS = range(10_240, 22_528)
"""Below the kernel's ephemeral ports, even 10,000 higher: whoever asks for any port gets none of these."""


def free_port(*offsets: int) -> int:
    """
    Return a port of 127.0.0.1 that is free, as are the ports that lie *offsets* above it.

    A program may bind it later: connections and programs that take any port get others, see `PORTS`.
    """
    while True:
        port = secrets.choice(PORTS)  # not `random`, which processes of a test run seed alike
        with ExitStack() as probes, suppress(OSError):
            for offset in (0, *offsets):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            return port


class ProgramError(Exception):
    """A program did not start or stop correctly; the message ends with its output."""


class InterruptedByUserError(Exception):
    """The user pressed Ctrl-C or sent SIGTERM; `number` is the signal's number."""

    def __init__(self, number: int) -> None:
        """Store the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number


_signals_received: list[int] = []


def defer_interrupts() -> None:
    """
    Let Ctrl-C and SIGTERM act only at `raise_if_interrupted`.

    An exception elsewhere could occur between the start of a child and the registration of its cleanup.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _record_signal)


def _record_signal(number: int, frame: FrameType | None) -> None:
    _signals_received.append(number)


def raise_if_interrupted() -> None:
    """
    Raise if a deferred signal was received.

    Raises:
        InterruptedByUserError: a signal was received.
    """
    if _signals_received:
        raise InterruptedByUserError(_signals_received[0])


class Program:
    """
    One child process, in a separate session so that Ctrl-C reaches only its parent.

    As a context manager it stops at the end of the block. Its output goes to `log`; a later run with the same
    name appends to the file.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start *command*; *name* is for messages and the log, `<folder>/<name>.log`."""
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process."""
        self.stop()

    def printed(self) -> str:
        """Return its output so far."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def wait_for(self, fact: Callable[[], Fact], what: str, timeout_s: float = START_TIMEOUT_S) -> Fact:
        """
        Call *fact* until it returns a true value, and return the value.

        Raises:
            ProgramError: the program ended first, or *timeout_s* has passed.
            InterruptedByUserError: see `raise_if_interrupted`.
        """
        deadline_s = time.monotonic() + timeout_s
        never, tick_s = threading.Event(), TICK_S
        while True:
            raise_if_interrupted()
            found = fact()
            if found:
                return found
            if not self.is_running:
                raise self._error(f"ended with code {self._process.returncode} before {what}")
            if time.monotonic() > deadline_s:
                raise self._error(f"not within {timeout_s:g} s: {what}")
            never.wait(tick_s)
            tick_s = min(TICK_S_MAX, 1.3 * tick_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is running."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """
        Wait for the end of the process and return its exit code.

        Raises:
            ProgramError: the process was still running after *timeout_s* and was killed.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise self._error(f"did not end within {timeout_s:g} s and was killed") from None

    def stop_at_once(self) -> int:
        """Send SIGTERM repeatedly until the process ends, and return its exit code."""
        self.signal(signal.SIGTERM)
        never = threading.Event()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self.is_running and time.monotonic() < deadline_s:
            never.wait(TICK_S_MAX)
            self.signal(signal.SIGTERM)
        return self.wait()

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code; see `wait`."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def _error(self, complaint: str) -> ProgramError:
        return ProgramError(f"{self.name} {complaint}. It printed:\n{self.printed()[-LOG_TAIL_BYTES:]}")

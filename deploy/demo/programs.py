"""Child processes that are awaited with a deadline and stopped by their own id, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeVar

Fact = TypeVar("Fact")

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
TICK_S = 0.01
LOG_TAIL_BYTES = 8_000


class ProgramError(Exception):
    """A program did not start or stop as it should; the message ends with what it printed."""


class InterruptedByUserError(Exception):
    """Ctrl-C or SIGTERM came; `number` says which."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number


_signals_received: list[int] = []


def defer_interrupts() -> None:
    """
    Let Ctrl-C and SIGTERM act at `raise_if_interrupted` alone.

    An exception at any other place could come between the start of a child and the moment at which
    somebody feels responsible for it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _signals_received.append(number)


def raise_if_interrupted() -> None:
    """
    Do nothing, unless a deferred signal has come.

    Raises:
        InterruptedByUserError: it has.
    """
    if _signals_received:
        raise InterruptedByUserError(_signals_received[0])


class Program:
    """
    One child process, in a session of its own so that Ctrl-C reaches only its parent.

    As a context manager it is stopped at the end of the block. What it prints goes to `log`, which
    a later run of the same name continues.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start *command*; *name* is for people and for its log, `<folder>/<name>.log`."""
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
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def wait_for(self, fact: Callable[[], Fact], what: str, timeout_s: float = START_TIMEOUT_S) -> Fact:
        """
        Ask *fact* until it returns something true, and return that.

        Raises:
            ProgramError: the program ended before, or *timeout_s* went by.
            InterruptedByUserError: see `raise_if_interrupted`.
        """
        deadline_s = time.monotonic() + timeout_s
        never = threading.Event()
        while True:
            raise_if_interrupted()
            found = fact()
            if found:
                return found
            if not self.is_running:
                raise self._error(f"ended with code {self._process.returncode} before {what}")
            if time.monotonic() > deadline_s:
                raise self._error(f"not within {timeout_s:g} s: {what}")
            never.wait(TICK_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has already ended."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """
        Wait for its end and return its exit code.

        Raises:
            ProgramError: it is still running after *timeout_s*; it has been killed then.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise self._error(f"did not end within {timeout_s:g} s and was killed") from None

    def stop_at_once(self) -> int:
        """Send SIGTERM until it ends, as an impatient user does, and return its exit code."""
        self.signal(signal.SIGTERM)
        never = threading.Event()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self.is_running and time.monotonic() < deadline_s:
            never.wait(TICK_S)
            self.signal(signal.SIGTERM)
        return self.wait()

    def stop(self) -> int:
        """Ask it to end (SIGTERM), wait, and return its exit code; see `wait`."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def _error(self, complaint: str) -> ProgramError:
        return ProgramError(f"{self.name} {complaint}. It printed:\n{self.printed()[-LOG_TAIL_BYTES:]}")

"""
`python -m loadtest.revocation.load TARGET …`: the load of the trials, in a separate process.

So the administrator's process is idle and measures the commit without delay. Both processes read the same
clock, CLOCK_MONOTONIC. They exchange lines of JSON:

    in   {"trial": 7, "key": "sck_..."}     send requests with this key from now on
    out  {"trial": 7, "loaded": true}       every sidecar has admitted requests with the key
    in   {"trial": 7, "committed_ns": ...}  the suspension is committed
    in   {"trial": 7, "over": true}         the administrator stops waiting
    out  {"trial": 7, "result": {...}}      every sidecar denies the key, and no request is in flight
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic_ns
from typing import Any

import uvloop

from sidecar.services.ext_authz_client import read_status
from sidecar.verify.callers import Call, Caller
from sidecar.verify.subjects import message_of

CONNECTIONS, IN_FLIGHT = 2, 16
ADMITTED_FIRST = 50
"""Requests that each sidecar must admit before the suspension."""
DENIED_AFTER = 20
"""Requests that each sidecar must deny after the suspension before the trial ends."""

SendLine = Callable[[dict[str, Any]], None]


@dataclass
class TrialResult:
    """
    The result of a trial.

    `violations` are admitted requests that were sent after the commit; `judged` are all requests that were
    sent after the commit. `first_denials_ns` has one time for each sidecar.
    """

    violations: int
    judged: int
    admitted: int
    failed: int
    unanswered: int
    others: int
    first_denials_ns: list[int]


@dataclass
class Trial:
    """A running trial; its lists have one item for each sidecar."""

    number: int
    message: bytes
    sidecars: int
    committed_ns: int = 0
    is_loaded: bool = False
    is_over: bool = False
    in_flight: int = 0
    failed: int = 0
    unanswered: int = 0
    others: int = 0
    admitted: list[int] = field(default_factory=list)
    denied_after: list[int] = field(default_factory=list)
    first_denials_ns: list[int] = field(default_factory=list)
    admitted_sent_ns: list[int] = field(default_factory=list)
    denied_sent_ns: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the items for each sidecar."""
        self.admitted, self.denied_after = [0] * self.sidecars, [0] * self.sidecars
        self.first_denials_ns = [0] * self.sidecars

    def count(self, sidecar: int, status: int, sent_ns: int) -> None:
        """Count the answer of *sidecar*."""
        if status == 200:
            self.admitted[sidecar] += 1
            if self.is_loaded:
                self.admitted_sent_ns.append(sent_ns)
        elif status == 403:
            self.first_denials_ns[sidecar] = self.first_denials_ns[sidecar] or monotonic_ns()
            if self.committed_ns:
                self.denied_after[sidecar] += sent_ns > self.committed_ns
            self.denied_sent_ns.append((sidecar, sent_ns))
        elif status == 503:
            self.failed += 1
        elif status == 0:
            self.unanswered += 1
        else:
            self.others += 1

    def commit(self, committed_ns: int) -> None:
        """Set the time of the commit, and count the earlier denials again."""
        self.committed_ns = committed_ns
        self.denied_after = [0] * self.sidecars
        for sidecar, sent_ns in self.denied_sent_ns:
            self.denied_after[sidecar] += sent_ns > committed_ns

    def result(self) -> TrialResult:
        """Return the result."""
        violations = sum(sent_ns > self.committed_ns for sent_ns in self.admitted_sent_ns)
        denied = sum(sent_ns > self.committed_ns for _, sent_ns in self.denied_sent_ns)
        return TrialResult(
            violations,
            violations + denied,
            sum(self.admitted),
            self.failed,
            self.unanswered,
            self.others,
            self.first_denials_ns,
        )


class RevocationLoad:
    """Keeps all sidecars under load, trial after trial. Implements `callers.CallHandler`."""

    def __init__(self, targets: Sequence[str], send_line: SendLine) -> None:
        """Send requests to *targets*, and progress with *send_line*."""
        self._sidecars = len(targets)
        self._send_line = send_line
        self._trials: dict[int, Trial] = {}
        self._current: Trial | None = None
        connections = [target for target in targets for _ in range(CONNECTIONS)]
        self._callers = [Caller(number, target, self, IN_FLIGHT) for number, target in enumerate(connections)]

    def start(self) -> None:
        """Connect; calls begin with the first trial."""
        for caller in self._callers:
            caller.start()

    async def stop(self) -> None:
        """End all calls."""
        await asyncio.gather(*(caller.stop() for caller in self._callers))

    def handle_line(self, line: dict[str, Any]) -> None:
        """Handle a line from the administrator."""
        number = int(line["trial"])
        if "key" in line:
            self._current = self._trials[number] = Trial(number, message_of(line["key"]), self._sidecars)
            for caller in self._callers:
                caller.wake()
            return
        trial = self._trials.get(number)
        if trial is None:
            return
        if "committed_ns" in line:
            trial.commit(int(line["committed_ns"]))
        else:
            trial.is_over = True
        self._report(trial)

    def next_call(self, caller: int) -> Call | None:
        """Return a call of the current trial; None = no trial is running."""
        trial = self._current
        if trial is None or trial.is_over:
            return None
        trial.in_flight += 1
        return Call(trial.message, trial.number)

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count the answer."""
        trial = self._trials[tag]
        trial.in_flight -= 1
        trial.count(caller // CONNECTIONS, read_status(message) if message else 0, sent_ns)
        if trial.committed_ns or not trial.is_loaded:
            self._report(trial)

    def _report(self, trial: Trial) -> None:
        """Send the progress of *trial*, if it has changed."""
        if not trial.is_loaded and min(trial.admitted) >= ADMITTED_FIRST:
            trial.is_loaded = True
            self._send_line({"trial": trial.number, "loaded": True})
        if trial.committed_ns and min(trial.denied_after) >= DENIED_AFTER:
            trial.is_over = True
        if trial.is_over and not trial.in_flight and trial.number in self._trials:
            del self._trials[trial.number]
            self._send_line({"trial": trial.number, "result": asdict(trial.result())})


async def serve(targets: Sequence[str]) -> None:
    """Handle the lines of standard input until it ends."""

    def send_line(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    load = RevocationLoad(targets, send_line)
    load.start()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            load.handle_line(json.loads(line))
    finally:
        await load.stop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1:]))

"""
`python -m loadtest.revocation.load TARGET …`: the load of the trials, in a process of its own.

So the administrator's process is idle, and sees the commit when it returns and not some callbacks later.
Both read one clock, CLOCK_MONOTONIC. Lines of JSON come in and go out:

    in   {"trial": 7, "key": "sck_..."}     from now on ask with this key
    out  {"trial": 7, "loaded": true}       every sidecar has admitted requests with it
    in   {"trial": 7, "committed_ns": ...}  its suspension has been committed
    in   {"trial": 7, "over": true}         the administrator waits no longer
    out  {"trial": 7, "result": {...}}      every sidecar denies it, and no request of the trial is under way
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
"""Requests that each sidecar must admit before the suspension: then it is under way everywhere."""
DENIED_AFTER = 20
"""Requests that each sidecar must deny after it before the trial ends."""

Tell = Callable[[dict[str, Any]], None]


@dataclass
class TrialResult:
    """
    What a trial found.

    `violations` are requests that were admitted although they were sent after the commit; `judged` are all
    that were sent after it. `first_denials_ns` has one time for each sidecar.
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
    """One trial while it runs; the lists have one place for each sidecar."""

    number: int
    message: bytes
    sidecars: int
    committed_ns: int = 0
    is_loaded: bool = False
    is_over: bool = False
    under_way: int = 0
    failed: int = 0
    unanswered: int = 0
    others: int = 0
    admitted: list[int] = field(default_factory=list)
    denied_after: list[int] = field(default_factory=list)
    first_denials_ns: list[int] = field(default_factory=list)
    admitted_sent_ns: list[int] = field(default_factory=list)
    denied_sent_ns: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """One place for each sidecar."""
        self.admitted, self.denied_after = [0] * self.sidecars, [0] * self.sidecars
        self.first_denials_ns = [0] * self.sidecars

    def note(self, sidecar: int, status: int, sent_ns: int) -> None:
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
        """The suspension was committed then; answers that came meanwhile are looked at again."""
        self.committed_ns = committed_ns
        self.denied_after = [0] * self.sidecars
        for sidecar, sent_ns in self.denied_sent_ns:
            self.denied_after[sidecar] += sent_ns > committed_ns

    def result(self) -> TrialResult:
        """What it found."""
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
    """Keeps all sidecars under load, trial after trial; implements `callers.CallHandler`."""

    def __init__(self, targets: Sequence[str], tell: Tell) -> None:
        """*tell* is given what goes out."""
        self._sidecars = len(targets)
        self._tell = tell
        self._trials: dict[int, Trial] = {}
        self._current: Trial | None = None
        ways = [target for target in targets for _ in range(CONNECTIONS)]
        self._callers = [Caller(number, target, self, IN_FLIGHT) for number, target in enumerate(ways)]

    def start(self) -> None:
        """Connect; calls begin with the first trial."""
        for caller in self._callers:
            caller.start()

    async def stop(self) -> None:
        """End all calls."""
        await asyncio.gather(*(caller.stop() for caller in self._callers))

    def heard(self, line: dict[str, Any]) -> None:
        """Take in a line of the administrator's."""
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
        self._look(trial)

    def next_call(self, caller: int) -> Call | None:
        """The current trial's; that of the one before when it is over and the next has not come."""
        trial = self._current
        if trial is None or trial.is_over:
            return None
        trial.under_way += 1
        return Call(trial.message, trial.number)

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count the answer."""
        trial = self._trials[tag]
        trial.under_way -= 1
        trial.note(caller // CONNECTIONS, read_status(message) if message else 0, sent_ns)
        if trial.committed_ns or not trial.is_loaded:
            self._look(trial)

    def _look(self, trial: Trial) -> None:
        """Tell what *trial* has come to."""
        if not trial.is_loaded and min(trial.admitted) >= ADMITTED_FIRST:
            trial.is_loaded = True
            self._tell({"trial": trial.number, "loaded": True})
        if trial.committed_ns and min(trial.denied_after) >= DENIED_AFTER:
            trial.is_over = True
        if trial.is_over and not trial.under_way and trial.number in self._trials:
            del self._trials[trial.number]
            self._tell({"trial": trial.number, "result": asdict(trial.result())})


async def serve(targets: Sequence[str]) -> None:
    """Do what the lines of standard input say, until it ends."""

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    load = RevocationLoad(targets, tell)
    load.start()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            load.heard(json.loads(line))
    finally:
        await load.stop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1:]))

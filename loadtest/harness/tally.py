"""What one driver process counts while the load runs; the oracle judges it afterwards."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from time import monotonic_ns, time
from typing import Protocol

from loadtest.driver.connection import Call
from loadtest.harness.answers import MISSING, UNREADABLE, Answer, Read
from loadtest.harness.suspensions import WatchedCalls
from loadtest.harness.workload import (
    FOCUS,
    FOREIGN_ADDRESS,
    SUSPENDED,
    UNKNOWN,
    VALID,
    WRONG_SCOPE,
    Workload,
)

UNANSWERED = 1
"""In place of a status: no answer in time, a lost connection, or a gRPC error."""
UNAVAILABLE = 503
MISSING_HEADER = "missing header"
SAMPLES_MAX = 10
"""Wrong answers that are kept of each kind, to be shown."""
SECOND_NS = 1_000_000_000
UNAVAILABLE_NS = 10_000_000
"""Calls with `UNAVAILABLE` are counted by hundredths of a second."""
_ROUNDING_S = 0.01
"""Clocks are read at slightly different moments."""

EXPECTED = {
    VALID: frozenset((200, 429)),
    UNKNOWN: frozenset((401, 403, 429)),
    SUSPENDED: frozenset((401, 403)),
    WRONG_SCOPE: frozenset((403,)),
    FOREIGN_ADDRESS: frozenset((403,)),
}
"""The right statuses by kind; `UNAVAILABLE` and `UNANSWERED` are counted on their own."""


class Focus(Protocol):
    """Shared memory with the number of an integration."""

    value: int


@dataclass(frozen=True)
class Rules:
    """
    What an answer must be like, see `scenario.OracleSettings`.

    `limit` and `burst` are those of every integration; `window_s` is the longest time until a reset.
    `judges_resets`: whether this process sends all calls, so that it knows when a bucket is full. The calls
    of `watched` integrations are kept one by one, because these will be suspended.
    """

    limit: int
    burst: int
    window_s: float
    has_headers: bool = True
    clock_skew_s: float = 0.0
    judges_resets: bool = True
    watched: frozenset[int] = frozenset()


@dataclass
class Second:
    """The calls that were due in one second: counts by kind and status, and latencies in microseconds."""

    statuses: Counter[tuple[int, int]] = field(default_factory=Counter)
    latencies_us: Counter[int] = field(default_factory=Counter)
    lags_us: Counter[int] = field(default_factory=Counter)
    valid_latencies_us: Counter[int] = field(default_factory=Counter)
    """Of valid requests alone."""


@dataclass
class Tally:
    """
    The counts of one process, or of all processes after `add`.

    The arrays have one item for each integration: admitted, refused (429) and lost calls that were valid, and
    the times (CLOCK_MONOTONIC) of the first sending and of the last answer. `unavailable` are calls with
    `UNAVAILABLE`, by the number of `UNAVAILABLE_NS` after the start in which they were sent.
    """

    admitted: array[int]
    refused: array[int]
    lost: array[int]
    first_ns: array[int]
    last_ns: array[int]
    wrong: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    unavailable: Counter[int] = field(default_factory=Counter)
    watched: WatchedCalls[int] = field(default_factory=lambda: array("q"))
    cpu_s: float = 0.0
    waited_s: float = 0.0
    reconnects: int = 0
    span_s: float = 0.0
    """From the start of the load to the last answer."""

    @classmethod
    def empty(cls, integrations: int) -> Tally:
        """Return a tally without calls."""
        admitted, refused, lost, first, last = (array("q", bytes(8 * integrations)) for _ in range(5))
        return cls(admitted, refused, lost, first, last)

    def add(self, other: Tally) -> None:
        """Add the counts of another process."""
        for mine, theirs in (
            (self.admitted, other.admitted),
            (self.refused, other.refused),
            (self.lost, other.lost),
        ):
            mine[:] = array("q", map(int.__add__, mine, theirs))
        earlier = (
            (min(mine, theirs) if mine and theirs else mine or theirs)
            for mine, theirs in zip(self.first_ns, other.first_ns, strict=True)
        )
        self.first_ns = array("q", earlier)
        self.last_ns = array("q", map(max, self.last_ns, other.last_ns))
        self.wrong.update(other.wrong)
        for what, samples in other.samples.items():
            self.samples[what] = (self.samples.get(what, []) + samples)[:SAMPLES_MAX]
        self.unavailable.update(other.unavailable)
        self.watched += other.watched
        self.cpu_s += other.cpu_s
        self.waited_s += other.waited_s
        self.reconnects += other.reconnects
        self.span_s = max(self.span_s, other.span_s)


class TallyingLoad:
    """Sends the draws of a workload, and counts the answers. Implements `loops.Load`."""

    def __init__(
        self,
        workload: Workload,
        read: Read,
        rules: Rules,
        *,
        report: Callable[[dict[int, Second]], None] = lambda seconds: None,
        settle_s: float = 0.0,
        focus: Focus | None = None,
        clock_s: Callable[[], float] = time,
        clock_ns: Callable[[], int] = monotonic_ns,
    ) -> None:
        """
        Read answers with *read*; both clocks are compared once, now.

        *report* gets each second *settle_s* after its end, when all of its calls have ended.
        """
        self.tally = Tally.empty(workload.integrations)
        self.seconds: dict[int, Second] = {}
        self.start_ns = 0
        """When the load starts; seconds count from it."""
        self._report = report
        self._settle_ns = int(settle_s * 1e9)
        self._reported = 0
        self._focus = focus
        self._read = read
        self._rules = rules
        self._picks = cycle(workload.picks)
        self._kinds = workload.kinds
        self._owners = workload.owners
        self._epoch_s = clock_s() - clock_ns() / 1e9
        self._in_flight = array("l", bytes(8 * workload.integrations))
        self._full_s = array("d", bytes(8 * workload.integrations))
        self._latencies: dict[int, tuple[list[int], list[int]]] = {}
        """Of valid and of other requests, by second."""
        self._lags: dict[int, list[int]] = {}

    def next_call(self, now_ns: int) -> tuple[int, int]:
        """Return the next draw; the tag is 1 if the bucket must be full, because its reset has passed."""
        number = next(self._picks)
        if number == FOCUS and self._focus is not None:
            number = self._focus.value
        if self._kinds[number] != VALID:
            return number, 0
        owner, first_ns, in_flight = self._owners[number], self.tally.first_ns, self._in_flight
        if not first_ns[owner]:
            first_ns[owner] = now_ns
        full_s = self._full_s[owner]
        is_full = (
            not in_flight[owner] and 0 < full_s < self._epoch_s + now_ns / 1e9 - self._rules.clock_skew_s
        )
        in_flight[owner] += 1
        return number, int(is_full and self._rules.judges_resets)

    def withdrawn(self, call: Call) -> None:
        """Forget a call that the server did not handle."""
        if self._kinds[call.number] == VALID:
            self._in_flight[self._owners[call.number]] -= 1

    def lagged(self, due_ns: int, lag_ns: int) -> None:
        """Count how late the driver itself was."""
        self._lags.setdefault((due_ns - self.start_ns) // SECOND_NS, []).append(lag_ns // 1_000)

    def tick(self, now_ns: int) -> None:
        """Report the seconds whose calls have ended."""
        before = (now_ns - self.start_ns - self._settle_ns) // SECOND_NS
        if before > self._reported:
            self._report(self.pop_seconds(before))
            self._reported = before

    def ended(self, call: Call, message: bytes | None, read_ns: int) -> None:
        """Count the answer, and check it."""
        kind, second = self._kinds[call.number], (call.due_ns - self.start_ns) // SECOND_NS
        latencies = self._latencies.get(second)
        if latencies is None:
            latencies = self._latencies[second] = [], []
            self.seconds[second] = Second()
        latencies[kind != VALID].append((read_ns - call.due_ns) // 1_000)
        if message is None:
            status = UNANSWERED
        else:
            answer = self._read(message, self._epoch_s + read_ns / 1e9)
            status = answer.status
            if status != UNAVAILABLE:
                self._check(kind, call, answer, message, read_ns)
            else:
                self.tally.unavailable[(call.sent_ns - self.start_ns) // UNAVAILABLE_NS] += 1
        self.seconds[second].statuses[kind, status] += 1
        if kind == VALID:
            self._count_valid(self._owners[call.number], status, call, read_ns)

    def pop_seconds(self, before: int) -> dict[int, Second]:
        """Return and forget the seconds before number *before*."""
        popped = {}
        for number in sorted(self.seconds.keys() | self._lags.keys()):
            if number < before:
                second = popped[number] = self.seconds.pop(number, Second())
                valid, others = self._latencies.pop(number, ((), ()))
                second.valid_latencies_us.update(valid)
                second.latencies_us.update(second.valid_latencies_us)
                second.latencies_us.update(others)
                second.lags_us.update(self._lags.pop(number, ()))
        return popped

    def _count_valid(self, owner: int, status: int, call: Call, read_ns: int) -> None:
        tally = self.tally
        self._in_flight[owner] -= 1
        if status == 200:
            tally.admitted[owner] += 1
            tally.last_ns[owner] = read_ns
        elif status == 429:
            tally.refused[owner] += 1
        else:
            tally.lost[owner] += 1
            self._full_s[owner] = math.inf  # it may have taken a token
        if owner in self._rules.watched:
            tally.watched.extend((owner, call.target, call.sent_ns, read_ns, status))

    def _check(self, kind: int, call: Call, answer: Answer, message: bytes, read_ns: int) -> None:
        status, limit, remaining, reset_s = answer
        rules = self._rules
        if status not in EXPECTED[kind]:
            if not (status == 403 and kind == VALID and self._owners[call.number] in rules.watched):
                self._wrong(
                    "unreadable answer" if status == UNREADABLE else f"verdict/{kind}/{status}", message
                )
            return
        if not rules.has_headers or kind == UNKNOWN:
            return
        if limit == MISSING or remaining == MISSING or reset_s == MISSING:
            self._wrong(MISSING_HEADER, message)
            return
        if limit != rules.limit or remaining > rules.burst:
            self._wrong("wrong limit", message)
        if kind != VALID:
            return
        if reset_s < self._epoch_s + call.sent_ns / 1e9 - rules.clock_skew_s - _ROUNDING_S:
            self._wrong("reset in the past", message)
        elif reset_s > self._epoch_s + read_ns / 1e9 + rules.window_s + rules.clock_skew_s + 1 + _ROUNDING_S:
            self._wrong("reset too late", message)
        if call.tag and status == 429:
            self._wrong("refused after the reset", message)
        if status == 200:  # a refusal takes nothing, so it cannot move the reset
            owner = self._owners[call.number]
            full_s = self._full_s[owner]
            self._full_s[owner] = reset_s if full_s == math.inf else max(full_s, reset_s)

    def _wrong(self, what: str, message: bytes) -> None:
        self.tally.wrong[what] += 1
        samples = self.tally.samples.setdefault(what, [])
        if len(samples) < SAMPLES_MAX:
            samples.append(repr(message[:600]))

"""One run: hammer buckets through sidecars for some seconds, and judge what was admitted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, monotonic_ns

from sidecar.services.ext_authz_client import read_status
from sidecar.verify.accuracy import Count, Finding, Judgement, Window, judge
from sidecar.verify.callers import Call, Caller
from sidecar.verify.store_clock import Moment, StoreClock
from sidecar.verify.subjects import Subject

EMPTY_TIMEOUT_S = 10.0
"""How long the end of a run may wait for a refusal of every bucket."""
PERCENT = 100


@dataclass(frozen=True, slots=True)
class Load:
    """How hard a run hammers: connections to each sidecar, calls under way on each, and for how long."""

    seconds: float
    connections: int = 2
    in_flight: int = 16


@dataclass(frozen=True, slots=True)
class BucketResult:
    """What a run found of one bucket."""

    subject: Subject
    window: Window
    count: Count
    judgement: Judgement

    @property
    def admitted_percent(self) -> float:
        """What was admitted of the most that may be."""
        return PERCENT * self.count.admitted / self.judgement.most


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run found; `hung` = calls that were given up because no byte came for seconds."""

    buckets: tuple[BucketResult, ...]
    seconds: float
    hung: int

    @property
    def is_fulfilled(self) -> bool:
        """Whether every bucket kept its promise, and every call was answered or cleanly lost."""
        return not self.hung and all(bucket.judgement.is_fulfilled for bucket in self.buckets)

    @property
    def calls(self) -> int:
        """All requests."""
        return sum(bucket.count.total for bucket in self.buckets)

    def findings(self) -> list[Finding]:
        """What is wrong, each once."""
        found = {bucket.judgement.finding for bucket in self.buckets}
        return [finding for finding in Finding if finding in found and finding is not Finding.FULFILLED]


class AccuracyRun:
    """Hammers *subjects* through the sidecars at *targets*, in turn; implements `callers.Listener`."""

    def __init__(
        self, targets: Sequence[str], subjects: Sequence[Subject], clock: StoreClock, load: Load
    ) -> None:
        """Nothing is sent before `run`."""
        self.counts = [Count(fills_ns=subject.terms.fills_ns) for subject in subjects]
        self._subjects = subjects
        self._calls = [Call(subject.message, number) for number, subject in enumerate(subjects)]
        self._clock = clock
        self._load = load
        ways = [target for target in targets for _ in range(load.connections)]
        self._callers = [Caller(number, target, self, load.in_flight) for number, target in enumerate(ways)]
        self._turns = list(range(len(ways)))
        self._wanted: set[int] = set()
        self._wanted_after_ns = 0
        self._all_refused = asyncio.Event()

    def next_call(self, caller: int) -> Call:
        """Buckets in turn."""
        turn = self._turns[caller] = (self._turns[caller] + 1) % len(self._calls)
        return self._calls[turn]

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count the answer."""
        status = read_status(message) if message else 0
        self.counts[tag].note(status, sent_ns, monotonic_ns())
        if status == 429 and tag in self._wanted and sent_ns > self._wanted_after_ns:
            self._wanted.discard(tag)
            if not self._wanted:
                self._all_refused.set()

    async def run(self, began: Moment) -> RunResult:
        """
        Hammer, and judge; *began* is a moment before the first take.

        Raises:
            RegistryError: the store does not tell its time.
        """
        started_s = monotonic()
        for caller in self._callers:
            caller.start()
        try:
            empty = await self._hammer(started_s)
        finally:
            await asyncio.gather(*(caller.stop() for caller in self._callers))
        ended = await self._clock.now()
        results = []
        for subject, count in zip(self._subjects, self.counts, strict=True):
            owner = subject.integration_id
            empty_us = None if empty is None else empty[1].since_us(empty[0], owner)
            window = Window(ended.since_us(began, owner), empty_us)
            results.append(BucketResult(subject, window, count, judge(subject.terms, window, count)))
        hung = sum(caller.hung for caller in self._callers)
        return RunResult(tuple(results), monotonic() - started_s, hung)

    async def _hammer(self, started_s: float) -> tuple[Moment, Moment] | None:
        """Load until the time is over; two moments between which every bucket was empty, None = not seen."""
        is_empty = await self._see_all_refused(self._load.seconds)
        first = await self._clock.now()
        await asyncio.sleep(max(0.0, started_s + self._load.seconds - monotonic()))
        last = await self._clock.now()
        is_empty = await self._see_all_refused(EMPTY_TIMEOUT_S) and is_empty
        return (first, last) if is_empty else None

    async def _see_all_refused(self, timeout_s: float) -> bool:
        """Wait until every bucket has refused a request that is sent from now on."""
        self._wanted_after_ns = monotonic_ns()
        self._wanted = set(range(len(self._subjects)))
        self._all_refused.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_refused.wait()
        except TimeoutError:
            return False
        return True

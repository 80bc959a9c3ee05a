"""One verification run: load buckets through sidecars for some seconds, and judge what was admitted."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import monotonic, monotonic_ns

from sidecar.process.settings import EMBEDDED_STORE
from sidecar.services.ext_authz_client import read_status
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.verify.accuracy import Count, Finding, Judgment, Terms, Window, judge
from sidecar.verify.callers import Call, Caller
from sidecar.verify.sidecars import Fleet, child_environment
from sidecar.verify.store_clock import Moment, StoreClock
from sidecar.verify.subjects import ROUTES, Subject, make_subjects, own_prefix, probe_subject

EMPTY_TIMEOUT_S = 10.0
"""How long the end of a run waits until every bucket has refused a request."""
PERCENT = 100


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a run: its duration, connections to each sidecar, and calls in flight on each."""

    seconds: float
    connections: int = 2
    in_flight: int = 16


@dataclass(frozen=True, slots=True)
class BucketResult:
    """The result of a run for one bucket."""

    subject: Subject
    window: Window
    count: Count
    judgment: Judgment

    @property
    def admitted_percent(self) -> float:
        """The admitted requests in percent of the most that may be admitted."""
        return PERCENT * self.count.admitted / self.judgment.most


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run; `hung` = calls that were aborted because their connection hung."""

    buckets: tuple[BucketResult, ...]
    seconds: float
    hung: int

    @property
    def is_fulfilled(self) -> bool:
        """Whether every bucket kept its limit, and no call hung."""
        return not self.hung and all(bucket.judgment.is_fulfilled for bucket in self.buckets)

    @property
    def calls(self) -> int:
        """The number of requests."""
        return sum(bucket.count.total for bucket in self.buckets)

    def findings(self) -> list[Finding]:
        """The distinct findings other than FULFILLED."""
        found = {bucket.judgment.finding for bucket in self.buckets}
        return [finding for finding in Finding if finding in found and finding is not Finding.FULFILLED]


class AccuracyRun:
    """Loads the buckets of *subjects* through the sidecars at *targets*; implements `callers.CallHandler`."""

    def __init__(
        self, targets: Sequence[str], subjects: Sequence[Subject], clock: StoreClock, load: Load
    ) -> None:
        """Send nothing before `run`."""
        self.counts = [Count(fills_ns=subject.terms.fills_ns) for subject in subjects]
        self._subjects = subjects
        self._calls = [Call(subject.message, number) for number, subject in enumerate(subjects)]
        self._clock = clock
        self._load = load
        repeated = [target for target in targets for _ in range(load.connections)]
        self._callers = [
            Caller(number, target, self, load.in_flight) for number, target in enumerate(repeated)
        ]
        self._turns = list(range(len(repeated)))
        self._awaited: set[int] = set()
        self._awaited_after_ns = 0
        self._all_refused = asyncio.Event()

    def next_call(self, caller: int) -> Call:
        """Call the buckets in turn."""
        turn = self._turns[caller] = (self._turns[caller] + 1) % len(self._calls)
        return self._calls[turn]

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count the answer."""
        status = read_status(message) if message else 0
        self.counts[tag].note(status, sent_ns, monotonic_ns())
        if status == 429 and tag in self._awaited and sent_ns > self._awaited_after_ns:
            self._awaited.discard(tag)
            if not self._awaited:
                self._all_refused.set()

    async def run(self, began: Moment) -> RunResult:
        """
        Apply the load and judge each bucket; *began* is a moment before the first request.

        Raises:
            RegistryError: the store's clock cannot be read.
        """
        started_s = monotonic()
        for caller in self._callers:
            caller.start()
        try:
            empty = await self._apply_load(started_s)
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

    async def _apply_load(self, started_s: float) -> tuple[Moment, Moment] | None:
        """Apply the load; return two moments at which every bucket was empty, None = not seen twice."""
        is_empty = await self._see_all_refused(self._load.seconds)
        first = await self._clock.now()
        await asyncio.sleep(max(0.0, started_s + self._load.seconds - monotonic()))
        last = await self._clock.now()
        is_empty = await self._see_all_refused(EMPTY_TIMEOUT_S) and is_empty
        return (first, last) if is_empty else None

    async def _see_all_refused(self, timeout_s: float) -> bool:
        """Wait until every bucket has refused a request sent from now on; False = not within *timeout_s*."""
        self._awaited_after_ns = monotonic_ns()
        self._awaited = set(range(len(self._subjects)))
        self._all_refused.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_refused.wait()
        except TimeoutError:
            return False
        return True


REGISTRY_FILE = "registry.yaml"


@dataclass(frozen=True, slots=True)
class VerificationPlan:
    """
    A run with its own sidecars, or with running ones at `targets`, which need `api_keys`.

    `store` holds the buckets; with `targets` only its clock is read, '' = this machine's clock.
    `kill_every_s` None = no sidecar is killed.
    """

    store: str
    load: Load
    limit_rpm: int
    burst: int
    sidecars: int = 1
    buckets: int = 1
    kill_every_s: float | None = None
    targets: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a plan."""

    plan: VerificationPlan
    run: RunResult
    kills: int


async def prove(plan: VerificationPlan) -> Outcome:
    """
    Carry out *plan*; in the store it leaves only keys that expire.

    Raises:
        SidecarsError: a sidecar did not start, or did not restart.
        SubjectError: a given key cannot be used.
        RegistryError: the store does not answer.
        StoreUrlError: the store's URL, or a file or variable that it names, cannot be used.
        OSError: a given sidecar does not answer.
    """
    return await (_prove_given(plan) if plan.targets else _prove_own(plan))


async def _prove_given(plan: VerificationPlan) -> Outcome:
    async with _clock(plan.store) as clock:
        began = await clock.now()
        subjects = [
            await probe_subject(target, api_key, plan.limit_rpm, plan.burst)
            for target, api_key in zip(cycle(plan.targets), plan.api_keys, strict=False)
        ]
        run = AccuracyRun(plan.targets, subjects, clock, plan.load)
        for count in run.counts:
            count.admitted += 1  # by the probe
        return Outcome(plan, await run.run(began), 0)


async def _prove_own(plan: VerificationPlan) -> Outcome:
    store = plan.store if plan.store == EMBEDDED_STORE else own_prefix(plan.store)
    async with AsyncExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-verify-limits-")))
        clock = await undo.enter_async_context(_clock(store))
        undo.push_async_callback(clock.forget_layout)
        registry = folder / REGISTRY_FILE
        terms = Terms(plan.limit_rpm, plan.burst, plan.burst)
        subjects = make_subjects(registry, {f"bucket-{number}": terms for number in range(plan.buckets)})
        settings = {"registry": str(registry), "routes": ROUTES}
        fleet = Fleet(folder, plan.sidecars, settings, child_environment(store))
        await undo.enter_async_context(fleet)
        began = await clock.now()
        run = AccuracyRun(fleet.targets, subjects, clock, plan.load)
        return Outcome(plan, await _run_killing(run, began, fleet, plan.kill_every_s), fleet.kills)


async def _run_killing(
    run: AccuracyRun, began: Moment, fleet: Fleet, kill_every_s: float | None
) -> RunResult:
    """Run while sidecars are killed one after another; a sidecar that does not restart ends the run."""
    running = asyncio.ensure_future(run.run(began))
    if kill_every_s is None:
        return await running
    killing = asyncio.ensure_future(fleet.kill_every(kill_every_s))
    try:
        await asyncio.wait([running, killing], return_when=asyncio.FIRST_COMPLETED)
        if killing.done():
            await killing  # `kill_every` only ends by an error, which this raises

        return await running
    finally:
        for task in (running, killing):
            task.cancel()
        await asyncio.gather(running, killing, return_exceptions=True)


@asynccontextmanager
async def _clock(store: str) -> AsyncIterator[StoreClock]:
    clock = StoreClock(_url(store))
    try:
        yield clock
    finally:
        await clock.close()


def _url(store: str) -> StoreUrl | None:
    return None if store in ("", EMBEDDED_STORE) else parse_store_url(store)

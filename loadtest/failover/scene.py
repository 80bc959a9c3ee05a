"""One failover run: kills the store's primary while sidecars are under load and empty a bucket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic, monotonic_ns, sleep

from loadtest.failover.answers import DRAINING, AnswerLog, Failover
from loadtest.failover.stores import SILENCE_MS, FailoverStore, start_store
from loadtest.redis_servers import RedisServer
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.redis.keys import KeySpace
from sidecar.verify.accuracy import Terms
from sidecar.verify.callers import Caller
from sidecar.verify.sidecars import Fleet, child_environment
from sidecar.verify.subjects import ROUTES, make_subjects

CONNECTIONS, IN_FLIGHT = 2, 96
CALLS_PER_S = 4_000.0
DRAINING_TERMS = Terms(limit_rpm=10_000, burst=3_600, held_at_start=3_600)
DRY_TERMS = Terms(limit_rpm=6_000, burst=20, held_at_start=20)
KILL_AFTER = DRAINING_TERMS.burst // 3
"""Requests admitted before the primary is killed, while the bucket is being emptied."""
STEP_TIMEOUT_S = 40.0
LOOK_INTERVAL_S = 0.005


class FailoverError(Exception):
    """The run failed: a step did not happen in time, such as emptying the bucket or a promotion."""


async def fail_over(kind: str, sidecars: int, silence_ms: int = SILENCE_MS) -> Failover:
    """
    Run a failover on a new store of *kind*, where a primary is replaced after *silence_ms*.

    Raises:
        FailoverError, RedisServerError, SidecarsError: the run failed.
    """
    async with AsyncExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-failover-")))
        store = await asyncio.to_thread(start_store, kind, folder / "store", silence_ms)
        undo.push_async_callback(asyncio.to_thread, store.stop)
        owners = [_owner(f"{name}-") for name in ("draining", "dry")]
        registry = folder / "registry.yaml"
        subjects = make_subjects(registry, dict(zip(owners, (DRAINING_TERMS, DRY_TERMS), strict=True)))
        settings = {"registry": str(registry), "routes": ROUTES}
        fleet = Fleet(folder, sidecars, settings, child_environment(store.url))
        await undo.enter_async_context(fleet)
        log = AnswerLog(subjects, CONNECTIONS)
        targets = [target for target in fleet.targets for _ in range(CONNECTIONS)]
        callers = [
            Caller(number, target, log, IN_FLIGHT, CALLS_PER_S / len(targets))
            for number, target in enumerate(targets)
        ]
        began_us = wall_clock_us()  # also the servers' clock: they run on this machine
        for caller in callers:
            caller.start()
        try:
            epoch = await asyncio.to_thread(store.epoch)
            killed_ns, promoted_ns = await _kill(store, log, sidecars)
            failovers = await asyncio.to_thread(store.epoch) - epoch
        finally:
            await asyncio.gather(*(caller.stop() for caller in callers))
        window_us = wall_clock_us() - began_us
        hung = sum(caller.hung for caller in callers)
        return Failover(
            tuple(subjects), sidecars, log.answers, killed_ns, promoted_ns, window_us, hung, failovers
        )


async def _kill(store: FailoverStore, log: AnswerLog, sidecars: int) -> tuple[int, int]:
    """Kill the primary, and wait until each sidecar has emptied the bucket at the successor."""
    primary = await asyncio.to_thread(store.primary)
    await _until(lambda: log.admitted[DRAINING] >= KILL_AFTER, "the bucket is being emptied")
    killed_ns = monotonic_ns()
    primary.kill()
    promoted_ns = await asyncio.to_thread(_await_successor, store, primary)
    await _until(
        lambda: sum(at_ns > promoted_ns for at_ns in log.refused_at_ns.values()) == sidecars,
        "every sidecar answers from the successor, and the bucket is empty there",
    )
    return killed_ns, promoted_ns


def _await_successor(store: FailoverStore, killed: RedisServer) -> int:
    """Wait for the promotion of a successor of *killed*; return its monotonic time. Runs in a thread."""
    deadline_s = monotonic() + STEP_TIMEOUT_S
    while store.successor(killed) is None:
        if monotonic() > deadline_s:
            raise FailoverError(f"no replica was promoted within {STEP_TIMEOUT_S:g} s")
        sleep(LOOK_INTERVAL_S)
    return monotonic_ns()


async def _until(fact: Callable[[], bool], what: str) -> None:
    deadline_s = monotonic() + STEP_TIMEOUT_S
    while not fact():
        if monotonic() > deadline_s:
            raise FailoverError(f"not within {STEP_TIMEOUT_S:g} s: {what}")
        await asyncio.sleep(LOOK_INTERVAL_S)


def _owner(start: str) -> str:
    """Return an id that begins with *start* and belongs to partition 0, whose primary is killed."""
    space = KeySpace()
    return next(f"{start}{number}" for number in range(1_000) if space.partition_of(f"{start}{number}") == 0)

"""What `sidecar verify-limits` does: bring up sidecars or use given ones, run, clean up."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sidecar.process.settings import EMBEDDED_STORE
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.verify.accuracy import Terms
from sidecar.verify.run import AccuracyRun, Load, RunResult
from sidecar.verify.sidecars import Fleet, child_environment
from sidecar.verify.store_clock import Moment, StoreClock
from sidecar.verify.subjects import (
    ROUTES,
    make_subjects,
    own_prefix,
    probe_subject,
)

REGISTRY_FILE = "registry.yaml"


@dataclass(frozen=True, slots=True)
class VerificationPlan:
    """
    A run with sidecars of its own, or with given ones.

    `store` is where the buckets are: with `targets` only to ask for the time, '' = by this machine's clock.
    `kill_every_s` None = no sidecar is killed. `targets` and `api_keys` come together.
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
    """What a plan came to."""

    plan: VerificationPlan
    run: RunResult
    kills: int


async def prove(plan: VerificationPlan) -> Outcome:
    """
    Carry out *plan*; nothing of it is left afterwards but keys that expire by themselves.

    Raises:
        SidecarsError: a sidecar did not start, or did not come back.
        SubjectError: a given key cannot be used.
        RegistryError: the store does not answer.
        StoreUrlError: the store's URL, or what it refers to, cannot be used.
        OSError: a given sidecar does not answer.
    """
    return await (_prove_given(plan) if plan.targets else _prove_own(plan))


async def _prove_given(plan: VerificationPlan) -> Outcome:
    async with _clock(plan.store) as clock:
        began = await clock.now()
        ways = [plan.targets[number % len(plan.targets)] for number in range(len(plan.api_keys))]
        subjects = [
            await probe_subject(target, api_key, plan.limit_rpm, plan.burst)
            for target, api_key in zip(ways, plan.api_keys, strict=True)
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
    """Run while sidecars are killed one after another; one that does not come back ends the run."""
    running = asyncio.ensure_future(run.run(began))
    if kill_every_s is None:
        return await running
    killing = asyncio.ensure_future(fleet.kill_every(kill_every_s))
    try:
        await asyncio.wait([running, killing], return_when=asyncio.FIRST_COMPLETED)
        if killing.done():
            await killing  # it never returns: this raises what went wrong
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

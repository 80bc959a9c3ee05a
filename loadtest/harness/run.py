"""Runs a scenario: servers, drivers, events and samples at once; then the oracle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing.connection import wait
from time import monotonic_ns, time
from typing import Any

from loadtest.harness.drivers import Driver, DriverError, Job
from loadtest.harness.oracle import (
    Admission,
    Fault,
    admissions,
    growth_faults,
    judge,
    normal_again_s,
    outages_of,
)
from loadtest.harness.results import Collected, as_result, driver_limit
from loadtest.harness.scenario import EventSettings, Scenario
from loadtest.harness.stage import Stage, split_cores
from loadtest.harness.tally import SECOND_NS, Rules, Tally
from loadtest.harness.usage import Usage

LEAD_NS = 300_000_000
"""The drivers start together, so long after the order."""
SAMPLE_S = 1.0
GIVE_UP_S = 60.0

Progress = Callable[[float], None]
"""Is told the seconds since the start, about once a second."""


class RunError(Exception):
    """The run is invalid: an event failed, or a driver."""


class _Events:
    """Carries out the events of a scenario: one after the other, and suspensions beside them."""

    def __init__(self, stage: Stage, events: Sequence[EventSettings], start_ns: int) -> None:
        self.error: Exception | None = None
        self._stage = stage
        self._start_ns = start_ns
        ordered = sorted(events, key=lambda event: event.at_s)
        lanes = [[event for event in ordered if event.do != "suspend"]]
        lanes += [[event] for event in ordered if event.do == "suspend"]
        self._threads = [threading.Thread(target=self._run, args=(lane,), name="events") for lane in lanes]
        for thread in self._threads:
            thread.start()

    def _run(self, events: Sequence[EventSettings]) -> None:
        for event in events:
            due_s = (self._start_ns - monotonic_ns()) / 1e9 + event.at_s
            if self._stage.is_over.wait(max(0.0, due_s)):
                return
            try:
                self._stage.actions[event.do](event)
            except Exception as error:
                self.error = error
                return

    def stop(self) -> None:
        """Start no more events, and wait for the running ones."""
        self._stage.is_over.set()
        for thread in self._threads:
            thread.join()


def drive(
    scenario: Scenario,
    stage: Stage,
    progress: Progress = lambda at_s: None,
    driver_cores: Sequence[int] = (),
) -> dict[str, Any]:
    """
    Send the load of *scenario* to the servers of *stage*; return the result as JSON values.

    Raises:
        DriverError, ScenarioError: a driver cannot run.
        RunError: an event failed, so the result would mean nothing.
    """
    started = datetime.now(UTC)
    parts = scenario.connections.processes
    cores = driver_cores or (split_cores()[1] if scenario.target is None else ())
    rules = rules_of(scenario)
    collected, usage = Collected(scenario.load.warm_up_s), Usage(stage.groups)
    with ExitStack() as stack:
        drivers = []
        for part in range(parts):
            job = Job(scenario, stage.keys, stage.targets, rules, part, parts, cores, stage.focus)
            drivers.append(Driver(job))
            stack.callback(drivers[-1].stop)
        for driver in drivers:
            driver.wait_ready()
        start_ns = monotonic_ns() + LEAD_NS
        for driver in drivers:
            driver.start(start_ns)
        events = _Events(stage, scenario.events, start_ns)
        stack.callback(events.stop)
        tally = _collect(scenario, drivers, start_ns, collected, usage, progress)
        usage.sample((monotonic_ns() - start_ns) / SECOND_NS)
    if events.error is not None:
        raise RunError(f"an event failed: {events.error}") from events.error
    replaced = [[(at_ns - start_ns) / SECOND_NS for at_ns in outage] for outage in stage.outages]
    outages = outages_of(scenario) + [
        (failed_s, replaced_s + scenario.oracle.recovery_s) for failed_s, replaced_s in replaced
    ]
    failovers = stage.failovers()
    admitted = admissions(scenario, tally, time() - monotonic_ns() / 1e9, failovers)
    verdict = judge(scenario, tally, collected.totals, admitted, stage.suspensions, outages)
    verdict.faults += [Fault(what, 1) for what in stage.final_faults()]
    if scenario.oracle.rss_growth_max_mb:
        verdict.faults += growth_faults(scenario, usage.samples)
    per_core = 1 / parts / max(scenario.load.duration_s, tally.span_s)
    busy, waited = tally.cpu_s * per_core, tally.waited_s * per_core
    is_limit, why = driver_limit(scenario, collected, busy + waited)
    extra = {
        "driver": {
            "processes": parts,
            "busy": busy,
            "waited_share": waited,
            "cpu_us_per_call": tally.cpu_s * 1e6 / max(1, collected.totals.total()),
            "is_limit": is_limit,
            "why": why,
            "reconnects": tally.reconnects,
        },
        "usage": _usage(usage, collected),
        "outages": outages,
        "failovers": _failovers(failovers, replaced, tally, admitted),
    }
    return as_result(scenario, started, collected, verdict, admitted, tally.span_s, extra)


def _failovers(
    count: int, replaced: Sequence[Sequence[float]], tally: Tally, admitted: Sequence[Admission]
) -> dict[str, Any]:
    """Return the figures of failovers; *replaced* has when each primary failed and its successor was seen."""
    return {
        "count": count,
        "failed_s": [failed_s for failed_s, _ in replaced],
        "replaced_after_s": [round(replaced_s - failed_s, 3) for failed_s, replaced_s in replaced],
        "normal_after_s": [round(normal_again_s(tally, failed_s) - failed_s, 3) for failed_s, _ in replaced],
        "admitted_beyond_nominal": sum(max(0.0, item.admitted - item.nominal) for item in admitted),
    }


def rules_of(scenario: Scenario) -> Rules:
    """Return what each answer of *scenario* must be like."""
    limits, oracle = scenario.limits, scenario.oracle
    window_s = float(limits.unit_s)
    if limits.algorithm == "token_bucket":
        window_s = scenario.burst * limits.unit_s / limits.rpm
    return Rules(
        limits.rpm,
        scenario.burst,
        window_s,
        oracle.headers,
        oracle.clock_skew_s,
        oracle.exclusive and scenario.connections.processes == 1,
        frozenset(number for event in scenario.events for number in event.integrations),
    )


def _collect(
    scenario: Scenario,
    drivers: Sequence[Driver],
    start_ns: int,
    collected: Collected,
    usage: Usage,
    progress: Progress,
) -> Tally:
    """Collect what the drivers send until all have ended; return the sum of their tallies."""
    tallies: list[Tally] = []
    pending = {driver.pipe: driver for driver in drivers}
    give_up_s = scenario.load.duration_s + scenario.connections.answer_timeout_s + GIVE_UP_S
    next_s = 0.0
    while pending:
        at_s = (monotonic_ns() - start_ns) / SECOND_NS
        if at_s > give_up_s:
            raise DriverError(f"the drivers did not end within {give_up_s:g} s")
        if at_s >= next_s:
            usage.sample(at_s)
            progress(at_s)
            next_s += SAMPLE_S
        for pipe in wait(list(pending), timeout=max(0.01, next_s - at_s)):
            received = pending[pipe].receive()  # type: ignore[index]
            if isinstance(received, Tally):
                tallies.append(received)
                del pending[pipe]  # type: ignore[arg-type]
            elif received is not None:
                collected.add(received)
    for tally in tallies[1:]:
        tallies[0].add(tally)
    return tallies[0]


def _usage(usage: Usage, collected: Collected) -> dict[str, Any]:
    calls = max(1, collected.totals.total())
    return {
        group: {
            "cpu_us_per_call": usage.cpu_s(group) * 1e6 / calls,
            "waited_share": usage.waited_share(group),
            "rss_mb_max": max(sample.rss_bytes for sample in samples) / 1e6,
            "samples": [asdict(sample) for sample in samples],
        }
        for group, samples in usage.samples.items()
    }

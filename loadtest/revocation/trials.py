"""The trials: load all sidecars with a key, suspend its integration, and count later admissions."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any

from loadtest.proving import forget_keys, percentile
from loadtest.revocation.administrator import Administrator
from loadtest.revocation.load import TrialResult
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.verify.sidecars import Fleet, child_environment
from sidecar.verify.subjects import ROUTES, own_prefix

STEP_TIMEOUT_S = 15.0
"""Maximum wait for a line of the load process."""
DENY_TIMEOUT_S = 10.0
"""Maximum time until all sidecars deny; after it the trial has failed."""
END_TIMEOUT_S = 15.0
TRIALS_MAX = 100_000

Make = Callable[[StoreUrl], Administrator]


class RevocationError(Exception):
    """The trials cannot run: the load process did not start or has ended."""


@dataclass(frozen=True, slots=True)
class CompletedTrial:
    """One completed trial: when the suspension was requested, when its commit returned, and the result."""

    called_ns: int
    committed_ns: int
    result: TrialResult

    @property
    def is_kept(self) -> bool:
        """Whether no request was admitted after the commit, every sidecar denied, and all were answered."""
        result = self.result
        return not (result.violations or result.others or result.unanswered) and all(result.first_denials_ns)

    @property
    def flip_ms(self) -> float:
        """Time from the commit's return to the last sidecar's first denial; negative = all denied before."""
        return (max(self.result.first_denials_ns) - self.committed_ns) / 1e6

    @property
    def commit_ms(self) -> float:
        """Duration of the suspension for its caller."""
        return (self.committed_ns - self.called_ns) / 1e6


@dataclass(frozen=True, slots=True)
class RevocationReport:
    """The results of all trials."""

    sidecars: int
    seconds: float
    trials: tuple[CompletedTrial, ...]

    @property
    def is_kept(self) -> bool:
        """Whether the promise was kept in every trial."""
        return all(trial.is_kept for trial in self.trials)

    def as_json(self) -> dict[str, Any]:
        """Return all measurements."""
        results = [trial.result for trial in self.trials]
        return {
            "verdict": "kept" if self.is_kept else "broken",
            "trials": len(self.trials),
            "sidecars": self.sidecars,
            "seconds": round(self.seconds, 1),
            "admitted_after_commit": sum(result.violations for result in results),
            "sent_after_commit": sum(result.judged for result in results),
            "admitted_before_commit": sum(result.admitted - result.violations for result in results),
            "answered_503": sum(result.failed for result in results),
            "unanswered": sum(result.unanswered for result in results),
            "other_answers": sum(result.others for result in results),
            "last_first_denial_after_commit_ms": _spread([t.flip_ms for t in self.trials]),
            "commit_ms": _spread([t.commit_ms for t in self.trials]),
        }


class LoadProcess:
    """The load process (`loadtest.revocation.load`), which exchanges lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Communicate with *process*."""
        self._process = process

    @classmethod
    async def start(cls, targets: Sequence[str]) -> LoadProcess:
        """Start the process with *targets*."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest.revocation.load", *targets),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # it ends when its standard input is closed
        )
        return cls(process)

    def send(self, **line: Any) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def receive(self, trial: int, name: str, timeout_s: float = STEP_TIMEOUT_S) -> Any:
        """
        Return the value of *name* in the next line, which must be of *trial*.

        Raises:
            RevocationError: the process has ended, or sent another line.
            TimeoutError: no line arrived in time.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            text = await self._process.stdout.readline()
        line = json.loads(text) if text else {}
        if line.get("trial") != trial or name not in line:
            raise RevocationError(f"the load process sent {text!r} instead of '{name}' of trial {trial}")
        return line[name]

    async def stop(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def prove_revocation(
    store: str, trials: int, sidecars: int, make: Make = Administrator
) -> RevocationReport:
    """
    Run *trials* with *sidecars* on the Redis at *store*, and delete all keys afterwards.

    Raises:
        RevocationError, SidecarsError, RegistryError: the trials cannot run.
    """
    if not 1 <= trials <= TRIALS_MAX:
        raise RevocationError(f"number of trials is {trials}; it must be 1 to {TRIALS_MAX}")
    store = own_prefix(store)
    url = parse_store_url(store)
    async with AsyncExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-revocation-")))
        undo.push_async_callback(forget_keys, url)
        administrator = make(url)
        undo.push_async_callback(administrator.close)
        keys = await administrator.prepare(trials)
        fleet = Fleet(folder, sidecars, {"routes": ROUTES}, child_environment(store))
        await undo.enter_async_context(fleet)
        load = await LoadProcess.start(fleet.targets)
        undo.push_async_callback(load.stop)
        started_ns = monotonic_ns()
        completed = [await _run_trial(load, administrator, number, key) for number, key in enumerate(keys)]
        return RevocationReport(sidecars, (monotonic_ns() - started_ns) / 1e9, tuple(completed))


async def _run_trial(
    load: LoadProcess, administrator: Administrator, number: int, key: str
) -> CompletedTrial:
    load.send(trial=number, key=key)
    await load.receive(number, "loaded")
    called_ns = monotonic_ns()
    await administrator.suspend(number)
    committed_ns = monotonic_ns()
    load.send(trial=number, committed_ns=committed_ns)
    try:
        result = await load.receive(number, "result", DENY_TIMEOUT_S)
    except TimeoutError:
        load.send(trial=number, over=True)
        result = await load.receive(number, "result")
    return CompletedTrial(called_ns, committed_ns, TrialResult(**result))


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(ordered, share), 3) for name, share in shares.items()}

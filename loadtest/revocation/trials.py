"""The trials: put all sidecars under load with a key, suspend its owner, and see who is still let in."""

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
"""How long the load may take to say something that must come."""
DENY_TIMEOUT_S = 10.0
"""How long all sidecars may take to deny; then the trial ends, and is broken."""
END_TIMEOUT_S = 15.0
TRIALS_MAX = 100_000

Make = Callable[[StoreUrl], Administrator]


class RevocationError(Exception):
    """The trials cannot be held: the load does not get going or has ended."""


@dataclass(frozen=True, slots=True)
class Held:
    """One trial that was held: when the suspension was called for, when its commit returned, and the rest."""

    called_ns: int
    committed_ns: int
    result: TrialResult

    @property
    def is_kept(self) -> bool:
        """Whether nobody came in after the commit, every sidecar was seen to deny, and all was answered."""
        result = self.result
        return not (result.violations or result.others or result.unanswered) and all(result.first_denials_ns)

    @property
    def flip_ms(self) -> float:
        """From the commit's return to the last sidecar's first denial; below 0 = all denied before it."""
        return (max(self.result.first_denials_ns) - self.committed_ns) / 1e6

    @property
    def commit_ms(self) -> float:
        """How long the suspension took its caller."""
        return (self.committed_ns - self.called_ns) / 1e6


@dataclass(frozen=True, slots=True)
class RevocationReport:
    """What all trials found."""

    sidecars: int
    seconds: float
    trials: tuple[Held, ...]

    @property
    def is_kept(self) -> bool:
        """Whether the promise held in every trial."""
        return all(trial.is_kept for trial in self.trials)

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured."""
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
    """The process of the load (`loadtest.revocation.load`), spoken to in lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Speak to *process*."""
        self._process = process

    @classmethod
    async def start(cls, targets: Sequence[str]) -> LoadProcess:
        """Start it on *targets*."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest.revocation.load", *targets),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # its end is that of its standard input
        )
        return cls(process)

    def say(self, **line: Any) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def hear(self, trial: int, name: str, timeout_s: float = STEP_TIMEOUT_S) -> Any:
        """
        The value of *name* of the next line, which must be of *trial*.

        Raises:
            RevocationError: the process has ended, or says something else.
            TimeoutError: not in time.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            text = await self._process.stdout.readline()
        line = json.loads(text) if text else {}
        if line.get("trial") != trial or name not in line:
            raise RevocationError(f"the load should tell '{name}' of trial {trial}, but says {text!r}")
        return line[name]

    async def stop(self) -> None:
        """Have it end."""
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
    Hold *trials* with *sidecars* on the Redis at *store*; nothing stays there.

    Raises:
        RevocationError, SidecarsError, RegistryError: they cannot be held.
    """
    if not 1 <= trials <= TRIALS_MAX:
        raise RevocationError(f"the number of trials must be 1..{TRIALS_MAX}, not {trials}")
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
        held = [await _hold(load, administrator, number, key) for number, key in enumerate(keys)]
        return RevocationReport(sidecars, (monotonic_ns() - started_ns) / 1e9, tuple(held))


async def _hold(load: LoadProcess, administrator: Administrator, number: int, key: str) -> Held:
    """One trial."""
    load.say(trial=number, key=key)
    await load.hear(number, "loaded")
    called_ns = monotonic_ns()
    await administrator.suspend(number)
    committed_ns = monotonic_ns()
    load.say(trial=number, committed_ns=committed_ns)
    try:
        result = await load.hear(number, "result", DENY_TIMEOUT_S)
    except TimeoutError:
        load.say(trial=number, over=True)
        result = await load.hear(number, "result")
    return Held(called_ns, committed_ns, TrialResult(**result))


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(ordered, share), 3) for name, share in shares.items()}

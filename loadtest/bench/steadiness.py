"""
Measures how steady the machine is, with a fixed piece of work that is repeated on both cores.

A virtual machine shares its cores with others. While a neighbor is busy, a core may be half as fast, so that
a server at 70 % of its peak load is overloaded; and sometimes a core stalls. The report includes this
measurement because latencies are only meaningful with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from loadtest.bench.processes import LOAD_CORE, SERVER_CORE, BenchError
from loadtest.bench.report import Row

PIECES = 20_000
"""Number of pieces of work, each about 0.1 ms."""
TIMEOUT_S = 60.0
SLOW, HALF_AS_FAST = 1.1, 1.6
"""Multiples of the undisturbed time of a piece (the fastest tenth on this core)."""

_WORDS = {number: str(number) for number in range(2_000)}


@dataclass(frozen=True, slots=True)
class Steadiness:
    """The steadiness of one core: the shares of time in which it was slow, and its longest stall."""

    slow_share: float
    half_as_fast_share: float
    longest_stop_ms: float


def steadiness_of(pieces_ns: Sequence[int]) -> Steadiness:
    """Return the steadiness of a core from *pieces_ns*, the times of equal pieces of work."""
    usual_ns = sorted(pieces_ns)[len(pieces_ns) // 10]
    all_ns = sum(pieces_ns)

    def share(times: float) -> float:
        return sum(piece_ns for piece_ns in pieces_ns if piece_ns > times * usual_ns) / all_ns

    return Steadiness(share(SLOW), share(HALF_AS_FAST), (max(pieces_ns) - usual_ns) / 1e6)


def steadiness_row(when: str) -> Row:
    """
    Measure both cores at the same time, for some seconds.

    Raises:
        BenchError: the measurement does not end in time.
    """
    command = [sys.executable, "-m", __name__]
    running = [
        subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True)
        for core in (SERVER_CORE, LOAD_CORE)
    ]
    try:
        server, load = (
            Steadiness(**json.loads(process.communicate(timeout=TIMEOUT_S)[0])) for process in running
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"a fixed piece of work did not end within {TIMEOUT_S:g} s") from None
    finally:
        for process in running:
            process.kill()
            process.wait()
    return Row(
        f"the machine itself, {when}: share of the time in which its cores were slow",
        f"{server.slow_share:.0%}, half as fast {server.half_as_fast_share:.1%}",
        f"{load.slow_share:.0%}, half as fast {load.half_as_fast_share:.1%}",
        f"longest stop {server.longest_stop_ms:.1f} and {load.longest_stop_ms:.1f} ms",
    )


def _piece_ns() -> int:
    started_ns = perf_counter_ns()
    sum(len(word) for word in _WORDS.values())
    return perf_counter_ns() - started_ns


def main() -> None:
    """Measure this core and print its steadiness as JSON."""
    found = steadiness_of([_piece_ns() for _ in range(PIECES)])
    print(json.dumps({name: getattr(found, name) for name in Steadiness.__slots__}))


if __name__ == "__main__":
    main()

"""
How steady the machine itself is: what a fixed piece of work takes, again and again, on both cores at once.

A virtual machine shares its cores with others. While a neighbour is busy, a core may be half as fast, and a
server that is loaded with 70 % of what it can do is then loaded with more than it can do; now and then a
core stands still. No figure of latency can be read without that, so the report says how the machine was.
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
"""Of work, each about 0.1 ms."""
TIMEOUT_S = 60.0
SLOW, HALF_AS_FAST = 1.1, 1.6
"""Times what a piece takes on this core when nothing is in its way (its fastest tenth)."""

_WORDS = {number: str(number) for number in range(2_000)}


@dataclass(frozen=True, slots=True)
class Steadiness:
    """One core: the shares of the time in which it was slow, and its longest stop."""

    slow_share: float
    half_as_fast_share: float
    longest_stop_ms: float


def steadiness_of(pieces_ns: Sequence[int]) -> Steadiness:
    """What *pieces_ns*, the times that equal pieces of work took, say about the core."""
    usual_ns = sorted(pieces_ns)[len(pieces_ns) // 10]
    all_ns = sum(pieces_ns)

    def share(times: float) -> float:
        return sum(piece_ns for piece_ns in pieces_ns if piece_ns > times * usual_ns) / all_ns

    return Steadiness(share(SLOW), share(HALF_AS_FAST), (max(pieces_ns) - usual_ns) / 1e6)


def steadiness_row(when: str) -> Row:
    """
    Measure both cores at once; some seconds.

    Raises:
        BenchError: it does not end in time.
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
    """Work on this core and print how steady it was, as JSON."""
    found = steadiness_of([_piece_ns() for _ in range(PIECES)])
    print(json.dumps({name: getattr(found, name) for name in Steadiness.__slots__}))


if __name__ == "__main__":
    main()

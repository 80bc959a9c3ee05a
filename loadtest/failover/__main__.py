"""`python -m loadtest.failover`: run failovers and print the results; exit code 1 = a promise was broken."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import cycle, islice

from loadtest.failover.scene import fail_over
from loadtest.failover.stores import KINDS, SILENCE_MS
from loadtest.failover.suspensions import WAYS, fail_over_while_suspending
from loadtest.proving import EXIT_BROKEN, EXIT_KEPT, run

SUSPENSIONS = "suspensions"
SCENES = (*KINDS, SUSPENSIONS)


async def _suspend(ways: Sequence[str], silence_ms: int) -> bool:
    """Run failovers during suspensions; return whether all promises were kept."""
    rounds = []
    async for result in fail_over_while_suspending(ways, silence_ms):
        rounds.append(result)
        print(json.dumps({"kind": SUSPENSIONS, "round": len(rounds), **result.as_json()}), flush=True)
    totals = ("sent_after", "admitted_after", "acknowledged", "not_durable", "errors", "lost")
    summary = {name: sum(getattr(result, name) for result in rounds) for name in totals}
    print(json.dumps({"kind": SUSPENSIONS, "rounds": len(rounds), **summary}), flush=True)
    return all(result.is_kept for result in rounds)


def main(arguments: list[str]) -> int:
    """Run the failovers; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.failover", description=__doc__)
    parser.add_argument("--kind", choices=SCENES, action="append", help="may be repeated; default: each")
    parser.add_argument("--rounds", type=int, default=3, help="failovers of each kind (default 3)")
    parser.add_argument("--sidecars", type=int, default=2, help="sidecars under load (default 2)")
    parser.add_argument(
        "--silence-ms",
        type=int,
        default=SILENCE_MS,
        help=f"milliseconds of silence after which a primary is replaced (default {SILENCE_MS})",
    )
    parser.add_argument(
        "--way",
        choices=WAYS,
        action="append",
        help="how the primary fails in 'suspensions'; may be repeated; default: all in turn",
    )
    given = parser.parse_args(arguments)
    is_kept = True
    for kind in given.kind or SCENES:
        if kind == SUSPENSIONS:
            ways = list(islice(cycle(given.way or WAYS), given.rounds))
            is_kept = run(_suspend(ways, given.silence_ms)) and is_kept
            continue
        for number in range(1, given.rounds + 1):
            failover = run(fail_over(kind, given.sidecars, given.silence_ms))
            is_kept = is_kept and failover.is_kept
            print(json.dumps({"kind": kind, "round": number, **failover.as_json()}), flush=True)
    return EXIT_KEPT if is_kept else EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

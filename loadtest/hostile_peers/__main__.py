"""
`python -m loadtest.hostile_peers`: attacks the listeners of real sidecars with hostile peers.

The promises: a peer at an HTTP listener increases the decisions' p99 by less than 20 % and memory by less
than 64 MiB, and no peer locks administrators out. Prints the results; exit code 1 = a promise was broken.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.hostile_peers.peers import KINDS
from loadtest.hostile_peers.trials import RATE_PER_S, SIDECARS, PeerTrial, run_trials

EXIT_KEPT, EXIT_BROKEN = 0, 1


def as_table(trials: Sequence[PeerTrial]) -> Table:
    """Return a table with a row for each trial."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("listener", "peer"):
        table.add_column(name)
    for name in ("p99, decoy", "attacked", "ratio", "memory MiB", "suspended s", "scraped s", "kept"):
        table.add_column(name, justify="right")
    for trial in trials:
        nearest = min(trial.rounds, key=lambda result: abs(result.ratio - trial.ratio))
        table.add_row(
            trial.listener,
            KINDS[trial.kind].text,
            f"{nearest.decoy_p99_us:,.0f} µs",
            f"{nearest.p99_us:,.0f} µs",
            f"{trial.ratio:.2f}",
            f"{trial.growth_bytes / 2**20:+.1f}",
            f"{trial.suspended_s:.2f}",
            f"{trial.scraped_s:.2f}",
            "yes" if trial.is_kept else "NO",
        )
    return table


def main(arguments: list[str]) -> int:
    """Run the trials; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.hostile_peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each kind (default 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="load of each measurement (default 1)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be repeated")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_BROKEN))  # so that all processes are stopped
    trials: list[PeerTrial] = []
    for sidecar_type in SIDECARS:
        with tempfile.TemporaryDirectory(prefix="sidecar-peers-") as folder:
            calls = int(given.seconds * RATE_PER_S)
            trials += run_trials(sidecar_type, Path(folder), given.kind or list(KINDS), given.rounds, calls)
    Console(width=120).print(as_table(trials))
    return EXIT_KEPT if all(trial.is_kept for trial in trials) else EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
A supervisor for tests alone.

`python -m tests.e2e.unshared_workers CONFIG WORKERS BEATS_MISSED_MAX`

It is `sidecar serve` but for one refusal: it runs several workers on the embedded store, where each of
them has separate buckets. Tests of processes do not need more; no user gets here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from sidecar.cli.exits import report_errors
from sidecar.process.config import Config, load_config
from sidecar.process.operating_system import READY, notify_systemd
from sidecar.process.supervisor.supervisor import SupervisorPlan, supervise
from sidecar.process.supervisor.timing import WorkerTimeouts


def main(path: Path, workers: int, beats_missed_max: int) -> int:
    """Supervise *workers* on the configuration at *path*; return the exit code."""

    def reload() -> Config:
        return replace(load_config(path), takes_over=True)  # of a predecessor's socket, when rolling

    with report_errors():
        plan = SupervisorPlan(reload(), workers, reload, WorkerTimeouts(beats_missed_max=beats_missed_max))
        return supervise(plan, lambda served: notify_systemd(READY))
    raise AssertionError("report_errors swallowed a mistake")


if __name__ == "__main__":
    # Typer's own runner turns its Exit into an exit code; so does this.
    import typer

    try:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    except typer.Exit as end:
        sys.exit(end.exit_code)

"""
`python -m tests.e2e.unshared_workers CONFIG WORKERS BEATS_MISSED_MAX`: a supervisor for tests alone.

It is `sidecar serve` but for one refusal: it runs several workers on the embedded store, where each of
them has buckets of its own. Tests of processes do not need more; no user gets here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sidecar.app.cli.exits import telling_mistakes
from sidecar.app.config import Config, load_config
from sidecar.app.supervisor.slot import Patience
from sidecar.app.supervisor.supervisor import Plan, supervise
from sidecar.app.supervisor.systemd import notify_ready


def main(path: Path, workers: int, beats_missed_max: int) -> int:
    """Supervise *workers* on the configuration at *path*; return the exit code."""

    def reload() -> Config:
        return load_config(path)

    with telling_mistakes():
        plan = Plan(load_config(path), workers, reload, Patience(beats_missed_max=beats_missed_max))
        return supervise(plan, lambda grpc, admin: notify_ready())
    raise AssertionError("telling_mistakes swallowed a mistake")


if __name__ == "__main__":
    # Typer's own runner turns its Exit into an exit code; so does this.
    import typer

    try:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    except typer.Exit as end:
        sys.exit(end.exit_code)

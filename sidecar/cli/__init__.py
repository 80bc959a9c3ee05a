"""The command line: `sidecar`. Commands import what they need when they run, so `--help` is fast."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name; the entry point of the console command."""
    if sys.argv[1:2] == ["serve"]:  # a process that runs for months keeps no other commands in memory
        from sidecar.cli.serving import app
    else:
        from sidecar.cli.root import app

    app(prog_name="sidecar")

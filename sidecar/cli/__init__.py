"""The command line: `sidecar`. Commands import what they need when they run, so `--help` is fast."""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name; the entry point of the console command."""
    from sidecar.cli.root import app

    app(prog_name="sidecar")

"""The command line: `sidecar`. Commands import what they need when they run, so `--help` is fast."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name; the entry point of the console command."""
    for argument in sys.argv[1:]:
        if any("\ud800" <= character <= "\udfff" for character in argument):  # a byte that is not UTF-8
            print(f"sidecar: argument {argument!a} is not UTF-8 text; write it in UTF-8", file=sys.stderr)
            sys.exit(2)
    if sys.argv[1:2] == ["serve"]:  # a process that runs for months keeps no other commands in memory
        from sidecar.cli.serving import app
    else:
        from sidecar.cli.root import app

    app(prog_name="sidecar")

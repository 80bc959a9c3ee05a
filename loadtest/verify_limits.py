"""`python -m loadtest.verify_limits`: runs `sidecar verify-limits` on a given Redis or on a new one."""

from __future__ import annotations

import argparse
import subprocess
import sys

from loadtest.proving import redis_at


def main(arguments: list[str]) -> int:
    """Run the command with the remaining *arguments*; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.verify_limits", description=__doc__)
    parser.add_argument("--redis", default="", metavar="URL", help="the store; default: a new server")
    given, others = parser.parse_known_args(arguments)
    with redis_at(given.redis) as store:
        command = [sys.executable, "-m", "sidecar.cli", "verify-limits", "--store", store, *others]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

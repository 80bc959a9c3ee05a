"""`python -m loadtest.revocation`: runs the trials, prints the results; exit code 1 = broken."""

from __future__ import annotations

import argparse
import json
import sys

from loadtest.proving import EXIT_BROKEN, EXIT_KEPT, redis_at, run
from loadtest.revocation.trials import prove_revocation


def main(arguments: list[str]) -> int:
    """Run the trials; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.revocation", description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000, help="suspensions (default 1000)")
    parser.add_argument("--sidecars", type=int, default=4, help="sidecars under load (default 4)")
    parser.add_argument("--redis", default="", metavar="URL", help="the store; default: a new server")
    given = parser.parse_args(arguments)
    with redis_at(given.redis) as store:
        report = run(prove_revocation(store, given.trials, given.sidecars))
    print(json.dumps(report.as_json(), indent=2))
    return EXIT_KEPT if report.is_kept else EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

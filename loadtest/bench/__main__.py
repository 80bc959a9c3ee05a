"""`python -m loadtest.bench [NAME …]`: runs benchmarks, prints tables, writes docs/develop/benchmarks.md."""

from __future__ import annotations

import sys
from collections.abc import Callable

from deploy.demo.programs import ProgramError
from loadtest.bench import (
    admin_load,
    decision_log,
    decisions,
    forward_auth,
    memory,
    micro,
    rate_limits,
    redis_store,
    script_cost,
    trie,
)
from loadtest.bench.processes import BenchError
from loadtest.bench.report import REPORT, Section, heading, table

BENCHMARKS: dict[str, Callable[[], list[Section]]] = {
    "decisions": decisions.run,
    "decision-log": decision_log.run,
    "forward-auth": forward_auth.run,
    "rate-limits": rate_limits.run,
    "micro": micro.run,
    "trie": trie.run,
    "redis": redis_store.run,
    "script": script_cost.run,
    "admin": admin_load.run,
    "memory": memory.run,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; only a complete run replaces the report in docs/."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"unknown benchmark: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
        return 2
    report = [heading("make bench")]
    print(report[0], flush=True)
    try:
        for name in names or BENCHMARKS:
            for section in BENCHMARKS[name]():
                report.append(table(section))
                print(report[-1], flush=True)
    except (BenchError, ProgramError) as error:
        print(error)
        return 1
    if not names:
        REPORT.write_text("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

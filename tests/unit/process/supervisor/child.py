"""
A worker that serves nothing: it counts, reports what its environment and its arguments are, and ends.

Started as `python -m` by `WorkerProcess`, in the place of the real one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sidecar.observe.metrics import Metrics
from sidecar.observe.shared import CountBlock
from sidecar.observe.table import TABLE
from sidecar.process.readiness import Component
from sidecar.process.supervisor.assignment import read_assignment
from sidecar.process.supervisor.messages import Report
from sidecar.process.supervisor.worker import Link

EXIT_CODE = 7
COUNTED = 3

if __name__ == "__main__":
    assignment = read_assignment(int(sys.argv[1]))
    block = CountBlock.attach(TABLE, assignment.counts_fd)
    Metrics(TABLE, block.values).add("sidecar_accept_pauses_total", by=COUNTED)
    block.raise_beat()
    facts = {
        "index": str(assignment.index),
        "notify": os.environ.get("NOTIFY_SOCKET", "-"),
        "leads its group": str(os.getpgrp() == os.getpid()),
        "standard input": str(Path("/proc/self/fd/0").readlink()),
    }
    components = {name: Component(True, fact) for name, fact in facts.items()}
    Link(assignment.link_fd).send(Report(assignment.listen, components))
    sys.exit(EXIT_CODE)

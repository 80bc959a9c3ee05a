"""Resident memory with many integrations loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from loadtest.bench.processes import free_port, running_sidecar
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import write_place

INTEGRATIONS, WITH_ALLOWLIST = 10_000, 1_000
BOUND_MB = 300


def run() -> list[Section]:
    """Load 10,000 integrations, 1,000 of them with 50 CIDR entries, and read the process's RSS."""
    empty = _rss_mb(1, 0)
    full = _rss_mb(INTEGRATIONS, WITH_ALLOWLIST)
    each_kb = (full - empty) * 1_000 / INTEGRATIONS
    return [
        Section(
            "Memory",
            f"RSS of the sidecar process, ready to serve; {INTEGRATIONS:,} integrations, {WITH_ALLOWLIST:,}"
            f" of them with 50 CIDR entries. The bound is {BOUND_MB} MB.",
            [
                Row("1 integration", f"{empty:.0f} MB"),
                Row(
                    f"{INTEGRATIONS:,} integrations",
                    f"{full:.0f} MB",
                    f"{BOUND_MB} MB",
                    f"{full / BOUND_MB:.0%} of the bound",
                ),
                Row("each further integration", f"{each_kb:.1f} kB"),
            ],
        )
    ]


def _rss_mb(integrations: int, with_allowlist: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        grpc, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        place = write_place(Path(folder), grpc, admin, "fast", integrations, with_allowlist)
        with running_sidecar(place.config, grpc, admin) as sidecar:
            return sidecar.rss_mb()

"""
A program that writes to a registry until it is killed: `python -m tests.fault.registry.writer PATH NAME`.

It changes the limit of the integration NAME again and again and prints each generation once the registry
has said that it is durable.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sidecar.domain.lifecycle import commands as c
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import LIFECYCLE, request
from tests.building import ManualClock


async def write(path: Path, name: str) -> None:
    """Write forever."""
    registry = await SqliteRegistry.open(path, LIFECYCLE, clock_us=ManualClock())
    limit_rpm = 0
    while True:
        limit_rpm = limit_rpm % 10_000 + 1
        made = await registry.apply(request(c.SetRateLimit(integration_id=name, rate_limit_rpm=limit_rpm)))
        print(made.generation, flush=True)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2]))

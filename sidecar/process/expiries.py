"""Counts credentials that expire soon, so that an alert comes before their integrations are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics

DAY_US = 24 * 3_600 * 1_000_000
EXPIRING_US = {"7d": 7 * DAY_US, "30d": 30 * DAY_US}
"""What `soon` means, by label value."""
COUNT_INTERVAL_S = 60.0
SLICE_CREDENTIALS = 500
"""Credentials that are looked at in one turn of the event loop: about 50 µs."""


def count_expiring(times_us: Iterable[int], now_us: int) -> dict[str, int]:
    """
    Count *times_us* that are after *now_us*, by how soon.

    >>> count_expiring([5, 8 * DAY_US], now_us=10)
    {'7d': 0, '30d': 1}
    """
    counts = dict.fromkeys(EXPIRING_US, 0)
    for time_us in times_us:
        for within, span_us in EXPIRING_US.items():
            counts[within] += now_us < time_us <= now_us + span_us
    return counts


async def count_credentials(snapshot: Snapshot, metrics: Metrics, now_us: int) -> None:
    """Set the metric of *snapshot*'s credentials that expire soon, a slice in each turn of the loop."""
    counts = dict.fromkeys(EXPIRING_US, 0)
    times_us: list[int] = []
    for number, credential in enumerate(snapshot.credentials.values(), 1):
        if credential.expires_at_us is not None:
            times_us.append(credential.expires_at_us)
        if not number % SLICE_CREDENTIALS:
            _add(counts, count_expiring(times_us, now_us))
            times_us.clear()
            await asyncio.sleep(0)
    _add(counts, count_expiring(times_us, now_us))
    for within, count in counts.items():
        metrics.set("sidecar_credentials_expiring", within, to=count)


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for within, count in more.items():
        counts[within] += count


async def watch_credentials(
    snapshot: Callable[[], Snapshot], metrics: Metrics, clock_us: Callable[[], int]
) -> None:
    """Count the credentials of the snapshot in force every minute, until cancelled."""
    while True:
        await count_credentials(snapshot(), metrics, clock_us())
        await asyncio.sleep(COUNT_INTERVAL_S)

"""Credentials and tokens that expire soon are counted ahead of time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from sidecar.domain.snapshot import Snapshot
from sidecar.process.expiries import DAY_US, SLICE_CREDENTIALS, count_credentials, count_expiring
from tests.building import NOW_US, make_integration, make_key, make_metrics


def test_count__by_how_soon() -> None:
    """What has expired is not soon; the bounds belong to their span."""
    times_us = [NOW_US, NOW_US + 1, NOW_US + 7 * DAY_US, NOW_US + 8 * DAY_US, NOW_US + 31 * DAY_US]
    assert count_expiring(times_us, NOW_US) == {"7d": 2, "30d": 3}


def test_credentials__of_a_whole_registry() -> None:
    """In slices, so that no decision waits; those that never expire are left out."""
    first = make_integration(make_key(), expires_at_us=NOW_US + DAY_US)
    records = [first, make_integration(make_key(), id="forever")]
    for number in range(SLICE_CREDENTIALS + 5):
        [credential] = first.credentials
        credential = replace(credential, id=f"c{number}")
        records.append(replace(first, id=f"i{number}", credentials=(credential,)))
    metrics = make_metrics()
    asyncio.run(count_credentials(Snapshot.compile(records), metrics, NOW_US))
    assert metrics.value("sidecar_credentials_expiring", "7d") == SLICE_CREDENTIALS + 6
    assert metrics.value("sidecar_credentials_expiring", "30d") == SLICE_CREDENTIALS + 6

"""What the program of hostile peers makes of its measurements: it finds each broken promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadtest.hostile_peers.trials import GROWTH_MAX_BYTES, PeerRound, PeerTrial


@pytest.mark.parametrize(
    ("change", "is_safe", "is_kept"),
    [
        ({}, True, True),
        ({"p99_us": 125.0}, True, False),
        ({"growth_bytes": GROWTH_MAX_BYTES + 1}, False, False),
        ({"suspended_s": float("inf")}, False, False),
    ],
)
def test_hostile_peers__each_broken_promise_is_found(
    change: dict[str, Any], is_safe: bool, is_kept: bool
) -> None:
    """Latency counts by the median of its pairs, memory and suspensions by the worst round."""
    good = PeerRound(decoy_p99_us=100.0, p99_us=110.0, growth_bytes=0, suspended_s=0.1, scraped_s=0.1)
    once = PeerTrial("metrics", "silent", (good, replace(good, **change), good))
    assert once.is_safe is is_safe
    always = PeerTrial("metrics", "silent", (replace(good, **change),) * 3)
    assert (always.is_safe, always.is_kept) == (is_safe, is_kept)

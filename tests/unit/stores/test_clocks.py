"""The clocks: the system's, the steady one, and that of a shared store."""

from __future__ import annotations

import time

import pytest

from sidecar.stores import clocks
from sidecar.stores.clocks import StoreClock, steady_clock_us, wall_clock_us
from tests.building import NOW_US, SECOND_US, ManualClock


def test_clocks__setting_the_system_clock_leaves_the_steady_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read this century in µs; the steady one counts on, whatever the system's clock says."""
    first, wall, second = steady_clock_us(), wall_clock_us(), steady_clock_us()
    assert 1_700_000_000_000_000 < first <= second < 4_102_444_800_000_000
    assert abs(first - wall) < 600 * SECOND_US
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert wall_clock_us() == 0
    assert steady_clock_us() >= second


def test_clocks__suspended_time_counts() -> None:
    """A client that waited while the machine was suspended has waited: CLOCK_BOOTTIME counts that."""
    assert clocks.STEADY == time.CLOCK_BOOTTIME


def test_store_clock__is_ours_until_the_store_has_reported_its_own() -> None:
    """Then it is the store's, counted by a clock that nobody can set."""
    steady, wall = ManualClock(), ManualClock()
    clock = StoreClock(steady, wall)
    wall.advance(seconds=5)
    assert (clock.now_us(), clock.difference_us) == (NOW_US + 5 * SECOND_US, 0)
    clock.update("a", NOW_US + 600 * SECOND_US)
    for now in (steady, wall):
        now.advance(seconds=1)
    assert clock.now_us() == NOW_US + 601 * SECOND_US
    assert clock.difference_us == 595 * SECOND_US
    wall.advance(seconds=-3_600)
    assert clock.now_us() == NOW_US + 601 * SECOND_US


def test_store_clock__of_several_nodes_is_the_one_furthest_ahead() -> None:
    """So all sidecars use the same one; an ended sidecar does not count, but the last is better than none."""
    clock = StoreClock(ManualClock(), ManualClock())
    for node, ahead_us in (("a", 3), ("b", -4), ("c", 1), ("a", 2)):
        clock.update(node, NOW_US + ahead_us)
    assert clock.now_us() == NOW_US + 2
    clock.forget("a")
    assert clock.now_us() == NOW_US + 1
    for node in ("unknown", "c", "b", "b"):
        clock.forget(node)
    assert clock.now_us() == NOW_US - 4

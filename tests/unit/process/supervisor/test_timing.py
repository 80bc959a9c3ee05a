"""How long a crashed worker waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.process.supervisor.timing import BackoffLimits, RestartBackoff

LIMITS = BackoffLimits(first_s=0.5, longest_s=30.0, stable_s=60.0)


def test_backoff__doubles_up_to_its_bound() -> None:
    """At once, then half a second, doubled each time, never more than half a minute."""
    backoff = RestartBackoff(LIMITS, chance=lambda: 1.0)
    waits = [backoff.next_s(served_s=0) for _ in range(10)]
    assert waits == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_backoff__a_stable_life_forgets() -> None:
    """The bound of a stable life belongs to it."""
    backoff = RestartBackoff(LIMITS, chance=lambda: 1.0)
    for _ in range(5):
        backoff.next_s(served_s=0)
    assert backoff.next_s(served_s=59.999) == 8
    assert backoff.next_s(served_s=60.0) == 0
    assert backoff.next_s(served_s=0) == 0.5


def test_backoff__reset_forgets() -> None:
    """A new configuration begins without the crashes of the old one."""
    backoff = RestartBackoff(LIMITS, chance=lambda: 1.0)
    for _ in range(5):
        backoff.next_s(served_s=0)
    backoff.reset()
    assert backoff.next_s(served_s=0) == 0


@pytest.mark.parametrize(("chance", "wait_s"), [(0.0, 0.25), (0.5, 0.375), (1.0, 0.5)])
def test_backoff__jitter_takes_off_up_to_half(chance: float, wait_s: float) -> None:
    """Workers that crash together do not start together, and none starts at once again."""
    backoff = RestartBackoff(LIMITS, chance=lambda: chance)
    backoff.next_s(served_s=0)
    assert backoff.next_s(served_s=0) == wait_s


@given(lives=st.lists(st.floats(0, 59), min_size=2, max_size=2_000), chance=st.floats(0, 1))
def test_backoff__quick_crashes_never_spin(lives: list[float], chance: float) -> None:
    """However many in a row: every wait but the first is at least a quarter second, at most the bound."""
    backoff = RestartBackoff(LIMITS, chance=lambda: chance)
    first, *waits = [backoff.next_s(served_s) for served_s in lives]
    assert first == 0
    assert all(0.25 <= wait_s <= 30.0 for wait_s in waits)

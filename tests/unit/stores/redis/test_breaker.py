"""The breaker: opens after failures in a row, probes, closes again."""

from __future__ import annotations

from sidecar.stores.redis.breaker import Breaker, BreakerState


def open_breaker(now_s: float = 10.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(failures_max=3, probe_after_s=0.2)
    assert [breaker.fail(now_s) for _ in range(3)] == [False, False, True]
    return breaker


def test_breaker__opens_after_failures_in_a_row() -> None:
    """A success in between starts the count anew."""
    breaker = Breaker(failures_max=3)
    breaker.fail(1.0)
    breaker.fail(1.0)
    breaker.succeed()
    assert [breaker.fail(1.0) for _ in range(3)] == [False, False, True]
    assert breaker.state is BreakerState.OPEN


def test_breaker__says_once_that_it_opened() -> None:
    """Failures of calls that were still under way change nothing."""
    breaker = open_breaker()
    assert breaker.fail(11.0) is False
    assert breaker.probe_at_s == 10.2


def test_breaker__a_probe_is_due_after_a_while() -> None:
    """While it is under way no other one is due."""
    breaker = open_breaker()
    assert breaker.probe_at_s == 10.2
    breaker.begin_probe()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.probe_at_s == float("inf")


def test_breaker__a_good_probe_closes_it() -> None:
    """And the count starts anew."""
    breaker = open_breaker()
    breaker.begin_probe()
    breaker.end_probe(is_good=True, now_s=10.3)
    assert breaker.state is BreakerState.CLOSED
    assert [breaker.fail(11.0) for _ in range(3)] == [False, False, True]


def test_breaker__a_bad_probe_opens_it_again() -> None:
    """For one more wait."""
    breaker = open_breaker()
    breaker.begin_probe()
    breaker.end_probe(is_good=False, now_s=10.3)
    assert (breaker.state, breaker.probe_at_s) == (BreakerState.OPEN, 10.5)


def test_breaker__a_sign_of_life_brings_the_probe_forward() -> None:
    """Only while it is open."""
    breaker = open_breaker()
    breaker.probe_now(10.05)
    assert breaker.probe_at_s == 10.05
    breaker.reset()
    breaker.probe_now(11.0)
    assert breaker.probe_at_s == float("inf")


def test_breaker__an_old_success_does_not_close_it() -> None:
    """A reply to a call from before proves nothing, nor does a probe that is over."""
    breaker = open_breaker()
    breaker.succeed()
    breaker.end_probe(is_good=True, now_s=10.1)
    assert breaker.state is BreakerState.OPEN


def test_breaker__waits_are_spread() -> None:
    """A fleet does not probe in step: each wait has its own factor."""
    factors = iter((0.75, 1.25))
    breaker = Breaker(failures_max=1, probe_after_s=0.2, jitter=lambda: next(factors))
    breaker.fail(10.0)
    assert breaker.probe_at_s == 10.15
    breaker.begin_probe()
    breaker.end_probe(is_good=False, now_s=20.0)
    assert breaker.probe_at_s == 20.25

"""When a connection ends by itself: pure decisions on a manual clock."""

from __future__ import annotations

import pytest

from sidecar.transports.fast.engine import H2Error
from sidecar.transports.fast.lifetime import (
    ANNOUNCE_S,
    LINGER_S,
    STREAM_ID_DRAIN,
    Act,
    Lifetime,
    LifetimeStep,
    Phase,
)
from sidecar.transports.server import TransportLimits

LIMITS = TransportLimits(
    handshake_timeout_s=10,
    header_timeout_s=5,
    idle_timeout_s=300,
    keepalive_interval_s=600,
    keepalive_timeout_s=20,
    connection_age_max_s=1_000,
    connection_age_grace_s=30,
    write_timeout_s=15,
)


def lifetime(jitter: float = 0.0, *, is_shaken: bool = True) -> Lifetime:
    """A connection opened at 0 s."""
    opened = Lifetime(LIMITS, 0.0, jitter)
    opened.has_settings_ack = is_shaken
    return opened


def step(each: Lifetime, now_s: float, *, streams: int = 0, seen: int = 0, last: int = 0) -> LifetimeStep:
    """What is due at *now_s*."""
    return each.next_step(now_s, streams, seen, last)


def test_lifetime__a_handshake_has_its_time() -> None:
    """Without a SETTINGS ACK the connection is ended as RFC 9113 6.5.3 says."""
    each = lifetime(is_shaken=False)
    assert step(each, 9.9).act is Act.NOTHING
    assert step(each, 10.0) == LifetimeStep(Act.KILL, "handshake", H2Error.SETTINGS_TIMEOUT)


def test_lifetime__idleness_counts_from_the_last_stream() -> None:
    """An open stream, or one that came and went between two looks, is no idleness."""
    each = lifetime()
    assert step(each, 299.0, streams=1, seen=1).act is Act.NOTHING
    assert step(each, 500.0, seen=2).act is Act.NOTHING
    each.read_s = 500.0
    assert step(each, 799.9, seen=2).act is Act.NOTHING
    assert step(each, 800.0, seen=2) == LifetimeStep(Act.DRAIN, "idle", cut_at_s=830.0)


def test_lifetime__silence_in_the_middle_of_a_frame_is_bounded() -> None:
    """A peer that begins a frame and falls silent is sent away, also while other calls run."""
    each = lifetime()
    each.read_s = 100.0
    assert each.read_incomplete(100.0)
    assert step(each, 104.9, streams=1, seen=1).act is Act.NOTHING
    assert step(each, 105.0, streams=1, seen=1) == LifetimeStep(Act.DRAIN, "header_timeout", cut_at_s=110.0)


@pytest.mark.parametrize(("jitter", "age_s"), [(-0.1, 900.0), (0.0, 1_000.0), (0.1, 1_100.0)])
def test_lifetime__age_is_limited_and_jittered(jitter: float, age_s: float) -> None:
    """Connections that were made together do not end together (gRPC proposal A9)."""
    each = lifetime(jitter)
    each.read_s = age_s - 1
    assert step(each, age_s - 0.1, streams=1, seen=1).act is Act.NOTHING
    assert step(each, age_s, streams=1, seen=1) == LifetimeStep(Act.DRAIN, "max_age", cut_at_s=age_s + 30)


def test_lifetime__no_maximum_age_means_none() -> None:
    """0 = no limit."""
    each = Lifetime(TransportLimits(keepalive_interval_s=1e12), 0.0, 0.0)
    each.has_settings_ack = True
    assert step(each, 1e9, streams=1, seen=1).act is Act.NOTHING


def test_lifetime__stream_ids_do_not_run_out() -> None:
    """A connection that has used three quarters of its ids is drained (RFC 9113 5.1.1)."""
    each = lifetime()
    assert step(each, 1.0, streams=1, last=STREAM_ID_DRAIN - 1).act is Act.NOTHING
    assert step(each, 1.0, streams=1, last=STREAM_ID_DRAIN) == LifetimeStep(
        Act.DRAIN, "max_age", cut_at_s=31.0
    )


def test_lifetime__silence_is_answered_by_a_ping_and_then_the_end() -> None:
    """No byte for the interval: a PING; none within its time-out: the peer is gone."""
    each = lifetime(0.1)
    assert step(each, 599.9, streams=1, seen=1).act is Act.NOTHING
    assert step(each, 600.0, streams=1, seen=1).act is Act.PING
    assert step(each, 619.9, streams=1, seen=1).act is Act.NOTHING
    assert step(each, 620.0, streams=1, seen=1) == LifetimeStep(Act.ABORT, "keepalive")


def test_lifetime__any_byte_answers_the_ping() -> None:
    """gRPC proposal A9: not the ack alone; then the interval begins again."""
    each = lifetime(0.1)
    assert step(each, 600.0, streams=1, seen=1).act is Act.PING
    each.read_s = 610.0
    assert step(each, 700.0, streams=1, seen=1).act is Act.NOTHING


def test_lifetime__a_drain_has_two_steps() -> None:
    """Announce, then name the last stream after a second at the latest, then cut."""
    each = lifetime()
    assert each.drain(100.0, 110.0)
    assert each.phase is Phase.ANNOUNCED
    assert step(each, 100.0 + ANNOUNCE_S - 0.1).act is Act.NOTHING
    assert step(each, 100.0 + ANNOUNCE_S).act is Act.GO_AWAY
    each.go_away()
    assert step(each, 109.9).act is Act.NOTHING
    assert step(each, 110.0).act is Act.CUT


def test_lifetime__a_second_drain_only_shortens_the_first() -> None:
    """The sooner bound holds; the steps are not taken twice."""
    each = lifetime()
    assert each.drain(0.0, 30.0)
    assert not each.drain(1.0, 5.0)
    assert not each.drain(1.0, 50.0)
    each.go_away()
    assert step(each, 4.9).act is Act.NOTHING
    assert step(each, 5.0).act is Act.CUT


def test_lifetime__keepalive_goes_on_while_draining() -> None:
    """A peer that vanishes during a drain without a bound is noticed too."""
    each = lifetime()
    each.drain(0.0, float("inf"))
    each.go_away()
    assert step(each, 600.0, streams=1).act is Act.PING
    assert step(each, 620.0, streams=1) == LifetimeStep(Act.ABORT, "keepalive")


def test_lifetime__one_frame_may_not_take_for_ever() -> None:
    """Bytes that complete no frame for five seconds are a slow-loris; a whole frame begins again."""
    each = lifetime()
    assert each.read_incomplete(10.0)
    assert each.read_incomplete(14.9)
    assert not each.read_incomplete(15.0)
    each.silent_since_s = None
    assert each.read_incomplete(15.0)


def test_lifetime__lingering_ends_after_a_second_or_when_written() -> None:
    """A second for the peer to close; unwritten bytes have the write time-out."""
    each = lifetime()
    each.linger(100.0)
    assert not each.may_end_lingering(100.0 + LINGER_S - 0.1, 0)
    assert each.may_end_lingering(100.0 + LINGER_S, 0)
    assert not each.may_end_lingering(114.9, 1)
    assert each.may_end_lingering(115.0, 1)


def test_limits__checks_are_as_frequent_as_the_shortest_timeout_needs() -> None:
    """A quarter second by default, a quarter of a short time-out, never a busy loop."""
    assert TransportLimits().check_interval_s == 0.25
    assert TransportLimits(idle_timeout_s=0.2).check_interval_s == pytest.approx(0.05)
    assert TransportLimits(write_timeout_s=0.0).check_interval_s == 0.01

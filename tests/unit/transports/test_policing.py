"""Flood accounts: what honest clients do passes for ever, what floods do does not."""

from __future__ import annotations

import pytest

from sidecar.transports.fast.policing import (
    SETTINGS_BURST,
    WINDOW_UPDATES_FREE,
    WINDOW_UPDATES_SAVED_MAX,
    Policing,
    TokenBucket,
    has_tiny_frames,
)
from sidecar.transports.server import TransportLimits


@pytest.fixture(name="policing")
def fixture_policing() -> Policing:
    """Fresh accounts at 0 s: 10 early ends at once and 2 a second; a PING every 10 s."""
    return Policing(TransportLimits(resets_burst=10, resets_per_s=2, ping_interval_min_s=10), 0.0)


def test_token_bucket__holds_burst_and_rate() -> None:
    """The burst at once, then no more than the rate, and never more than the burst however long it rests."""
    bucket = TokenBucket(3, 1.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1.5), bucket.take(1.5), bucket.take(2.0)] == [True, False, True]
    assert [bucket.take(1_000.0) for _ in range(4)] == [True, True, True, False]


def test_policing__early_ends_have_their_burst_and_rate(policing: Policing) -> None:
    """Ten at once, then two a second for ever."""
    assert [policing.early_end(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert all(policing.early_end(1.0 + index / 2) for index in range(1_000))


def test_policing__settings_have_their_burst_and_rate(policing: Policing) -> None:
    """Nobody needs more than a handful of SETTINGS."""
    assert all(policing.settings(0.0) for _ in range(SETTINGS_BURST))
    assert not policing.settings(0.0)
    assert policing.settings(1.0)


def test_policing__the_third_early_ping_is_too_many(policing: Policing) -> None:
    """Two strikes are forgiven (gRPC proposal A8); the first PING ever is free."""
    assert [policing.ping(now_s, 0) for now_s in (0.0, 1.0, 2.0, 3.0)] == [True, True, True, False]


def test_policing__patient_pings_are_no_strikes(policing: Policing) -> None:
    """A keepalive at the permitted interval lives for ever."""
    assert all(policing.ping(index * 10.0, 0) for index in range(100))


def test_policing__an_early_ping_does_not_move_the_interval(policing: Policing) -> None:
    """The interval counts from the last good PING (A8)."""
    assert [policing.ping(now_s, 0) for now_s in (0.0, 6.0, 12.0, 13.0, 24.0)] == [True] * 5


def test_policing__answers_clear_the_strikes(policing: Policing) -> None:
    """Clients that measure bandwidth send a PING around each answer."""
    assert all(policing.ping(index * 0.1, answers=index) for index in range(1_000))


def test_policing__pings_between_two_answers_are_limited(policing: Policing) -> None:
    """An answer clears what was before it, not what follows."""
    assert [policing.ping(0.0, 1) for _ in range(4)] == [True, True, True, False]


def test_policing__window_updates_are_earned(policing: Policing) -> None:
    """Five are free; then two for each stream and twenty for each DATA frame of ours."""
    assert [policing.window_update(0, 0) for _ in range(WINDOW_UPDATES_FREE + 1)] == [True] * 5 + [False]
    assert [policing.window_update(1, 1) for _ in range(23)] == [True] * 22 + [False]


def test_policing__an_honest_reader_never_runs_out(policing: Policing) -> None:
    """Two WINDOW_UPDATEs for each DATA frame, as libraries send them, pass for ever."""
    assert all(policing.window_update(index // 2, index // 2) for index in range(2, 50_000))


def test_policing__a_long_life_saves_up_little(policing: Policing) -> None:
    """What was earned in a million calls cannot be spent at once."""
    allowed = 0
    while policing.window_update(10**6, 10**6):
        allowed += 1
    assert allowed == WINDOW_UPDATES_FREE + WINDOW_UPDATES_SAVED_MAX


@pytest.mark.parametrize(
    ("pieces", "received", "expected"),
    [(16, 0, False), (17, 0, True), (17, 256, False), (272, 65_536, False), (273, 65_536, True)],
)
def test_is_dust__small_pieces_are_few(pieces: int, received: int, expected: bool) -> None:
    """Sixteen DATA frames of any size, and one more for each 256 bytes."""
    assert has_tiny_frames(pieces, received) is expected

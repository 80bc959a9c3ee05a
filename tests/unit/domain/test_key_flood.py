"""The limit on invalid API keys: per address and network, in bounded memory, never against a valid key."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.cidr import parse_client_address
from sidecar.domain.decisions import Reason
from sidecar.domain.key_flood import EPISODES_MAX, MINUTE_US, NETWORK_FACTOR, SOURCES_MAX, KeyFloodLimiter
from sidecar.domain.snapshot import Snapshot
from tests.building import NOW_US, make_integration, make_key, make_policy, make_request

HOST = parse_client_address("203.0.113.9")


def test_limiter__admits_so_many_at_once_and_then_at_its_rate() -> None:
    """After the burst one more is admitted each sixtieth of a minute."""
    limiter = KeyFloodLimiter(60)
    assert [limiter.admits(HOST, NOW_US) for _ in range(61)] == [True] * 60 + [False]
    assert not limiter.admits(HOST, NOW_US + 999_999)
    assert limiter.admits(HOST, NOW_US + 1_000_000)
    assert not limiter.admits(HOST, NOW_US + 1_000_000)
    assert all(limiter.admits(HOST, NOW_US + 2 * MINUTE_US) for _ in range(60))


@given(st.integers(1, 1_000), st.lists(st.integers(0, 3_000_000), max_size=300))
def test_limiter__never_admits_more(per_minute: int, gaps_us: list[int]) -> None:
    """In no span does one address get more than the burst and what its rate gives."""
    limiter, now_us, admitted = KeyFloodLimiter(per_minute), NOW_US, 0
    for gap_us in gaps_us:
        now_us += gap_us
        admitted += limiter.admits(HOST, now_us)
    assert admitted <= per_minute + (now_us - NOW_US) * per_minute / MINUTE_US + 1


def test_limiter__counts_a_network_over_all_its_addresses() -> None:
    """A /24 may try four times as many, from however many addresses; the next /24 is another one."""
    limiter = KeyFloodLimiter(10)
    addresses = [parse_client_address(f"203.0.113.{last}") for last in range(256)]
    admitted = sum(limiter.admits(address, NOW_US) for address in addresses)
    assert admitted == 10 * NETWORK_FACTOR
    assert limiter.admits(parse_client_address("203.0.114.9"), NOW_US)


def test_limiter__counts_ipv6_by_64() -> None:
    """All addresses of a /64 are one source."""
    limiter = KeyFloodLimiter(3)
    addresses = [parse_client_address(f"2001:db8:0:1::{last:x}") for last in range(1, 5)]
    assert [limiter.admits(address, NOW_US) for address in addresses] == [True, True, True, False]
    assert limiter.admits(parse_client_address("2001:db8:0:2::1"), NOW_US)


def test_limiter__memory_stays_bounded_in_an_attack_from_everywhere() -> None:
    """From many addresses: the least recently seen are forgotten, of sources and of reported floods."""
    limiter, reported = KeyFloodLimiter(1), list[str]()
    limiter.on_flood = reported.append
    for number in range(SOURCES_MAX):
        address = (0x0A00_0000 + number * 256).to_bytes(4)
        limiter.admits(address, NOW_US)
        limiter.admits(address, NOW_US)
    assert len(limiter) == SOURCES_MAX
    assert len(reported) == SOURCES_MAX > EPISODES_MAX


def test_limiter__a_flood_is_reported_once() -> None:
    """With its prefix, and again after a minute without a refusal."""
    limiter, reported = KeyFloodLimiter(1), list[str]()
    limiter.on_flood = reported.append
    for second in range(0, 300, 2):
        for _ in range(2):
            limiter.admits(HOST, NOW_US + second * 1_000_000)
    assert reported == ["203.0.113.9/32", "203.0.113.0/24"]
    for _ in range(2):
        limiter.admits(HOST, NOW_US + 400 * 1_000_000)
    assert reported[2:] == ["203.0.113.9/32"]


@pytest.mark.parametrize("per_minute", [0, -1, 1_000_001])
def test_limiter__refuses_an_impossible_limit(per_minute: int) -> None:
    """The error names the range."""
    with pytest.raises(ValueError, match="1 to 1000000"):
        KeyFloodLimiter(per_minute)


def test_policy__only_keys_of_nobody_count() -> None:
    """A wrong secret of a known key counts, a malformed key does not, a valid one always passes."""
    key = make_key()
    snapshot = Snapshot.compile([make_integration(key)])
    policy = make_policy()
    policy.key_flood = KeyFloodLimiter(2)

    def reason(api_key: str | None) -> Reason:
        return policy.evaluate(make_request(api_key), snapshot, NOW_US).reason

    for api_key in itertools.chain([None], ["sck_malformed"] * 5):
        assert reason(api_key) in (Reason.MISSING_CREDENTIAL, Reason.MALFORMED_CREDENTIAL)
    strangers = [make_key().api_key for _ in range(4)]
    assert [reason(stranger) for stranger in strangers] == [Reason.UNKNOWN_CREDENTIAL] * 2 + [
        Reason.KEY_FLOOD
    ] * 2
    assert reason(key.api_key) is Reason.OK


def test_policy__without_an_address_nobody_is_blamed() -> None:
    """Where the client's address cannot be established there is no source to count."""
    policy = make_policy()
    policy.key_flood = KeyFloodLimiter(1)
    request = make_request(make_key().api_key, peer="")
    reasons = {policy.evaluate(request, Snapshot.compile([]), NOW_US).reason for _ in range(5)}
    assert reasons == {Reason.UNKNOWN_CREDENTIAL}

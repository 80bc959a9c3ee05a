"""Finding nodes: reading the slot map, and waits between attempts."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.stores.redis.connect import HandshakeError
from sidecar.stores.redis.limits import Backoff, StoreLimits
from sidecar.stores.redis.slots import read_slots
from sidecar.stores.redis.urls import Address

A, B = Address("10.0.0.1", 7000), Address("10.0.0.2", 7001)


def test_slots__each_range_has_its_primary() -> None:
    """The first node of a range is the primary; replicas and what else a server adds do not matter."""
    reply = [
        [0, 5460, [b"10.0.0.1", 7000, b"id", [b"hostname", b"a"]], [b"10.0.0.9", 7009, b"id"]],
        [5461, 16383, [b"10.0.0.2", 7001]],
    ]
    assert read_slots(reply, "asked") == [(0, 5460, A), (5461, 16383, B)]


@pytest.mark.parametrize("host", [b"", None])
def test_slots__a_node_that_does_not_know_its_host_means_the_one_asked(host: bytes | None) -> None:
    """As the documentation of CLUSTER SLOTS says."""
    assert read_slots([[0, 16383, [host, 7000, b"id"]]], "10.0.0.1") == [(0, 16383, A)]


@pytest.mark.parametrize(
    "reply",
    [
        [],
        None,
        b"OK",
        [[0, 1]],
        [[0, 16384, [b"a", 1]]],
        [[5, 1, [b"a", 1]]],
        [[0, 1, [b"\xff", 1]]],
        [[0, 1, []]],
    ],
)
def test_slots__anything_else_is_refused(reply: Any) -> None:
    """A Cluster without slots, or no Cluster."""
    with pytest.raises(HandshakeError, match="CLUSTER SLOTS returned"):
        read_slots(reply, "asked")


def test_backoff__doubles_up_to_its_bound() -> None:
    """And begins anew when told to."""
    backoff = Backoff(0.05, 0.4, random_part=lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [0.05, 0.1, 0.2, 0.4, 0.4]
    backoff.reset()
    assert backoff.next_s() == 0.05


def test_backoff__is_spread_downwards() -> None:
    """A fleet does not connect in step, and nobody waits longer than the bound."""
    backoff = Backoff(0.05, 0.4, random_part=lambda: 0.0)
    assert [backoff.next_s() for _ in range(4)] == [0.025, 0.05, 0.1, 0.2]


def test_limits__recovery_fits_into_a_second() -> None:
    """The longest wait before a node is asked again, with its spread, and the connect that follows."""
    limits = StoreLimits()
    assert limits.backoff_max_s + limits.connect_timeout_s < 1.0
    assert 1.25 * limits.probe_after_s + limits.call_timeout_s < 1.0
    assert limits.link_timeout_s + limits.backoff_first_s < 1.0

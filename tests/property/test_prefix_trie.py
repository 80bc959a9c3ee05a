"""The prefix trie against a linear scan with ipaddress, for every list and address."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain import prefix_trie
from sidecar.domain.cidr import Cidr, block_of, parse_address
from sidecar.domain.prefix_trie import PrefixTrie

Network = IPv4Network | IPv6Network

# Few distinct bytes, so that blocks nest, touch and repeat.
few_octets = st.sampled_from([0, 1, 2, 127, 128, 254, 255])


@st.composite
def blocks(draw: st.DrawFn) -> Cidr:
    """A block of either family."""
    width_octets = draw(st.sampled_from([4, 16]))
    octets = draw(st.lists(few_octets, min_size=width_octets, max_size=width_octets))
    address = bytes(octets) if width_octets == 4 else b"\x20" + bytes(octets[1:])
    return block_of(address, draw(st.integers(0, width_octets * 8)))


def edges(cidr: Cidr) -> list[bytes]:
    """The addresses at which an answer can change: first, last, and their outer neighbors."""
    width_bits = cidr.width_bits
    first = int.from_bytes(cidr.network)
    last = first + (1 << width_bits - cidr.length_bits) - 1
    numbers = {max(first - 1, 0), first, last, min(last + 1, (1 << width_bits) - 1)}
    return [number.to_bytes(width_bits // 8) for number in numbers]


def scan(networks: Sequence[Network], address: bytes) -> Network | None:
    """The longest match by looking at every network."""
    holding = [network for network in networks if ip_address(address) in network]
    return max(holding, key=lambda network: network.prefixlen, default=None)


def assert_agrees(cidrs: list[Cidr], others: list[bytes]) -> None:
    """The trie and the scan give the same answer at every edge and for *others*."""
    trie = PrefixTrie(cidrs)
    networks = [ip_network(str(cidr)) for cidr in cidrs]
    assert len(trie) == len(set(networks))
    for address in {address for cidr in cidrs for address in edges(cidr)}.union(others):
        expected = scan(networks, address)
        found = trie.longest_match(address)
        assert (found and str(found)) == (expected and str(expected))
        assert trie.contains(address) == (expected is not None)


addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@settings(deadline=None)
@given(st.lists(blocks(), max_size=12), st.lists(addresses, max_size=4))
def test_prefix_trie__agrees_with_a_scan(cidrs: list[Cidr], others: list[bytes]) -> None:
    """Any list, nested, touching, repeated, of both families: every answer is the scan's."""
    assert_agrees(cidrs, others)


@pytest.mark.parametrize("bucket_max", [2, 4])
def test_prefix_trie__agrees_with_a_scan_when_buckets_burst(bucket_max: int) -> None:
    """The same with buckets so small that short lists make tables under tables."""

    @settings(deadline=None, max_examples=60)
    @given(st.lists(blocks(), min_size=1, max_size=16), st.lists(addresses, max_size=4))
    def check(cidrs: list[Cidr], others: list[bytes]) -> None:
        assert_agrees(cidrs, others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_trie, "BUCKET_MAX", bucket_max)
        check()


@settings(deadline=None)
@given(st.lists(blocks(), max_size=8), st.randoms(use_true_random=False))
def test_prefix_trie__order_of_the_list_is_irrelevant(cidrs: list[Cidr], random: Random) -> None:
    """A shuffled list with repeats is the same set."""
    shuffled = [*cidrs, *cidrs[:3]]
    random.shuffle(shuffled)
    first, second = PrefixTrie(cidrs), PrefixTrie(shuffled)
    assert len(first) == len(second)
    assert all(
        first.longest_match(address) == second.longest_match(address)
        for cidr in cidrs
        for address in edges(cidr)
    )


@settings(deadline=None)
@given(st.lists(blocks(), max_size=8), st.ip_addresses(v=4))
def test_prefix_trie__mapped_addresses_are_ipv4(cidrs: list[Cidr], address: object) -> None:
    """An IPv4-mapped address gets the answer of its IPv4 address."""
    trie = PrefixTrie(cidrs)
    mapped, plain = parse_address(f"::ffff:{address}"), parse_address(str(address))
    assert trie.longest_match(mapped) == trie.longest_match(plain)

"""The prefix trie's edges, its shape at every size, and what it may weigh."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest

from sidecar.domain.cidr import Cidr, block_of, parse_address, parse_cidr
from sidecar.domain.prefix_trie import BUCKET_MAX, PrefixTrie, Table

DEPTH_MAX = 13  # 64 bits at five or more bits to a table

Tables = dict[int, Table]


def trie_of(*texts: str) -> PrefixTrie:
    """The trie of the blocks in *texts*."""
    return PrefixTrie(parse_cidr(text) for text in texts)


def match(trie: PrefixTrie, address: str) -> str | None:
    """The longest match as text, after holding it against `contains`."""
    found = trie.longest_match(parse_address(address))
    assert trie.contains(parse_address(address)) == (found is not None)
    return None if found is None else str(found)


def random_blocks(count: int, seed: int) -> Iterator[Cidr]:
    """*count* blocks of both families, clustered as real ones are."""
    random = Random(seed)
    for _ in range(count):
        if random.random() < 0.7:
            yield block_of(random.randbytes(4), random.choice([16, 20, 22, 24, 24, 24, 32]))
        else:
            start = bytes([0x20, 1, 0xD, random.choice([0xB8, 0xB9])])
            yield block_of(start + random.randbytes(12), random.choice([36, 48, 48, 56, 64, 96, 128]))


def depth(tables: Tables | None) -> int:
    """How many tables lie one below another."""
    return 0 if not tables else 1 + max(depth(table.tables) for table in tables.values())


def depth_of(trie: PrefixTrie) -> int:
    """The greatest depth of any part of *trie*."""
    return max(depth(part.tables) for part in trie.parts)


def buckets(offsets: Iterator[int], tables: Tables) -> Iterator[int]:
    """The size of every bucket under *offsets*."""
    for slot, (low, high) in enumerate(pairwise(offsets)):
        if slot in tables:
            yield from buckets(iter(tables[slot].offsets), tables[slot].tables)
        else:
            yield high - low


def test_prefix_trie__empty_holds_nothing() -> None:
    """No blocks: no address matches, of either family."""
    trie = PrefixTrie()
    assert len(trie) == 0
    assert match(trie, "0.0.0.0") is None
    assert match(trie, "255.255.255.255") is None
    assert match(trie, "::") is None


def test_prefix_trie__default_routes_hold_their_family() -> None:
    """0.0.0.0/0 is every IPv4 address and no IPv6 one; ::/0 the other way round."""
    ipv4, ipv6 = trie_of("0.0.0.0/0"), trie_of("::/0")
    for address in ("0.0.0.0", "127.0.0.1", "255.255.255.255"):
        assert match(ipv4, address) == "0.0.0.0/0"
        assert match(ipv6, address) is None
    for address in ("::", "2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert match(ipv6, address) == "::/0"
        assert match(ipv4, address) is None


def test_prefix_trie__both_families_side_by_side() -> None:
    """One trie holds blocks of both families; they do not see each other."""
    trie = trie_of("10.0.0.0/8", "2001:db8::/32")
    assert match(trie, "10.1.2.3") == "10.0.0.0/8"
    assert match(trie, "2001:db8::1") == "2001:db8::/32"
    assert match(trie, "::ffff:10.1.2.3") == "10.0.0.0/8"
    assert match(trie, "::a01:203") is None


def test_prefix_trie__block_edges() -> None:
    """First and last address are in, their neighbors are not."""
    trie = trie_of("192.0.2.64/26", "198.51.100.7")
    assert match(trie, "192.0.2.63") is None
    assert match(trie, "192.0.2.64") == "192.0.2.64/26"
    assert match(trie, "192.0.2.127") == "192.0.2.64/26"
    assert match(trie, "192.0.2.128") is None
    assert match(trie, "198.51.100.6") is None
    assert match(trie, "198.51.100.7") == "198.51.100.7/32"
    assert match(trie, "198.51.100.8") is None


def test_prefix_trie__nested_blocks_answer_with_the_smallest() -> None:
    """After an inner block ends, the outer one holds again, also where both end together."""
    trie = trie_of("10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.255.255", "10.255.0.0/16")
    assert match(trie, "10.0.255.255") == "10.0.0.0/8"
    assert match(trie, "10.1.0.0") == "10.1.0.0/24"
    assert match(trie, "10.1.1.0") == "10.1.0.0/16"
    assert match(trie, "10.1.255.255") == "10.1.255.255/32"
    assert match(trie, "10.2.0.0") == "10.0.0.0/8"
    assert match(trie, "10.255.255.255") == "10.255.0.0/16"
    assert match(trie, "11.0.0.0") is None


def test_prefix_trie__ipv6_blocks_on_both_sides_of_64_bits() -> None:
    """Blocks longer than /64 inside shorter ones, and on their own, answer with the smallest."""
    trie = trie_of("2001:db8::/32", "2001:db8::/64", "2001:db8::/65", "2001:db8::8000:0:0:1", "2001:db9::7")
    assert match(trie, "2001:db8::1") == "2001:db8::/65"
    assert match(trie, "2001:db8::8000:0:0:0") == "2001:db8::/64"
    assert match(trie, "2001:db8::8000:0:0:1") == "2001:db8::8000:0:0:1/128"
    assert match(trie, "2001:db8::8000:0:0:2") == "2001:db8::/64"
    assert match(trie, "2001:db8:0:1::") == "2001:db8::/32"
    assert match(trie, "2001:db9::6") is None
    assert match(trie, "2001:db9::7") == "2001:db9::7/128"
    assert match(trie, "2001:db9::8") is None
    assert match(trie, "2001:db9:0:1::7") is None


def test_prefix_trie__duplicates_count_once() -> None:
    """The same block twice is one block, however it was written."""
    trie = trie_of("10.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.0.0/8", "2001:db8::", "2001:DB8::/128")
    assert len(trie) == 2
    assert match(trie, "10.0.0.1") == "10.0.0.0/8"
    assert match(trie, "2001:db8::") == "2001:db8::/128"


def test_prefix_trie__neighbors_of_one_length_keep_their_names() -> None:
    """A row of neighbors takes no more room than one block, and each still answers for its addresses."""
    trie = trie_of(*(f"10.0.{number}.0/24" for number in range(256)))
    assert trie.size_bytes() == trie_of("10.0.0.0/24").size_bytes()
    assert match(trie, "10.0.0.255") == "10.0.0.0/24"
    assert match(trie, "10.0.1.0") == "10.0.1.0/24"
    assert match(trie, "10.1.0.0") is None


@pytest.mark.parametrize("size", [1, 50])
def test_prefix_trie__allowlists_are_one_bucket(size: int) -> None:
    """Up to 50 blocks never burst, so a look-up is one bisection."""
    scattered = [parse_cidr(f"10.{number}.0.0/16") for number in range(1, 2 * size, 2)]
    assert depth_of(PrefixTrie(scattered)) == 0


@pytest.mark.parametrize("count", [1_000, 30_000])
def test_prefix_trie__look_up_does_not_grow_with_the_list(count: int) -> None:
    """However many blocks: no bucket above its bound, and the same few tables on the way to it."""
    trie = PrefixTrie(random_blocks(count, seed=1))
    for part in trie.parts:
        if part.tables is not None:
            assert max(buckets(iter(part.offsets), part.tables)) <= BUCKET_MAX
    assert 1 <= depth_of(trie) <= 3


def test_prefix_trie__hostile_lists_stay_within_the_depth() -> None:
    """Blocks chosen to burst one bucket inside another at every level: bounded by the address width."""
    cluster = [f"2001:db8::{number:x}/128" for number in range(0, 600, 2)]
    ladder = [f"2001:db8::{1 << bit >> 48:x}:{1 << bit >> 32 & 0xFFFF:x}:0:0" for bit in range(40, 64)]
    rungs = [f"2001:db8::{1 << bit >> 16:x}:{1 << bit & 0xFFFF:x}" for bit in range(10, 32)]
    trie = trie_of(*cluster, *ladder, *rungs)
    assert 2 <= depth_of(trie) <= DEPTH_MAX
    assert match(trie, "2001:db8::2") == "2001:db8::2/128"
    assert match(trie, "2001:db8::3") is None
    assert match(trie, "2001:db8:0:0:8000::") == "2001:db8:0:0:8000::/128"
    assert match(trie, "2001:db8::1:0:0:2") is None


def test_prefix_trie__large_list_agrees_with_a_scan_by_length() -> None:
    """Twenty thousand blocks: the edges of each one answer as a dictionary of all blocks does."""
    blocks = list(random_blocks(20_000, seed=2))
    trie = PrefixTrie(blocks)
    known = set(blocks)
    lengths = sorted({(len(block.network), block.length_bits) for block in blocks}, reverse=True)
    assert len(trie) == len(known)
    for block in blocks[::40]:
        first = int.from_bytes(block.network)
        last = first + (1 << block.width_bits - block.length_bits) - 1
        for number in (first - 1, first, last, last + 1):
            address = (number % (1 << block.width_bits)).to_bytes(len(block.network))
            candidates = (block_of(address, bits) for size, bits in lengths if size == len(address))
            expected = next((candidate for candidate in candidates if candidate in known), None)
            assert trie.longest_match(address) == expected
            assert trie.contains(address) == (expected is not None)


def test_prefix_trie__weighs_little() -> None:
    """At most 30 bytes a block for an allowlist and 20 for a large list: a C radix tree takes over 100."""
    small = PrefixTrie(parse_cidr(f"10.{number}.0.0/16") for number in range(1, 100, 2))
    assert small.size_bytes() <= 50 * 30
    large = PrefixTrie(random_blocks(50_000, seed=3))
    assert large.size_bytes() <= len(large) * 20


def test_prefix_trie__size_is_what_is_allocated() -> None:
    """`size_bytes` is within a tenth of what the allocator hands out for the set."""
    blocks = list(random_blocks(5_000, seed=4))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        trie = PrefixTrie(blocks)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 <= trie.size_bytes() / (after - before) <= 1.1

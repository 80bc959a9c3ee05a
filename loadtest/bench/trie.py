"""`python -m loadtest.bench.trie`: compares the prefix trie with the C library pytricia and a linear scan."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from multiprocessing import get_context
from pathlib import Path
from random import Random
from socket import AF_INET, AF_INET6
from time import perf_counter

import pytricia

from loadtest.bench.processes import BenchError
from loadtest.bench.report import Row, Section, to_markdown
from sidecar.domain.cidr import Cidr, block_of
from sidecar.domain.prefix_trie import PrefixTrie

PREFIXES = 1_000_000
LISTS = 2_000
LIST_ENTRIES = 50
SAMPLES = 50_000
ROUNDS = 7
SEED = 1

IPV4_SHARE = 0.8
# Shares of lengths as in routing tables, with single hosts as in blocklists.
IPV4_LENGTHS = {16: 2, 18: 1, 19: 2, 20: 4, 21: 5, 22: 10, 23: 9, 24: 52, 32: 15}
IPV6_LENGTHS = {29: 2, 32: 14, 36: 4, 40: 7, 44: 7, 48: 45, 56: 5, 64: 8, 128: 8}
# The first 16 bits of assigned IPv6 blocks; IPv6 is far more clustered than IPv4.
IPV6_STARTS = (0x2001, 0x2400, 0x2404, 0x2408, 0x2600, 0x2607, 0x2804, 0x2A00, 0x2A02, 0x2C0F)

METHOD = (
    f"Seeded prefixes, {IPV4_SHARE:.0%} IPv4, lengths as in routing tables plus single hosts. Memory is the"
    " growth of the resident set in a fresh process, build garbage given back to the system. pytricia is"
    " frozen, its fastest form. Look-ups take packed addresses and alternate between both sides in one"
    f" process: best of {ROUNDS} rounds over {SAMPLES:,} shuffled addresses. Both sides must give the same"
    " answers. The ratio is theirs to ours: above 1 the trie needs less."
)


def run() -> list[Section]:
    """Run all measurements, which takes about a minute."""
    return [Section("Prefix trie", METHOD, [*_large_rows(), *_allowlist_rows()])]


class Radix:
    """Two trees of pytricia, one for each address family, with the constructor of `PrefixTrie`."""

    def __init__(self, cidrs: Iterable[Cidr]) -> None:
        """Insert *cidrs* and freeze the trees."""
        self.ipv4 = pytricia.PyTricia(32, AF_INET)
        self.ipv6 = pytricia.PyTricia(128, AF_INET6)
        for cidr in cidrs:
            tree = self.ipv4 if cidr.width_bits == 32 else self.ipv6
            tree.insert(cidr.network, cidr.length_bits, True)
        self.ipv4.freeze()
        self.ipv6.freeze()


@dataclass(frozen=True, slots=True)
class Weight:
    """The cost of building sets: resident bytes per prefix, and seconds."""

    bytes_each: float
    build_s: float


def random_blocks(count: int, seed: int) -> Iterator[Cidr]:
    """Yield *count* random prefixes in the mix above; a few repeat."""
    random = Random(seed)
    ipv4_lengths = random.choices(list(IPV4_LENGTHS), list(IPV4_LENGTHS.values()), k=count)
    ipv6_lengths = random.choices(list(IPV6_LENGTHS), list(IPV6_LENGTHS.values()), k=count)
    for ipv4_length, ipv6_length in zip(ipv4_lengths, ipv6_lengths, strict=True):
        if random.random() < IPV4_SHARE:
            yield block_of(random_address(4, random), ipv4_length)
        else:
            yield block_of(random_address(16, random), ipv6_length)


def random_address(size: int, random: Random) -> bytes:
    """Return a random IPv4 address, or an IPv6 address in the assigned blocks."""
    if size == 4:
        return random.randbytes(4)
    return random.choice(IPV6_STARTS).to_bytes(2) + random.randbytes(14)


def weigh(build: Callable[[Iterable[Cidr]], object], lists: int, entries: int) -> Weight:
    """Build *lists* sets of *entries* prefixes each and measure the growth of the process."""
    inputs = [list(random_blocks(entries, SEED + number)) for number in range(lists)]
    before = _resident_bytes()
    started = perf_counter()
    built = [build(cidrs) for cidrs in inputs]
    build_s = perf_counter() - started
    grown = _resident_bytes() - before
    return Weight(grown / (len(built) * entries), build_s)


def _weigh_apart(build: Callable[[Iterable[Cidr]], object], lists: int, entries: int) -> Weight:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(weigh, build, lists, entries).result(timeout=300)


def _resident_bytes() -> int:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _large_rows() -> Iterator[Row]:
    ours = _weigh_apart(PrefixTrie, 1, PREFIXES)
    theirs = _weigh_apart(Radix, 1, PREFIXES)
    name = f"{PREFIXES:,} prefixes"
    yield _weight_row(f"{name}: memory per prefix", ours, theirs)
    yield _row(f"{name}: build", ours.build_s, "{:.1f} s", theirs.build_s, "pytricia")
    trie, radix = PrefixTrie(random_blocks(PREFIXES, SEED)), Radix(random_blocks(PREFIXES, SEED))
    for family, size, tree in (("IPv4", 4, radix.ipv4), ("IPv6", 16, radix.ipv6)):
        hits, misses = _hits_and_misses(trie, size)
        for kind, addresses in (("hit", hits), ("miss", misses)):
            yield _look_up_row(f"{name}: look-up, {family} {kind}", trie, tree, addresses)


def _allowlist_rows() -> Iterator[Row]:
    name = f"{LIST_ENTRIES} entries"
    ours = _weigh_apart(PrefixTrie, LISTS, LIST_ENTRIES)
    theirs = _weigh_apart(Radix, LISTS, LIST_ENTRIES)
    yield _weight_row(f"{LISTS:,} lists of {LIST_ENTRIES}: memory per prefix", ours, theirs)
    scale = 1e6 / LISTS
    yield _row(f"{name}: build", ours.build_s * scale, "{:.0f} µs", theirs.build_s * scale, "pytricia")
    blocks = [block for block in random_blocks(10 * LIST_ENTRIES, SEED) if block.width_bits == 32]
    trie, radix = PrefixTrie(blocks[:LIST_ENTRIES]), Radix(blocks[:LIST_ENTRIES])
    hits, misses = _hits_and_misses(trie, 4, blocks[:LIST_ENTRIES])
    for kind, addresses in (("hit", hits), ("miss", misses)):
        yield _look_up_row(f"{name}: look-up, IPv4 {kind}", trie, radix.ipv4, addresses)
        yield _scan_row(f"{name}: look-up, IPv4 {kind}", trie, blocks[:LIST_ENTRIES], addresses[:2_000])


def _hits_and_misses(
    trie: PrefixTrie, size: int, blocks: Sequence[Cidr] | None = None
) -> tuple[list[bytes], list[bytes]]:
    """Return shuffled addresses of one family that are in the set, and others that are not."""
    random = Random(SEED + 1)
    source = random_blocks(PREFIXES, SEED) if blocks is None else blocks
    inside = [block for block in source if len(block.network) == size]
    hits = [_address_in(random.choice(inside), random) for _ in range(SAMPLES)]
    misses: list[bytes] = []
    while len(misses) < SAMPLES:
        address = random_address(size, random)
        if not trie.contains(address):
            misses.append(address)
    return hits, misses


def _address_in(block: Cidr, random: Random) -> bytes:
    host_bits = block.width_bits - block.length_bits
    number = int.from_bytes(block.network) | random.getrandbits(host_bits)
    return number.to_bytes(len(block.network))


def _look_up_row(what: str, trie: PrefixTrie, tree: pytricia.PyTricia, addresses: list[bytes]) -> Row:
    contains = trie.contains
    ours_us, theirs_us = _race(
        what,
        len(addresses),
        lambda: [contains(address) for address in addresses],
        lambda: [address in tree for address in addresses],
    )
    return _row(what, ours_us, "{:.2f} µs", theirs_us, "pytricia")


def _scan_row(what: str, trie: PrefixTrie, blocks: list[Cidr], addresses: list[bytes]) -> Row:
    """Compare with a linear scan over prepared ipaddress objects."""
    contains = trie.contains
    networks = [ip_network(str(block)) for block in blocks]
    parsed = [ip_address(address) for address in addresses]
    ours_us, theirs_us = _race(
        what,
        len(addresses),
        lambda: [contains(address) for address in addresses],
        lambda: [any(address in network for network in networks) for address in parsed],
    )
    return _row(what, ours_us, "{:.2f} µs", theirs_us, "linear scan with ipaddress")


def _race(
    what: str, count: int, ours: Callable[[], list[bool]], theirs: Callable[[], list[bool]]
) -> tuple[float, float]:
    """Return the microseconds per look-up of both sides, which take turns."""
    if ours() != theirs():
        raise BenchError(f"{what}: the two sides return different results")
    best_ours = best_theirs = float("inf")
    for _ in range(ROUNDS):
        best_ours = min(best_ours, _seconds(ours))
        best_theirs = min(best_theirs, _seconds(theirs))
    return best_ours / count * 1e6, best_theirs / count * 1e6


def _seconds(step: Callable[[], object]) -> float:
    started = perf_counter()
    step()
    return perf_counter() - started


def _weight_row(what: str, ours: Weight, theirs: Weight) -> Row:
    return _row(what, ours.bytes_each, "{:.1f} B", theirs.bytes_each, "pytricia")


def _row(what: str, ours: float, unit: str, theirs: float, name: str) -> Row:
    return Row(what, unit.format(ours), f"{unit.format(theirs)} ({name})", f"{theirs / ours:.1f} ×")


if __name__ == "__main__":
    print(to_markdown(run(), "python -m loadtest.bench.trie"))

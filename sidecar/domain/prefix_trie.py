"""
An immutable set of CIDR blocks with membership tests and longest matches in a bounded number of steps.

It is a burst trie (Heinz, Zobel, Williams 2002) over the bits of the address. A leaf is a *bucket*: a short
sorted run of interval starts, searched by bisection in C. A bucket of more than `BUCKET_MAX` starts bursts
into a *table*, which is

* path-compressed: the bits that all its starts share are skipped;
* level-compressed: several of the next bits index the table at once; their number grows with the starts.

Prefixes are pushed into the leaves when the set is built: all addresses between two adjacent starts have the
same longest prefix, and only its length is stored, one byte per start. So nested and adjacent blocks merge, a
match never backtracks, and skipped bits need no second check: an address that differs in a skipped bit is
before or after all starts of the table, and the bucket at that end has the correct answer.

One layout serves both uses. An integration's allowlist (at most 50 blocks, so at most 101 starts) is a single
bucket: two flat arrays of less than 1 KiB. A list of a million blocks is the same two arrays under a few
hundred tables. The depth is bounded by the width of the address, not by the number of prefixes.

An IPv6 address is two 64-bit numbers: the first trie is over the high number and links to a second trie over
the low number where blocks longer than /64 exist. So both fit into plain arrays.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import groupby, pairwise
from struct import Struct
from sys import getsizeof
from typing import Final, final

from sidecar.domain.cidr import Address, Cidr, block_of

_bisect: Final = bisect_right

BUCKET_MAX: Final = 128
"""Maximum starts of one bucket; the 50 blocks of an allowlist have at most 101 starts and stay one bucket."""

_STARTS_PER_SLOT: Final = 4  # average of a new table; more saves memory, fewer saves comparisons

_NONE: Final = 0  # code of an interval that no block covers; otherwise the block's length + 1 ...
_LINK: Final = 256  # ... or, from 256 on, _LINK + the region of the second trie

_unpack_ipv4: Final = Struct(">I").unpack
_unpack_ipv6: Final = Struct(">QQ").unpack


class PrefixTrie:
    """
    A set of CIDR blocks, IPv4 and IPv6; duplicates count once.

    >>> from sidecar.domain.cidr import parse_address, parse_cidr
    >>> trie = PrefixTrie([parse_cidr("10.0.0.0/8"), parse_cidr("10.1.0.0/16")])
    >>> trie.contains(parse_address("10.2.3.4")), str(trie.longest_match(parse_address("10.1.2.3")))
    (True, '10.1.0.0/16')
    """

    __slots__ = ("_count", "_high", "_ipv4", "_low")

    def __init__(self, cidrs: Iterable[Cidr] = ()) -> None:
        """Build the set from *cidrs*, in any order; O(n log n)."""
        ipv4: set[int] = set()
        ipv6: set[int] = set()
        for cidr in cidrs:
            members = ipv4 if len(cidr.network) == 4 else ipv6
            members.add(int.from_bytes(cidr.network) << 8 | cidr.length_bits)
        self._count = len(ipv4) + len(ipv6)
        self._ipv4 = _build_ipv4(sorted(ipv4)) if ipv4 else _EMPTY_IPV4
        self._high, self._low = _build_ipv6(sorted(ipv6)) if ipv6 else (_EMPTY_IPV6, _EMPTY_IPV6)

    def __len__(self) -> int:
        """The number of distinct blocks."""
        return self._count

    def contains(self, address: Address) -> bool:
        """Whether a block contains *address*."""
        return (self._ipv4_code(address) if len(address) == 4 else self._ipv6_code(address)) != _NONE

    def longest_match(self, address: Address) -> Cidr | None:
        """Return the smallest block that contains *address*; None = no block does."""
        code = self._ipv4_code(address) if len(address) == 4 else self._ipv6_code(address)
        return None if code == _NONE else block_of(address, code - 1)

    @property
    def parts(self) -> tuple[Level, Level, Level]:
        """The tries of IPv4 addresses and of the upper and lower halves of IPv6 addresses."""
        return self._ipv4, self._high, self._low

    def size_bytes(self) -> int:
        """Return the memory of this set, without the shared empty tries."""
        parts = {id(part): part for part in self.parts}
        own = [part for part in parts.values() if part not in (_EMPTY_IPV4, _EMPTY_IPV6)]
        return getsizeof(self) + sum(part.size_bytes() for part in own)

    def _ipv4_code(self, address: Address) -> int:
        (key,) = _unpack_ipv4(address)
        return self._ipv4.code(key)

    def _ipv6_code(self, address: Address) -> int:
        high, low = _unpack_ipv6(address)
        code = self._high.code(high)
        return code if code < _LINK else self._low.code(low, code - _LINK)


@final
class Table:
    """
    A burst bucket: slot i contains starts[offsets[i]:offsets[i + 1]].

    `first` is the skipped bits followed by zeros, `shift` the number of bits below the slot index, `top` the
    last slot, `tables` the tables of slots that burst again.
    """

    __slots__ = ("first", "offsets", "shift", "tables", "top")

    def __init__(
        self, first: int, shift: int, top: int, offsets: array[int], tables: dict[int, Table]
    ) -> None:
        """See the class."""
        self.first = first
        self.shift = shift
        self.top = top
        self.offsets = offsets
        self.tables = tables


class Level:
    """
    A trie over keys of 32 or 64 bits, made of regions that share their arrays.

    `starts` contains the regions one after another; each begins with 0 and ascends. `codes` is parallel to
    `starts`. `offsets` and `tables` are those of a Table whose slots are the regions; `tables` None = there
    is one region with one bucket.
    """

    __slots__ = ("codes", "offsets", "starts", "tables")

    def __init__(self, starts: array[int], codes: array[int], offsets: array[int]) -> None:
        """Store the intervals of a finished sweep, and burst regions that are too large for a bucket."""
        self.starts = starts[:]  # a copy frees the spare capacity from appending
        self.codes = array("B" if max(codes) < 256 else "I", codes)
        self.offsets = offsets
        one_bucket = len(offsets) == 2 and len(starts) <= BUCKET_MAX
        self.tables = None if one_bucket else _burst_slots(self.starts, offsets)

    def code(self, key: int, region: int = 0) -> int:
        """Return the code of the interval of *region* that contains *key*."""
        tables = self.tables
        if tables is None:
            return self.codes[_bisect(self.starts, key) - 1]
        offsets = self.offsets
        low, high = offsets[region], offsets[region + 1]
        while high - low > BUCKET_MAX:
            table = tables[region]
            region = (key ^ table.first) >> table.shift
            if region > table.top:  # the key differs in a skipped bit
                region = 0 if key < table.first else table.top
            offsets, tables = table.offsets, table.tables
            low, high = offsets[region], offsets[region + 1]
        return self.codes[_bisect(self.starts, key, low, high) - 1]

    def size_bytes(self) -> int:
        """Return the memory of this level."""
        size = sum(getsizeof(part) for part in (self, self.starts, self.codes, self.offsets))
        return size + (0 if self.tables is None else _tables_size_bytes(self.tables))


def _tables_size_bytes(tables: dict[int, Table]) -> int:
    size = getsizeof(tables)
    for table in tables.values():
        size += getsizeof(table) + getsizeof(table.first) + getsizeof(table.offsets)
        size += _tables_size_bytes(table.tables)
    return size


def _burst_slots(starts: array[int], offsets: array[int]) -> dict[int, Table]:
    """Return a table for every slot of *offsets* that is too large for a bucket."""
    bounds = enumerate(pairwise(offsets))
    return {slot: _burst(starts, low, high) for slot, (low, high) in bounds if high - low > BUCKET_MAX}


def _burst(starts: array[int], low: int, high: int) -> Table:
    """
    Build a table from starts[low:high].

    The first start may be far below the others (a region begins with 0): it is ignored for the skipped bits
    and belongs to slot 0. The table's first bit is the highest bit in which the other starts differ, so at
    least two slots are used and the recursion ends, after at most 13 tables of five or more bits.
    """
    span_bits = (starts[low + 1] ^ starts[high - 1]).bit_length()
    bits = max(1, ((high - low) // _STARTS_PER_SLOT).bit_length() - 1)
    shift = span_bits - bits
    first = starts[low + 1] >> span_bits << span_bits
    offsets = array("I", [low])
    for slot in range(1, 1 << bits):
        offsets.append(bisect_left(starts, first + (slot << shift), offsets[-1], high))
    offsets.append(high)
    return Table(first, shift, (1 << bits) - 1, offsets[:], _burst_slots(starts, offsets))


class _Sweep:
    """
    Converts nested blocks, wider ones first, into disjoint intervals of one region at a time.

    `open` are the blocks that contain the current position, outermost first, as (end, code).
    """

    def __init__(self, typecode: str) -> None:
        """Start without a region; *typecode* is the array type of the starts."""
        self.starts = array(typecode)
        self.codes = array("I")
        self.offsets = array("I")
        self.open: list[tuple[int, int]] = []

    def begin_region(self, width_bits: int, base_code: int) -> int:
        """Begin the next region, covered by *base_code*, and return its number."""
        self.offsets.append(len(self.starts))
        self.starts.append(0)
        self.codes.append(base_code)
        self.open = [(1 << width_bits, base_code)]
        return len(self.offsets) - 1

    def cover(self, start: int, size: int, code: int) -> None:
        """Cover start ... start + size - 1 with *code*; it must be within or after the previous block."""
        self.close_until(start)
        self._mark(start, code)
        self.open.append((start + size, code))

    def close_until(self, position: int) -> int:
        """Close the blocks that end at or before *position*; return the code at *position*."""
        while len(self.open) > 1 and self.open[-1][0] <= position:
            end, _ = self.open.pop()
            outer_end, outer_code = self.open[-1]
            if end < outer_end:
                self._mark(end, outer_code)
        return self.open[-1][1]

    def end_region(self) -> None:
        """Close every block of the region."""
        self.close_until(self.open[0][0])

    def finish(self) -> Level:
        """Return the trie over all regions."""
        self.offsets.append(len(self.starts))
        return Level(self.starts, self.codes, self.offsets)

    def _mark(self, start: int, code: int) -> None:
        """Begin an interval of *code* at *start*, or extend the previous interval if its code is equal."""
        starts, codes = self.starts, self.codes
        if starts[-1] == start:
            if start == 0:  # a region's first interval never merges with the previous region's last
                codes[-1] = code
                return
            starts.pop()
            codes.pop()
        if codes[-1] != code:
            starts.append(start)
            codes.append(code)


def _build_ipv4(members: Iterable[int]) -> Level:
    """Build the trie of IPv4 *members*, each network << 8 | length, ascending."""
    sweep = _Sweep("I")
    sweep.begin_region(32, _NONE)
    for member in members:
        length_bits = member & 0xFF
        sweep.cover(member >> 8, 1 << (32 - length_bits), length_bits + 1)
    sweep.end_region()
    return sweep.finish()


def _build_ipv6(members: Iterable[int]) -> tuple[Level, Level]:
    """Build the tries of the high and low halves of IPv6 *members*, each network << 8 | length, ascending."""
    upper, lower = _Sweep("Q"), _Sweep("Q")
    upper.begin_region(64, _NONE)
    for high, group in groupby(members, key=lambda member: member >> 72):
        is_linked = False
        for member in group:
            length_bits = member & 0xFF
            if length_bits <= 64:
                upper.cover(high, 1 << (64 - length_bits), length_bits + 1)
                continue
            if not is_linked:
                is_linked = True
                base_code = upper.close_until(high)
                upper.cover(high, 1, _LINK + lower.begin_region(64, base_code))
            low = member >> 8 & 0xFFFF_FFFF_FFFF_FFFF
            lower.cover(low, 1 << (128 - length_bits), length_bits + 1)
        if is_linked:
            lower.end_region()
    upper.end_region()
    return upper.finish(), lower.finish() if lower.offsets else _EMPTY_IPV6


_EMPTY_IPV4: Final = _build_ipv4(())
_EMPTY_IPV6: Final = Level(array("Q", [0]), array("I", [_NONE]), array("I", [0, 1]))

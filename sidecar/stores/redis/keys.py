"""
Every key in Redis, in one place: prefix, partition, kind, name.

    <prefix>{<tag>}b:<bucket key>     a bucket                       take.lua
    <prefix>{<tag>}g:<integration>    generation of its record       registry writes, take.lua reads
    <prefix>{<tag>}r:<integration>    its record                     registry
    <prefix>{<tag>}changes            integrations by latest change  registry
    <prefix>{<tag>}<name>             what else the registry keeps   stores/registry/redis/keys.py
    <prefix>{<tag of 0>}layout        what every sidecar must agree on: the number of partitions;
                                      written by whoever comes first, and again with each heartbeat
    <prefix>{<tag of 0>}live          live sidecars                  heartbeat.lua

An integration and all its buckets live in one partition, a stable hash of its id; the partition is
the hash tag, so Redis Cluster keeps them in one slot and one script call can hold them all.
"""

from __future__ import annotations

import binascii
import re
import zlib

SLOTS = 16_384
"""Hash slots of Redis Cluster."""

PARTITIONS_MAX = 256
CLUSTER_PARTITIONS = 16
"""Of a new store in a Cluster whose URL states no number; anywhere else a new store has one partition."""
DEFAULT_PREFIX = "sidecar:"
PREFIX = re.compile(r"[!-z|~]{0,64}")
"""Printable ASCII without braces: a brace before the tag would become the tag (Cluster specification)."""


class KeySpaceError(ValueError):
    """A prefix or a number of partitions that keys cannot be built from."""


class KeySpace:
    """
    The keys of one fleet.

    Every sidecar of a fleet must use the same prefix and number of partitions, else they would keep
    different buckets for one integration; `layout` is the text they compare, and the store keeps it.

    While `is_settled` is false the store has not told the number yet: then only the keys of partition 0
    are right, whose tag is the same for every number.
    """

    __slots__ = ("_tags", "is_settled", "layout", "partitions", "prefix")

    def __init__(self, prefix: str = DEFAULT_PREFIX, partitions: int | None = CLUSTER_PARTITIONS) -> None:
        """
        Build the tags of all partitions; *partitions* None = as many as the store has.

        Raises:
            KeySpaceError: the prefix holds a brace, a space or something unprintable, or is longer than 64;
                partitions is not 1 ... 256.
        """
        if not PREFIX.fullmatch(prefix):
            raise KeySpaceError(
                f"key prefix {prefix!r} must be at most 64 printable ASCII characters, no spaces, no braces"
            )
        self.prefix = prefix
        self.settle(1 if partitions is None else partitions)
        self.is_settled = partitions is not None

    def settle(self, partitions: int) -> None:
        """
        The store has this number of *partitions*.

        Raises:
            KeySpaceError: it is not 1 ... 256.
        """
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise KeySpaceError(f"partitions must be 1..{PARTITIONS_MAX}, not {partitions}")
        self.is_settled = True
        self.partitions = partitions
        self.layout = layout_of(partitions)
        self._tags = tuple(f"{self.prefix}{{{_tag(index, partitions)}}}" for index in range(partitions))

    def partition_of(self, owner: str) -> int:
        """The partition of integration *owner*, 0 ... partitions - 1; the same on every machine."""
        return zlib.crc32(owner.encode()) % self.partitions

    def slot_of(self, partition: int) -> int:
        """The Cluster slot of *partition*: every partition has its own slice of the slots."""
        return _slot(_tag(partition, self.partitions))

    def bucket(self, owner: str, key: str) -> str:
        """The bucket *key* of integration *owner*."""
        return f"{self._tags[self.partition_of(owner)]}b:{key}"

    def generation(self, owner: str) -> str:
        """The generation of the record of integration *owner*, as decimal text."""
        return f"{self._tags[self.partition_of(owner)]}g:{owner}"

    def record(self, owner: str) -> str:
        """The record of integration *owner*."""
        return f"{self._tags[self.partition_of(owner)]}r:{owner}"

    def changes(self, partition: int) -> str:
        """The integrations of *partition* by their latest change."""
        return self.named(partition, "changes")

    def named(self, partition: int, name: str) -> str:
        """The key *name* of *partition*; the registry's keys are listed in stores/registry/redis/keys.py."""
        return f"{self._tags[partition]}{name}"

    @property
    def layout_key(self) -> str:
        """Where `layout` is kept."""
        return f"{self._tags[0]}layout"

    @property
    def live_key(self) -> str:
        """Where the live sidecars are kept."""
        return f"{self._tags[0]}live"


def layout_of(partitions: int) -> str:
    """
    The text of the layout with this number of *partitions*.

    >>> layout_of(16)
    '1 partitions=16'
    """
    return f"1 partitions={partitions}"


def read_layout(text: str) -> int | None:
    """
    The number of partitions in the text of a layout; None = this program does not know such a layout.

    >>> read_layout("1 partitions=16"), read_layout("2 partitions=16")
    (16, None)
    """
    number = text.removeprefix("1 partitions=")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 3
    known = int(number) if is_number else 0
    return known if 1 <= known <= PARTITIONS_MAX and text == layout_of(known) else None


def _tag(partition: int, partitions: int) -> str:
    """
    The hash tag of *partition*: the first of p7, p7.1, p7.2, ... whose slot lies in its slice.

    Primaries hold ranges of slots, so equal slices of slots give equally many partitions to each;
    slots of arbitrary tags would fall where they like (of 16, seven on one primary of three). The tag of
    partition 0 is the same for every number of partitions: there the fleet's sidecars compare theirs.
    """
    first = partition * SLOTS // partitions
    end = (partition + 1) * SLOTS // (partitions if partition else PARTITIONS_MAX)
    tag, attempt = f"p{partition}", 0
    while not first <= _slot(tag) < end:
        attempt += 1
        tag = f"p{partition}.{attempt}"
    return tag


def _slot(tag: str) -> int:
    # CRC16 of the XMODEM kind, as the Cluster specification demands.
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS

"""
The names of all keys in Redis: prefix, partition, kind, name.

    <prefix>{<tag>}b:<bucket key>     a bucket                       take.lua
    <prefix>{<tag>}l:<counter>        a counter of the rate-limit service   count.lua
    <prefix>{<tag>}g:<integration>    generation of its record       registry writes, take.lua reads
    <prefix>{<tag>}r:<integration>    its record                     registry
    <prefix>{<tag>}changes            integrations by latest change  registry
    <prefix>{<tag>}<name>             other keys of the registry     stores/registry/redis/keys.py
    <prefix>{<tag of 0>}layout        the number of partitions, which every sidecar must share;
                                      written by the first sidecar, restored by each heartbeat
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
"""Default number of partitions of a new store in a Cluster; elsewhere the default is 1."""
DEFAULT_PREFIX = "sidecar:"
PREFIX = re.compile(r"[!-z|~]{0,64}")
"""Printable ASCII without braces: Redis would read a brace in the prefix as the start of the hash tag."""


class KeySpaceError(ValueError):
    """The prefix or the number of partitions is invalid."""


class KeySpace:
    """
    The keys of one fleet.

    Every sidecar of a fleet must use the same prefix and number of partitions, else they would keep
    different buckets for one integration; the store keeps `layout`, the text that they compare.

    While `is_settled` is false the number is unknown: then only the keys of partition 0 are valid, whose
    tag is the same for every number.
    """

    __slots__ = ("_tags", "is_settled", "layout", "partitions", "prefix")

    def __init__(self, prefix: str = DEFAULT_PREFIX, partitions: int | None = CLUSTER_PARTITIONS) -> None:
        """
        Build the tags of all partitions; *partitions* None = the number that the store has.

        Raises:
            KeySpaceError: the prefix is not 0 to 64 printable ASCII characters without spaces and braces, or
                partitions is not 1 to 256.
        """
        if not PREFIX.fullmatch(prefix):
            raise KeySpaceError(
                f"key prefix is {prefix!r}; it must be at most 64 printable ASCII characters without spaces"
                " and braces"
            )
        self.prefix = prefix
        self.settle(1 if partitions is None else partitions)
        self.is_settled = partitions is not None

    def settle(self, partitions: int) -> None:
        """
        Set the number of *partitions* to that of the store.

        Raises:
            KeySpaceError: it is not 1 to 256.
        """
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise KeySpaceError(f"partitions is {partitions}; it must be 1 to {PARTITIONS_MAX}")
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

    def counter(self, domain: str, key: str) -> str:
        """The counter *key* of the rate-limit domain *domain*; the key holds the domain, too."""
        return f"{self._tags[self.partition_of(domain)]}l:{key}"

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
        """The key of `layout`."""
        return f"{self._tags[0]}layout"

    @property
    def live_key(self) -> str:
        """The key of the live sidecars."""
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
    The number of partitions in the text of a layout; None = this version does not support the layout.

    >>> read_layout("1 partitions=16"), read_layout("2 partitions=16")
    (16, None)
    """
    number = text.removeprefix("1 partitions=")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 3
    known = int(number) if is_number else 0
    return known if 1 <= known <= PARTITIONS_MAX and text == layout_of(known) else None


def _tag(partition: int, partitions: int) -> str:
    """
    The hash tag of *partition*: the first of p7, p7.1, p7.2, ... whose slot is in the partition's range.

    Primaries serve ranges of slots, so equal ranges give each primary the same number of partitions; the
    slots of arbitrary tags would be uneven (of 16, seven on one primary of three). The tag of partition 0 is
    the same for every number of partitions: the fleet's sidecars compare their layouts there.
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

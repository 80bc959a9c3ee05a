"""Keys: every integration in one slot, every partition in its slice, nothing confused with anything."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.stores.redis.keys import PARTITIONS_MAX, SLOTS, KeySpace, KeySpaceError

owners = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


def crc16(text: bytes) -> int:
    """CRC16 as the Cluster specification gives it: polynomial 0x1021, bit by bit."""
    crc = 0
    for byte in text:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def slot_of(key: str) -> int:
    """The slot of a key by the Cluster specification: of what stands between its first braces."""
    inner = key.partition("{")[2].partition("}")[0]
    return crc16((inner or key).encode()) % SLOTS


def test_keys__crc16_is_that_of_the_specification() -> None:
    """The check value that the specification gives."""
    assert crc16(b"123456789") == 0x31C3


@given(owners, st.text(max_size=20), st.integers(1, PARTITIONS_MAX))
def test_keys__all_of_an_integration_share_a_slot(owner: str, name: str, partitions: int) -> None:
    """Buckets, generation and record of one integration can be named in one script call."""
    keys = KeySpace("fleet:", partitions)
    slot = keys.slot_of(keys.partition_of(owner))
    own = (keys.bucket(owner, name), keys.generation(owner), keys.record(owner))
    assert {slot_of(key) for key in own} == {slot}
    assert slot_of(keys.changes(keys.partition_of(owner))) == slot


@pytest.mark.parametrize("partitions", [1, 2, 3, 16, 64, PARTITIONS_MAX])
def test_keys__each_partition_has_its_slice(partitions: int) -> None:
    """Primaries with equal slices of the slots get equally many partitions, give or take two."""
    keys = KeySpace(partitions=partitions)
    slots = [keys.slot_of(partition) for partition in range(partitions)]
    assert [slot * partitions // SLOTS for slot in slots] == list(range(partitions))
    for primaries in (1, 2, 3, 4, 5, 8):
        shares = Counter(slot * primaries // SLOTS for slot in slots)
        if primaries <= partitions:
            assert max(shares.values()) - min(shares.values()) <= 2


def test_keys__partitions_are_compared_in_one_place() -> None:
    """Where the fleet agrees on the number of partitions does not depend on that number."""
    places = {(keys.layout_key, keys.live_key) for keys in map(KeySpace, ["p:"] * 6, (1, 2, 3, 16, 100, 256))}
    assert len(places) == 1


def test_keys__the_layout_of_the_default_is_fixed() -> None:
    """These keys are in the servers of those who upgrade: changing them forgets every used token."""
    keys = KeySpace()
    assert keys.layout == "1 partitions=16"
    assert keys.layout_key == "sidecar:{p0.239}layout"
    assert keys.live_key == "sidecar:{p0.239}live"
    assert keys.bucket("acme", "acme/day") == "sidecar:{p14.12}b:acme/day"
    assert keys.generation("globex") == "sidecar:{p10.62}g:globex"
    assert keys.record("globex") == "sidecar:{p10.62}r:globex"
    assert keys.changes(14) == "sidecar:{p14.12}changes"


@given(st.sets(st.tuples(owners, st.text(max_size=5)), min_size=2, max_size=10))
def test_keys__different_things_have_different_keys(things: set[tuple[str, str]]) -> None:
    """Within one owner, no two names share a key; and buckets, generations and records never meet."""
    keys = KeySpace()
    for owner in {owner for owner, _ in things}:
        names = {name for other, name in things if other == owner}
        buckets = {keys.bucket(owner, name) for name in names}
        assert len(buckets) == len(names)
        assert not buckets & {keys.generation(owner), keys.record(owner), keys.layout_key, keys.live_key}


@pytest.mark.parametrize("prefix", ["a{b", "a}b", "a b", "a\n", "ключ:", "x" * 65])
def test_keys__a_bad_prefix_is_refused(prefix: str) -> None:
    """A brace would become the hash tag; the rest could not be typed into redis-cli."""
    with pytest.raises(KeySpaceError, match="prefix"):
        KeySpace(prefix)


@pytest.mark.parametrize("partitions", [0, -1, 257])
def test_keys__a_bad_number_of_partitions_is_refused(partitions: int) -> None:
    """The message names the range."""
    with pytest.raises(KeySpaceError, match="must be 1 to 256"):
        KeySpace(partitions=partitions)

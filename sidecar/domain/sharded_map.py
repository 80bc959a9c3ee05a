"""
An immutable map of which a changed copy is cheap: it shares all but the shards that changed.

To copy a dict of 10,000 integrations is to touch every one of them, which takes about half a millisecond
and throws everything else out of the processor's caches. Here a change of one copies one shard of `SHARDS`.
A lookup costs one more step than a dict's.

Source: the idea is that of hash array mapped tries (Bagwell, Ideal Hash Trees, 2001), with one level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

SHARDS = 256
"""A power of two; 10,000 members are then about 40 a shard."""
_MASK = SHARDS - 1

Value = TypeVar("Value")


class ShardedMap(Mapping[str, Value]):
    """A map from strings that never changes; `edit` makes another one. The order of members is no promise."""

    __slots__ = ("_shards", "_size")

    def __init__(self, shards: tuple[dict[str, Value], ...], size: int) -> None:
        """Use `ShardedMap.of`: *shards* hold *size* members, each in the shard of its hash."""
        self._shards = shards
        self._size = size

    @classmethod
    def of(cls, members: Mapping[str, Value]) -> ShardedMap[Value]:
        """The same members; *members* itself when it is one already."""
        if isinstance(members, cls):
            return members
        shards: tuple[dict[str, Value], ...] = tuple({} for _ in range(SHARDS))
        for key, value in members.items():
            shards[hash(key) & _MASK][key] = value
        return cls(shards, len(members))

    def edit(self) -> MapEdit[Value]:
        """Begin a changed copy."""
        return MapEdit(self._shards, self._size)

    def get(self, key: str, default: Value | None = None) -> Value | None:  # type: ignore[override]
        """The value of *key*, or *default*."""
        return self._shards[hash(key) & _MASK].get(key, default)

    def __getitem__(self, key: str) -> Value:
        return self._shards[hash(key) & _MASK][key]

    def __contains__(self, key: object) -> bool:
        return key in self._shards[hash(key) & _MASK]

    def __iter__(self) -> Iterator[str]:
        for shard in self._shards:
            yield from shard

    def __len__(self) -> int:
        return self._size


class MapEdit(Generic[Value]):
    """A map in the making; `done` ends it. What it was made from does not change."""

    __slots__ = ("_owned", "_shards", "_size")

    def __init__(self, shards: tuple[dict[str, Value], ...], size: int) -> None:
        """Use `ShardedMap.edit`."""
        self._shards = list(shards)
        self._size = size
        self._owned: set[int] = set()

    def get(self, key: str) -> Value | None:
        """The value of *key*; None = there is none."""
        return self._shards[hash(key) & _MASK].get(key)

    def put(self, key: str, value: Value) -> None:
        """Let *key* have *value*."""
        shard = self._own(key)
        self._size += key not in shard
        shard[key] = value

    def pop(self, key: str) -> Value | None:
        """Take *key* out; return what it had, None = nothing."""
        if self.get(key) is None:
            return None
        self._size -= 1
        return self._own(key).pop(key)

    def done(self) -> ShardedMap[Value]:
        """The map as it is now; the edit is over."""
        return ShardedMap(tuple(self._shards), self._size)

    def _own(self, key: str) -> dict[str, Value]:
        """The shard of *key*, a copy of our own."""
        number = hash(key) & _MASK
        if number not in self._owned:
            self._owned.add(number)
            self._shards[number] = dict(self._shards[number])
        return self._shards[number]

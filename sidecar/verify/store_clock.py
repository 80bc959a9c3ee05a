"""The clock by which a store's buckets fill: the server's own, of the node that holds the bucket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.urls import StoreUrl
from sidecar.stores.registry.redis.nodes import Nodes

ASK_TIMEOUT_S = 10.0
US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Moment:
    """A time on the clock of every partition's node, µs since the epoch."""

    times_us: tuple[int, ...]
    space: KeySpace

    def since_us(self, earlier: Moment, owner: str) -> int:
        """How long after *earlier* it is for the buckets of integration *owner*."""
        partition = self.space.partition_of(owner)
        return self.times_us[partition] - earlier.times_us[partition]


class StoreClock:
    """Tells the time of each partition's node; of an embedded store, the clock of this machine."""

    def __init__(self, url: StoreUrl | None) -> None:
        """Ask the store at *url*, None = embedded; nothing is connected yet."""
        self._space = KeySpace() if url is None else KeySpace(url.prefix, url.partitions)
        self._nodes = None if url is None else Nodes(url, self._space)

    async def now(self) -> Moment:
        """
        A moment between the call and its return.

        Raises:
            RegistryError: the store does not answer.
        """
        if self._nodes is None:
            return Moment((wall_clock_us(),) * self._space.partitions, self._space)
        await self._nodes.learn_layout(monotonic() + ASK_TIMEOUT_S)
        partitions = range(self._space.partitions)
        times = await asyncio.gather(*(_ask(self._nodes, partition) for partition in partitions))
        return Moment(tuple(times), self._space)

    async def forget_layout(self) -> None:
        """
        Let the one key of the run that would stay for ever go; all others expire by themselves.

        Raises:
            RegistryError: the store does not answer.
        """
        if self._nodes is not None:
            go = ("SET", self._space.layout_key, self._space.layout, "PX", 1)
            await self._nodes.run(0, [go], monotonic() + ASK_TIMEOUT_S)

    async def close(self) -> None:
        """Let go of the store."""
        if self._nodes is not None:
            await self._nodes.close()


async def _ask(nodes: Nodes, partition: int) -> int:
    [(seconds, micros)] = await nodes.run(partition, [("TIME",)], monotonic() + ASK_TIMEOUT_S)
    return int(seconds) * US_PER_S + int(micros)

"""The clock by which a store's buckets refill: that of the node that holds the bucket."""

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
    """One time on the clock of each partition's node, µs since the epoch."""

    times_us: tuple[int, ...]
    space: KeySpace

    def since_us(self, earlier: Moment, owner: str) -> int:
        """The time since *earlier* for the buckets of the integration *owner*."""
        partition = self.space.partition_of(owner)
        return self.times_us[partition] - earlier.times_us[partition]


class StoreClock:
    """Reads the clock of each partition's node; for an embedded store, of this machine."""

    def __init__(self, url: StoreUrl | None) -> None:
        """Read the clocks of the store at *url*, None = embedded; connect at the first read."""
        self._space = KeySpace() if url is None else KeySpace(url.prefix, url.partitions)
        self._nodes = None if url is None else Nodes(url, self._space)

    async def now(self) -> Moment:
        """
        Return a moment between the call and its return.

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
        Make the run's layout key expire, as all its other keys do.

        Raises:
            RegistryError: the store does not answer.
        """
        if self._nodes is not None:
            expire = ("SET", self._space.layout_key, self._space.layout, "PX", 1)
            await self._nodes.run(0, [expire], monotonic() + ASK_TIMEOUT_S)

    async def close(self) -> None:
        """Close the connections to the store."""
        if self._nodes is not None:
            await self._nodes.close()


async def _ask(nodes: Nodes, partition: int) -> int:
    [(seconds, micros)] = await nodes.run(partition, [("TIME",)], monotonic() + ASK_TIMEOUT_S)
    return int(seconds) * US_PER_S + int(micros)

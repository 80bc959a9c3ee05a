"""The push of changes: one subscribed connection, kept up, and what is known of each partition by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic

from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector
from sidecar.stores.redis.keys import PARTITIONS_MAX
from sidecar.stores.redis.limits import Backoff
from sidecar.stores.redis.link import LinkLostError, PushLink
from sidecar.stores.redis.urls import Address
from sidecar.stores.registry.redis.nodes import Nodes

PING_INTERVAL_S = 0.4
"""A subscribed connection that is dead is found out within twice that."""

QUESTION = b"?"
"""The message by which a bootstrap asks whether anybody remembers a registry here."""


class Feed:
    """
    Follows the channel of changes.

    `sequences` holds the latest sequence known of each partition; it is only right while `is_live`.
    `on_change` is called after each change and whenever the subscription begins or ends.
    """

    def __init__(self, nodes: Nodes, channel: str, on_change: Callable[[], None]) -> None:
        """Nothing is opened before `start`."""
        connector = nodes.connector
        self._connector = Connector(connector.url, connector.keys, connector.limits, (), PushLink)
        self._nodes = nodes
        self._channel = channel
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._link: PushLink | None = None
        nodes.on_move = self._moved
        self.sequences: dict[int, int] = {}
        self.is_live = False
        self.on_question: Callable[[], None] = lambda: None
        """Called when a bootstrap asks whether anybody remembers a registry."""

    def start(self) -> None:
        """Begin to follow, unless it was begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(), name="registry feed")

    async def close(self) -> None:
        """End."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._connector.limits.close_timeout_s)

    def learn(self, partition: int, sequence: int) -> None:
        """Note how far *partition* is, as read by someone after the subscription began."""
        if self.is_live:
            self.sequences[partition] = max(sequence, self.sequences.get(partition, 0))

    async def _follow(self) -> None:
        limits = self._connector.limits
        backoff = limits.backoff()
        while True:
            began_s, wait_s = monotonic(), 0.0
            try:
                await self._subscribe(backoff)
            except CONNECT_ERRORS:
                wait_s = backoff.next_s()
            self._nodes.search()
            await asyncio.sleep(max(wait_s, began_s + limits.reopen_interval_s - monotonic()))

    async def _subscribe(self, backoff: Backoff) -> None:
        """Connect and follow until the connection ends; then it is reopened at once."""
        link = await self._open()
        try:
            link.on_message = self._hear
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                await link.request("SUBSCRIBE", self._channel)
            backoff.reset()
            self._set_live(True)
            while not link.lost.done():
                await asyncio.wait((link.lost,), timeout=PING_INTERVAL_S)
                with contextlib.suppress(LinkLostError):
                    async with asyncio.timeout(PING_INTERVAL_S):
                        await link.request("PING")
        finally:
            self._set_live(False)
            link.abort()

    async def _open(self) -> PushLink:
        link = await self._connector.open(await self._nodes.address_of(0))
        assert isinstance(link, PushLink)
        self._link = link
        return link

    def _moved(self, primary: Address) -> None:
        """The Sentinels name another primary: the former one publishes nothing that counts."""
        self._connector.cancel_other_attempts(primary)
        if self._link is not None and self._link.address != primary:
            self._link.disconnect()

    def _set_live(self, is_live: bool) -> None:
        self.is_live = is_live
        self.sequences = {}
        self._on_change()

    def _hear(self, message: bytes) -> None:
        if message == QUESTION:
            self.on_question()
            return
        partition, _, rest = message.partition(b" ")
        sequence = rest.partition(b" ")[0]
        if not (partition.isdigit() and sequence.isdigit()) or int(partition) >= PARTITIONS_MAX:
            return  # somebody else's message
        # Also where nothing is known yet: a look that began before this change would hide it otherwise.
        known = self.sequences.get(int(partition), 0)
        self.sequences[int(partition)] = max(known, int(sequence))
        self._on_change()

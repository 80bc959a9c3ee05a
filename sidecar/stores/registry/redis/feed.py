"""The subscription to pushed changes, and the latest sequence of each partition."""

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
"""A dead subscription is detected within twice this time."""

QUESTION = b"?"
"""The message with which a bootstrap asks whether any sidecar follows a registry in this store."""


class Feed:
    """
    Follows the channel of changes.

    `sequences` holds the latest known sequence of each partition; it is valid only while `is_live`.
    `on_change` is called after each change and when the subscription starts or ends.
    """

    def __init__(self, nodes: Nodes, channel: str, on_change: Callable[[], None]) -> None:
        """Connect only at `start`."""
        connector = nodes.connector
        self._connector = Connector(connector.url, connector.keys, connector.limits, (), PushLink)
        self._nodes = nodes
        self._channel = channel
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._link: PushLink | None = None
        nodes.on_primary_change = self._moved
        self.sequences: dict[int, int] = {}
        self.is_live = False
        self.on_question: Callable[[], None] = lambda: None
        """Called at each `QUESTION` message."""

    def start(self) -> None:
        """Start to follow; calling it again has no effect."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(), name="registry feed")

    async def close(self) -> None:
        """Close the subscription."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._connector.limits.close_timeout_s)

    def update(self, partition: int, sequence: int) -> None:
        """Record the *sequence* of *partition* that was read after the subscription started."""
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
        """Connect and follow until the connection ends."""
        link = await self._open()
        try:
            link.on_message = self._handle_message
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
        """Reconnect to *primary*, which the Sentinels name now: only it publishes valid changes."""
        self._connector.cancel_other_attempts(primary)
        if self._link is not None and self._link.address != primary:
            self._link.disconnect()

    def _set_live(self, is_live: bool) -> None:
        self.is_live = is_live
        self.sequences = {}
        self._on_change()

    def _handle_message(self, message: bytes) -> None:
        if message == QUESTION:
            self.on_question()
            return
        partition, _, rest = message.partition(b" ")
        sequence = rest.partition(b" ")[0]
        if not (partition.isdigit() and sequence.isdigit()) or int(partition) >= PARTITIONS_MAX:
            return  # another program's message
        # Also if the sequence is not known yet: otherwise a read that began earlier would hide this change.
        known = self.sequences.get(int(partition), 0)
        self.sequences[int(partition)] = max(known, int(sequence))
        self._on_change()

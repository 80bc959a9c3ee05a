"""
Which sidecars live: each says so every second, so that each knows by how many to share a limit.

The count matters when the store is gone: then it is the last one known. See `stores.local_share`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.connect import CONNECT_ERRORS
from sidecar.stores.redis.scripts import HEARTBEAT

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
LIFETIME_S = 5.0
"""A sidecar that was silent for so long no longer counts: four beats may be lost."""

SIDECARS_MAX = 10_000
"""More than that is a broken count; a share of less than a ten-thousandth is nothing."""


class Heartbeat:
    """
    Beats for one sidecar, and counts the fleet.

    `live_sidecars` is the last count, at least 1; `on_change(live_sidecars)` is called when it changes.
    """

    def __init__(
        self,
        store: RedisBucketStore,
        sidecar_id: str,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Beat for *sidecar_id*, which no other sidecar of the fleet has; *pause* waits between beats."""
        self.live_sidecars = 1
        self.on_change: Callable[[int], None] | None = None
        self._store = store
        self._id = sidecar_id
        self._pause = pause
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._task = asyncio.get_running_loop().create_task(self._beat_on(), name="store heartbeat")

    async def beat(self) -> bool:
        """Beat once and count; False = the store could not be asked, and the count stays."""
        try:
            count = await self._run(round(LIFETIME_S * 1e6))
        except CONNECT_ERRORS as error:
            log.debug("no heartbeat: %s", error)
            return False
        count = max(1, min(count, SIDECARS_MAX))
        if count != self.live_sidecars:
            self.live_sidecars = count
            if self.on_change is not None:
                self.on_change(count)
        return True

    async def close(self) -> None:
        """Stop, and say goodbye if the store is there, so that the others get their share at once."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._store.limits.close_timeout_s)
        with contextlib.suppress(*CONNECT_ERRORS):
            await self._run(0)

    async def _beat_on(self) -> None:
        while True:
            await self.beat()
            await self._pause(INTERVAL_S)

    async def _run(self, lifetime_us: int) -> int:
        count = await self._store.run(HEARTBEAT, 0, (self._store.keys.live_key,), (self._id, lifetime_us))
        return int(count)

"""
Heartbeats: each sidecar writes one every second and so knows how many sidecars share the limits.

The last count is used while the store is unavailable, see `stores.local_share`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from sidecar.domain.changes import SIDECAR_LIFETIME_US, SIDECARS_MAX
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.connect import CONNECT_ERRORS
from sidecar.stores.redis.scripts import HEARTBEAT

log = logging.getLogger(__name__)

INTERVAL_S = 1.0


class Heartbeat:
    """
    Writes the heartbeat of one sidecar and counts the fleet.

    Each heartbeat also updates the store's clock, which is therefore known before the first take.

    `live_sidecars` is the last count, at least 1; `on_beat(live_sidecars)` is called after each heartbeat
    that the store has answered. After an outage other sidecars may not have written their heartbeats yet, so
    the count does not fall before all had the time to.
    """

    def __init__(
        self,
        store: RedisBucketStore,
        sidecar_id: str,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Write heartbeats for *sidecar_id*, which must be unique; *pause* waits between them."""
        self.live_sidecars = 1
        self.on_beat: Callable[[int], None] | None = None
        self._store = store
        self._id = sidecar_id
        self._pause = pause
        self._clock = clock
        self._is_missed = False
        self._may_fall_at_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to write heartbeats."""
        self._task = asyncio.get_running_loop().create_task(self._beat_on(), name="store heartbeat")

    async def beat(self) -> bool:
        """Write one heartbeat and update the count; False = the store is unavailable, the count is kept."""
        try:
            count = await self._run(SIDECAR_LIFETIME_US)
        except CONNECT_ERRORS as error:
            log.debug("heartbeat failed: %s", error)
            self._is_missed = True
            return False
        now_s = self._clock()
        if self._is_missed:
            self._is_missed = False
            self._may_fall_at_s = now_s + SIDECAR_LIFETIME_US / 1e6
        least = self.live_sidecars if now_s < self._may_fall_at_s else 1
        self.live_sidecars = max(least, min(count, SIDECARS_MAX))
        if self.on_beat is not None:
            self.on_beat(self.live_sidecars)
        return True

    async def close(self) -> None:
        """Stop, and remove the heartbeat, so that the other sidecars get this sidecar's share at once."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._store.limits.close_timeout_s)
        with contextlib.suppress(*CONNECT_ERRORS):
            await self._run(0)

    async def _beat_on(self) -> None:
        while True:
            try:
                await self.beat()
            except Exception:  # keep on: without heartbeats this sidecar would not be counted
                log.exception("heartbeat failed")
            await self._pause(INTERVAL_S)

    async def _run(self, lifetime_us: int) -> int:
        space = self._store.keys
        keys, arguments = (space.live_key, space.layout_key), (self._id, lifetime_us, space.layout)
        count, now_us = await self._store.run(HEARTBEAT, 0, keys, arguments)
        self._store.update_clock(0, now_us)
        return int(count)

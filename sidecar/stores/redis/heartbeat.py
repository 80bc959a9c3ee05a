"""
Which sidecars live: each says so every second, so that each knows by how many to share a limit.

The count matters when the store is gone: then it is the last one known. See `stores.local_share`.
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
    Beats for one sidecar, and counts the fleet.

    A beat also tells the store's time, which is so known before the first take.

    `live_sidecars` is the last count, at least 1; `on_beat(live_sidecars)` is called after each beat that
    the store has answered. When it answers again after it did not, the others may not have said yet that
    they live: the count does not fall before all have had the time.
    """

    def __init__(
        self,
        store: RedisBucketStore,
        sidecar_id: str,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Beat for *sidecar_id*, which no other sidecar of the fleet has; *pause* waits between beats."""
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
        """Begin to beat."""
        self._task = asyncio.get_running_loop().create_task(self._beat_on(), name="store heartbeat")

    async def beat(self) -> bool:
        """Beat once and count; False = the store could not be asked, and the count stays."""
        try:
            count = await self._run(SIDECAR_LIFETIME_US)
        except CONNECT_ERRORS as error:
            log.debug("no heartbeat: %s", error)
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
        """Stop, and say goodbye if the store is there, so that the others get their share at once."""
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
            except Exception:  # a fault of ours: the others would count a silent sidecar out
                log.exception("no heartbeat")
            await self._pause(INTERVAL_S)

    async def _run(self, lifetime_us: int) -> int:
        space = self._store.keys
        keys, arguments = (space.live_key, space.layout_key), (self._id, lifetime_us, space.layout)
        count, now_us = await self._store.run(HEARTBEAT, 0, keys, arguments)
        self._store.learn_time(0, now_us)
        return int(count)

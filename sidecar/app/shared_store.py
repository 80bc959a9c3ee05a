"""The store that a fleet shares, as one process uses it for its buckets."""

from __future__ import annotations

import asyncio
import logging

from sidecar.app.followed_registry import OnState
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import StoreUrl

_log = logging.getLogger("sidecar.app")


class SharedStore:
    """
    The buckets of one process in the store that it shares.

    `components` are what must be ready before the process is.
    """

    def __init__(self, url: StoreUrl, metrics: Metrics, *, checks_generation: bool) -> None:
        """
        Nothing is opened before `run`.

        *checks_generation* False = the integrations are not in the store, so takes do not look whether
        their records have changed there.
        """
        self.buckets = RedisBucketStore(url, metrics, checks_generation=checks_generation)
        self.components = ("store",)
        self._url = url
        self._on_state: OnState = lambda name, is_ready, state: None
        self._was_ready = False

    async def run(self, on_state: OnState) -> None:
        """Connect, and tell *on_state* how it is, until cancelled."""
        self._on_state = on_state
        self.buckets.on_state_change = self._tell_store
        try:
            await self.buckets.start()
            self._tell_store(self.buckets.is_ready)
            await asyncio.Event().wait()
        finally:
            await self.buckets.close()

    def _tell_store(self, is_ready: bool) -> None:
        """
        Once connected the process stays ready: without the store it answers by its policy, and a fleet
        that is taken out of service as one helps nobody.
        """
        self._was_ready = self._was_ready or is_ready
        self._on_state("store", self._was_ready, "connected" if is_ready else "unreachable")
        log_event(
            _log,
            logging.INFO if is_ready else logging.WARNING,
            "store connected" if is_ready else "store unreachable",
            store=str(self._url),
        )

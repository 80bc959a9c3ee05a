"""The store that a fleet shares, as one process uses it for its buckets."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from sidecar.domain.fail_policy import FailPolicy
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.followed_registry import OnState
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.services.store_fallback import StoreFallback
from sidecar.stores.local_share import LocalShare
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.heartbeat import Heartbeat
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.urls import StoreUrl

LOOK_INTERVAL_S = 5.0
"""How often a server is asked again whether it may evict keys: that can be changed while it runs."""

CLOCK_APART_US = 1_000_000
"""A difference that is told; below half of it the episode is over, and the next is told again."""

_log = logging.getLogger("sidecar.process")


class SharedStore:
    """
    The buckets of one process in the store that it shares, and what answers while the store cannot.

    `components` are what must be ready before the process is.
    """

    def __init__(
        self,
        url: StoreUrl,
        metrics: Metrics,
        sidecar_id: str,
        *,
        checks_generation: bool,
        timeout_s: float,
        policy: FailPolicy,
        turn: LoopTurn | None = None,
    ) -> None:
        """
        Nothing is opened before `run`.

        Args:
            url: where the store is.
            metrics: what is counted.
            sidecar_id: the name of this process, which no other sidecar of the fleet has.
            checks_generation: False = the integrations are not in the store, so takes do not look whether
                their records have changed there.
            timeout_s: how long a decision waits for the store.
            policy: what answers when the store does not, for integrations without a policy of their own.
            turn: shared with the transport, see `LoopTurn`; None = with none.
        """
        limits = store_limits(timeout_s)
        self.buckets = RedisBucketStore(url, metrics, limits, checks_generation=checks_generation, turn=turn)
        local = LocalShare(wall_us=self.buckets.clock.now_us)
        self.fallback = StoreFallback(metrics, policy, local)
        self._heart = Heartbeat(self.buckets, sidecar_id)
        self._metrics = metrics
        self.components = ("store",)
        self._url = url
        self._on_state: OnState = lambda name, is_ready, state: None
        self._was_ready = False
        self._is_connected: bool | None = None
        self._is_clock_apart = False

    async def run(self, on_state: OnState) -> None:
        """Connect, and tell *on_state* how it is, until cancelled."""
        self._on_state = on_state
        self.buckets.on_state_change = self._tell_store
        self._heart.on_beat = self._beaten
        try:
            await self.buckets.start()
            self._heart.start()
            self._tell_store(self.buckets.is_ready)
            while True:
                await asyncio.sleep(LOOK_INTERVAL_S)
                await self.buckets.check_servers()
        finally:
            try:
                await self._heart.close()
            finally:  # a goodbye that times out ends as a cancellation in Python 3.11.0 to 3.11.3
                await self.buckets.close()

    def _beaten(self, live_sidecars: int) -> None:
        """The store has answered: so many share a limit. What was used without the store fades."""
        local = self.fallback.local
        local.live_sidecars = live_sidecars
        self._metrics.set("sidecar_store_live_sidecars", to=live_sidecars)
        if self.buckets.is_ready:
            local.forget_unused()
        self._compare_clocks()

    def _compare_clocks(self) -> None:
        """Tell by how much the store's clock, by which credentials expire, differs from this machine's."""
        difference_us = self.buckets.clock.difference_us
        self._metrics.set("sidecar_store_clock_difference_seconds", to=round(difference_us / 1e6))
        if self._is_clock_apart:
            self._is_clock_apart = abs(difference_us) >= CLOCK_APART_US // 2
            return
        self._is_clock_apart = abs(difference_us) >= CLOCK_APART_US
        if self._is_clock_apart:
            log_event(
                _log,
                logging.WARNING,
                "clock differs from the store's: credentials and raised limits end by the store's clock;"
                " set both by NTP",
                store=str(self._url),
                store_ahead_s=round(difference_us / 1e6, 1),
            )

    def _tell_store(self, is_ready: bool) -> None:
        """
        Once connected the process stays ready: without the store it answers by its policy, and a fleet
        that is taken out of service as one helps nobody.
        """
        is_news, self._is_connected = is_ready is not self._is_connected, is_ready
        self._was_ready = self._was_ready or is_ready
        trouble = self.buckets.trouble
        if is_ready:
            state = f"connected, but {trouble}" if trouble else "connected"
        else:
            state = f"{self._url} cannot be used: {trouble or 'not connected'}"
        self._on_state("store", self._was_ready, state)
        if not is_news:
            return
        log_event(
            _log,
            logging.INFO if is_ready else logging.WARNING,
            "store connected" if is_ready else "store unreachable",
            store=str(self._url),
            **({"problem": trouble} if trouble else {}),
        )


def store_limits(timeout_s: float) -> StoreLimits:
    """
    The bounds of the store for decisions that wait *timeout_s* for it.

    Whoever gives the store more time does not want a node to count as failed before, nor the connection to
    be given up. Less time changes nothing: a late reply is no failed node.
    """
    usual = StoreLimits()
    return replace(
        usual,
        call_timeout_s=max(usual.call_timeout_s, timeout_s),
        link_timeout_s=max(usual.link_timeout_s, 2 * timeout_s),
    )

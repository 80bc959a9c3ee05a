"""The buckets of one process in the store that the fleet shares."""

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

EVICTION_CHECK_INTERVAL_S = 5.0
"""How often the servers' eviction policy is checked, as it can change while they run."""

CLOCK_DIFFERENCE_MAX_US = 1_000_000
"""A larger difference is logged once; it is logged again after it was below half of this."""

_log = logging.getLogger("sidecar.process")


class SharedStore:
    """
    The buckets of one process in the shared store, with the fallback for while the store is unavailable.

    `components` are the readiness components that the store adds; `heartbeat` reports this sidecar as live.
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
        Open nothing before `run`.

        Args:
            url: of the store.
            metrics: where to count.
            sidecar_id: unique name of this process in the fleet.
            checks_generation: False = the integrations are not in the store, so takes do not check whether
                their records have changed.
            timeout_s: how long a decision waits for the store.
            policy: the decision without the store, for integrations without their own policy.
            turn: shared with the transport, see `LoopTurn`; None = not shared.
        """
        limits = store_limits(timeout_s)
        self.buckets = RedisBucketStore(url, metrics, limits, checks_generation=checks_generation, turn=turn)
        local = LocalShare(wall_us=self.buckets.clock.now_us)
        self.fallback = StoreFallback(metrics, policy, local)
        self.heartbeat = Heartbeat(self.buckets, sidecar_id)
        self._metrics = metrics
        self.components = ("store",)
        self._url = url
        self._on_state: OnState = lambda name, is_ready, state: None
        self._was_ready = False
        self._is_connected: bool | None = None
        self._does_clock_differ = False

    async def run(self, on_state: OnState) -> None:
        """Keep the store connected until cancelled; call *on_state* at each change of its state."""
        self._on_state = on_state
        self.buckets.on_state_change = self._report_state
        self.heartbeat.on_beat = self.on_heartbeat
        try:
            await self.buckets.start()
            self.heartbeat.start()
            self._report_state(self.buckets.is_ready)
            while True:
                await asyncio.sleep(EVICTION_CHECK_INTERVAL_S)
                await self.buckets.check_servers()
        finally:
            try:
                await self.heartbeat.close()
            finally:  # in Python 3.11.0 to 3.11.3 a timeout in `close` is raised as a cancellation
                await self.buckets.close()

    def on_heartbeat(self, live_sidecars: int) -> None:
        """Update the number of live sidecars that share a limit, after each answered heartbeat."""
        local = self.fallback.local
        local.live_sidecars = live_sidecars
        self._metrics.set("sidecar_store_live_sidecars", to=live_sidecars)
        if self.buckets.is_ready:
            local.forget_unused()
        self._compare_clocks()

    def _compare_clocks(self) -> None:
        """Report the difference between this machine's clock and the store's, by which credentials expire."""
        difference_us = self.buckets.clock.difference_us
        self._metrics.set("sidecar_store_clock_difference_seconds", to=round(difference_us / 1e6))
        if self._does_clock_differ:
            self._does_clock_differ = abs(difference_us) >= CLOCK_DIFFERENCE_MAX_US // 2
            return
        self._does_clock_differ = abs(difference_us) >= CLOCK_DIFFERENCE_MAX_US
        if self._does_clock_differ:
            log_event(
                _log,
                logging.WARNING,
                "clock differs from the store's, by which credentials and raised limits expire: synchronize"
                " both by NTP",
                store=str(self._url),
                store_ahead_s=round(difference_us / 1e6, 1),
            )

    def _report_state(self, is_ready: bool) -> None:
        """
        Report and log the store's state.

        After the first connection the process stays ready: while the store is down it answers by its policy,
        and all sidecars going out of service at once would help nobody.
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
    The store's timeouts for decisions that wait *timeout_s* for it.

    A longer *timeout_s* also extends the times after which a node counts as failed and a connection is
    closed. A shorter one changes nothing, because a late reply does not mean a failed node.
    """
    usual = StoreLimits()
    return replace(
        usual,
        call_timeout_s=max(usual.call_timeout_s, timeout_s),
        link_timeout_s=max(usual.link_timeout_s, 2 * timeout_s),
    )

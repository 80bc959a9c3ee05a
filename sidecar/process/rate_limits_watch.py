"""Keeps the rate limits in force up to date with their files."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.file_watch import POLL_INTERVAL_S, FileWatch
from sidecar.process.followed_registry import OnState
from sidecar.process.rate_limits_source import LoadedRateLimits, RateLimitsSource
from sidecar.services.rate_limiter import RateLimiter
from sidecar.sources.file_faults import FileFaultsError

COMPONENT = "rate_limits"

_log = logging.getLogger("sidecar.rate_limits")


class RateLimitsWatch(FileWatch[LoadedRateLimits]):
    """Puts new rules into force when the rate-limit files change; calls `on_state` when they are rejected."""

    def __init__(self, source: RateLimitsSource, limiter: RateLimiter, metrics: Metrics) -> None:
        """Keep *limiter* up to date with *source*; count in *metrics*."""
        super().__init__(source, COMPONENT, "rate-limit configuration", metrics, _log, POLL_INTERVAL_S)
        self._files = source
        self.limiter = limiter
        self.on_state: OnState = lambda name, is_ready, state: None

    def _loader(self, is_asked: bool) -> Callable[[], LoadedRateLimits | None]:
        return self._files.load if is_asked else self._files.poll

    def _count(self, result: str) -> None:
        self._metrics.add("sidecar_rate_limit_reloads_total", result)

    async def _put_in_force(self, loaded: LoadedRateLimits) -> None:
        self.limiter.put_in_force(loaded.limits)
        self.report(loaded)

    def _refused(self, error: FileFaultsError) -> None:
        first = str(error.faults[0])
        state = (
            f"loaded, but the files have {error.total} mistakes and the previous rules stay in force: {first}"
        )
        self.on_state(COMPONENT, True, state)

    def _read(self) -> None:
        self.on_state(COMPONENT, True, "loaded")

    def report(self, loaded: LoadedRateLimits) -> None:
        """Log the rate limits in force and their warnings."""
        domains = loaded.limits.domains
        log_event(
            _log,
            logging.INFO,
            "rate limits in force",
            file=self._files.file,
            domains=len(domains),
            rules=sum(1 for domain in domains.values() for _ in domain.rules()),
            took_ms=round(loaded.took_s * 1_000),
        )
        for warning in loaded.warnings:
            log_event(_log, logging.WARNING, "rate limits warning", at=str(warning))

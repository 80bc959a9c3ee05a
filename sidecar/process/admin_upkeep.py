"""
What the process of the admin API does beside its calls: it writes when administrators' tokens were last used,
and warns before the last token of an administrator ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from sidecar.domain.accounts import live_admin_tokens
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.services.admin.notices import expiry_notices
from sidecar.stores.registry.protocol import Registry, RegistryError
from sidecar.stores.registry.uses import TokenUses

FLUSH_INTERVAL_S = 5.0
LOOK_INTERVAL_S = 60.0
WARN_INTERVAL_S = 24 * 3_600.0
LAST_FLUSH_TIMEOUT_S = 2.0

_log = logging.getLogger("sidecar.admin")


class AdminUpkeep:
    """Keeps one registry told of token uses, and watches its administrators' tokens."""

    def __init__(
        self, registry: Registry, token_uses: TokenUses, metrics: Metrics, clock_us: Callable[[], int]
    ) -> None:
        """Write *token_uses* to *registry*; nothing is asked before `run`."""
        self._registry = registry
        self._token_uses = token_uses
        self._metrics = metrics
        self._clock_us = clock_us
        self._warned_at_s: float | None = None
        self._warned_code = ""

    async def run(self) -> None:
        """Work until cancelled; what fails is tried again at the next turn."""
        look_at_s = 0.0
        while True:
            try:
                if monotonic() >= look_at_s:
                    await self.look()
                    look_at_s = monotonic() + LOOK_INTERVAL_S
                await self._token_uses.flush(self._registry)
            except RegistryError as error:
                log_event(_log, logging.DEBUG, "administrators cannot be looked at now", problem=str(error))
            except Exception:  # a fault of ours must not end the warnings for good
                _log.exception("looking after administrators failed")
            await asyncio.sleep(FLUSH_INTERVAL_S)

    async def end(self) -> None:
        """Write what is left, within a bound; what does not get through is lost."""
        try:
            async with asyncio.timeout(LAST_FLUSH_TIMEOUT_S):
                await self._token_uses.flush(self._registry)
        except (TimeoutError, RegistryError) as error:
            log_event(
                _log,
                logging.WARNING,
                "last uses of administrators' tokens not written",
                tokens=len(self._token_uses),
                problem=str(error) or "not in time",
            )

    async def look(self) -> None:
        """
        Tell metrics who can administer and until when; warn once a day when that ends soon.

        Raises:
            RegistryError: the registry cannot tell.
        """
        accounts, now_us = await self._registry.administrators(), self._clock_us()
        live = live_admin_tokens(accounts, now_us)
        ends_at_us = live[-1][1].expires_at_us if live else 0
        self._metrics.set("sidecar_admin_live_administrators", to=len({account.id for account, _ in live}))
        self._metrics.set("sidecar_admin_access_ends_timestamp_seconds", to=ends_at_us // 1_000_000)
        notices = expiry_notices(accounts, now_us)
        for notice in notices:
            self._warn(notice.code, notice.message)
        if not notices:
            self._warned_at_s, self._warned_code = None, ""

    def _warn(self, code: str, message: str) -> None:
        now_s = monotonic()
        is_new = code != self._warned_code or self._warned_at_s is None
        if is_new or now_s - (self._warned_at_s or 0.0) >= WARN_INTERVAL_S:
            self._warned_at_s, self._warned_code = now_s, code
            log_event(_log, logging.WARNING, "administrators lose access soon", code=code, problem=message)

"""The admin API of a supervisor, with its own connection to the registry that the workers follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING

from sidecar.domain.accounts import live_admin_tokens
from sidecar.domain.changes import Position
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.admin_http import AdminApp
from sidecar.process.config import Config
from sidecar.process.control_plane import build_admin_api, registry_of
from sidecar.process.expiries import count_expiring
from sidecar.process.followed_registry import close_registry
from sidecar.services.admin.notices import expiry_notices
from sidecar.stores.registry.protocol import Registry, RegistryError
from sidecar.stores.registry.uses import TokenUses

if TYPE_CHECKING:
    from sidecar.services.admin.decision_log import DecisionLog


class SupervisedAdminApi:
    """Serves the admin API through an `AdminApp`; a new configuration replaces the registry."""

    def __init__(
        self, app: AdminApp, metrics: Metrics, put_in_force: Callable[[Position], Awaitable[bool]]
    ) -> None:
        """
        Serve through *app* and count in *metrics*; nothing is served before `open`.

        *put_in_force* waits until all workers decide by a change; False = not in time.
        """
        self._app = app
        self._put_in_force = put_in_force
        self._metrics = metrics
        self._served: _ServedRegistry | None = None

    async def open(self, config: Config) -> None:
        """
        Serve the registry of *config*, if administrators can change it, instead of the previous one.

        Raises:
            FileFaultsError: the registry or the key file for webhook secrets cannot be used; the previous
                registry is served on.
        """
        previous, served = self._served, None
        if config.serves_admin_api:
            registry, token_uses = await registry_of(config), TokenUses()
            log = decision_log_of(config)
            try:
                api = build_admin_api(config, registry, self._metrics, self._put_in_force, token_uses, log)
            except BaseException:
                await close_registry(registry)
                raise
            self._app.api = api
            jobs = AdminJobs(registry, token_uses, self._metrics, registry.now_us)
            served = _ServedRegistry(registry, jobs, log)
        else:
            self._app.api = None
        self._served = served
        if previous is not None:
            await previous.close()

    async def close(self) -> None:
        """Close the registry."""
        self._app.api = None
        previous, self._served = self._served, None
        if previous is not None:
            await previous.close()


class _ServedRegistry:
    """A registry that the API serves, with its background jobs and the decision log."""

    def __init__(self, registry: Registry, jobs: AdminJobs, log: DecisionLog | None) -> None:
        self._registry = registry
        self._log = log
        self._jobs = jobs
        self._task = asyncio.create_task(jobs.run())

    async def close(self) -> None:
        """End queries of the log, write unwritten token uses, and close the registry."""
        if self._log is not None:
            self._log.close()
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self._jobs.end()
        await close_registry(self._registry)


def decision_log_of(config: Config) -> DecisionLog | None:
    """Return the decision log that *config* writes, to answer from; None = there are no files."""
    path = config.settings.decision_log.path
    if path is None:
        return None
    from sidecar.services.admin.decision_log import DecisionLog

    return DecisionLog(config.path(path))


FLUSH_INTERVAL_S = 5.0
CHECK_INTERVAL_S = 60.0
WARN_INTERVAL_S = 24 * 3_600.0
LAST_FLUSH_TIMEOUT_S = 2.0

_log = logging.getLogger("sidecar.admin")


class AdminJobs:
    """
    The background jobs of the admin API.

    They write when administrators' tokens were last used, and warn before an administrator's last token
    expires.
    """

    def __init__(
        self, registry: Registry, token_uses: TokenUses, metrics: Metrics, clock_us: Callable[[], int]
    ) -> None:
        """Write *token_uses* to *registry*; nothing is read or written before `run`."""
        self._registry = registry
        self._token_uses = token_uses
        self._metrics = metrics
        self._clock_us = clock_us
        self._warned_at_s: float | None = None
        self._warned_code = ""

    async def run(self) -> None:
        """Run the jobs until cancelled; a failed job runs again at the next turn."""
        next_check_s = 0.0
        while True:
            try:
                if monotonic() >= next_check_s:
                    await self.check_tokens()
                    next_check_s = monotonic() + CHECK_INTERVAL_S
                await self._token_uses.flush(self._registry)
            except RegistryError as error:
                log_event(
                    _log, logging.DEBUG, "administrators' tokens not checked; retrying", problem=str(error)
                )
            except Exception:  # a bug must not end the warnings
                _log.exception("checking administrators' tokens failed")
            await asyncio.sleep(FLUSH_INTERVAL_S)

    async def end(self) -> None:
        """Write the unwritten token uses within `LAST_FLUSH_TIMEOUT_S`; afterwards they are lost."""
        try:
            async with asyncio.timeout(LAST_FLUSH_TIMEOUT_S):
                await self._token_uses.flush(self._registry)
        except (TimeoutError, RegistryError) as error:
            log_event(
                _log,
                logging.WARNING,
                "last uses of administrators' tokens not written",
                tokens=len(self._token_uses),
                problem=str(error) or f"no answer within {LAST_FLUSH_TIMEOUT_S:g} s",
            )

    async def check_tokens(self) -> None:
        """
        Set the metrics of administrators with live tokens; warn once a day when the last token expires soon.

        Raises:
            RegistryError: the registry cannot be read.
        """

        accounts, now_us = await self._registry.administrators(), self._clock_us()
        live = live_admin_tokens(accounts, now_us)
        ends_at_us = live[-1][1].expires_at_us if live else 0
        self._metrics.set("sidecar_admin_live_administrators", to=len({account.id for account, _ in live}))
        self._metrics.set("sidecar_admin_access_ends_timestamp_seconds", to=ends_at_us // 1_000_000)
        times_us = [
            token.expires_at_us for account in accounts if account.is_active for token in account.tokens
        ]
        for within, count in count_expiring(times_us, now_us).items():
            self._metrics.set("sidecar_admin_tokens_expiring", within, to=count)
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

"""The admin API of a supervisor, with its own connection to the registry that the workers follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from sidecar.domain.accounts import live_admin_tokens
from sidecar.domain.changes import Position
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.admin_http import AdminApp
from sidecar.process.config import Config
from sidecar.process.control_plane import build_admin_api, registry_of
from sidecar.process.followed_registry import close_registry
from sidecar.services.admin.notices import expiry_notices
from sidecar.stores.registry.protocol import Registry, RegistryError
from sidecar.stores.registry.uses import TokenUses


class SupervisedAdminApi:
    """Serves the admin API under an `AdminApp`, by one configuration and then by the next."""

    def __init__(
        self, app: AdminApp, metrics: Metrics, put_in_force: Callable[[Position], Awaitable[bool]]
    ) -> None:
        """
        Serve under *app*, counting in *metrics*; nothing is served before `open`.

        *put_in_force* has the workers decide by a change; False = not all of them do in time.
        """
        self._app = app
        self._put_in_force = put_in_force
        self._metrics = metrics
        self._served: _Served | None = None

    async def open(self, config: Config) -> None:
        """
        Serve the registry of *config*, if it is one that takes changes, in place of the one before.

        Raises:
            FileFaultsError: the registry or the key file for webhook secrets cannot be used; the one before
                stays.
        """
        former, served = self._served, None
        if config.serves_admin_api:
            registry, token_uses = await registry_of(config), TokenUses()
            try:
                api = build_admin_api(config, registry, self._metrics, self._put_in_force, token_uses)
            except BaseException:
                await close_registry(registry)
                raise
            self._app.api = api
            served = _Served(registry, AdminUpkeep(registry, token_uses, self._metrics, registry.now_us))
        else:
            self._app.api = None
        self._served = served
        if former is not None:
            await former.close()

    async def close(self) -> None:
        """Close the registry."""
        self._app.api = None
        former, self._served = self._served, None
        if former is not None:
            await former.close()


class _Served:
    """A registry that the API serves, and what is done beside the calls."""

    def __init__(self, registry: Registry, upkeep: AdminUpkeep) -> None:
        self._registry = registry
        self._upkeep = upkeep
        self._running = asyncio.create_task(upkeep.run())

    async def close(self) -> None:
        """Write what is left, and close the registry."""
        self._running.cancel()
        await asyncio.wait((self._running,))
        await self._upkeep.end()
        await close_registry(self._registry)


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

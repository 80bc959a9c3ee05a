"""The admin API of a supervisor: with a connection of its own to the registry that its workers follow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sidecar.domain.changes import Position
from sidecar.observe.metrics import Metrics
from sidecar.process.admin_http import AdminApp
from sidecar.process.admin_upkeep import AdminUpkeep
from sidecar.process.config import Config
from sidecar.process.control_plane import build_admin_api, registry_of
from sidecar.process.followed_registry import close_registry
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.uses import TokenUses


class SupervisedControlPlane:
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

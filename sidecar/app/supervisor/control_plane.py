"""The admin API of a supervisor: with a connection of its own to the registry that its workers follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sidecar.app.admin_http import AdminApp
from sidecar.app.config import Config
from sidecar.app.control_plane import build_admin_api, registry_of
from sidecar.app.followed_registry import close_registry
from sidecar.domain.changes import Position
from sidecar.observe.metrics import Metrics
from sidecar.stores.registry.protocol import Registry


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
        self._registry: Registry | None = None

    async def open(self, config: Config) -> None:
        """
        Serve the registry of *config*, if it is one that takes changes, in place of the one before.

        Raises:
            FileFaultsError: the registry or the key file for webhook secrets cannot be used; the one before
                stays.
        """
        former, registry = self._registry, None
        if config.serves_admin_api:
            registry = await registry_of(config)
            try:
                api = build_admin_api(config, registry, self._metrics, self._put_in_force)
            except BaseException:
                await close_registry(registry)
                raise
            self._app.api = api
        else:
            self._app.api = None
        self._registry = registry
        if former is not None:
            await close_registry(former)

    async def close(self) -> None:
        """Let go of the registry."""
        self._app.api = None
        former, self._registry = self._registry, None
        if former is not None:
            await close_registry(former)

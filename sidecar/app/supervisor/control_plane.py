"""The admin API of a supervisor: with a connection of its own to the registry that its workers follow."""

from __future__ import annotations

from sidecar.app.admin_http import AdminApp
from sidecar.app.config import Config
from sidecar.app.control_plane import build_admin_api, open_registry
from sidecar.app.followed_registry import close_registry
from sidecar.domain.changes import Position
from sidecar.observe.metrics import Metrics
from sidecar.stores.registry.protocol import Registry


class SupervisedControlPlane:
    """Serves the admin API under an `AdminApp`, by one configuration and then by the next."""

    def __init__(self, app: AdminApp, metrics: Metrics) -> None:
        """Serve under *app*, counting in *metrics*; nothing is served before `open`."""
        self._app = app
        self._metrics = metrics
        self._registry: Registry | None = None

    async def open(self, config: Config) -> None:
        """
        Serve the registry of *config*, if it is one that takes changes, in place of the one before.

        Raises:
            FileFaultsError: the key file for webhook secrets cannot be used; the one before stays.
        """
        former, registry = self._registry, None
        if config.has_control_plane and config.settings.listen.admin:
            registry = await open_registry(config)
            try:
                api = build_admin_api(config, registry, self._metrics, _decides_nothing)
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


async def _decides_nothing(position: Position) -> bool:
    """A change is at once in force in this process, which decides nothing; workers follow by themselves."""
    return True

"""
The control plane: which registry a configuration has that administrators can change, and opening it.

There are two: the SQLite file that `registry: sqlite:PATH` names, beside the embedded store, and the
registry in the store that a fleet shares. A YAML file is a registry, too, but one that its owner edits.
"""

from __future__ import annotations

from sidecar.app.config import Config
from sidecar.app.rules import build_rules
from sidecar.app.settings import SQLITE_REGISTRY
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.stores.file_faults import FaultList
from sidecar.stores.registry.protocol import Registry

NO_CONTROL_PLANE = (
    f"administrators can change nothing here: set 'registry: {SQLITE_REGISTRY}registry.sqlite', or a shared"
    " 'store:' without 'registry', and restart"
)


def put_registry_faults(config: Config, faults: FaultList) -> None:
    """Note in *faults* when store and registry of *config* do not go together."""
    if config.registry_database is None or config.settings.shared_store is None:
        return
    faults.put(
        config.fault(
            ("registry",),
            "the store is shared, and a SQLite file is not: other sidecars would not see its changes; leave"
            " 'registry' out, so that the integrations are in the store, or write 'store: embedded:'",
        )
    )


async def open_registry(config: Config) -> Registry:
    """
    Open the registry of *config* that administrators can change; the caller closes it (`aclose`).

    Raises:
        FileFaultsError: there is none, or the configuration holds mistakes.
        RegistryError: the SQLite file cannot be used. A shared store is first asked with the first call.
    """
    faults = FaultList(config.tree.file)
    put_registry_faults(config, faults)
    if not config.has_control_plane:
        faults.put(config.fault(("registry",), _no_control_plane(config)))
    faults.raise_any()
    lifecycle = Lifecycle(build_rules(config).catalogue)
    if config.registry_database is not None:
        from sidecar.stores.registry.sqlite.registry import SqliteRegistry

        return await SqliteRegistry.open(config.registry_database, lifecycle)
    from sidecar.stores.registry.redis.registry import RedisRegistry

    assert config.settings.shared_store is not None
    return RedisRegistry(config.settings.shared_store, lifecycle)


def _no_control_plane(config: Config) -> str:
    """Why administrators can change nothing, and what to do."""
    if config.registry_path is not None:
        return f"is the file {config.registry_path}, which is changed by editing it; {NO_CONTROL_PLANE}"
    return f"is not set; {NO_CONTROL_PLANE}"

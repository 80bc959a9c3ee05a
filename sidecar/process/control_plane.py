"""
The control plane: opens the registry that administrators can change, and builds the admin API.

This registry is the SQLite file of `registry: sqlite:PATH`, with an embedded store, or part of the shared
store of a fleet. A registry in a YAML file is changed by editing it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.domain.changes import Position
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.observe.metrics import Metrics
from sidecar.process.config import Config
from sidecar.process.config_checks import NO_CONTROL_PLANE, check_registry_settings
from sidecar.process.rules import build_rules
from sidecar.sources.file_faults import FaultList
from sidecar.stores.registry.protocol import Registry, RegistryError
from sidecar.stores.registry.uses import TokenUses

if TYPE_CHECKING:
    from sidecar.process.followed_registry import FollowedRegistry
    from sidecar.process.sealing import KeySealer
    from sidecar.services.admin.decision_log import DecisionLog
    from sidecar.stores.redis.bucket_store import RedisBucketStore
    from sidecar.transports.http1.asgi import AsgiApp


def key_path_of(config: Config) -> Path | None:
    """The file of keys that encrypt webhook secrets: the configured one, or the one beside the registry."""
    configured, database = config.webhook_key_path, config.registry_database
    if configured is not None or database is None:
        return configured
    return database.with_name(f"{database.name}.key")


def sealer_of(config: Config) -> KeySealer | None:
    """
    The sealer for the webhook secrets of *config*; None = no key file is configured.

    With a SQLite registry the first start creates a key file, '<registry>.key'. All sidecars of a fleet need
    the same keys, so with a shared store the key file must be configured.

    Raises:
        FileFaultsError: the key file cannot be used.
    """
    path = key_path_of(config)
    if path is None:
        return None
    from sidecar.process.sealing import SealError, read_keys, read_or_make_keys

    try:
        return read_keys(path) if config.webhook_key_path is not None else read_or_make_keys(path)
    except SealError as error:
        faults = FaultList(config.tree.file)
        faults.is_unreadable = isinstance(error.__cause__, OSError)
        faults.put(config.fault(("webhook_secret_key_file",), str(error)))
        raise faults.error() from None


def build_admin_api(
    config: Config,
    registry: Registry,
    metrics: Metrics,
    put_in_force: Callable[[Position], Awaitable[bool]],
    token_uses: TokenUses,
    decision_log: DecisionLog | None = None,
) -> AsgiApp:
    """
    Build the admin API of *registry*, configured by *config*; it records its callers in *token_uses*.

    *decision_log* None = there is none to answer from.

    Raises:
        FileFaultsError: the key file for webhook secrets cannot be used.
    """
    from sidecar.services.admin.api import build_api
    from sidecar.services.admin.context import AdminContext

    rules = build_rules(config)
    return build_api(
        AdminContext(
            registry,
            rules.catalogue,
            metrics,
            put_in_force,
            sealer_of(config),
            registry.now_us,
            token_uses=token_uses,
            policy=rules.policy,
            decision_log=decision_log,
        )
    )


async def open_registry(config: Config) -> Registry:
    """
    Open the registry of *config* that administrators can change; the caller closes it (`aclose`).

    Raises:
        FileFaultsError: the registry does not exist, or the configuration has mistakes.
        RegistryError: the SQLite file cannot be used. A shared store is not contacted before the first call.
    """
    faults = FaultList(config.tree.file)
    check_registry_settings(config, faults)
    if not config.has_control_plane:
        faults.put(config.fault(("registry",), _no_control_plane(config)))
    faults.raise_any()
    lifecycle = Lifecycle(build_rules(config).catalogue)
    if config.registry_database is not None:
        from sidecar.stores.registry.sqlite.registry import SqliteRegistry

        return await SqliteRegistry.open(config.registry_database, lifecycle)
    from sidecar.stores.registry.redis.nodes import Replication
    from sidecar.stores.registry.redis.registry import RedisRegistry

    settings, url = config.settings, config.shared_store
    assert url is not None
    replication = Replication(settings.registry_replicas_min, settings.registry_replicas_timeout_ms / 1_000)
    return RedisRegistry(url, lifecycle, replication=replication, registry_id=settings.registry_id)


def connect_store_to_registry(buckets: RedisBucketStore, followed: FollowedRegistry) -> None:
    """Let *buckets* check their records against *followed*, so that a store that lost changes is not used."""
    from sidecar.stores.registry.redis.registry import RedisRegistry

    buckets.refresh = followed.refresh
    if isinstance(followed.registry, RedisRegistry):
        buckets.check_link = followed.registry.check_link

        def on_history_lost() -> None:
            followed.invalidate()
            buckets.release_waiting()

        followed.registry.on_history_lost = on_history_lost


async def registry_of(config: Config) -> Registry:
    """
    Open the registry as `open_registry`, but report an unusable file as a mistake in *config*.

    Raises:
        FileFaultsError: the registry does not exist, its file cannot be used, or *config* has mistakes.
    """
    try:
        return await open_registry(config)
    except RegistryError as error:
        faults = FaultList(config.tree.file)
        faults.put(config.fault(("registry",), str(error)))
        raise faults.error() from error


def _no_control_plane(config: Config) -> str:
    """Why there is no admin API, and what to do."""
    if config.registry_path is not None:
        return f"is the file {config.registry_path}, which is changed by editing it; {NO_CONTROL_PLANE}"
    return f"is not set; {NO_CONTROL_PLANE}"

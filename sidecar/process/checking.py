"""
Checks a configuration as `serve` would, without running it.

Each check is the function that `serve` uses, or a variant of it that creates nothing, so that the two
commands agree. Whether a port is in use is not checked: a running sidecar uses it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sidecar.process.config import Config, load_config
from sidecar.process.config_checks import check_unshared_store
from sidecar.process.control_plane import key_path_of, sealer_of
from sidecar.process.listeners import own_endpoint, worker_endpoint
from sidecar.process.operating_system import worker_count
from sidecar.process.settings import DECIDING_KINDS, LISTEN_KINDS
from sidecar.process.wiring import LoadedConfig
from sidecar.sources.file_faults import FaultList, FileFault, FileFaultsError
from sidecar.stores.registry.protocol import RegistryError
from sidecar.transports.listeners import check_endpoint
from sidecar.transports.server import ListenError
from sidecar.transports.tls import certificate_problem, server_context


class CheckedConfig(NamedTuple):
    """A valid configuration with all files that it names, and warnings."""

    loaded: LoadedConfig
    warnings: tuple[FileFault, ...]


def check(path: Path | None) -> CheckedConfig:
    """
    Read the configuration at *path* (None = the default file) and all files that it names.

    Raises:
        FileFaultsError: any of the files holds mistakes.
    """
    config = load_config(path)
    faults = FaultList(config.tree.file)
    loaded: LoadedConfig | None = None
    try:
        loaded = LoadedConfig(config)
    except FileFaultsError as error:
        faults.extend(error)
    workers = worker_count(config.settings.workers)
    check_unshared_store(config, workers, faults)
    _check_listeners(config, workers, faults)
    _check_database(config, faults)
    _check_keys(config, faults)
    faults.raise_any()
    assert loaded is not None
    warnings = (
        *loaded.rules.warnings,
        *loaded.registry.warnings,
        *(() if loaded.rate_limits is None else loaded.rate_limits.warnings),
        *_renamed_sockets(config, workers),
    )
    return CheckedConfig(loaded, warnings)


def _check_listeners(config: Config, workers: int, faults: FaultList) -> None:
    """Add addresses that cannot be listened on, and TLS files that cannot be used."""
    for kind in LISTEN_KINDS:
        for index, item in enumerate(getattr(config.settings.listen, kind)):
            try:
                # A worker's socket has a longer path than the configured one.
                check_endpoint(own_endpoint(kind, item.address, workers - 1, workers))
            except ListenError as error:
                faults.put(config.fault(("listen", kind, index), str(error)))
            files = config.tls_files(kind, index)
            if files is None:
                continue
            try:
                server_context(files)
                problem = certificate_problem(files.certificate.read_bytes(), datetime.now(UTC))
            except ListenError as error:
                problem = str(error)
            else:
                problem = problem and f"the certificate {files.certificate} {problem}"
            if problem:
                faults.put(config.fault(("listen", kind, index, "tls"), problem))


def _check_database(config: Config, faults: FaultList) -> None:
    """Add a registry file that cannot be opened or created."""
    if config.registry_database is None:
        return
    from sidecar.stores.registry.sqlite.file import check_file

    try:
        check_file(config.registry_database)
    except RegistryError as error:
        faults.put(config.fault(("registry",), str(error)))


def _check_keys(config: Config, faults: FaultList) -> None:
    """Add a key file that cannot be used; a missing one that `serve` would create is not created here."""
    path = key_path_of(config)
    if path is None:
        return
    if config.webhook_key_path is None and not path.exists():
        if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
            problem = f"the key file {path} cannot be created: this user may not write to {path.parent}"
            faults.put(config.fault(("registry",), problem))
        return
    try:
        sealer_of(config)
    except FileFaultsError as error:
        faults.extend(error)


def _renamed_sockets(config: Config, workers: int) -> list[FileFault]:
    """Warnings of Unix sockets that get other names because there are several workers."""
    if workers == 1:
        return []
    return [
        config.fault(
            ("listen", kind, index),
            f"with {workers} workers the sockets are {worker_endpoint(item.address, 0).path} to"
            f" {worker_endpoint(item.address, workers - 1).path}, one for each worker: configure all of"
            " them in the proxy",
        )
        for kind in DECIDING_KINDS
        for index, item in enumerate(getattr(config.settings.listen, kind))
        if item.address.path
    ]

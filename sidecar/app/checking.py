"""Everything of a configuration that can be checked without running it."""

from __future__ import annotations

from pathlib import Path

from sidecar.app.config import Config, load_config
from sidecar.app.control_plane import sealer_of
from sidecar.app.supervisor.cpus import worker_count
from sidecar.app.supervisor.store_rule import put_unshared_store
from sidecar.app.wiring import LoadedConfig
from sidecar.stores.file_faults import FaultList, FileFaultsError
from sidecar.transports.server import ListenError
from sidecar.transports.tls import server_context


def check(path: Path | None) -> LoadedConfig:
    """
    Read the configuration at *path* (None = the default one) and all that it names.

    Raises:
        FileFaultsError: there are mistakes, in whichever of the files.
    """
    config = load_config(path)
    faults = FaultList(config.tree.file)
    loaded: LoadedConfig | None = None
    try:
        loaded = LoadedConfig(config)
    except FileFaultsError as error:
        faults.extend(error)
    _check_tls(config, faults)
    _check_keys(config, faults)
    put_unshared_store(config, worker_count(config.settings.workers), faults)
    faults.raise_any()
    assert loaded is not None
    return loaded


def _check_keys(config: Config, faults: FaultList) -> None:
    """Read the key file that *config* names; one that `serve` makes by itself is not made here."""
    if config.webhook_key_path is None:
        return
    try:
        sealer_of(config)
    except FileFaultsError as error:
        faults.extend(error)


def _check_tls(config: Config, faults: FaultList) -> None:
    for kind in ("grpc", "admin", "metrics"):
        for index in range(len(getattr(config.settings.listen, kind))):
            files = config.tls_files(kind, index)
            if files is None:
                continue
            try:
                server_context(files)
            except ListenError as error:
                faults.put(config.fault(("listen", kind, index, "tls"), str(error)))

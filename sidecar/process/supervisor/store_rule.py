"""Several workers need a store that they share."""

from __future__ import annotations

from sidecar.process.config import Config
from sidecar.sources.file_faults import FaultList

UNSHARED_SCHEMES = frozenset({"embedded"})


def is_shared(config: Config) -> bool:
    """Whether workers of *config* share its store, so that another worker has the same buckets."""
    return config.settings.store.partition(":")[0] not in UNSHARED_SCHEMES


def check_unshared_store(config: Config, count: int, faults: FaultList) -> None:
    """Note in *faults* when each of *count* workers would have the store of *config* for itself."""
    scheme = config.settings.store.partition(":")[0]
    if count == 1 or is_shared(config):
        return
    meant = (
        f"'auto' is {count} workers here, and they"
        if config.settings.workers == "auto"
        else f"{count} workers"
    )
    faults.put(
        config.fault(
            ("workers",),
            f"{meant} would each have buckets of their own in 'store: {scheme}:', so every limit would be"
            f" {count} times as high; write 'workers: 1', or name a store that they share",
        )
    )


def refuse_unshared_store(config: Config, count: int) -> None:
    """
    Refuse *count* workers on a store that each of them would have for itself.

    Raises:
        FileFaultsError: *config* names such a store.
    """
    faults = FaultList(config.tree.file)
    check_unshared_store(config, count, faults)
    faults.raise_any()

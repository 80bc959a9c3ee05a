"""Checks of settings that are valid alone but not together, before anything starts."""

from __future__ import annotations

from importlib.util import find_spec

from sidecar.domain.cidr import AddressError, is_loopback, parse_address
from sidecar.process.config import Config
from sidecar.process.settings import LISTEN_KINDS, SQLITE_REGISTRY
from sidecar.sources.file_faults import FaultList
from sidecar.transports.server import Endpoint

UNSHARED_SCHEMES = frozenset({"embedded"})

NO_CONTROL_PLANE = (
    f"for an admin API set 'registry: {SQLITE_REGISTRY}registry.sqlite', or a shared 'store:' without"
    " 'registry', and restart"
)


def check_registry_settings(config: Config, faults: FaultList) -> None:
    """Add to *faults* a combination of store and registry in *config* that cannot work."""
    has_shared_registry = config.shared_store is not None and config.has_control_plane
    if config.settings.registry_id and not has_shared_registry:
        faults.put(
            config.fault(
                ("registry_id",),
                "names a registry in a shared store, but none is configured: remove it, or set a shared"
                " 'store' and no 'registry'",
            )
        )
    if config.registry_database is None or config.shared_store is None:
        return
    faults.put(
        config.fault(
            ("registry",),
            "the store is shared, but other sidecars do not see changes in a SQLite file; remove 'registry'"
            " to keep the integrations in the store, or set 'store: embedded:'",
        )
    )


def check_open_admin(config: Config, faults: FaultList) -> None:
    """Add to *faults* each address of `listen.admin` that would receive tokens unencrypted."""
    for index, item in enumerate(config.settings.listen.admin):
        if item.tls is None and not is_local(item.address):
            faults.put(
                config.fault(
                    ("listen", "admin", index),
                    f"{item.address} can be reached from other machines, and administrators' tokens would"
                    " cross the network unencrypted: add 'tls', or listen on 127.0.0.1 or a Unix socket; for"
                    " /metrics and probes alone move the address to 'listen.metrics', which needs no TLS",
                )
            )


def check_repeated_address(config: Config, faults: FaultList) -> None:
    """Add to *faults* each repeated address: both listeners would bind it, and each get half the calls."""
    first: dict[Endpoint, str] = {}
    for kind in LISTEN_KINDS:
        for index, item in enumerate(getattr(config.settings.listen, kind)):
            name = first.setdefault(item.address, f"listen.{kind}[{index}]")
            is_any_port = not item.address.path and item.address.port == 0
            if name != f"listen.{kind}[{index}]" and not is_any_port:
                faults.put(
                    config.fault(
                        ("listen", kind, index),
                        f"{item.address} is also the address of {name}: give each listener its own address",
                    )
                )


def check_trace_packages(config: Config, faults: FaultList) -> None:
    """Add to *faults* an endpoint for traces without the packages of OpenTelemetry."""
    if config.settings.traces.endpoint is not None and find_spec("opentelemetry") is None:
        faults.put(
            config.fault(
                ("traces", "endpoint"),
                "traces need packages that are not installed: pip install 'sidecar[traces]'",
            )
        )


def refuse_open_admin(config: Config) -> None:
    """
    Refuse an admin listener that would receive tokens unencrypted.

    Raises:
        FileFaultsError: *config* has an open listener.
    """
    faults = FaultList(config.tree.file)
    check_open_admin(config, faults)
    faults.raise_any()


def is_local(endpoint: Endpoint) -> bool:
    """
    Whether only this machine reaches *endpoint*.

    >>> is_local(Endpoint(host="127.0.0.1", port=1)), is_local(Endpoint(host="0.0.0.0", port=1))
    (True, False)
    """
    if endpoint.path or endpoint.host == "localhost":
        return True
    try:
        return is_loopback(parse_address(endpoint.host))
    except AddressError:  # a name may resolve to any address
        return False


def is_shared(config: Config) -> bool:
    """Whether all workers of *config* share the buckets of its store."""
    return config.settings.store.partition(":")[0] not in UNSHARED_SCHEMES


def check_unshared_store(config: Config, count: int, faults: FaultList) -> None:
    """Add to *faults* an embedded store with several workers: each worker would have its own buckets."""
    scheme = config.settings.store.partition(":")[0]
    if count == 1 or is_shared(config):
        return
    workers = (
        f"'auto' is {count} workers here, and they"
        if config.settings.workers == "auto"
        else f"{count} workers"
    )
    faults.put(
        config.fault(
            ("workers",),
            f"{workers} would each have their own buckets in 'store: {scheme}:', so every limit would be"
            f" {count} times as high; set 'workers: 1', or a shared store, such as 'store: redis://HOST'",
        )
    )


def refuse_unshared_store(config: Config, count: int) -> None:
    """
    Refuse *count* workers on an embedded store, which they would not share.

    Raises:
        FileFaultsError: *config* has several workers and an embedded store.
    """
    faults = FaultList(config.tree.file)
    check_unshared_store(config, count, faults)
    faults.raise_any()

"""What a configuration may not say although each setting is valid alone, found before anything starts."""

from __future__ import annotations

from sidecar.domain.cidr import AddressError, is_loopback, parse_address
from sidecar.process.config import Config
from sidecar.process.settings import LISTEN_KINDS
from sidecar.sources.file_faults import FaultList
from sidecar.transports.server import Endpoint

UNSHARED_SCHEMES = frozenset({"embedded"})


def check_open_admin(config: Config, faults: FaultList) -> None:
    """Note in *faults* each address of `listen.admin` that a token would be sent to in the clear."""
    for index, item in enumerate(config.settings.listen.admin):
        if item.tls is None and not is_local(item.address):
            faults.put(
                config.fault(
                    ("listen", "admin", index),
                    f"{item.address} can be reached from other machines, and tokens of administrators would"
                    " cross the network in the clear: add 'tls', or listen on 127.0.0.1 or a Unix socket; for"
                    " /metrics and probes alone put the address under 'listen.metrics', which needs no TLS",
                )
            )


def put_repeated_address(config: Config, faults: FaultList) -> None:
    """Note in *faults* each address that is given twice: both would bind, and each get half the calls."""
    first: dict[Endpoint, str] = {}
    for kind in LISTEN_KINDS:
        for index, item in enumerate(getattr(config.settings.listen, kind)):
            name = first.setdefault(item.address, f"listen.{kind}[{index}]")
            is_any_port = not item.address.path and item.address.port == 0
            if name != f"listen.{kind}[{index}]" and not is_any_port:
                faults.put(
                    config.fault(
                        ("listen", kind, index),
                        f"{item.address} is also the address of {name}: give each its own",
                    )
                )


def refuse_open_admin(config: Config) -> None:
    """
    Refuse an admin listener that a token would be sent to in the clear.

    Raises:
        FileFaultsError: *config* has one.
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
    except AddressError:  # a name may lead anywhere, and tomorrow elsewhere
        return False


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

"""The admin listener takes tokens of administrators: it is closed to networks unless TLS is on."""

from __future__ import annotations

from sidecar.domain.cidr import AddressError, is_loopback, parse_address
from sidecar.process.config import Config
from sidecar.sources.file_faults import FaultList
from sidecar.transports.server import Endpoint


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
    for kind in ("grpc", "admin", "metrics"):
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

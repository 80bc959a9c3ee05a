"""
The listeners of a process, for every protocol: their endpoints, start, TLS reload and drain.

A kind of listener is a key of `listen`. `settings` says which kinds decide, `wiring` which server each kind
has; reports, take-over, reload and drain treat all kinds alike.

Workers share TCP ports by SO_REUSEPORT (socket(7)), and the kernel spreads connections over them; each worker
has its own Unix sockets. The supervisor binds each port without listening: it gets no connections, but port 0
in the configuration becomes the same port for all workers, including those started later.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TypeAlias

from sidecar.process.config import Config
from sidecar.process.settings import DECIDING_KINDS, LISTEN_KINDS
from sidecar.transports.listeners import is_served, listen_error, parse_endpoint
from sidecar.transports.server import Endpoint, ListeningServer

Served: TypeAlias = Mapping[str, tuple[Endpoint, ...]]
"""The served endpoints with their real ports, by kind of listener."""


class Listeners:
    """The servers of one process, one for each kind of listener that has an address."""

    def __init__(self, config: Config, servers: Mapping[str, ListeningServer]) -> None:
        """Serve with *servers*, by kind; bind nothing before `start`."""
        self._servers = {kind: server for kind, server in servers.items() if endpoints(config, kind)}
        self._served: dict[str, tuple[Endpoint, ...]] = {}

    @property
    def served(self) -> Served:
        """The endpoints of each kind that are served now."""
        return {kind: self._served.get(kind, ()) for kind in LISTEN_KINDS}

    async def start(self, kinds: Iterable[str] = LISTEN_KINDS) -> None:
        """
        Bind the endpoints of *kinds* that are not served yet, and accept; deciding kinds come last.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used.
        """
        for kind in sorted(kinds, key=DECIDING_KINDS.__contains__):
            if kind in self._servers and kind not in self._served:
                self._served[kind] = await self._servers[kind].start()

    def reload_tls(self) -> None:
        """Load all TLS files again; log unusable files and keep the previous ones."""
        for server in self._servers.values():
            server.reload_tls()

    async def drain(self, timeout_s: float, kinds: Iterable[str] = LISTEN_KINDS) -> bool:
        """Drain the listeners of *kinds* within *timeout_s*; False = unfinished calls were aborted."""
        started = [kind for kind in kinds if self._served.pop(kind, None) is not None]
        return all(await asyncio.gather(*(self._servers[kind].drain(timeout_s) for kind in started)))


def endpoints(config: Config, kind: str) -> tuple[Endpoint, ...]:
    """
    The endpoints of `listen.<kind>`, with their TLS files.

    Sidecars with a shared store may share an address. With embedded buckets two sidecars would admit twice
    the limits, so an endpoint is then exclusive, except during a take-over.
    """
    is_exclusive = config.shared_store is None and not config.takes_over
    return tuple(
        replace(item.address, tls=config.tls_files(kind, index), is_exclusive=is_exclusive)
        for index, item in enumerate(getattr(config.settings.listen, kind))
    )


def texts_of(served: Served) -> dict[str, list[str]]:
    """The addresses of each kind, as text."""
    return {kind: list(map(str, each)) for kind, each in served.items()}


def read_served(texts: Mapping[str, Iterable[str]]) -> Served:
    """Parse the addresses that `texts_of` returned."""
    return {kind: tuple(map(parse_endpoint, each)) for kind, each in texts.items()}


def deciding_kinds(config: Config) -> tuple[str, ...]:
    """The deciding kinds that have an address in *config*."""
    return tuple(kind for kind in DECIDING_KINDS if endpoints(config, kind))


def replaces_another(config: Config, workers: int = 1) -> bool:
    """Whether another process serves an address of *config*: then be ready before listening."""
    own = (
        own_endpoint(kind, endpoint, index, workers)
        for kind in LISTEN_KINDS
        for endpoint in endpoints(config, kind)
        for index in range(workers)
    )
    return any(is_served(endpoint) for endpoint in dict.fromkeys(own) if not endpoint.is_exclusive)


def own_endpoint(kind: str, endpoint: Endpoint, index: int, workers: int) -> Endpoint:
    """The endpoint on which worker *index*, or the supervisor, serves *endpoint* of `listen.<kind>`."""
    return worker_endpoint(endpoint, index) if workers > 1 and kind in DECIDING_KINDS else endpoint


def worker_endpoint(endpoint: Endpoint, index: int) -> Endpoint:
    """
    The endpoint of worker *index* for *endpoint*: a Unix path gets the number before its last suffix.

    >>> str(worker_endpoint(Endpoint(path="/run/sidecar/grpc.sock"), 1))
    'unix:/run/sidecar/grpc.1.sock'
    >>> str(worker_endpoint(Endpoint(path="@sidecar"), 0))
    'unix:@sidecar.0'
    """
    if not endpoint.path:
        return endpoint
    path = PurePosixPath(endpoint.path)
    return replace(endpoint, path=str(path.with_name(f"{path.stem}.{index}{path.suffix}")))


class HeldPorts:
    """Reserves the TCP ports of the workers, so that no other process gets them."""

    def __init__(self) -> None:
        """Reserve no port yet."""
        self._sockets: dict[tuple[int, Endpoint], socket.socket] = {}

    def hold(self, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
        """
        Reserve ports for *endpoints* and return them with real ports; reserved ports stay.

        Raises:
            ListenError: an endpoint cannot be bound; the message names it and says what to do.
        """
        held = []
        for index, endpoint in enumerate(endpoints):
            if endpoint.path:
                held.append(endpoint)
                continue
            key = index, replace(endpoint, tls=None)
            if key not in self._sockets:
                self._sockets[key] = _bound(endpoint)
            held.append(replace(endpoint, port=self._sockets[key].getsockname()[1]))
        return tuple(held)

    def keep_only(self, endpoints: Sequence[Endpoint]) -> None:
        """Release the ports that are not among *endpoints*, the arguments of earlier calls of `hold`."""
        kept = {(index, replace(endpoint, tls=None)) for index, endpoint in enumerate(endpoints)}
        for key in [key for key in self._sockets if key not in kept]:
            self._sockets.pop(key).close()

    def close(self) -> None:
        """Release all ports."""
        self.keep_only(())


def _bound(endpoint: Endpoint) -> socket.socket:
    """Bind a socket to *endpoint* as `transports.listeners` does, without listening."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        holding = socket.socket(family, kind, protocol)
        try:
            holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                holding.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            holding.bind(address)
        except BaseException:
            holding.close()
            raise
    except OSError as error:
        raise listen_error(endpoint, error) from error
    return holding

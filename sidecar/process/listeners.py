"""
The listeners of a process, whatever protocol they speak: where they listen, from start to drain.

A kind of listener is a key of `listen`. `settings` says which kinds decide, `wiring` what serves each;
reports, take-over, reload and drain treat all kinds alike.

Several workers listen on the same TCP ports, each on Unix sockets of its own. A TCP port is shared by
SO_REUSEPORT (socket(7)); the kernel spreads connections over the workers that listen. The supervisor holds
each port with a socket that never listens: it gets no connection, but a port that was 0 in the configuration
stays the same for every worker, also for those started later.
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
"""Endpoints with their real ports, by kind of listener."""


class Listeners:
    """What one process serves: a server for each kind that has an address."""

    def __init__(self, config: Config, servers: Mapping[str, ListeningServer]) -> None:
        """Serve with *servers*, by kind; nothing is bound before `start`."""
        self._servers = {kind: server for kind, server in servers.items() if endpoints(config, kind)}
        self._served: dict[str, tuple[Endpoint, ...]] = {}

    @property
    def served(self) -> Served:
        """Where each kind is served now; kinds without an address have none."""
        return {kind: self._served.get(kind, ()) for kind in LISTEN_KINDS}

    async def start(self, kinds: Iterable[str] = LISTEN_KINDS) -> None:
        """
        Bind and accept what of *kinds* is not served yet; those that decide come last.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used.
        """
        for kind in sorted(kinds, key=DECIDING_KINDS.__contains__):
            if kind in self._servers and kind not in self._served:
                self._served[kind] = await self._servers[kind].start()

    def reload_tls(self) -> None:
        """Load all TLS files again; those that cannot be used change nothing, which is logged."""
        for server in self._servers.values():
            server.reload_tls()

    async def drain(self, timeout_s: float, kinds: Iterable[str] = LISTEN_KINDS) -> bool:
        """Stop what of *kinds* is served, within *timeout_s*; False = a call was cut off."""
        started = [kind for kind in kinds if self._served.pop(kind, None) is not None]
        return all(await asyncio.gather(*(self._servers[kind].drain(timeout_s) for kind in started)))


def endpoints(config: Config, kind: str) -> tuple[Endpoint, ...]:
    """
    The endpoints of `listen.<kind>`, with their TLS files.

    Sidecars that share a store may listen side by side. With buckets of their own they would admit the
    limits twice.
    """
    is_exclusive = config.settings.shared_store is None and not config.takes_over
    return tuple(
        replace(item.address, tls=config.tls_files(kind, index), is_exclusive=is_exclusive)
        for index, item in enumerate(getattr(config.settings.listen, kind))
    )


def texts_of(served: Served) -> dict[str, list[str]]:
    """The addresses of each kind, as a person writes them."""
    return {kind: list(map(str, each)) for kind, each in served.items()}


def read_served(texts: Mapping[str, Iterable[str]]) -> Served:
    """The endpoints that `texts_of` has written."""
    return {kind: tuple(map(parse_endpoint, each)) for kind, each in texts.items()}


def deciding_kinds(config: Config) -> tuple[str, ...]:
    """The kinds that decide and have an address in *config*."""
    return tuple(kind for kind in DECIDING_KINDS if endpoints(config, kind))


def replaces_another(config: Config, workers: int = 1) -> bool:
    """Whether another process serves an address of *config*, so that taking it over is to wait."""
    own = (
        own_endpoint(kind, endpoint, index, workers)
        for kind in LISTEN_KINDS
        for endpoint in endpoints(config, kind)
        for index in range(workers)
    )
    return any(is_served(endpoint) for endpoint in dict.fromkeys(own) if not endpoint.is_exclusive)


def own_endpoint(kind: str, endpoint: Endpoint, index: int, workers: int) -> Endpoint:
    """Where worker *index* of *workers*, or the supervisor, listens for *endpoint* of `listen.<kind>`."""
    return worker_endpoint(endpoint, index) if workers > 1 and kind in DECIDING_KINDS else endpoint


def worker_endpoint(endpoint: Endpoint, index: int) -> Endpoint:
    """
    What worker *index* listens on for *endpoint*: a Unix path gets the number before its last suffix.

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
    """The TCP ports of the workers, held so that nobody else gets them."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._sockets: dict[tuple[int, Endpoint], socket.socket] = {}

    def hold(self, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
        """
        *endpoints* with real ports; those that are held already keep theirs.

        Raises:
            ListenError: one cannot be bound; names it and says what to do.
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
        """Give up what is not among *endpoints*, as they were given to `hold`."""
        kept = {(index, replace(endpoint, tls=None)) for index, endpoint in enumerate(endpoints)}
        for key in [key for key in self._sockets if key not in kept]:
            self._sockets.pop(key).close()

    def close(self) -> None:
        """Give up all of them."""
        self.keep_only(())


def _bound(endpoint: Endpoint) -> socket.socket:
    """A socket bound to *endpoint* as `transports.listeners` binds, which does not listen."""
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

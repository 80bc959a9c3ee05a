"""
Where each of several workers listens: all on the same TCP ports, each on Unix sockets of its own.

A TCP port is shared by SO_REUSEPORT (socket(7)); the kernel spreads connections over the workers that
listen. The supervisor holds each port with a socket that never listens: it gets no connection, but a
port that was 0 in the configuration stays the same for every worker, also for those started later.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from sidecar.transports.listeners import listen_error
from sidecar.transports.server import Endpoint


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

"""What every gRPC server of ours promises, where it listens, and every limit of the wire in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """
    PEM files of a TLS listener; read again when one of them changes.

    `client_ca` set = mutual TLS: only clients with a certificate signed by it are served.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One place to listen: TCP (`host` and `port`, port 0 = any free one) or a Unix socket (`path`).

    A Unix socket is created with mode 0660; `path` starting with '@' is an abstract name.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        """As a person writes it in the configuration."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Every bound of the gRPC transports: sizes in bytes, times in seconds, rates per second."""

    message_bytes_max: int = 65_536
    header_list_bytes_max: int = 8_192  # soft: the call fails; 4 x that kills the connection
    header_fields_max: int = 64
    streams_max: int = 1_024  # advertised; see facts on Envoy's first flight
    calls_per_connection_max: int = 1_024  # running handlers
    calls_max: int = 8_192  # running handlers of the process
    connections_max: int = 4_096
    buffered_bytes_per_connection_max: int = 4 << 20
    buffered_bytes_max: int = 128 << 20
    write_buffer_bytes_max: int = 1 << 20
    handshake_timeout_s: float = 10.0
    header_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    write_timeout_s: float = 20.0
    idle_timeout_s: float = 300.0
    keepalive_interval_s: float = 7_200.0
    keepalive_timeout_s: float = 20.0
    ping_interval_min_s: float = 10.0  # what clients may do, see gRPC proposal A8
    connection_age_max_s: float = 0.0  # 0 = no limit; jittered by +-10 %
    connection_age_grace_s: float = 30.0
    drain_timeout_s: float = 10.0
    resets_burst: int = 1_000  # early ends of streams; trusted proxies reset on every timeout
    resets_per_s: int = 100


class GrpcServer(Protocol):
    """
    Serves a method table on endpoints until it is drained.

    Both implementations are built as `Server(methods, endpoints, limits, metrics)`.
    """

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their real ports.

        Raises:
            ListenError: an endpoint cannot be bound; names it and says what to do.
        """

    async def drain(self, timeout_s: float) -> bool:
        """
        Stop accepting, let running calls end, then close all; at most *timeout_s*.

        Returns:
            True when nothing had to be cut off.
        """


class ListenError(Exception):
    """An endpoint cannot be bound or its TLS files cannot be used."""

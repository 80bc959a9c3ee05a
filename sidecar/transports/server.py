"""What every gRPC server of ours promises, where it listens, and every limit of the wire in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
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

    A Unix socket is created with mode 0660; `path` starting with '@' is an abstract name. `is_exclusive` =
    binding it fails while another process listens there; otherwise both listen, or a path is taken over.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: TlsFiles | None = None
    is_exclusive: bool = field(default=False, repr=False, compare=False)

    def __str__(self) -> str:
        """As a person writes it in the configuration."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """
    Every bound of the gRPC transports: sizes in bytes, times in seconds, rates per second.

    Time-outs other than a call's own deadline are looked at every `TransportLimits.check_interval_s`,
    so they act up to that much later.
    """

    # One call.
    message_bytes_max: int = 65_536  # refused when its 5-byte prefix is complete, before buffering
    header_list_bytes_max: int = 8_192  # the call fails; 4 x that kills the connection (HPACK bombs)
    header_fields_max: int = 64  # the call fails; 2 x that kills the connection
    request_timeout_s: float = 30.0  # from the headers to the end of the request (slow uploads)
    write_timeout_s: float = 20.0  # for the peer to take an answer (window never opened, data dribble)
    stream_queue_bytes_max: int = 65_536  # of one server-streaming call that the peer does not read

    # One connection.
    streams_max: int = 1_024  # advertised; lower and Envoy's first flight is refused, see `engine`
    calls_per_connection_max: int = 1_024  # handlers that have not ended (rapid reset)
    calls_per_turn_max: int = 64  # new calls of a loop turn, which connections share; see `Core`
    buffered_bytes_per_connection_max: int = 4 << 20  # unfinished requests; also the receive window
    write_buffer_bytes_max: int = 1 << 20  # answers the peer does not read
    handshake_timeout_s: float = 10.0  # TLS; again from the preface to the SETTINGS ACK
    header_timeout_s: float = 5.0  # for one frame or header block to arrive (slow-loris)
    idle_timeout_s: float = 300.0  # without an open stream
    keepalive_interval_s: float = 7_200.0  # without a byte: then a PING of ours (gRPC proposal A9)
    keepalive_timeout_s: float = 20.0
    ping_interval_min_s: float = 10.0  # between a client's PINGs without answers (gRPC proposal A8)
    connection_age_max_s: float = 0.0  # 0 = no limit; jittered by +-10 % (gRPC proposal A9)
    connection_age_grace_s: float = 30.0
    resets_burst: int = 1_000  # streams that the client ends or spoils early; a trusted proxy resets
    resets_per_s: int = 100  # every call that times out, so for one raise both by a thousand

    # The process.
    calls_max: int = 8_192  # handlers that have not ended
    connections_max: int = 4_096
    connections_per_peer_max: int = 1_024  # of one IP address; Unix sockets are not counted
    buffered_bytes_max: int = 128 << 20
    unsent_bytes_max: int = 64 << 20  # untaken answers and open requests, 2,560 for each of their streams
    unsent_bytes_per_peer_max: int = 32 << 20  # of one IP address; Unix sockets are not counted

    @property
    def check_interval_s(self) -> float:
        """How often a connection's time-outs are looked at: a quarter second, or less for short ones."""
        shortest_s = min(
            self.request_timeout_s,
            self.write_timeout_s,
            self.handshake_timeout_s,
            self.header_timeout_s,
            self.idle_timeout_s,
            self.keepalive_interval_s,
            self.keepalive_timeout_s,
        )
        return max(0.01, min(0.25, shortest_s / 4))


class ListeningServer(Protocol):
    """Serves its endpoints, by whatever protocol, until it is drained."""

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their real ports.

        Raises:
            ListenError: an endpoint cannot be bound; names it and says what to do.
        """

    def reload_tls(self) -> bool:
        """Load all TLS files again now; False = some cannot be used and the former ones stay."""

    async def drain(self, timeout_s: float) -> bool:
        """
        Stop accepting, let running calls end, then close all; at most *timeout_s*.

        Returns:
            True when nothing had to be cut off.
        """


class ListenError(Exception):
    """An endpoint cannot be bound or its TLS files cannot be used."""

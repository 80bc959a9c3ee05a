"""The interface of all listening servers, their endpoints, and all limits of the gRPC transports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """
    PEM files of a TLS listener; reloaded when one of them changes.

    With `client_ca` (mutual TLS) only clients with a certificate from this CA are served. `listener` is the
    kind of the listener, which metrics name; '' = none of a sidecar.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    listener: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One address to listen on: TCP (`host` and `port`, 0 = any free port) or a Unix socket (`path`).

    A Unix socket has the mode 0660; a `path` that starts with '@' is an abstract name. `is_exclusive` =
    binding fails while another process listens on the endpoint; otherwise both listen, or the path is taken
    over.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: TlsFiles | None = None
    is_exclusive: bool = field(default=False, repr=False, compare=False)

    def __str__(self) -> str:
        """The form of the configuration."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """
    All limits of the gRPC transports: sizes in bytes, times in seconds, rates per second.

    Time-outs other than a call's deadline are checked every `TransportLimits.check_interval_s`, so they fire
    up to that much later.
    """

    # One call.
    message_bytes_max: int = 65_536  # refused when the 5-byte prefix is complete, before buffering
    header_list_bytes_max: int = 8_192  # the call fails; 4 times that closes the connection (HPACK bombs)
    header_fields_max: int = 64  # the call fails; 2 times that closes the connection
    request_timeout_s: float = 30.0  # from the headers to the end of the request (slow uploads)
    write_timeout_s: float = 20.0  # for the peer to read an answer (window never opened, data dribble)
    stream_queue_bytes_max: int = 65_536  # unread messages of one server-streaming call

    # One connection.
    streams_max: int = 1_024  # advertised; with fewer, Envoy's first streams are refused, see `engine`
    calls_per_connection_max: int = 1_024  # running handlers (rapid reset)
    calls_per_turn_max: int = 64  # new calls per loop turn, shared by all connections; see `Core`
    buffered_bytes_per_connection_max: int = 4 << 20  # unfinished requests; also the receive window
    write_buffer_bytes_max: int = 1 << 20  # answers that the peer does not read
    handshake_timeout_s: float = 10.0  # TLS; again from the preface to the SETTINGS ACK
    header_timeout_s: float = 5.0  # for one frame or header block to arrive (slow-loris)
    idle_timeout_s: float = 300.0  # without an open stream
    keepalive_interval_s: float = 7_200.0  # without received bytes, before our PING (gRPC proposal A9)
    keepalive_timeout_s: float = 20.0
    ping_interval_min_s: float = 10.0  # between a client's PINGs without answers (gRPC proposal A8)
    connection_age_max_s: float = 0.0  # 0 = no limit; jittered by +-10 % (gRPC proposal A9)
    connection_age_grace_s: float = 30.0
    resets_burst: int = 1_000  # streams that the client ends early or makes invalid; a trusted proxy resets
    resets_per_s: int = 100  # every call that times out, so raise both a thousandfold for one

    # The process.
    calls_max: int = 8_192  # running handlers
    connections_max: int = 4_096
    connections_per_peer_max: int = 1_024  # of one IP address; Unix sockets are not counted
    buffered_bytes_max: int = 128 << 20
    unsent_bytes_max: int = 64 << 20  # unread answers and open requests, plus 2,560 for each stream
    unsent_bytes_per_peer_max: int = 32 << 20  # of one IP address; Unix sockets are not counted

    @property
    def check_interval_s(self) -> float:
        """The interval of time-out checks: 0.25 s, or less for short time-outs."""
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
    """Serves its endpoints with any protocol until it is drained."""

    async def start(self) -> tuple[Endpoint, ...]:
        """
        Bind and accept; return the endpoints with their actual ports.

        Raises:
            ListenError: an endpoint cannot be bound; the message names it and says what to do.
        """

    def reload_tls(self) -> bool:
        """Reload all TLS files now; False = some cannot be used, and the previous ones stay in use."""

    async def drain(self, timeout_s: float) -> bool:
        """
        Stop accepting, let running calls end, then close all connections; at most *timeout_s*.

        Returns:
            True if no answer was cut off.
        """


class ListenError(Exception):
    """An endpoint cannot be bound or its TLS files cannot be used."""

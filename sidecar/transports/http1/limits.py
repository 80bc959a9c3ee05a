"""All limits of the HTTP/1.1 server: sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

FILES_SHARE = 8
"""HTTP connections may use one FILES_SHARE-th of the process's file descriptors."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """All limits of one HTTP server. A time-out fires up to 10 ms late."""

    # One request.
    request_line_bytes_max: int = 20_480  # 414; the admin API takes queries of 16,384 characters
    head_bytes_max: int = 24_576  # request line and header fields: 431
    header_fields_max: int = 100  # 431
    body_bytes_max: int = 17 << 20  # 413; the admin API takes 1 MiB, or a file of 16 MiB to apply
    body_window_bytes: int = 65_536  # read ahead of the application
    chunk_line_bytes_max: int = 256  # a chunk's size with its extensions
    trailer_bytes_max: int = 8_192
    trailer_fields_max: int = 32

    # One connection.
    handshake_timeout_s: float = 10.0  # TLS
    first_byte_timeout_s: float = 10.0  # of the first request
    head_timeout_s: float = 10.0  # from the first byte of a request to the end of its head
    body_timeout_s: float = 20.0  # for the whole body; the admin API itself waits for 10 s
    idle_timeout_s: float = 80.0  # between requests: longer than the 75 s that proxies keep a connection
    wait_timeout_s: float = 10.0  # of a request for a slot: 503
    write_timeout_s: float = 20.0  # for the peer to read the answer
    drain_idle_s: float = 0.0  # from the start of a drain, for a request that a peer is about to send
    linger_s: float = 1.0  # reading after the last byte, so that a TCP reset does not destroy the answer

    # The server.
    connections_max: int = 512
    connections_per_source_max: int = 128  # of one IPv4 address or IPv6 /64; a Unix socket has none
    requests_max: int = 64  # running requests of unauthenticated callers; others wait
    unsent_bytes_max: int = 16 << 20  # answers that peers have not read, of all connections

    def connections_within(self, files_max: int) -> int:
        """Return the maximum number of connections for a process with *files_max* file descriptors."""
        return max(8, min(self.connections_max, files_max // FILES_SHARE))

"""
The interface to ngh2, and the options that are set.

ngh2 is young, so only this module imports it, and re-exports the parts that the transport uses. ngh2 does
framing, HPACK, stream states, flow control, SETTINGS and PING acks, and message validation (RFC 9113). It
has no timers, no ping policy and no gRPC, and does not check outgoing messages.
"""

from __future__ import annotations

import struct
from typing import Final

from ngh2 import (
    Configuration,
    ConnectionClosed,
    ConnectionStateError,
    DataReceived,
    DenialOfServiceError,
    Event,
    GoAwayReceived,
    NGH2Error,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    Role,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamProtocolError,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from ngh2 import Connection as Http2
from ngh2 import ErrorCode as H2Error

from sidecar.transports.server import TransportLimits

__all__ = [
    "ConnectionClosed",
    "ConnectionStateError",
    "DataReceived",
    "DenialOfServiceError",
    "Event",
    "GoAwayReceived",
    "H2Error",
    "Headers",
    "Http2",
    "NGH2Error",
    "PingAcknowledged",
    "PingReceived",
    "RequestReceived",
    "SettingsAcknowledged",
    "SettingsReceived",
    "StreamClosed",
    "StreamProtocolError",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "configuration",
    "goaway_frame",
    "open_http2",
]

Headers = tuple[tuple[bytes, bytes], ...]

STREAM_ID_MAX: Final = 2**31 - 1
DATA_FRAME_BYTES: Final = 16_384
"""Payload of outgoing DATA frames: the smallest MAX_FRAME_SIZE that a peer may have."""

_MAX_CONCURRENT_STREAMS: Final = 3
_INITIAL_WINDOW_SIZE: Final = 4
_MAX_HEADER_LIST_SIZE: Final = 6
_WINDOW_DEFAULT: Final = 65_535  # RFC 9113 6.9.2


def configuration(limits: TransportLimits) -> Configuration:
    """Return the hard limits of ngh2; exceeding one closes the connection."""
    return Configuration(
        # Credit on receipt is cheap but does not limit buffering, so `Streams` counts buffered bytes.
        auto_window_update=True,
        # HPACK bombs (CVE-2016-6581): checked while decoding. The transport's own limits are lower.
        max_inbound_header_list_size=4 * limits.header_list_bytes_max,
        max_inbound_header_count=2 * limits.header_fields_max,
        # CONTINUATION floods (CVE-2024-27316) and huge SETTINGS.
        max_continuations=8,
        max_settings=32,
        # PING and SETTINGS floods within one read: acks that are not written yet.
        max_outbound_ack=100,
        # PRIORITY, unknown frames, empty DATA, malformed requests.
        glitch_rate_limit=(1_000, 100),
        # Rapid reset (CVE-2023-44487). The transport's own bucket is half as large and drains the
        # connection; over this limit ngh2 silently ignores new streams.
        stream_reset_rate_limit=(2 * limits.resets_burst, 2 * limits.resets_per_s),
    )


def open_http2(limits: TransportLimits, options: Configuration) -> Http2:
    """
    Return the server's side of a new connection, with our SETTINGS queued.

    MAX_CONCURRENT_STREAMS does not limit the work: over it ngh2 refuses streams, or closes the connection
    once the peer has acknowledged it, and Envoy opens up to 1024 streams before it has our SETTINGS. The
    transport limits running handlers instead.
    """
    http2 = Http2(Role.SERVER, options)
    http2.initiate_connection(
        {
            _MAX_CONCURRENT_STREAMS: limits.streams_max,
            # A complete message with its prefix fits, so that no message stalls.
            _INITIAL_WINDOW_SIZE: max(_WINDOW_DEFAULT, limits.message_bytes_max + 5),
            _MAX_HEADER_LIST_SIZE: 2 * limits.header_list_bytes_max,  # advisory, RFC 9113 6.5.2
        }
    )
    http2.set_local_window_size(max(_WINDOW_DEFAULT, limits.buffered_bytes_per_connection_max))
    return http2


def peer_header_list_bytes_max(http2: Http2) -> int | None:
    """Return the largest header list that the peer accepts (RFC 9113 6.5.2); None = unknown."""
    return http2.remote_settings.get(_MAX_HEADER_LIST_SIZE)


_GOAWAY: Final = struct.Struct(">BHBBIII")


def goaway_frame(last_stream_id: int, code: int) -> bytes:
    """
    Encode a GOAWAY (RFC 9113 6.8), for a failed ngh2 connection that sends none.

    >>> goaway_frame(5, 11).hex()
    '000008070000000000000000050000000b'
    """
    return _GOAWAY.pack(0, 8, 7, 0, 0, last_stream_id, code)

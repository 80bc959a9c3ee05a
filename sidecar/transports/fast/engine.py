"""
The seam to ngh2: which of its options we set, and why.

ngh2 is young, so no other module imports it; what the transport uses of it is re-exported here.
It does framing, HPACK, stream states, flow control, SETTINGS and PING acks and message validation
(RFC 9113); it does no timers, no ping policy and no gRPC, and it does not check what we send.
"""

from __future__ import annotations

import struct

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

STREAM_ID_MAX = 2**31 - 1
DATA_FRAME_BYTES = 16_384
"""Payload of the DATA frames that we send: the peer's smallest legal MAX_FRAME_SIZE."""

_MAX_CONCURRENT_STREAMS = 3
_INITIAL_WINDOW_SIZE = 4
_MAX_HEADER_LIST_SIZE = 6
_WINDOW_DEFAULT = 65_535  # RFC 9113 6.9.2


def configuration(limits: TransportLimits) -> Configuration:
    """The hard limits of ngh2: past one of them the connection dies."""
    return Configuration(
        # Credit on receipt: cheap. It bounds no buffering, so requests are counted by us.
        auto_window_update=True,
        # HPACK bombs (CVE-2016-6581): checked while decoding. Our own limits are softer.
        max_inbound_header_list_size=4 * limits.header_list_bytes_max,
        max_inbound_header_count=2 * limits.header_fields_max,
        # CONTINUATION floods (CVE-2024-27316) and huge SETTINGS.
        max_continuations=8,
        max_settings=32,
        # PING and SETTINGS floods inside one read: acks that we have not yet taken.
        max_outbound_ack=100,
        # PRIORITY, unknown frames, empty DATA, malformed requests.
        glitch_rate_limit=(1_000, 100),
        # Rapid reset (CVE-2023-44487). Our own bucket is half as large and ends more gently: past
        # this one ngh2 ignores new streams without a word.
        stream_reset_rate_limit=(2 * limits.resets_burst, 2 * limits.resets_per_s),
    )


def open_http2(limits: TransportLimits, options: Configuration) -> Http2:
    """
    A server's side of a new connection; our SETTINGS are queued.

    MAX_CONCURRENT_STREAMS is not how we limit work: past it ngh2 refuses streams, or ends the whole
    connection once the peer has acknowledged it. Envoy opens up to 1024 streams before it has seen
    our SETTINGS at all. What we limit are running handlers.
    """
    http2 = Http2(Role.SERVER, options)
    http2.initiate_connection(
        {
            _MAX_CONCURRENT_STREAMS: limits.streams_max,
            # A whole message and its prefix fit: no stall inside one message.
            _INITIAL_WINDOW_SIZE: max(_WINDOW_DEFAULT, limits.message_bytes_max + 5),
            _MAX_HEADER_LIST_SIZE: 2 * limits.header_list_bytes_max,  # advisory, RFC 9113 6.5.2
        }
    )
    http2.set_local_window_size(max(_WINDOW_DEFAULT, limits.buffered_bytes_per_connection_max))
    return http2


def peer_header_list_bytes_max(http2: Http2) -> int | None:
    """How large a header list the peer accepts (RFC 9113 6.5.2); None = it did not say."""
    return http2.remote_settings.get(_MAX_HEADER_LIST_SIZE)


_GOAWAY = struct.Struct(">BHBBIII")


def goaway_frame(last_stream_id: int, code: int) -> bytes:
    """
    A GOAWAY by hand (RFC 9113 6.8), for when ngh2 has given up and sends none itself.

    >>> goaway_frame(5, 11).hex()
    '0000080700000000000000000500000000b'
    """
    return _GOAWAY.pack(0, 8, 7, 0, 0, last_stream_id, code)

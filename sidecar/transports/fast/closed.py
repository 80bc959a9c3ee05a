"""Null objects that replace the parts of a closed connection."""

from __future__ import annotations

import asyncio

from sidecar.transports.fast.engine import Event, H2Error


class ClosedTransport(asyncio.Transport):
    """Replaces the transport."""

    def is_closing(self) -> bool:
        """Return True."""
        return True

    def get_write_buffer_size(self) -> int:
        """Return 0."""
        return 0

    def write(self, data: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


class ClosedConnection:
    """Replaces the connection. Implements `streams.StreamsConnection`."""

    def on_control(self, event: Event) -> None:
        """Do nothing."""

    def flush_soon(self) -> None:
        """Do nothing."""

    def on_fault(self, error: Exception) -> None:
        """Do nothing."""

    def resume_soon(self) -> None:
        """Do nothing."""

    def kill(self, reason: str, code: H2Error) -> None:
        """Do nothing."""

    def drain_flooding_peer(self) -> None:
        """Do nothing."""


CLOSED_TRANSPORT = ClosedTransport()
CLOSED_CONNECTION = ClosedConnection()

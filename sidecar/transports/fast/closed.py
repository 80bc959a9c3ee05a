"""What stands in for the parts of a closed connection: everything may be asked of it, and nothing happens."""

from __future__ import annotations

import asyncio

from sidecar.transports.fast.engine import Event, H2Error


class ClosedTransport(asyncio.Transport):
    """In place of a transport."""

    def is_closing(self) -> bool:
        """Always."""
        return True

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def write(self, data: object) -> None:
        """Nothing is sent."""

    def close(self) -> None:
        """It is closed."""

    def abort(self) -> None:
        """It is closed."""


class ClosedWire:
    """In place of a connection. Implements `streams.Wire`."""

    def on_control(self, event: Event) -> None:
        """Nothing comes any more."""

    def flush_soon(self) -> None:
        """Nothing is sent."""

    def on_fault(self, error: Exception) -> None:
        """It is closed."""

    def resume_soon(self) -> None:
        """Nothing comes any more."""

    def kill(self, reason: str, code: H2Error) -> None:
        """It is closed."""

    def calm_down(self) -> None:
        """It is closed."""


CLOSED_TRANSPORT = ClosedTransport()
CLOSED_WIRE = ClosedWire()

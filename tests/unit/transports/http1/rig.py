"""
HTTP connections without sockets: the loop and the transports by hand, the connections and their core real.

    rig = HttpRig()
    client = rig.connect()
    client.say(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert client.statuses == [200]

Bytes that the server does not read wait at the client, as they would in the kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

from sidecar.observe.metrics import Metrics
from sidecar.observe.transport_metrics import HTTP_CLOSE_REASONS
from sidecar.transports.http1.connection import Connection
from sidecar.transports.http1.core import READ_BYTES, HttpCore
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import Response
from sidecar.transports.http1.work import OWN_LOOP, Pace
from tests.building import make_metrics
from tests.unit.transports.rig import FakeTransport, ManualLoop

GET = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


def echo(exchange: Exchange) -> None:
    """Answer with the path that was asked for."""
    exchange.respond(Response(200, "text/plain", exchange.request.path))


class KeptExchanges:
    """A handler that keeps every exchange, to be answered later."""

    def __init__(self) -> None:
        """None yet."""
        self.exchanges: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        """Keep one."""
        self.exchanges.append(exchange)

    def answer(self, body: bytes = b"late") -> None:
        """Answer the oldest."""
        self.exchanges.pop(0).respond(Response(200, "text/plain", body))


class HttpTransport(FakeTransport):
    """A transport whose write buffer has two marks."""

    def set_write_buffer_limits(self, high: int, low: int = 0) -> None:
        """When to call pause_writing."""
        assert low == 0
        super().set_write_buffer_limits(high - 1)


class HttpClient:
    """One connection, from the peer's side."""

    def __init__(self, rig: HttpRig, host: str) -> None:
        """Connect from *host*; '' = through a Unix socket."""
        self._rig = rig
        ours, self._theirs = socket.socketpair()
        self._theirs.close()
        self.connection = Connection(rig.core, ours, (host, 50_000) if host else None)
        self.is_admitted = rig.core.admit(self.connection)
        ours.close()
        self.transport = HttpTransport(rig.loop)
        self.transport.protocol = cast(Any, self.connection)
        self.unsent = bytearray()
        if self.is_admitted:
            self.connection.connection_made(cast(Any, self.transport))

    def say(self, data: bytes, piece_bytes: int = READ_BYTES) -> None:
        """Send *data* in pieces; what the server does not read stays in `unsent`."""
        self.unsent += data
        self._rig.settle()
        while self.unsent and self.transport.is_reading and not self.is_closed:
            piece = self.unsent[: min(piece_bytes, READ_BYTES)]
            del self.unsent[: len(piece)]
            buffer = self.connection.get_buffer(-1)
            buffer[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))
            self._rig.settle()

    def hang_up(self) -> None:
        """Send no more."""
        if not self.connection.eof_received():
            self.transport.close()
        self._rig.settle()

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed, or has said all that it will say."""
        return self.transport.is_closing() or self.transport.has_written_eof

    @property
    def buffered_bytes(self) -> int:
        """What the server keeps of what this client sent."""
        return self.connection.buffered_bytes

    @property
    def answers(self) -> list[tuple[int, bytes]]:
        """Status and body of every answer so far; each has a Content-Length."""
        answers, output = [], bytes(self.transport.output)
        while output:
            head, _, output = output.partition(b"\r\n\r\n")
            status = int(head.split(b" ")[1])
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            answers.append((status, output[:length]))
            output = output[length:]
        return answers

    @property
    def statuses(self) -> list[int]:
        """The status of every answer so far."""
        return [status for status, _ in self.answers]


class HttpRig:
    """The core of a server, and clients."""

    def __init__(
        self,
        handler: Callable[[Exchange], None] = echo,
        limits: HttpLimits | None = None,
        pace: Pace = OWN_LOOP,
    ) -> None:
        """Serve *handler* within *limits*."""
        self.limits = limits or HttpLimits()
        self.loop = ManualLoop()
        self.metrics: Metrics = make_metrics()
        self.core = HttpCore(handler, self.limits, pace, self.metrics, self.loop, self.limits.connections_max)

    def connect(self, host: str = "192.0.2.1") -> HttpClient:
        """One more connection."""
        return HttpClient(self, host)

    def settle(self) -> None:
        """Let everything happen that is due now."""
        self.loop.advance(0)

    @property
    def closed_for(self) -> dict[str, int]:
        """How many connections were closed, by why."""
        counts = {
            reason: self.metrics.value("sidecar_http_connections_closed_total", reason)
            for reason in HTTP_CLOSE_REASONS
        }
        return {reason: count for reason, count in counts.items() if count}

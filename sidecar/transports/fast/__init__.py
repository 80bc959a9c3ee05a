"""
The fast gRPC transport: asyncio protocols around ngh2, and plain calls instead of a task per call.

From the socket to the handler and back: `acceptor` takes connections in, `connection` turns bytes
into events and answers into one write per read, `requests` reads request headers, `calls` is what a
handler sees, `answers` holds every header list we send. `lifetime` decides when a connection ends,
`policing` when its peer has gone too far; `core` is what the connections of one server share. `engine` is
the only module that knows ngh2.
"""

from sidecar.transports.fast.server import FastGrpcServer

__all__ = ["FastGrpcServer"]

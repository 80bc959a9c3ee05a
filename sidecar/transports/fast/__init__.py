"""
The fast gRPC transport: asyncio protocols around ngh2, and plain function calls instead of a task per call.

`acceptor` accepts connections, `connection` converts bytes to events and answers to one write per read,
`streams` runs handlers, `requests` parses request headers, `calls` is the interface for handlers, `answers`
has all header lists of answers. `lifetime` decides when a connection ends, `policing` when its peer exceeds
a limit; `core` is the shared state of the server's connections. Only `engine` imports ngh2.
"""

from sidecar.transports.fast.server import FastGrpcServer

__all__ = ["FastGrpcServer"]

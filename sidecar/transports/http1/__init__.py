"""
The HTTP/1.1 server of every HTTP listener: httptools in an asyncio protocol with strict limits.

`server` binds and drains, `acceptor` accepts connections, `connection` serves one connection, `core` is their
shared state, `work` limits their share of the event loop. `heads` and `bodies` parse requests, `messages` has
the values, `exchange` is the interface for handlers, `asgi` is a handler that runs an ASGI application.
`limits` has every limit.
"""

from sidecar.transports.http1.server import HttpServer

__all__ = ["HttpServer"]

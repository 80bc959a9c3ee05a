"""
The HTTP/1.1 server of every HTTP listener: httptools under an asyncio protocol with bounds of ours.

`server` binds and drains, `acceptor` takes connections in, `connection` is one of them, `core` what they
share, `work` how much of an event loop they may take. `heads` and `bodies` read requests, `messages` are
the values, `exchange` is what a handler sees, `asgi` a handler that runs an ASGI application. Every bound
is in `limits`.
"""

from sidecar.transports.http1.server import HttpServer

__all__ = ["HttpServer"]

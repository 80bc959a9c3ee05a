"""
Decisions for Python applications without a proxy: clients, and middleware that enforces what they decide.

docs/integrate/python-client.md shows both in use. Nothing here loads the server's code.
"""

from sidecar.client.asgi import AsgiMiddleware
from sidecar.client.clients import AsyncClient, Client
from sidecar.client.decisions import ClientDecision, FailurePolicy, NoDecisionError
from sidecar.client.wsgi import WsgiMiddleware

__all__ = [
    "AsgiMiddleware",
    "AsyncClient",
    "Client",
    "ClientDecision",
    "FailurePolicy",
    "NoDecisionError",
    "WsgiMiddleware",
]

"""What the HTTP transport tells services beyond the ASGI specification."""

from __future__ import annotations

TRUST = "sidecar.trust"
"""
Key in the scope's `extensions`: a function to call once the caller has shown a valid token.

Requests of callers that nobody knows yet share few places; a request that is trusted gives its place back.
"""

"""What both kinds of middleware read of a request and hide from the application."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import quote, unquote_to_bytes

from sidecar.client.decisions import ClientDecision

KEY_HEADERS = ("x-api-key", "authorization")
"""Where the sidecar looks for an API key unless its configuration says otherwise."""

IDENTITY_HEADERS = ("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id")
"""The headers about the caller that the application receives; a client cannot set them."""

_UNENCODED = "/:@!$&'()*+,;=~"  # RFC 3986 3.3; the sidecar has to see a ';' to refuse it


class RequestRules:
    """The headers of a request that are sent to the sidecar, and the one with the client's address."""

    def __init__(self, key_headers: Collection[str], client_ip_header: str | None) -> None:
        """
        Read *key_headers* only, and the client's address from the connection or from *client_ip_header*.

        Args:
            key_headers: those that may carry the API key, as in `credentials` of the sidecar's configuration.
            client_ip_header: the header in which a proxy of yours states the address, such as 'x-real-ip' or
                'x-forwarded-for'. Its last address counts: the one that the proxy itself has added. None =
                the address that the connection comes from.
        """
        self.key_headers = tuple(name.lower() for name in key_headers)
        self._client_ip_header = client_ip_header.lower() if client_ip_header else None

    @property
    def read_headers(self) -> tuple[str, ...]:
        """Every header that is read."""
        address = self._client_ip_header
        return self.key_headers if address is None else (*self.key_headers, address)

    def client_ip(self, headers: dict[str, str], peer: str) -> str:
        """The end client's address, '' = unknown; *peer* is where the connection comes from."""
        if self._client_ip_header is None:
            return peer
        return headers.get(self._client_ip_header, "").rpartition(",")[2].strip()

    def keys_of(self, headers: dict[str, str]) -> dict[str, str]:
        """Those of *headers* that may carry the API key."""
        return {name: headers[name] for name in self.key_headers if name in headers}

    def hidden_from_application(self, decision: ClientDecision) -> set[str]:
        """
        The request headers that the application must not see as the client sent them.

        Without a decision nobody knows which header held an API key, so all that may hold one are hidden.
        """
        held_key = decision.removed_headers if decision.error is None else self.key_headers
        return {*IDENTITY_HEADERS, *held_key}


def judged_path(served: bytes, raw: bytes) -> str:
    """
    The path that the sidecar judges: *raw*, as it came, if the application serves that path.

    Args:
        served: the decoded path, by which the application chooses what it serves.
        raw: the undecoded path or URI, b"" = the server does not provide it. Where it is not the same path,
            because the server or other middleware has rewritten it, the served one counts.

    >>> judged_path(b"/a b", b"/a%20b?c=d"), judged_path(b"/a b", b"/other"), judged_path(b"/a%2Fb", b"")
    ('/a%20b', '/a%20b', '/a%252Fb')
    """
    raw = raw.partition(b"?")[0]
    return raw.decode("latin-1") if unquote_to_bytes(raw) == served else quote(served, safe=_UNENCODED)

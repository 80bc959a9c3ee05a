"""Parses the address of a sidecar's admin listener: a URL, or a Unix socket."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sidecar.domain.cidr import AddressError, is_loopback, parse_address

UNIX = "unix:"
_HOST_OF_UNIX = "http://sidecar"
"""The base URL of calls through a Unix socket; the server ignores the Host header."""


class ServerAddressError(ValueError):
    """A server's address cannot be used; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One admin listener: `base_url`, `socket_path` ('' = TCP), and `text` as the user wrote it."""

    text: str
    base_url: str
    socket_path: str = ""

    @property
    def is_tls(self) -> bool:
        """Whether the connection uses TLS."""
        return self.base_url.startswith("https:")


def parse_server(text: str) -> ServerAddress:
    """
    Read `http://127.0.0.1:9193`, `https://host:port`, `unix:/path`, or `host:port` for plain HTTP.

    >>> parse_server("127.0.0.1:9193").base_url
    'http://127.0.0.1:9193'

    Raises:
        ServerAddressError: the address is malformed, or a token would be sent unencrypted.
    """
    if text.startswith(UNIX):
        return _unix(text)
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ServerAddressError(f"the server {text!r} is not an address: {error}; {_EXAMPLES}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ServerAddressError(f"the server {text!r} is not an address; {_EXAMPLES}")
    if parts.username or parts.query or parts.fragment or parts.path.strip("/"):
        raise ServerAddressError(f"the server {text!r} has more than scheme, host and port; {_EXAMPLES}")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ServerAddressError(
            f"the server {text!r} is not on this machine: the token would be sent unencrypted; use https://,"
            " with --ca FILE if its certificate is signed by a private CA, or a tunnel to loopback"
        )
    name = f"[{host}]" if ":" in host else host
    return ServerAddress(text, f"{parts.scheme}://{name}" + (f":{port}" if port is not None else ""))


_EXAMPLES = "write http://127.0.0.1:9193, https://host:port or unix:/path"


def _unix(text: str) -> ServerAddress:
    path = text.removeprefix(UNIX)
    path = path.removeprefix("//")
    if not path.startswith("/"):
        raise ServerAddressError(f"the server {text!r} has no absolute path; {_EXAMPLES}")
    return ServerAddress(text, _HOST_OF_UNIX, path)


def _is_loopback(host: str) -> bool:
    try:
        return is_loopback(parse_address(host))
    except AddressError:
        return host == "localhost"

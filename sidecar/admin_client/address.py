"""Where a sidecar's admin listener is, as administrators write it: a URL, or a Unix socket."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sidecar.domain.cidr import AddressError, is_loopback, parse_address

UNIX = "unix:"
_HOST_OF_UNIX = "http://sidecar"
"""What stands in the Host header of a call through a Unix socket; the server has no use for it."""


class ServerAddressError(ValueError):
    """A server's address cannot be used; says why and what to write instead."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One admin listener: `base_url` to send to, `socket_path` '' = by TCP, and `text` as it was written."""

    text: str
    base_url: str
    socket_path: str = ""

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted and the server proves who it is."""
        return self.base_url.startswith("https:")


def parse_server(text: str) -> ServerAddress:
    """
    Read `http://127.0.0.1:9193`, `https://host:port`, `unix:/path`, or `host:port` for plain HTTP.

    >>> parse_server("127.0.0.1:9193").base_url
    'http://127.0.0.1:9193'

    Raises:
        ServerAddressError: anything else, or a token that would travel in the clear.
    """
    if text.startswith(UNIX):
        return _unix(text)
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ServerAddressError(f"the server {text!r} is no address: {error}; {_EXAMPLES}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ServerAddressError(f"the server {text!r} is no address; {_EXAMPLES}")
    if parts.username or parts.query or parts.fragment or parts.path.strip("/"):
        raise ServerAddressError(f"the server {text!r} has more than scheme, host and port; {_EXAMPLES}")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ServerAddressError(
            f"the server {text!r} is not on this machine: the token would travel in the clear; use https://,"
            " with --ca FILE when its certificate comes from a CA of your own, or a tunnel to loopback"
        )
    name = f"[{host}]" if ":" in host else host
    return ServerAddress(text, f"{parts.scheme}://{name}" + (f":{port}" if port is not None else ""))


_EXAMPLES = "write http://127.0.0.1:9193, https://host:port or unix:/path"


def _unix(text: str) -> ServerAddress:
    path = text.removeprefix(UNIX)
    path = path.removeprefix("//")
    if not path.startswith("/"):
        raise ServerAddressError(f"the server {text!r} names no absolute path; {_EXAMPLES}")
    return ServerAddress(text, _HOST_OF_UNIX, path)


def _is_loopback(host: str) -> bool:
    try:
        return is_loopback(parse_address(host))
    except AddressError:
        return host == "localhost"

"""Addresses of servers under load, and connected sockets to them."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 2.0


class TargetError(ValueError):
    """An address cannot be used; the message says which forms are allowed."""


@dataclass(frozen=True, slots=True)
class Target:
    """
    One server: *host* and *port*, or the path of a Unix socket in *unix*.

    `path` is the path of an HTTP URL; `authority` the value of `:authority` or `Host`. With `tls`, the
    certificate is checked against *ca*, a PEM file; '' = the certificate is not checked.
    """

    host: str = ""
    port: int = 0
    unix: str = ""
    path: str = "/"
    tls: bool = False
    ca: str = ""

    def __str__(self) -> str:
        """Return the address for messages."""
        return f"unix:{self.unix}" if self.unix else self.authority

    @property
    def authority(self) -> str:
        """The name of the server in requests."""
        return "localhost" if self.unix else f"{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        """
        Return a connected socket, which does not block.

        Raises:
            OSError: the server does not accept the connection, or not within `CONNECT_TIMEOUT_S`.
        """
        if self.unix:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(CONNECT_TIMEOUT_S)
            try:
                connected.connect(self.unix)
            except OSError:
                connected.close()
                raise
        else:
            connected = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            connected = self._tls_context().wrap_socket(connected, server_hostname=self.host or "localhost")
        connected.setblocking(False)
        return connected

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca or None)
        if not self.ca:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def parse_target(text: str, ca: str = "") -> Target:
    """
    Return the target that *text* names; with TLS its certificate is checked against the file *ca*.

    >>> parse_target("grpc://127.0.0.1:9191").port
    9191
    >>> parse_target("unix:/run/sidecar/http.sock:/auth/nginx").unix
    '/run/sidecar/http.sock'

    Raises:
        TargetError: *text* is not an address of a known form.
    """
    if text.startswith("unix:"):
        socket_path, _, path = text.removeprefix("unix:").removeprefix("//").partition(":")
        return Target(unix=socket_path, path=path or "/")
    if "://" not in text:
        text = f"grpc://{text}"  # as `listen.grpc` of a sidecar
    parts = urlsplit(text)
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        port = 0
    if parts.scheme not in ("grpc", "grpcs", "http", "https") or not parts.hostname or not port:
        raise TargetError(
            f"target is {text!r}; it must be grpc://HOST:PORT, grpcs://HOST:PORT, unix:/SOCKET,"
            " http://HOST[:PORT]/PATH, https://HOST[:PORT]/PATH or unix:/SOCKET:/PATH"
        )
    return Target(parts.hostname, port, "", parts.path or "/", parts.scheme in ("grpcs", "https"), ca)

"""
Store URLs: parsing the address and the options of the shared store; texts never contain secrets.

    redis://[user[:password]@]host[:port][/database][?options]
    rediss://...                                         the same over TLS
    unix://[user[:password]@]/path/to/socket[?options]
    redis+sentinel://host[:port],host[:port].../service[/database][?options]
    redis+cluster://host[:port],host[:port]...[?options]
    rediss+sentinel://..., rediss+cluster://...
    valkey://..., valkeys://..., valkey+sentinel://...    the same for Valkey

Options: `database`, `prefix`, `partitions`, `user`, `password_env`, `password_file`,
`sentinel_user`, `sentinel_password_env`, `sentinel_password_file`, and for TLS `ca_file`, `cert_file`,
`key_file`, `server_name`. Values are percent-encoded.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from sidecar.stores.redis.keys import DEFAULT_PREFIX, KeySpace, KeySpaceError

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
SECRET_BYTES_MAX = 4_096
"""Maximum size of a password file."""


class StoreUrlError(ValueError):
    """A store URL, or a file or variable that it names, cannot be used; the text contains no secret."""


class StoreTopology(Enum):
    """How the primary of a key is found."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """`host:port`, `[v6]:port` or `unix:path`."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """
    An ACL user and where its password is: in the URL, an environment variable or a file.

    Variable and file are read at each connect, so a password may be rotated.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    password_env: str = ""
    password_file: str = ""

    def read(self) -> tuple[str, ...]:
        """
        Read the arguments of AUTH; empty = no AUTH.

        Raises:
            StoreUrlError: the variable is not set, or the file cannot be read.
        """
        password = self.password
        if self.password_env:
            password = os.environ.get(self.password_env, "")
            if not password:
                raise StoreUrlError(f"environment variable {self.password_env} with the password is not set")
        elif self.password_file:
            password = _read_secret(Path(self.password_file))
        if not password:
            return ()
        return (self.user, password) if self.user else (password,)


@dataclass(frozen=True, slots=True)
class TlsClient:
    """Files for TLS; `ca_file` '' = the system's authorities, `server_name` '' = the host's name."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    def context(self) -> ssl.SSLContext:
        """
        A new TLS context; the files are read each time, so that certificates may be renewed.

        Raises:
            StoreUrlError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(name for name in (self.ca_file, self.cert_file, self.key_file) if name)
            raise StoreUrlError(f"TLS files {files}: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """
    A parsed store URL. Its text and repr hold no password.

    `partitions` None = the number that the store has; a new store gets 1, or 16 in a Cluster.
    """

    kind: StoreTopology
    addresses: tuple[Address, ...]
    service: str = ""
    database: int = 0
    login: Login = Login()
    sentinel_login: Login = Login()
    tls: TlsClient | None = None
    prefix: str = DEFAULT_PREFIX
    partitions: int | None = None

    def __str__(self) -> str:
        """The address without user, password and options."""
        if self.addresses[0].path:
            return str(self.addresses[0])
        scheme = "rediss" if self.tls else "redis"
        scheme += "" if self.kind is StoreTopology.STANDALONE else f"+{self.kind.value}"
        path = "/".join(part for part in (self.service, str(self.database or "")) if part)
        return f"{scheme}://{','.join(map(str, self.addresses))}" + (f"/{path}" if path else "")

    def with_files_in(self, folder: Path) -> StoreUrl:
        """Return this URL with the paths of its password and TLS files relative to *folder*."""

        def absolute(file: str) -> str:
            return str(folder.absolute() / file) if file else ""

        def login(given: Login) -> Login:
            return replace(given, password_file=absolute(given.password_file))

        tls = self.tls
        if tls is not None:
            ca_file, cert_file, key_file = map(absolute, (tls.ca_file, tls.cert_file, tls.key_file))
            tls = replace(tls, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        return replace(self, login=login(self.login), sentinel_login=login(self.sentinel_login), tls=tls)

    def verify(self) -> None:
        """
        Read secrets and TLS files once, so that mistakes are found at start.

        Raises:
            StoreUrlError: a secret or file cannot be used.
        """
        self.login.read()
        self.sentinel_login.read()
        if self.tls is not None:
            self.tls.context()


_SCHEMES = {
    f"{server}{tls}{suffix}": (kind, bool(tls))
    for server in ("redis", "valkey")
    for kind, suffix in (
        (StoreTopology.STANDALONE, ""),
        (StoreTopology.SENTINEL, "+sentinel"),
        (StoreTopology.CLUSTER, "+cluster"),
    )
    for tls in ("", "s")
} | {"unix": (StoreTopology.STANDALONE, False)}

SCHEMES = tuple(_SCHEMES)
"""The schemes of store URLs."""

_TLS_OPTIONS = ("ca_file", "cert_file", "key_file", "server_name")
_SENTINEL_OPTIONS = ("sentinel_user", "sentinel_password_env", "sentinel_password_file")
_OPTIONS = ("database", "prefix", "partitions", "user", "password_env", "password_file")


def parse_store_url(text: str) -> StoreUrl:
    """
    Parse a store URL.

    >>> str(parse_store_url("redis+sentinel://sid:secret@a,b:26380/main/2?prefix=edge:"))
    'redis+sentinel://a:26379,b:26380/main/2'

    Raises:
        StoreUrlError: names the wrong part and the allowed values.
    """
    parts = _split(text)
    if parts.scheme not in _SCHEMES:
        raise StoreUrlError(f"store URL: scheme is {parts.scheme!r}; it must be one of {', '.join(_SCHEMES)}")
    if parts.fragment:
        raise StoreUrlError("store URL: '#' must be encoded as %23")
    kind, is_tls = _SCHEMES[parts.scheme]
    options = _options(parts, kind, is_tls)
    user_info, _, hosts = parts.authority.rpartition("@")
    addresses, path = _place(parts, kind, hosts)
    service, database = _path_of(kind, path, options)
    url = StoreUrl(
        kind=kind,
        addresses=addresses,
        service=service,
        database=database,
        login=_login(user_info, options),
        sentinel_login=Login(
            options.get("sentinel_user", ""),
            password_env=options.get("sentinel_password_env", ""),
            password_file=options.get("sentinel_password_file", ""),
        ),
        tls=_tls(options) if is_tls else None,
        prefix=options.get("prefix", DEFAULT_PREFIX),
        partitions=_number(options, "partitions", 0) if "partitions" in options else None,
    )
    try:
        KeySpace(url.prefix, url.partitions)
    except KeySpaceError as error:
        raise StoreUrlError(f"store URL: {error}") from None
    return url


# RFC 3986 appendix B. The standard library supports one host; which lists it accepts differs by release.
_PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)


class _Parts(NamedTuple):
    scheme: str
    authority: str
    path: str
    query: str
    fragment: str


def _split(text: str) -> _Parts:
    match = _PARTS.fullmatch(text)
    assert match is not None  # any text matches
    scheme, *others = (part or "" for part in match.groups())
    return _Parts(scheme.lower(), *others)


def _options(parts: _Parts, kind: StoreTopology, is_tls: bool) -> dict[str, str]:
    allowed = [*_OPTIONS, *(_TLS_OPTIONS if is_tls else ())]
    allowed += _SENTINEL_OPTIONS if kind is StoreTopology.SENTINEL else ()
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed:
            raise StoreUrlError(f"store URL: option {name!r} is not one of {', '.join(allowed)}")
        if name in options:
            raise StoreUrlError(f"store URL: option {name!r} given more than once")
        options[name] = value
    if "key_file" in options and "cert_file" not in options:
        raise StoreUrlError("store URL: key_file needs cert_file")
    return options


def _place(parts: _Parts, kind: StoreTopology, hosts: str) -> tuple[tuple[Address, ...], str]:
    """The addresses, and the path without a socket's."""
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if hosts or len(path) < 2:
            raise StoreUrlError("store URL: write unix:///absolute/path/to/socket")
        return (Address(path=path),), ""
    default = DEFAULT_SENTINEL_PORT if kind is StoreTopology.SENTINEL else DEFAULT_PORT
    addresses = tuple(_address(host, default) for host in hosts.split(","))
    if kind is StoreTopology.STANDALONE and len(addresses) > 1:
        raise StoreUrlError("store URL: several hosts need redis+sentinel:// or redis+cluster://")
    return addresses, unquote(parts.path).strip("/")


def _address(text: str, default_port: int) -> Address:
    host, bracket, rest = text.partition("]")
    if bracket:
        host, port = host.removeprefix("["), rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host or any(character.isspace() for character in host):
        raise StoreUrlError(f"store URL: host is {text!r}; it must be 'host', 'host:port' or '[v6]:port'")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise StoreUrlError(f"store URL: port of {host!r} is {port!r}; it must be 1 to 65535")
    return Address(host, int(port or default_port))


def _path_of(kind: StoreTopology, path: str, options: Mapping[str, str]) -> tuple[str, int]:
    """The Sentinel service and the database."""
    service = ""
    if kind is StoreTopology.SENTINEL:
        service, _, path = path.partition("/")
        if not service:
            raise StoreUrlError(
                "store URL: the Sentinel service is missing; write redis+sentinel://host:port/service"
            )
    if path and "database" in options:
        raise StoreUrlError("store URL: database given more than once, in the path and as an option")
    database = _number({"database": path} if path else options, "database", 0)
    if kind is StoreTopology.CLUSTER and database:
        raise StoreUrlError("store URL: Redis Cluster has database 0 only")
    return service, database


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise StoreUrlError(f"store URL: {name} is {text!r}; it must be a whole number")
    return int(text)


def _login(user_info: str, options: Mapping[str, str]) -> Login:
    user, _, password = user_info.partition(":")
    sources = [name for name in ("password_env", "password_file") if options.get(name)]
    if len(sources) + bool(password) > 1:
        raise StoreUrlError(
            "store URL: password given more than once; use one of: the URL, password_env, password_file"
        )
    if user and "user" in options:
        raise StoreUrlError("store URL: user given more than once, before '@' and as an option")
    return Login(
        user=unquote(user) or options.get("user", ""),
        password=unquote(password),
        password_env=options.get("password_env", ""),
        password_file=options.get("password_file", ""),
    )


def _tls(options: Mapping[str, str]) -> TlsClient:
    return TlsClient(**{name: options[name] for name in _TLS_OPTIONS if name in options})


def _read_secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_BYTES_MAX + 1)
        if len(secret) > SECRET_BYTES_MAX:
            raise StoreUrlError(f"password file {path} is larger than {SECRET_BYTES_MAX} bytes")
        password = secret.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUrlError(f"password file {path}: {error}") from error
    if not password:
        raise StoreUrlError(f"password file {path} is empty")
    return password

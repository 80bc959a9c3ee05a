"""
Parses endpoints, binds them, and releases them.

A new process can take over an endpoint while the old process still serves, so that a restart loses no
request: TCP ports are shared by SO_REUSEPORT, and the path of a Unix socket is replaced by an atomic
rename(). Binding an exclusive endpoint fails while another process listens on it.

Source: socket(7), unix(7), link(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sidecar.transports.server import Endpoint, ListenError, TlsFiles

UNIX_PATH_BYTES_MAX = 107
"""The size of `sun_path` on Linux, without the zero byte at its end (unix(7))."""

UNIX_MODE = 0o660
"""Owner and group may connect; see the systemd unit for the group."""

BACKLOG = 1_024
"""Maximum connections that wait for accept(); further clients retry."""


def parse_endpoint(text: str, tls: TlsFiles | None = None) -> Endpoint:
    """
    Parse 'host:port', '[v6]:port', 'unix:/path' or 'unix:@abstract'.

    >>> parse_endpoint("[::1]:9191")
    Endpoint(host='::1', port=9191, path='', tls=None)

    Raises:
        ListenError: *text* has another form; the message names the wrong part and what to write.
    """
    if text.startswith("unix:"):
        return Endpoint(path=_parse_unix_path(text), tls=tls)
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ListenError(f"endpoint '{text}': the port is missing; write 'host:port' or 'unix:/path'")
    return Endpoint(host=_parse_host(text, host), port=_parse_port(text, port), tls=tls)


def _parse_unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("//"):  # gRPC's other spelling: unix:///path
        path = "/" + path.lstrip("/")
    if len(path) < 2 or path[0] not in "/@" or "\0" in path:
        raise ListenError(f"endpoint '{text}': write 'unix:/absolute/path' or 'unix:@abstract-name'")
    return path


def _parse_host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            socket.inet_pton(socket.AF_INET6, host[1:-1])
        except OSError:
            raise ListenError(f"endpoint '{text}': {host} is not an IPv6 address") from None
        return host[1:-1]
    if ":" in host:
        raise ListenError(f"endpoint '{text}': put an IPv6 address in brackets, such as '[::1]:9191'")
    if not host or host == "*":
        raise ListenError(
            f"endpoint '{text}': the host is missing; write '127.0.0.1:9191', or '0.0.0.0:9191' for "
            "every interface"
        )
    if not host.isprintable() or "/" in host or " " in host:
        raise ListenError(f"endpoint '{text}': '{host}' is not a host name or an address")
    return host


def _parse_port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ListenError(f"endpoint '{text}': port '{port}' is not a number from 0 (any free port) to 65535")
    return int(port)


@dataclass(slots=True)
class Listener:
    """
    A listening socket, which is non-blocking, and its endpoint with the actual port.

    `close` may be called more than once.
    """

    socket: socket.socket
    endpoint: Endpoint
    claim: UnixClaim | None = None

    def close(self) -> None:
        """Stop listening; remove the Unix path if it is still ours."""
        if self.claim is not None:
            self.claim.release()
        self.socket.close()


def bind(endpoint: Endpoint) -> Listener:
    """
    Bind *endpoint* and listen.

    Raises:
        ListenError: it cannot be bound; the message names it and says what to do.
    """
    try:
        return _bind_unix(endpoint) if endpoint.path else _bind_tcp(endpoint)
    except OSError as error:
        raise listen_error(endpoint, error) from error


def bind_all(endpoints: Iterable[Endpoint]) -> list[Listener]:
    """
    Bind all *endpoints*, or none.

    Raises:
        ListenError: one cannot be bound; the message names it and says what to do.
    """
    with contextlib.ExitStack() as bound:
        listeners: list[Listener] = []
        for endpoint in endpoints:
            listeners.append(bind(endpoint))
            bound.callback(listeners[-1].close)
        bound.pop_all()
        return listeners


def check_endpoint(endpoint: Endpoint) -> None:
    """
    Check that *endpoint* can be bound; a port in use is no error.

    Raises:
        ListenError: it cannot be bound; the message names it and says what to do.
    """
    try:
        if endpoint.path:
            staged = staged_path(endpoint)
            if not staged.startswith("@"):
                folder = Path(staged).parent
                folder.stat()
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        family, kind, protocol, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # Shared and not listening, so it does not disturb a running sidecar.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise listen_error(endpoint, error) from error


def _bind_tcp(endpoint: Endpoint) -> Listener:
    family, kind, protocol, _, address = socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not endpoint.is_exclusive:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted connections inherit this option on Linux: an answer must not wait for the peer's ACK.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # '[::]' is every interface, including IPv4, whatever net.ipv6.bindv6only is.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(address)
        listening.listen(BACKLOG)
        # Until now no other process could listen on an exclusive port; from now on a successor can.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return Listener(listening, replace(endpoint, port=listening.getsockname()[1]))


def is_served(endpoint: Endpoint) -> bool:
    """Return whether a process listens on *endpoint*, so that binding would share it or take it over."""
    if endpoint.path:
        return _answers(endpoint.path)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # The kernel refuses this only if a socket listens there.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _answers(path: str) -> bool:
    """Return whether a process listens on a Unix socket; the path of an ended process refuses connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path.replace("@", "\0", 1) if path.startswith("@") else path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # a full backlog, or no permission: a process listens
            return True
    return True


def _bind_unix(endpoint: Endpoint) -> Listener:
    staged = staged_path(endpoint)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # bind() gives the file the descriptor's mode, less the umask: it is never open to all users.
        os.fchmod(listening.fileno(), UNIX_MODE)
        listening.bind(staged.replace("@", "\0", 1) if staged.startswith("@") else staged)
        # The path gets its final name after listen(), so that no client's connection is refused.
        listening.listen(BACKLOG)
        listening.setblocking(False)
        return Listener(listening, endpoint, publish(staged, endpoint))
    except BaseException:
        listening.close()
        raise


def staged_path(endpoint: Endpoint) -> str:
    """
    Return the temporary path for binding the Unix socket of *endpoint* before `publish`.

    For an abstract name it is the name itself.

    Raises:
        ListenError: the path is too long, or is a file that is not a socket.
        OSError: the directory is missing or not accessible.
    """
    path = endpoint.path
    staged = path if path.startswith("@") else str(Path(path).with_name(f".{secrets.token_hex(4)}"))
    length = max(len(os.fsencode(path)), len(os.fsencode(staged)))
    if length > UNIX_PATH_BYTES_MAX:
        raise ListenError(
            f"cannot listen on {endpoint}: the path of a Unix socket has {length} bytes; at most "
            f"{UNIX_PATH_BYTES_MAX} are allowed: choose a shorter path"
        )
    if not path.startswith("@"):
        _refuse_other_file(endpoint)
    return staged


def _refuse_other_file(endpoint: Endpoint) -> None:
    try:
        mode = Path(endpoint.path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"cannot listen on {endpoint}: the path exists and is not a socket; move it away or choose "
            "another path"
        )


def publish(staged: str, endpoint: Endpoint) -> UnixClaim | None:
    """
    Set the mode of the socket at *staged* and rename it to its final path, replacing an older socket.

    Returns:
        None for an abstract name, which the kernel removes with its socket.
    """
    if staged.startswith("@"):
        return None
    try:
        Path(staged).chmod(UNIX_MODE)
        if endpoint.is_exclusive:
            _link(staged, endpoint.path)
        identity = _identity(Path(staged))
        Path(staged).rename(endpoint.path)
        Path(staged).unlink(missing_ok=True)  # rename does nothing if both are links to one file
    except BaseException:
        with contextlib.suppress(OSError):
            Path(staged).unlink()
        raise
    return UnixClaim(endpoint.path, identity)


def _link(staged: str, path: str) -> None:
    """
    Link *path* to the socket *staged*, unless another process listens on *path*.

    Raises:
        OSError: another process listens (EADDRINUSE).
    """
    try:
        os.link(staged, path)  # atomic: if two processes start together, only one succeeds
    except FileExistsError:
        if _answers(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None


Identity = tuple[int, int, int]


def _identity(path: Path) -> Identity:
    """Return the identity of a file; the inode number alone can be reused after the socket is closed."""
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


@dataclass(slots=True)
class UnixClaim:
    """The path of a Unix socket, and the identity of the file that this process created there."""

    path: str
    identity: Identity | None

    def release(self) -> None:
        """Remove the path, unless a successor has replaced the socket; a second call does nothing."""
        with contextlib.suppress(OSError):
            if self.identity == _identity(Path(self.path)):
                Path(self.path).unlink()
        self.identity = None


_REMEDIES = {
    errno.EADDRINUSE: "it is in use by another program; stop that program or choose another address",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; use one that `ip address` lists",
    errno.EACCES: "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE, a path needs a "
    "directory that this user may write",
    errno.EPERM: "permission denied; let this user write the directory, or choose another path",
    errno.ENOENT: "its directory does not exist; create it first",
    errno.ENOTDIR: "a part of its path is not a directory; choose another path",
    errno.EROFS: "its file system is read-only; choose another path",
    errno.EMFILE: "this process has no free file descriptor; raise its limit (ulimit -n)",
}

_EXCLUSIVE_REMEDY = (
    "it is in use by another program; two sidecars that share no store would admit twice the limits. Stop"
    " that program or choose another address; to replace a running sidecar without a gap, add --take-over"
)


def listen_error(endpoint: Endpoint, error: OSError) -> ListenError:
    """Return an error that says why *endpoint* cannot be bound and what to do."""
    if isinstance(error, socket.gaierror):
        remedy = f"the host name does not resolve ({error.strerror}); use an address or a known name"
    elif error.errno == errno.EADDRINUSE and endpoint.is_exclusive:
        remedy = _EXCLUSIVE_REMEDY
    else:
        remedy = _REMEDIES.get(error.errno or 0, f"the system says: {error.strerror or error}")
    return ListenError(f"cannot listen on {endpoint}: {remedy}")

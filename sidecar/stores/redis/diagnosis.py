"""Diagnose why connecting failed, and name the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from sidecar.stores.redis.link import LinkLostError
from sidecar.stores.redis.replies import ErrorReply, advice_of
from sidecar.stores.redis.urls import Address, StoreUrl, StoreUrlError, TlsClient

PROBE_TIMEOUT_S = 0.5
"""Time to find out whether a port uses TLS, after a handshake has failed."""

_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_PING = b"PING\r\n"


async def diagnose(url: StoreUrl, address: Address, error: Exception, timeout_s: float) -> str:
    """
    Explain *error*, with which connecting to *address* failed within *timeout_s*, and name the remedy.

    Connects once more if only one of the two sides seems to use TLS.
    """
    if isinstance(error, ErrorReply):
        return f"{address} refuses: {advice_of(error)}"
    if isinstance(error, StoreUrlError):
        return str(error)
    if url.tls is not None:
        return await _diagnose_tls(url.tls, address, error, timeout_s)
    if isinstance(error, LinkLostError | ConnectionResetError | ConnectionAbortedError):
        if not address.path and await _speaks_tls(address):
            return f"{address} speaks TLS: use rediss instead of redis in the URL (rediss://{address})"
        return f"{address} closed the connection during the handshake: check that it is a Redis server"
    return _of_socket(address, error, timeout_s)


async def _diagnose_tls(tls: TlsClient, address: Address, error: BaseException, timeout_s: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address} is not trusted ({error.verify_message}): set ca_file to the file"
            " of its CA, or server_name to a name in the certificate"
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason):
        reason = str(error.reason)
        if not tls.cert_file and reason.endswith(_WANTS_CERTIFICATE):
            return f"{address} requires a client certificate: set cert_file and key_file"
        own = f" the client certificate {tls.cert_file}" if tls.cert_file else " the TLS handshake"
        return f"{address} refuses{own} ({reason})"
    if isinstance(error, ssl.SSLError | TimeoutError | ConnectionError) and await _speaks_plainly(address):
        return f"{address} does not speak TLS: use redis instead of rediss in the URL (redis://{address})"
    if isinstance(error, LinkLostError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        if not tls.cert_file and await _wants_certificate(address):
            return f"{address} requires a client certificate: set cert_file and key_file"
        return f"{address} closed the connection during the TLS handshake"
    return _of_socket(address, error, timeout_s)


def _of_socket(address: Address, error: BaseException, timeout_s: float) -> str:
    """Explain an error of the operating system."""
    if isinstance(error, TimeoutError):
        return f"no answer from {address} within {timeout_s:g} s: check that it is up, and the firewalls"
    if isinstance(error, socket.gaierror):
        return f"the host name {address.host!r} cannot be resolved ({error.strerror}): fix the URL or DNS"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return f"nothing listens at {address} (connection refused): start Redis, or fix the URL"
    if isinstance(error, FileNotFoundError):
        return f"socket {address.path} does not exist: start Redis, or fix the URL"
    if isinstance(error, PermissionError):
        return f"permission to connect to {address} denied: give this user access to the socket"
    return f"{address}: {str(error) or type(error).__name__}"


async def _speaks_tls(address: Address) -> bool:
    """Whether a TLS handshake with *address* gets as far as certificates."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.host, address.port, ssl=_any_server())
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def _wants_certificate(address: Address) -> bool:
    """Whether *address* ends a TLS connection because the client sends no certificate."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=_any_server())
            try:
                await reader.read(1)  # with TLS 1.3 the refusal comes after the handshake
            finally:
                writer.transport.abort()
    except ssl.SSLError as error:
        return str(error.reason).endswith(_WANTS_CERTIFICATE)
    except OSError:
        return False
    return False


def _any_server() -> ssl.SSLContext:
    """A TLS context that accepts any certificate: the probe sends no data."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _speaks_plainly(address: Address) -> bool:
    """Whether *address* answers a plain-text PING, even with an error."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(_PING)
                return (await reader.read(1)) in (b"+", b"-")
            finally:
                with contextlib.suppress(OSError):
                    writer.transport.abort()
    except OSError:
        return False

"""Why a connection could not be made: what is wrong at the other end, in words that name the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from sidecar.stores.redis.link import LinkLostError
from sidecar.stores.redis.replies import ErrorReply, advice_of
from sidecar.stores.redis.urls import Address, StoreUrl, StoreUrlError, TlsClient

PROBE_TIMEOUT_S = 0.5
"""Looking whether a port speaks TLS or not, after a handshake has failed."""

_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_PING = b"PING\r\n"


async def diagnose(url: StoreUrl, address: Address, error: Exception, timeout_s: float) -> str:
    """
    What *error*, with which connecting to *address* ended after up to *timeout_s*, means, and the remedy.

    Looks at the port once more where the two sides seem to disagree about TLS.
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
        return f"{address} ended the connection during the handshake: is a Redis server there?"
    return _of_socket(address, error, timeout_s)


async def _diagnose_tls(tls: TlsClient, address: Address, error: BaseException, timeout_s: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address} is not trusted ({error.verify_message}): name the file of its CA"
            " with ca_file, or a name that stands in the certificate with server_name"
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason):
        reason = str(error.reason)
        if not tls.cert_file and reason.endswith(_WANTS_CERTIFICATE):
            return f"{address} wants a client certificate: name its files with cert_file and key_file"
        own = f" the client certificate {tls.cert_file}" if tls.cert_file else " the TLS handshake"
        return f"{address} refuses{own} ({reason})"
    if isinstance(error, ssl.SSLError | TimeoutError | ConnectionError) and await _speaks_plainly(address):
        return f"{address} does not speak TLS: use redis instead of rediss in the URL (redis://{address})"
    if isinstance(error, LinkLostError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        if not tls.cert_file and await _wants_certificate(address):
            return f"{address} wants a client certificate: name its files with cert_file and key_file"
        return f"{address} ended the connection during the TLS handshake"
    return _of_socket(address, error, timeout_s)


def _of_socket(address: Address, error: BaseException, timeout_s: float) -> str:
    """What the operating system said."""
    if isinstance(error, TimeoutError):
        return f"no answer from {address} within {timeout_s:g} s: it is down, or something drops the packets"
    if isinstance(error, socket.gaierror):
        return f"the host name {address.host!r} cannot be resolved ({error.strerror}): correct the URL or DNS"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return f"nothing listens at {address} (connection refused): start Redis, or correct the URL"
    if isinstance(error, FileNotFoundError):
        return f"there is no socket {address.path}: start Redis, or correct the URL"
    if isinstance(error, PermissionError):
        return f"no permission to connect to {address}: this user may not use the socket"
    return f"{address}: {error or type(error).__name__}"


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
    """Whether *address* ends a TLS connection because the client shows no certificate."""
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
    """Trusts whoever answers: nothing is sent, it only counts how the handshake ends."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _speaks_plainly(address: Address) -> bool:
    """Whether *address* answers a plain PING, were it only by refusing it."""
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

"""
The reference gRPC server: the same handlers on grpc.aio.

It is slower than the fast transport by an order of magnitude and serves to check it: one conformance suite
runs on both, and docs/develop/conformance.md lists the differences. It is also an alternative (`transport:
grpcio`).

grpc.aio binds its own sockets. As in the fast transport, a Unix socket is bound to a temporary path and then
renamed, so that a successor replaces it atomically and the old server does not remove the successor's socket.
TCP ports are shared by SO_REUSEPORT.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import grpc
import grpc.aio

from sidecar.observe.metrics import Metrics
from sidecar.rpc.calls import Method, method_table
from sidecar.transports.listeners import UnixClaim, bind, is_served, listen_error, publish, staged_path
from sidecar.transports.reference_calls import CallRunner, RunningCalls
from sidecar.transports.reference_tls import CertificateSource
from sidecar.transports.server import Endpoint, ListenError, TransportLimits

_TEARDOWN_S_MAX = 1.0
"""Maximum time for grpc-core to close its connections after all calls have ended."""


class _MethodTable(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Looks methods up by path; unknown methods get a handler that refuses the call."""

    def __init__(self, methods: Iterable[Method], runner: CallRunner) -> None:
        self._handlers = {
            path: runner.method_handler(method) for path, method in method_table(methods).items()
        }
        self._unknown = runner.unknown_method_handler()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler of one call."""
        return self._handlers.get(handler_call_details.method, self._unknown)


class ReferenceGrpcServer:
    """Serves methods with grpc.aio; see `ListeningServer`."""

    def __init__(
        self,
        methods: Iterable[Method],
        endpoints: Sequence[Endpoint],
        limits: TransportLimits,
        metrics: Metrics,
    ) -> None:
        """Serve *methods* on *endpoints* within *limits*; `start` binds."""
        self._endpoints = tuple(endpoints)
        self._limits = limits
        self._runner = CallRunner(RunningCalls(limits.calls_max, metrics), limits)
        self._table = _MethodTable(methods, self._runner)
        self._metrics = metrics
        self._certificates: list[CertificateSource] = []
        self._server: grpc.aio.Server | None = None
        self._claims: list[UnixClaim] = []

    async def start(self) -> tuple[Endpoint, ...]:
        """See `ListeningServer.start`."""
        server = grpc.aio.server(options=channel_options(self._limits))
        server.add_generic_rpc_handlers((self._table,))
        staged: list[tuple[str, Endpoint]] = []
        try:
            endpoints = tuple(self._add_port(server, endpoint, staged) for endpoint in self._endpoints)
            await server.start()
            for path, endpoint in staged:
                self._publish(path, endpoint)
        except BaseException:
            self._release_claims()
            _remove(path for path, _ in staged)
            # A server releases its ports only if it is started and stopped.
            await server.start()
            await server.stop(None)
            raise
        self._server = server
        return endpoints

    def _add_port(
        self, server: grpc.aio.Server, endpoint: Endpoint, staged: list[tuple[str, Endpoint]]
    ) -> Endpoint:
        """Bind one endpoint; add the temporary path of a Unix socket to *staged*."""
        address = _address(endpoint, staged)
        certificate = None if endpoint.tls is None else CertificateSource(endpoint.tls, self._metrics)
        try:
            if certificate is None:
                port = server.add_insecure_port(address)
            else:
                self._certificates.append(certificate)
                port = server.add_secure_port(address, certificate.credentials)
        except RuntimeError as error:
            raise _bind_error(endpoint) from error
        return endpoint if endpoint.path else replace(endpoint, port=port)

    def _publish(self, staged: str, endpoint: Endpoint) -> None:
        try:
            claim = publish(staged, endpoint)
        except OSError as error:
            raise listen_error(endpoint, error) from error
        if claim is not None:
            self._claims.append(claim)

    def _release_claims(self) -> None:
        for claim in self._claims:
            claim.release()
        self._claims.clear()

    def reload_tls(self) -> bool:
        """See `ListeningServer.reload_tls`."""
        results = [certificate.reload() for certificate in self._certificates]
        return all(results)

    async def drain(self, timeout_s: float) -> bool:
        """See `ListeningServer.drain`; closing an idle connection by force does not count as a cut."""
        self._release_claims()
        if self._server is None:
            return True
        self._runner.end_exchanges()
        # grpc-core gets more time than `timeout_s`, so that this method detects the time-out itself.
        stopping = asyncio.ensure_future(self._server.stop(timeout_s + 2 * _TEARDOWN_S_MAX))
        done, _ = await asyncio.wait({stopping}, timeout=timeout_s)
        is_clean = bool(done) or self._runner.open_calls == 0
        if not done:
            cutting = asyncio.ensure_future(self._server.stop(None))
            await asyncio.wait({stopping, cutting}, timeout=_TEARDOWN_S_MAX)
        self._server = None
        return is_clean


def channel_options(limits: TransportLimits) -> tuple[tuple[str, int], ...]:
    """
    Return the channel arguments of grpc-core for *limits*.

    Source: grpc/include/grpc/impl/channel_arg_names.h. grpc-core adds the age's jitter of +-10 % itself.
    """
    options = {
        "grpc.so_reuseport": 1,
        "grpc.max_receive_message_length": limits.message_bytes_max,
        "grpc.max_send_message_length": -1,
        # Between the soft and the hard limit grpc-core refuses at random, so both are equal.
        "grpc.max_metadata_size": limits.header_list_bytes_max,
        "grpc.absolute_max_metadata_size": limits.header_list_bytes_max,
        "grpc.max_concurrent_streams": min(limits.streams_max, limits.calls_per_connection_max),
        "grpc.max_allowed_incoming_connections": limits.connections_max,
        # Calls that wait in grpc-core for Python; it refuses further calls.
        "grpc.server.max_pending_requests": limits.calls_max,
        "grpc.server.max_pending_requests_hard_limit": limits.calls_max,
        # Without this option grpc-core delays refusals of bad requests by up to a second.
        "grpc.http.tarpit": 0,
        "grpc.server_handshake_timeout_ms": _ms(limits.handshake_timeout_s),
        "grpc.http2.settings_timeout": _ms(limits.handshake_timeout_s),
        "grpc.max_connection_idle_ms": _ms(limits.idle_timeout_s),
        "grpc.keepalive_time_ms": _ms(limits.keepalive_interval_s),
        "grpc.keepalive_timeout_ms": _ms(limits.keepalive_timeout_s),
        "grpc.http2.ping_timeout_ms": _ms(limits.keepalive_timeout_s),  # closes silent connections
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": _ms(limits.ping_interval_min_s),
        "grpc.http2.max_ping_strikes": 2,
        # Only bit 0, identity: answers are never compressed, and compressed requests are refused.
        "grpc.compression_enabled_algorithms_bitset": 1,
        "grpc.max_connection_age_grace_ms": _ms(limits.connection_age_grace_s),
    }
    if limits.connection_age_max_s:
        options["grpc.max_connection_age_ms"] = _ms(limits.connection_age_max_s)
    return tuple(options.items())


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)


def _address(endpoint: Endpoint, staged: list[tuple[str, Endpoint]]) -> str:
    """Return the address of *endpoint* for grpc.aio; add the temporary path of a Unix socket to *staged*."""
    try:
        if endpoint.is_exclusive and is_served(endpoint):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if not endpoint.path:
            # grpc-core would listen on all addresses of the name; like `bind`, use the first.
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            return str(replace(endpoint, host=str(found[0][4][0])))
        name = staged_path(endpoint)
    except OSError as error:
        raise listen_error(endpoint, error) from error
    staged.append((name, endpoint))
    return f"unix-abstract:{quote(name[1:])}" if name.startswith("@") else f"unix:{quote(name)}"


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            Path(path).unlink()


def _bind_error(endpoint: Endpoint) -> ListenError:
    """Return why grpc.aio could not bind *endpoint*; it gives no reason, so `bind` finds it."""
    try:
        bind(endpoint).close()
    except ListenError as error:
        return error
    return ListenError(f"cannot listen on {endpoint}: grpc refused the address; see the log of grpc")

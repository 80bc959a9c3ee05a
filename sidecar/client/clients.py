"""Clients of `sidecar.v1.DecisionService`, a blocking one and one for asyncio; every call has a deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, get_args

import grpc
from google.protobuf.json_format import MessageToDict

from sidecar.client.decisions import (
    ClientDecision,
    FailurePolicy,
    NoDecisionError,
    decision_from,
    decision_without,
)
from sidecar.v1 import decision_pb2 as pb
from sidecar.v1.decision_pb2_grpc import DecisionServiceStub

TARGET = "127.0.0.1:9191"
TIMEOUT_S = 0.2

_OPTIONS = (
    # A decision takes a token, so no call is sent twice. A restarted sidecar is found within a second.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_log = logging.getLogger("sidecar.client")


class _Connection:
    """
    What both clients share: one connection, opened by the first call, and the failure policy.

    The first call opens it because a server may fork, or start its event loop, after it has made the client.
    """

    def __init__(
        self,
        target: str = TARGET,
        *,
        timeout_s: float = TIMEOUT_S,
        on_failure: FailurePolicy = "closed",
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """
        Ask the sidecar at *target*: 'host:port', or 'unix:/path' for a Unix socket.

        Args:
            target: where `listen.grpc` of the sidecar is.
            timeout_s: the deadline of a call, in seconds, more than 0.
            on_failure: what to do with a request that the sidecar does not decide.
            credentials: of TLS, from `grpc.ssl_channel_credentials`; None = no TLS.

        Raises:
            ValueError: an argument is out of its range.
        """
        if on_failure not in get_args(FailurePolicy):
            raise ValueError(f"on_failure is {on_failure!r}; it must be 'closed', 'open' or 'raise'")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be more than 0")
        self._target = target
        self._timeout_s = timeout_s
        self._policy = on_failure
        self._credentials = credentials
        self._lock = threading.Lock()
        self._channel: Any = None
        self._stub: DecisionServiceStub | None = None

    def _methods(self, module: Any) -> Any:
        """The methods of the service, on a channel made by *module*, `grpc` or `grpc.aio`."""
        with self._lock:
            if self._channel is None:
                if self._credentials is None:
                    self._channel = module.insecure_channel(self._target, _OPTIONS)
                else:
                    self._channel = module.secure_channel(self._target, self._credentials, _OPTIONS)
                self._stub = DecisionServiceStub(self._channel)
            return self._stub

    def _taken_channel(self) -> Any:
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
        return channel

    def _undecided(self, error: grpc.RpcError) -> ClientDecision:
        failure = NoDecisionError(error.code(), error.details() or "")
        _log.warning("%s; the failure policy is %s", failure, self._policy)
        return decision_without(failure, self._policy)


class Client(_Connection):
    """Asks for decisions and waits for them; one client serves all threads of a process."""

    def decide(
        self,
        method: str = "",
        path: str = "",
        *,
        api_key: str = "",
        headers: Mapping[str, str] | None = None,
        client_ip: str = "",
        scope: str = "",
    ) -> ClientDecision:
        """
        Decide one request; an allowed one has taken a token.

        Args:
            method: of HTTP, as it came; may be empty with *scope*.
            path: as it came, undecoded; may be empty with *scope*.
            api_key: the key alone.
            headers: those that may carry the key, instead of *api_key*.
            client_ip: the end client's address; '' = unknown, which an IP allowlist refuses.
            scope: 'category:read', 'category:write' or 'none', instead of the route's.

        Raises:
            NoDecisionError: the sidecar did not decide, and the failure policy is `raise`.
        """
        request = _request(method, path, api_key, headers, client_ip, scope)
        try:
            return decision_from(self._methods(grpc).Decide(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            return self._undecided(error)

    def describe_caller(
        self, *, api_key: str = "", headers: Mapping[str, str] | None = None, client_ip: str = ""
    ) -> dict[str, Any]:
        """
        Return what the integration that owns the key may do, and its latest refusals, as `GET /whoami` does.

        The arguments are those of `decide`; values that are not known are left out.

        Raises:
            NoDecisionError: the key is not accepted (UNAUTHENTICATED), the integration asks too often
                (RESOURCE_EXHAUSTED), or the sidecar does not answer.
        """
        request = pb.DescribeCallerRequest(api_key=api_key, headers=headers, client_ip=client_ip)
        try:
            return _shown(self._methods(grpc).DescribeCaller(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise NoDecisionError(error.code(), error.details() or "") from None

    def close(self) -> None:
        """Close the connection; a later call opens another one."""
        channel = self._taken_channel()
        if channel is not None:
            channel.close()

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class AsyncClient(_Connection):
    """Asks for decisions on asyncio; one client serves all tasks of an event loop."""

    async def decide(
        self,
        method: str = "",
        path: str = "",
        *,
        api_key: str = "",
        headers: Mapping[str, str] | None = None,
        client_ip: str = "",
        scope: str = "",
    ) -> ClientDecision:
        """Decide one request, as `Client.decide` does."""
        request = _request(method, path, api_key, headers, client_ip, scope)
        try:
            return decision_from(await self._methods(grpc.aio).Decide(request, timeout=self._timeout_s))
        except grpc.aio.AioRpcError as error:
            return self._undecided(error)

    async def describe_caller(
        self, *, api_key: str = "", headers: Mapping[str, str] | None = None, client_ip: str = ""
    ) -> dict[str, Any]:
        """Describe the caller, as `Client.describe_caller` does."""
        request = pb.DescribeCallerRequest(api_key=api_key, headers=headers, client_ip=client_ip)
        try:
            return _shown(await self._methods(grpc.aio).DescribeCaller(request, timeout=self._timeout_s))
        except grpc.aio.AioRpcError as error:
            raise NoDecisionError(error.code(), error.details() or "") from None

    async def close(self) -> None:
        """Close the connection; a later call opens another one."""
        channel = self._taken_channel()
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        """The client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()


def _request(
    method: str, path: str, api_key: str, headers: Mapping[str, str] | None, client_ip: str, scope: str
) -> pb.DecideRequest:
    return pb.DecideRequest(
        method=method, path=path, api_key=api_key, headers=headers, client_ip=client_ip, scope=scope
    )


def _shown(response: pb.DescribeCallerResponse) -> dict[str, Any]:
    return MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )

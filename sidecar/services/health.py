"""
The standard health service: `grpc.health.v1.Health`, its `Check` and its `Watch`.

Proxies and orchestrators ask it whether to send calls here. Service "" stands for the whole process.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md and
grpc/health/v1/health.proto; how clients use Watch: gRPC proposal A17.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from sidecar.rpc.calls import Method, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode

CHECK_PATH = "/grpc.health.v1.Health/Check"
WATCH_PATH = "/grpc.health.v1.Health/Watch"

WATCHERS_MAX = 1_024
"""Open Watch streams; each holds a handler's slot for as long as its caller likes."""

SERVICE_BYTES_MAX = 256
"""Longest service name that may be watched: unknown names are kept too, and they come from outside."""


def _response(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())


_SERVING = _response(health_pb2.HealthCheckResponse.SERVING)
_NOT_SERVING = _response(health_pb2.HealthCheckResponse.NOT_SERVING)
_SERVICE_UNKNOWN = _response(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class HealthService:
    """
    Which services of this process take calls, for those who ask and those who watch.

    Everything runs on the event loop that serves the calls; nothing here blocks or waits.
    """

    def __init__(self, services: Iterable[str] = ("",), watchers_max: int = WATCHERS_MAX) -> None:
        """Know *services*, none of them serving yet; refuse more than *watchers_max* Watch streams."""
        self._watchers_max = watchers_max
        self._watchers: dict[StreamCall, str] = {}
        self._is_draining = False
        self._responses: dict[str, bytes] = {}
        self._answers: dict[bytes, bytes] = {}  # serialised request -> serialised response
        for service in services:
            self._set(service, _NOT_SERVING)

    def methods(self) -> tuple[Method, ...]:
        """The handlers, to be put into a server's method table."""
        return (UnaryMethod(CHECK_PATH, self.check), StreamMethod(WATCH_PATH, self.watch))

    @property
    def watchers(self) -> int:
        """How many Watch streams are open."""
        return len(self._watchers)

    def set_serving(self, service: str, is_serving: bool) -> None:
        """Say whether *service* takes calls; watchers hear of a change. Ignored once draining."""
        if not self._is_draining:
            self._set(service, _SERVING if is_serving else _NOT_SERVING)

    def drain(self) -> None:
        """
        Say for good that nothing here takes calls, and end every Watch stream.

        A stream left open would hold up the drain of the connection that carries it. A client that
        loses it asks again (A17), and finds the successor once the connection is gone.
        """
        for service in self._responses:
            self._set(service, _NOT_SERVING)
        self._is_draining = True
        for call in list(self._watchers):
            self._end(call)

    def check(self, request: bytes, call: UnaryCall) -> bytes:
        """
        `Check`: the status of one service.

        Raises:
            RpcError: NOT_FOUND for an unknown service, INTERNAL for a request that does not parse.
        """
        answer = self._answers.get(request)
        if answer is None:  # unknown, or encoded in another way than ours
            answer = self._responses.get(_service(request))
        if answer is None:
            raise RpcError(StatusCode.NOT_FOUND, "unknown service")
        return answer

    def watch(self, request: bytes, call: StreamCall) -> None:
        """
        `Watch`: the status of one service now and at each change; SERVICE_UNKNOWN is a status too.

        Raises:
            RpcError: UNAVAILABLE when draining: without a first status, so that clients back off.
                RESOURCE_EXHAUSTED when `watchers_max` are open. INVALID_ARGUMENT for a name of more
                than `SERVICE_BYTES_MAX` bytes.
        """
        service = _service(request)
        if self._is_draining:
            raise RpcError(StatusCode.UNAVAILABLE, "this server is draining")
        if len(service.encode()) > SERVICE_BYTES_MAX:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT, f"service names have at most {SERVICE_BYTES_MAX} bytes"
            )
        if len(self._watchers) >= self._watchers_max:
            raise RpcError(StatusCode.RESOURCE_EXHAUSTED, "too many Watch streams are open")
        self._watchers[call] = service
        call.on_cancel = lambda: self._end(call)
        call.send(self._responses.get(service, _SERVICE_UNKNOWN))

    def _set(self, service: str, response: bytes) -> None:
        if self._responses.get(service) == response:
            return
        self._responses[service] = response
        self._answers[health_pb2.HealthCheckRequest(service=service).SerializeToString()] = response
        # A send may find that its caller left, and end it: walk over a copy.
        for call in [call for call, watched in self._watchers.items() if watched == service]:
            call.send(response)

    def _end(self, call: StreamCall) -> None:
        if self._watchers.pop(call, None) is not None:
            call.fail(StatusCode.UNAVAILABLE, "this server is draining")


def _service(request: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(request).service)
    except DecodeError:
        raise RpcError(StatusCode.INTERNAL, "the request is no HealthCheckRequest") from None

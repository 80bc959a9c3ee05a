"""
The standard health service, `grpc.health.v1.Health`, with `Check` and `Watch`.

Proxies and orchestrators use it to decide where to send calls. Service "" is the whole process.

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
"""Maximum open Watch streams; each occupies a handler slot until its caller ends it."""

SERVICE_BYTES_MAX = 256
"""Maximum length of a watched service name: callers choose it, and unknown names are stored too."""


def _response(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())


_SERVING = _response(health_pb2.HealthCheckResponse.SERVING)
_NOT_SERVING = _response(health_pb2.HealthCheckResponse.NOT_SERVING)
_SERVICE_UNKNOWN = _response(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class HealthService:
    """
    The health of this process's services, for Check and Watch.

    Everything runs on the event loop that serves the calls; nothing blocks.
    """

    def __init__(self, services: Iterable[str] = ("",), watchers_max: int = WATCHERS_MAX) -> None:
        """Start with *services*, all NOT_SERVING; refuse more than *watchers_max* Watch streams."""
        self._watchers_max = watchers_max
        self._watchers: dict[StreamCall, str] = {}
        self._is_draining = False
        self._responses: dict[str, bytes] = {}
        self._answers: dict[bytes, bytes] = {}  # serialized request -> serialized response
        for service in services:
            self._set(service, _NOT_SERVING)

    def methods(self) -> tuple[Method, ...]:
        """The methods to bind to a transport."""
        return (UnaryMethod(CHECK_PATH, self.check), StreamMethod(WATCH_PATH, self.watch))

    @property
    def watchers(self) -> int:
        """The number of open Watch streams."""
        return len(self._watchers)

    def set_serving(self, service: str, is_serving: bool) -> None:
        """Set the status of *service* and notify its watchers; ignored while draining."""
        if not self._is_draining:
            self._set(service, _SERVING if is_serving else _NOT_SERVING)

    def drain(self) -> None:
        """
        Set every service to NOT_SERVING permanently, and end every Watch stream.

        An open stream would delay the drain of its connection. The client opens a new Watch (A17), and
        reaches the successor once the connection is closed.
        """
        for service in self._responses:
            self._set(service, _NOT_SERVING)
        self._is_draining = True
        for call in list(self._watchers):
            self._end(call)

    def check(self, request: bytes, call: UnaryCall) -> bytes:
        """
        Handle `Check`: return the status of one service.

        Raises:
            RpcError: NOT_FOUND for an unknown service, INTERNAL for a request that does not parse.
        """
        answer = self._answers.get(request)
        if answer is None:  # an unknown service, or another encoding than ours
            answer = self._responses.get(_service(request))
        if answer is None:
            raise RpcError(StatusCode.NOT_FOUND, "unknown service")
        return answer

    def watch(self, request: bytes, call: StreamCall) -> None:
        """
        Handle `Watch`: send the status of one service now and at each change.

        Raises:
            RpcError: UNAVAILABLE while draining, without a first status, so that clients back off.
                RESOURCE_EXHAUSTED if `watchers_max` are open. INVALID_ARGUMENT for a name of more
                than `SERVICE_BYTES_MAX` bytes.
        """
        service = _service(request)
        if self._is_draining:
            raise RpcError(StatusCode.UNAVAILABLE, "this server is draining")
        if len(service.encode()) > SERVICE_BYTES_MAX:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT, f"a service name must have at most {SERVICE_BYTES_MAX} bytes"
            )
        if len(self._watchers) >= self._watchers_max:
            raise RpcError(
                StatusCode.RESOURCE_EXHAUSTED, f"too many open Watch streams (limit {self._watchers_max})"
            )
        self._watchers[call] = service
        call.on_cancel = lambda: self._end(call)
        call.send(self._responses.get(service, _SERVICE_UNKNOWN))

    def _set(self, service: str, response: bytes) -> None:
        if self._responses.get(service) == response:
            return
        self._responses[service] = response
        self._answers[health_pb2.HealthCheckRequest(service=service).SerializeToString()] = response
        # A send may end its call if the caller has disconnected: iterate over a copy.
        for call in [call for call, watched in self._watchers.items() if watched == service]:
            call.send(response)

    def _end(self, call: StreamCall) -> None:
        if self._watchers.pop(call, None) is not None:
            call.fail(StatusCode.UNAVAILABLE, "this server is draining")


def _service(request: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(request).service)
    except DecodeError:
        raise RpcError(StatusCode.INTERNAL, "the message is not a HealthCheckRequest") from None

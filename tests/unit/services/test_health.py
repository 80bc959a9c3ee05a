"""The health service as its handlers see it, with no socket and no loop; the wire is tested elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from grpc_health.v1 import health_pb2

from sidecar.rpc.calls import StreamMethod, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.health import SERVICE_BYTES_MAX, WATCHERS_MAX, HealthService

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@dataclass(eq=False)
class RecordedCall:
    """A call that keeps what a handler does to it; satisfies both kinds of `Call`."""

    deadline_s: float | None = None
    on_cancel: Callable[[], None] | None = None
    is_cancelled: bool = False
    sent: list[int] = field(default_factory=list)
    ended: StatusCode | None = None

    def metadata(self, name: str) -> str | None:
        """None: the health service reads none."""
        return None

    def send(self, message: bytes) -> None:
        """Keep the status in *message*."""
        self.sent.append(health_pb2.HealthCheckResponse.FromString(message).status)

    def reply(self, message: bytes) -> None:
        """As `send`, and end."""
        self.send(message)
        self.finish()

    def finish(self) -> None:
        """End OK."""
        self.ended = self.ended or StatusCode.OK

    def fail(self, code: StatusCode, detail: str) -> None:
        """End with *code*."""
        self.ended = self.ended or code

    def leave(self) -> None:
        """What a transport does when the caller goes away."""
        self.is_cancelled = True
        assert self.on_cancel is not None
        self.on_cancel()


def request(service: str = "") -> bytes:
    """A serialized HealthCheckRequest."""
    return health_pb2.HealthCheckRequest(service=service).SerializeToString()


def check(health: HealthService, service: str = "") -> int:
    """The status that Check answers."""
    return health_pb2.HealthCheckResponse.FromString(health.check(request(service), RecordedCall())).status


def watch(health: HealthService, service: str = "") -> RecordedCall:
    """Open a Watch stream."""
    call = RecordedCall()
    health.watch(request(service), call)
    return call


def refusal(handle: Callable[[], object]) -> StatusCode:
    """The code of the RpcError that *handle* raises."""
    with pytest.raises(RpcError) as caught:
        handle()
    return caught.value.code


def test_methods__paths() -> None:
    """The table holds Check as a unary and Watch as a streaming method, under the standard names."""
    kinds = {method.path: type(method) for method in HealthService().methods()}
    assert kinds == {
        "/grpc.health.v1.Health/Check": UnaryMethod,
        "/grpc.health.v1.Health/Watch": StreamMethod,
    }


def test_check__not_serving_at_first() -> None:
    """Nobody is sent calls before the process has said that it takes them."""
    assert check(HealthService()) == NOT_SERVING


def test_check__follows_set_serving() -> None:
    """Check answers what was last said of that service, and of that alone."""
    health = HealthService(("", "a", "b"))
    health.set_serving("a", True)
    assert (check(health, ""), check(health, "a"), check(health, "b")) == (NOT_SERVING, SERVING, NOT_SERVING)
    health.set_serving("a", False)
    assert check(health, "a") == NOT_SERVING


def test_check__unknown_service() -> None:
    """An unknown service is NOT_FOUND, as health.proto demands."""
    health = HealthService()
    assert refusal(lambda: health.check(request("nobody"), RecordedCall())) is StatusCode.NOT_FOUND


def test_check__other_encoding() -> None:
    """A request that says the same in other bytes (a field twice, an unknown field) gets the same answer."""
    health = HealthService(("a",))
    health.set_serving("a", True)
    odd = b"\x0a\x01b" + request("a") + b"\x7a\x01x"
    answer = health.check(odd, RecordedCall())
    assert health_pb2.HealthCheckResponse.FromString(answer).status == SERVING


@pytest.mark.parametrize("handler", ["check", "watch"])
@pytest.mark.parametrize("bad", [b"\x0a", b"\xff", b"\x0a\x01\xff"], ids=["cut", "tag", "not UTF-8"])
def test_handlers__unparsable_request(handler: str, bad: bytes) -> None:
    """Bytes that are no HealthCheckRequest are INTERNAL, and no stream is kept for them."""
    health = HealthService()
    assert refusal(lambda: getattr(health, handler)(bad, RecordedCall())) is StatusCode.INTERNAL
    assert health.watchers == 0


def test_watch__first_status_at_once() -> None:
    """A watcher gets the present status without waiting for a change, and the stream stays open."""
    call = watch(HealthService())
    assert (call.sent, call.ended) == ([NOT_SERVING], None)


def test_watch__pushes_changes_only() -> None:
    """Saying the same again sends nothing; each change sends one message."""
    health = HealthService()
    call = watch(health)
    for is_serving in (False, True, True, False, True):
        health.set_serving("", is_serving)
    assert call.sent == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]


def test_watch__unknown_service_stays_open() -> None:
    """An unknown service is SERVICE_UNKNOWN, and becoming known is a change like any other."""
    health = HealthService()
    call = watch(health, "later")
    assert (call.sent, call.ended) == ([SERVICE_UNKNOWN], None)
    health.set_serving("later", True)
    assert call.sent == [SERVICE_UNKNOWN, SERVING]


def test_watch__only_its_own_service() -> None:
    """A change of one service is no news for the watchers of another."""
    health = HealthService(("a", "b"))
    watching_a, watching_b = watch(health, "a"), watch(health, "b")
    health.set_serving("b", True)
    assert (watching_a.sent, watching_b.sent) == ([NOT_SERVING], [NOT_SERVING, SERVING])


def test_watch__caller_leaves() -> None:
    """A caller that goes away frees its slot and its place, and gets nothing more."""
    health = HealthService()
    call = watch(health)
    call.leave()
    health.set_serving("", True)
    assert (health.watchers, call.sent) == (0, [NOT_SERVING])
    assert call.ended is not None


def test_watch__caller_leaves_during_a_push() -> None:
    """A send to a caller that has disconnected does not disturb the other watchers."""
    health = HealthService()
    first, second = watch(health), watch(health)
    first.send = lambda message: first.leave()  # type: ignore[method-assign]
    health.set_serving("", True)
    assert (health.watchers, second.sent) == (1, [NOT_SERVING, SERVING])


def test_watch__bounded() -> None:
    """Past `watchers_max` a Watch is RESOURCE_EXHAUSTED, until one of the others ends."""
    health = HealthService(watchers_max=2)
    first, _ = watch(health), watch(health)
    assert refusal(lambda: watch(health)) is StatusCode.RESOURCE_EXHAUSTED
    first.leave()
    assert watch(health).sent == [NOT_SERVING]
    assert health.watchers == 2


def test_watch__bounded_by_default() -> None:
    """Without a word the bound is `WATCHERS_MAX`."""
    health = HealthService()
    for _ in range(WATCHERS_MAX):
        watch(health)
    assert refusal(lambda: watch(health)) is StatusCode.RESOURCE_EXHAUSTED


def test_watch__name_bounded() -> None:
    """A caller cannot make the service keep names of any length; the bound counts bytes."""
    health = HealthService()
    assert watch(health, "x" * SERVICE_BYTES_MAX).sent == [SERVICE_UNKNOWN]
    assert refusal(lambda: watch(health, "é" * (SERVICE_BYTES_MAX // 2 + 1))) is StatusCode.INVALID_ARGUMENT
    assert health.watchers == 1


def test_drain__everything_not_serving() -> None:
    """Every service is NOT_SERVING from then on, whatever is said later."""
    health = HealthService(("", "a"))
    health.set_serving("", True)
    health.set_serving("a", True)
    health.drain()
    health.set_serving("a", True)
    assert (check(health, ""), check(health, "a")) == (NOT_SERVING, NOT_SERVING)


def test_drain__watchers_hear_and_end() -> None:
    """Watchers get NOT_SERVING as a last status, then their streams end and hold up no drain."""
    health = HealthService()
    health.set_serving("", True)
    call = watch(health)
    health.drain()
    assert (call.sent, call.ended, health.watchers) == ([SERVING, NOT_SERVING], StatusCode.UNAVAILABLE, 0)


def test_drain__new_watchers_are_refused() -> None:
    """A Watch that comes later gets no first status, so that its client backs off before it tries again."""
    health = HealthService()
    health.drain()
    assert refusal(lambda: watch(health)) is StatusCode.UNAVAILABLE


def test_drain__twice() -> None:
    """A second drain changes nothing."""
    health = HealthService()
    health.drain()
    health.drain()
    assert check(health) == NOT_SERVING

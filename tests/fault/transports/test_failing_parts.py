"""What fails around or inside a connection, at every point where it can: nothing is left over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from ngh2 import Configuration

from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast import connection
from sidecar.transports.fast.engine import open_http2
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import ACK, PREFACE, SETTINGS, Rig, frame, message, reset, settings_frame


def conversation(rig: Rig) -> bytes:
    """What a busy client says: calls of every kind, whole and half, good and bad."""
    half = rig.stream_id()
    return b"".join(
        (
            PREFACE + settings_frame() + frame(SETTINGS, ACK, 0),
            rig.call_bytes()[1],
            rig.call_bytes("/t/Keep", grpc_timeout="50m")[1],
            rig.call_bytes("/t/Watch")[1],
            rig.headers(half) + rig.data(half, message()[:3], end=False),
            rig.call_bytes("/t/Refuse")[1],
            rig.call_bytes("/t/Nope")[1],
            rig.call_bytes("/t/Keep")[1],
            reset(3),
        )
    )


def talk(rig: Rig, data: bytes) -> None:
    """Say *data*, let handlers answer, let time pass; stop when the connection is over."""
    if not rig.transport.is_closing():
        rig.say(data)
    for call in rig.watched.calls:
        call.send(b"news")
    rig.loop.advance(0.1)
    rig.kept.reply_all()
    for call in rig.watched.calls:
        call.fail(StatusCode.UNAVAILABLE, "over")
    rig.loop.advance(0.3)


def assert_nothing_left(rig: Rig) -> None:
    """No slot, byte, timer or connection; closed once."""
    assert rig.core.running == 0
    assert rig.core.buffered_bytes == 0
    assert rig.core.connections == set()
    assert rig.metrics.value("sidecar_connections_open") == 0
    assert len(rig.core.wheel) == 0
    assert len(rig.closed_for) == 1


def test_peer__may_vanish_after_any_byte() -> None:
    """The connection breaks after each byte of a conversation in turn."""
    whole = len(conversation(Rig(starts=False)))
    for cut in range(whole + 1):
        rig = Rig(starts=False)
        rig.say(conversation(rig)[:cut])
        rig.hang_up()
        kept = len(rig.kept.calls)
        assert rig.kept.cancelled == kept
        talk(rig, b"")
        assert_nothing_left(rig)
        assert rig.closed_for == ["peer"]


def test_transport__may_break_at_any_write() -> None:
    """The transport dies on the n-th write, for every n, until a conversation gets through."""
    for fatal in range(1, 100):
        rig = Rig(starts=False)
        write, writes = rig.transport.write, 0

        def failing(
            data: bytes, rig: Rig = rig, write: Callable[[bytes], None] = write, at: int = fatal
        ) -> None:
            nonlocal writes
            writes += 1
            if writes == at:
                rig.transport.abort()
            write(data)

        rig.transport.write = failing  # type: ignore[method-assign]
        talk(rig, conversation(rig))
        if writes < fatal:
            assert rig.closed_for == []
            return
        assert_nothing_left(rig)
    raise AssertionError("the conversation never got through")


class FailingHttp2:
    """ngh2 whose n-th call raises, once `left` is set to n."""

    def __init__(self) -> None:
        """Pass every call on."""
        self._real: Any = None
        self.left = 0

    def open(self, limits: TransportLimits, options: Configuration) -> FailingHttp2:
        """Stand in for `open_http2`."""
        self._real = open_http2(limits, options)
        return self

    def __getattr__(self, name: str) -> Any:
        """Count down."""
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("a fault inside")
        return getattr(self._real, name)

    @property
    def has_failed(self) -> bool:
        """Whether the fault has happened."""
        return self.left <= 0


def test_engine__may_fail_at_any_call(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our own ends its connection with GOAWAY(INTERNAL_ERROR), and harms no other."""
    with caplog.at_level(logging.CRITICAL, "sidecar.transports"):
        for fatal in range(1, 500):
            faulty = FailingHttp2()
            with monkeypatch.context() as patch:
                patch.setattr(connection, "open_http2", faulty.open)
                rig = Rig(starts=False)
            other = Rig(core=rig.core)
            faulty.left = fatal
            talk(rig, conversation(rig))
            assert other.request().status == 0
            if not faulty.has_failed:
                return
            assert rig.goaway_codes == [2]
            rig.hang_up()
            other.hang_up()
            for each in (rig, other):
                for call in (*each.kept.calls, *each.watched.calls):
                    call.fail(StatusCode.INTERNAL, "")
            assert sorted(rig.closed_for) == ["internal", "peer"]
            assert (rig.core.running, rig.core.buffered_bytes, len(rig.core.wheel)) == (0, 0, 0)
    raise AssertionError("the conversation never got through")

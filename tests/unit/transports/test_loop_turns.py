"""Loop turns: the shares of connections, and when answers and takes leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import Rig, reset


def test_turn__other_connections_get_theirs() -> None:
    """A read with many calls is handled in parts; meanwhile nothing more is read, and others are served."""
    rig = Rig(TransportLimits(calls_per_turn_max=10))
    other = Rig(core=rig.core)
    calls = [rig.call_bytes() for _ in range(35)]
    rig.say_unread(b"".join(call for _, call in calls))
    assert not rig.transport.is_reading
    assert rig.ended(0) == 10
    assert other.request("/t/Echo").status == 0
    rig.loop.settle()
    assert rig.transport.is_reading
    assert [rig.stream(stream_id).status for stream_id, _ in calls] == [0] * 35


def test_turn__connections_share_it() -> None:
    """The first to ask takes what there is, then all get equal parts; a few calls are never put off."""
    rigs = [Rig(TransportLimits(calls_per_turn_max=60))]
    core, loop = rigs[0].core, rigs[0].loop
    rigs += [Rig(core=core) for _ in range(3)]
    for rig, count in zip(rigs, (100, 100, 100, 32), strict=True):
        rig.say_unread(b"".join(rig.call_bytes()[1] for _ in range(count)))
    assert [answered(rig) for rig in rigs] == [60, 16, 16, 32]
    loop.turn()
    assert [answered(rig) for rig in rigs] == [80, 36, 36, 32]
    loop.settle()
    assert [answered(rig) for rig in rigs] == [100, 100, 100, 32]


def answered(rig: Rig) -> int:
    """How many of the client's calls have come back OK."""
    return sum(rig.stream(stream_id).status == 0 for stream_id in range(1, rig.stream_id(), 2))


class Sender:
    """A store's pipeline that always waits for replies; calls *look* whenever it is looked after."""

    is_waiting = True

    def __init__(self, look: Callable[[], None]) -> None:
        """Have takes to send."""
        self._look = look

    def send_early(self) -> bool:
        """See `TakeSender`."""
        self._look()
        return False

    def send_at_turn_end(self) -> bool:
        """See `TakeSender`."""
        return True

    def read_replies(self) -> bool:
        """See `TakeSender`."""
        self._look()
        return False


def test_loop_turn__writes_late_answers_of_all_connections_once() -> None:
    """What was answered so far leaves when the `LoopTurn` says so; the end of the turn adds nothing."""
    rigs = [Rig()]
    rigs.append(Rig(core=rigs[0].core))
    for rig in rigs:
        rig.say_unread(rig.call_bytes("/t/Keep")[1] + rig.call_bytes("/t/Keep")[1])
    before = [rig.transport.writes for rig in rigs]
    rigs[0].kept.reply_all()
    assert [rig.transport.writes for rig in rigs] == before
    rigs[0].core.turn.write_answers()
    once = [count + 1 for count in before]
    assert [rig.transport.writes for rig in rigs] == once
    rigs[0].loop.settle()
    assert [rig.transport.writes for rig in rigs] == once
    assert [answered(rig) for rig in rigs] == [2, 2]


def test_loop_turn__takes_may_leave_after_each_read_and_each_part_of_one() -> None:
    """So calls that wait for the store are looked after while others are still to be handled."""
    rig = Rig(TransportLimits(calls_per_turn_max=10))
    parts: list[int] = []
    rig.core.turn.send_soon(Sender(lambda: parts.append(len(rig.kept.calls))))
    rig.say_unread(b"".join(rig.call_bytes("/t/Keep")[1] for _ in range(25)))
    assert parts == [10]
    rig.loop.settle()
    assert parts == [10, 20, 25]


def test_loop_turn__what_fails_then_harms_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the connection whose read came before it serves on."""
    rig = Rig()

    def fail() -> None:
        raise ValueError("not the connection's fault")

    rig.core.turn.send_soon(Sender(fail))
    assert rig.request().status == 0
    assert rig.request().status == 0
    assert "not the connection's fault" in caplog.text


def test_read__that_brings_no_answer_about_writes_nothing() -> None:
    """A kept call waits and nothing of HTTP/2's own is due: no write, and the answer still leaves."""
    rig = Rig()
    before = rig.transport.writes
    rig.say_unread(rig.call_bytes("/t/Keep")[1])
    assert rig.transport.writes == before
    rig.kept.reply_all()
    rig.loop.settle()
    assert rig.transport.writes == before + 1


def test_turn__the_order_of_events_survives_a_break() -> None:
    """A reset that waits behind the break still cancels its call, and nothing is left."""
    rig = Rig(TransportLimits(calls_per_turn_max=2))
    calls = [rig.call_bytes("/t/Keep") for _ in range(8)]
    rig.say_unread(b"".join(call for _, call in calls) + b"".join(reset(stream_id) for stream_id, _ in calls))
    rig.loop.settle()
    assert (len(rig.kept.calls), rig.kept.cancelled) == (8, 8)
    rig.kept.reply_all()
    rig.loop.settle()
    assert rig.core.running == 0
    assert rig.request().status == 0


def test_turn__a_connection_that_closes_in_a_break_is_forgotten() -> None:
    """What was waiting is dropped, not handled on a dead connection."""
    rig = Rig(TransportLimits(calls_per_turn_max=2))
    rig.say_unread(b"".join(rig.call_bytes("/t/Keep")[1] for _ in range(8)))
    handled = len(rig.kept.calls)
    rig.connection.connection_lost(None)
    rig.loop.settle()
    assert len(rig.kept.calls) == handled

"""How a connection begins and every way it ends, with the reason that is counted."""

from __future__ import annotations

import struct
from typing import cast

import pytest

from sidecar.transports.fast.connection import Connection
from sidecar.transports.fast.lifetime import LINGER_S
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import (
    ACK,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    Rig,
    SettingsFrame,
    frame,
    message,
    settings_frame,
)

LAST_POSSIBLE = 2**31 - 1


class FakeSsl:
    """What TLS has agreed on."""

    def __init__(self, protocol: str | None) -> None:
        """ALPN settled on *protocol*."""
        self._protocol = protocol

    def selected_alpn_protocol(self) -> str | None:
        """See `ssl.SSLObject`."""
        return self._protocol


def ack_ping(rig: Rig) -> None:
    """Answer the server's last PING."""
    rig.say(frame(PING, ACK, 0, rig.pings[-1]))


def test_connection__speaks_first() -> None:
    """Our SETTINGS are the first frame, sent before a byte of the client (RFC 9113 3.4)."""
    rig = Rig(
        TransportLimits(streams_max=77, message_bytes_max=100_000, header_list_bytes_max=5_000), starts=False
    )
    settings = cast(SettingsFrame, rig.frames[0]).settings
    assert settings == {3: 77, 4: 100_005, 6: 10_000}


def test_connection__small_messages_keep_the_default_window() -> None:
    """A window below 65,535 would only slow clients down."""
    rig = Rig(TransportLimits(message_bytes_max=100), starts=False)
    assert cast(SettingsFrame, rig.frames[0]).settings[4] == 65_535


def test_connection__counts_itself() -> None:
    """The gauge follows; the reason is counted when it closes."""
    rig = Rig()
    other = Rig(core=rig.core)
    assert rig.metrics.value("sidecar_connections_open") == 2
    rig.hang_up()
    other.hang_up()
    assert rig.metrics.value("sidecar_connections_open") == 0
    assert rig.closed_for == ["peer", "peer"]


def test_connection__tls_must_have_agreed_on_h2() -> None:
    """RFC 9113 3.3: anything else is closed before a byte of HTTP/2."""
    good = Rig(ssl_object=FakeSsl("h2"))
    assert good.request().status == 0
    bad = Rig(ssl_object=FakeSsl(None), starts=False)
    bad.loop.settle()
    assert bad.closed_for == ["handshake"]
    assert not bad.transport.output


def test_give_up__counts_once_whether_or_not_there_was_a_connection() -> None:
    """A failed handshake never became one; a cancelled one may just have succeeded."""
    rig = Rig(starts=False)
    rig.connection.fail_handshake()
    rig.loop.settle()
    assert rig.closed_for == ["drain"]
    assert rig.core.admit("")
    Connection(rig.core).fail_handshake()
    assert rig.closed_for == ["drain", "handshake"]
    assert rig.metrics.value("sidecar_connections_open") == 0


def test_connection__no_preface_in_time_is_the_end() -> None:
    """A client that says nothing is closed, and so is one that never acknowledges our SETTINGS."""
    silent, mute = Rig(starts=False), Rig(starts=False)
    mute.say(PREFACE + settings_frame())
    for rig in (silent, mute):
        rig.loop.advance(9.9)
        assert not rig.goaways
        rig.loop.advance(0.5)
        assert rig.goaway_codes == [4]  # SETTINGS_TIMEOUT
        rig.loop.advance(LINGER_S + 0.5)
        assert rig.closed_for == ["handshake"]


def test_connection__http_1_is_told_off() -> None:
    """A bad preface gets a GOAWAY made by hand, then the end of our stream; nothing after it is read."""
    rig = Rig(starts=False)
    rig.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert rig.goaway_codes == [1]
    assert rig.transport.has_written_eof
    rig.say(PREFACE + settings_frame())
    rig.hang_up()
    assert rig.closed_for == ["protocol_error"]


@pytest.mark.parametrize(
    "offence",
    [
        frame(DATA, 0, 0, b"x"),
        frame(SETTINGS, 0, 1),
        frame(SETTINGS, 0, 0, b"12345"),
        frame(PING, 0, 0, b"short"),
        frame(HEADERS, 4, 2, b"\x82"),
        frame(HEADERS, 4, 5, b"\xff\xff\xff\xff\xff"),
        frame(9, 4, 5, b""),
    ],
)
def test_connection__a_protocol_error_ends_it(offence: bytes) -> None:
    """GOAWAY, no handler after it, then lingering until the client has closed."""
    rig = Rig()
    rig.request("/t/Keep")
    _, late = rig.call_bytes("/t/Keep")
    rig.say(offence + late)
    assert len(rig.goaway_codes) == 1
    assert rig.goaway_codes[0] in (1, 6, 9)
    rig.say(late)
    assert (len(rig.kept.calls), rig.kept.cancelled) == (1, 1)
    assert rig.transport.has_written_eof
    rig.loop.advance(LINGER_S + 0.5)
    assert rig.closed_for == ["protocol_error"]
    assert rig.transport.is_aborted


def test_connection__the_clients_goaway_lets_streams_finish() -> None:
    """RFC 9113 6.8: open streams are served, then we close."""
    rig = Rig()
    stream = rig.request("/t/Keep")
    rig.say(frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
    assert rig.closed_for == []
    rig.kept.reply_all()
    rig.loop.settle()
    assert rig.stream(1) is stream
    assert stream.status == 0
    assert rig.transport.has_written_eof
    rig.hang_up()
    assert rig.closed_for == ["peer"]


def test_drain__takes_two_steps_and_loses_nothing() -> None:
    """Announced, new streams still served; after the round trip the last one is named; then we close."""
    rig = Rig()
    running = rig.request("/t/Keep")
    rig.connection.drain("drain")
    rig.loop.settle()
    assert [goaway.last_stream_id for goaway in rig.goaways] == [LAST_POSSIBLE]
    crossing = rig.request()
    ack_ping(rig)
    assert [goaway.last_stream_id for goaway in rig.goaways] == [LAST_POSSIBLE, 3]
    ignored = rig.request()
    assert (crossing.status, ignored.status, rig.transport.has_written_eof) == (0, None, False)
    rig.kept.reply_all()
    rig.loop.settle()
    assert rig.stream(1) is running
    assert running.status == 0
    assert rig.transport.has_written_eof
    assert rig.goaway_codes == [0, 0]
    rig.hang_up()
    assert rig.closed_for == ["drain"]


def test_drain__does_not_wait_for_ever_for_the_round_trip() -> None:
    """A client that never answers PINGs is named its last stream after a second."""
    rig = Rig()
    rig.request("/t/Keep")
    rig.connection.drain("drain")
    rig.loop.advance(1.5)
    assert len(rig.goaways) == 2
    rig.kept.reply_all()
    rig.loop.advance(2)
    assert rig.closed_for == ["drain"]


def test_drain__is_cut_at_its_bound() -> None:
    """A call that never ends is cut: cancelled, and the connection closed."""
    rig = Rig()
    rig.request("/t/Keep")
    rig.connection.drain("drain", cut_at_s=rig.loop.time() + 5)
    rig.loop.advance(4.9)
    assert rig.kept.cancelled == 0
    rig.loop.advance(0.5)
    assert rig.kept.cancelled == 1
    assert rig.closed_for == ["drain"]


def test_drain__again_changes_nothing() -> None:
    """Two drains are one."""
    rig = Rig()
    rig.request("/t/Keep")
    rig.connection.drain("drain")
    rig.connection.drain("max_age")
    rig.loop.settle()
    assert len(rig.goaways) == 1
    rig.hang_up()
    rig.connection.drain("drain")
    assert rig.closed_for == ["drain"]


def test_drain__a_connection_accepted_during_one_is_drained_too() -> None:
    """What waited in the backlog is served and sent away."""
    rig = Rig()
    rig.core.is_draining = True
    late = Rig(core=rig.core)
    assert late.request().status == 0
    assert [goaway.last_stream_id for goaway in late.goaways] == [LAST_POSSIBLE]


def test_cut__says_whether_something_was_lost() -> None:
    """An unanswered call is a loss, and so is an answer that the peer has not taken; idleness is none."""
    idle, busy, slow, unread = Rig(), Rig(), Rig(window_bytes=0), Rig()
    busy.request("/t/Keep")
    slow.request()
    unread.transport.is_peer_reading = False
    unread.request()
    assert [each.connection.cut() for each in (idle, busy, slow, unread)] == [False, True, True, True]
    assert idle.goaway_codes == [0]


def test_cut__a_connection_that_lingers_has_lost_nothing() -> None:
    """All was said and written before."""
    rig = Rig()
    rig.say(frame(DATA, 0, 0, b"x"))
    assert not rig.connection.cut()
    rig.loop.settle()
    assert rig.closed_for == ["protocol_error"]


def test_abort__closes_without_a_word() -> None:
    """What `cut` could not finish."""
    rig = Rig()
    rig.request("/t/Keep")
    rig.connection.abort()
    rig.loop.settle()
    assert (rig.transport.is_aborted, rig.kept.cancelled, rig.closed_for) == (True, 1, ["drain"])


def test_idle__is_drained() -> None:
    """Without a stream for the idle time-out; a stream between looks begins the time again."""
    rig = Rig(TransportLimits(idle_timeout_s=20))
    rig.loop.advance(15)
    rig.request()
    rig.loop.advance(15)
    assert not rig.goaways
    rig.loop.advance(6)
    ack_ping(rig)
    rig.loop.advance(LINGER_S + 0.5)
    assert rig.closed_for == ["idle"]


def test_max_age__is_drained_with_a_grace() -> None:
    """Running calls have the grace; then they are cut."""
    rig = Rig(TransportLimits(connection_age_max_s=100, connection_age_grace_s=10))
    rig.request("/t/Keep")
    rig.loop.advance(89)
    assert not rig.goaways
    rig.loop.advance(10)
    assert len(rig.goaways) == 2
    assert rig.kept.cancelled == 0
    rig.loop.advance(15)
    assert (rig.kept.cancelled, rig.closed_for) == (1, ["max_age"])


def test_keepalive__a_silent_peer_is_given_up() -> None:
    """A PING after the interval, and the end when nothing answers."""
    rig = Rig(TransportLimits(keepalive_interval_s=30, keepalive_timeout_s=5))
    rig.request("/t/Keep")
    rig.loop.advance(31)
    assert len(rig.pings) == 1
    ack_ping(rig)
    rig.loop.advance(31)
    assert len(rig.pings) == 2
    rig.loop.advance(6)
    assert (rig.kept.cancelled, rig.closed_for) == (1, ["keepalive"])


def test_lingering__tls_cannot_half_close() -> None:
    """There we wait for the client to close by itself, and close after a second."""
    rig = Rig(ssl_object=FakeSsl("h2"))
    rig.say(frame(DATA, 0, 0, b"x"))
    assert not rig.transport.has_written_eof
    rig.loop.advance(LINGER_S + 0.5)
    assert rig.closed_for == ["protocol_error"]


def test_lingering__reads_on() -> None:
    """Closing with unread input would reset the connection and destroy what we said last (TCP)."""
    rig = Rig(TransportLimits(write_buffer_bytes_max=400))
    rig.transport.is_peer_reading = False
    rig.request("/t/Echo", b"x" * 200)
    assert not rig.transport.is_reading
    rig.connection.cut()
    assert rig.transport.is_reading


def test_ping__is_acknowledged_at_once() -> None:
    """RFC 9113 6.7."""
    rig = Rig()
    rig.say(frame(PING, 0, 0, b"12345678"))
    assert [
        each.opaque_data
        for each in rig.frames
        if "ACK" in each.flags and each.stream_id == 0 and each.type == PING
    ] == [b"12345678"]


def test_write__nothing_follows_the_end() -> None:
    """Late answers after the end are dropped; the fake transport fails on a write after EOF."""
    rig = Rig()
    rig.request("/t/Keep")
    rig.request("/t/Watch")
    rig.say(frame(DATA, 0, 0, b"x"))
    rig.kept.reply_all()
    for call in rig.watched.calls:
        call.send(b"x")
        call.finish()
    rig.connection.flush()
    rig.connection.flush_soon()
    rig.loop.settle()
    assert rig.core.running == 0
    assert message() not in rig.stream(1).data

"""
Every flood class, against a real connection of the fast transport with real ngh2 and hand-made frames.

Each attack must end in a closed connection, or cost no more than it may; no handler runs after the
end, running handlers stay within their slots, and what honest clients do just below passes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from sidecar.transports.fast.policing import WINDOW_UPDATES_SAVED_MAX
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    SETTINGS,
    Rig,
    frame,
    message,
    reset,
    settings_frame,
    window_update,
)

ENHANCE_YOUR_CALM = 11


def until_closed(rig: Rig, chunks: Iterator[bytes] | list[bytes]) -> int:
    """Say *chunks* until the server has said its last; how many it took in before."""
    for count, chunk in enumerate(chunks):
        if rig.transport.has_written_eof or not rig.transport.is_reading:
            return count
        rig.say(chunk)
    return -1


def assert_ended_for(rig: Rig, reason: str) -> None:
    """The connection is over, has run no handler since, and counts as *reason*."""
    handled = len(rig.kept.calls)
    rig.say(rig.call_bytes("/t/Keep")[1])
    assert len(rig.kept.calls) == handled, "a handler ran after the end"
    rig.loop.advance(7)
    assert rig.closed_for == [reason]


# Rapid reset (CVE-2023-44487).


def test_rapid_reset__handlers_stay_in_their_slots_and_the_connection_ends() -> None:
    """10,000 calls reset at once: never more handlers than slots, and a GOAWAY soon."""
    rig = Rig(TransportLimits(calls_per_connection_max=50, resets_burst=1_000))
    running_max = 0

    def attack() -> Iterator[bytes]:
        for _ in range(10_000):
            stream_id, call = rig.call_bytes("/t/Keep")
            yield call + reset(stream_id)

    for chunk in attack():
        rig.say(chunk)
        running_max = max(running_max, rig.core.running)
        if rig.goaways:
            break
    assert running_max == 50
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    handled = len(rig.kept.calls)
    assert handled == 50
    rig.kept.reply_all()
    assert rig.core.running == 0
    assert_ended_for(rig, "flood")


def test_rapid_reset__without_a_request_message_no_handler_runs_at_all() -> None:
    """HEADERS and RST alone, many to a read: ended by the same account."""
    rig = Rig()
    one_read = [
        b"".join(
            rig.headers(stream_id, rig.fields("/t/Keep")) + reset(stream_id)
            for stream_id in (rig.stream_id() for _ in range(100))
        )
        for _ in range(100)
    ]
    for chunk in one_read:
        if rig.transport.has_written_eof:
            break
        rig.say(chunk)
    assert ENHANCE_YOUR_CALM in rig.goaway_codes
    assert rig.kept.calls == []
    assert len(rig.connection.streams.calls) <= 100


def test_rapid_reset__a_proxy_whose_calls_time_out_is_served_on() -> None:
    """400 resets of slow calls in a second are what Envoy does when a store is slow: no GOAWAY."""
    rig = Rig()
    for _ in range(400):
        stream_id, call = rig.call_bytes("/t/Keep")
        rig.say(call)
        rig.loop.advance(0.0025)
        rig.say(reset(stream_id))
    rig.kept.reply_all()
    assert not rig.goaways
    assert rig.request().status == 0


def test_rapid_reset__running_calls_still_get_their_answers() -> None:
    """The end is gentle: what runs is answered, only then the connection closes."""
    rig = Rig(TransportLimits(resets_burst=10))
    running = rig.request("/t/Keep")
    call = rig.kept.calls[0]
    for _ in range(12):
        stream_id, attack = rig.call_bytes("/t/Keep")
        rig.say(attack + reset(stream_id))
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert not rig.transport.has_written_eof
    call.reply(b"late")
    rig.loop.settle()
    assert rig.stream(1) is running
    assert running.status == 0
    assert_ended_for(rig, "flood")


def test_rapid_reset__a_call_that_never_ends_is_cut() -> None:
    """The gentle end has a bound."""
    rig = Rig(TransportLimits(resets_burst=10))
    rig.request("/t/Keep")
    for _ in range(12):
        stream_id, attack = rig.call_bytes("/t/Keep")
        rig.say(attack + reset(stream_id))
    rig.loop.advance(7)
    assert rig.closed_for == ["flood"]
    assert rig.kept.cancelled == len(rig.kept.calls)


# Making us reset instead (MadeYouReset, CVE-2025-8671).


@pytest.mark.parametrize("what", ["zero window", "window overflow", "headers again", "data again"])
def test_made_you_reset__each_primitive_ends_the_connection(what: str) -> None:
    """A stream spoiled after its request is complete: closed, the handler cancelled, none after it."""
    rig = Rig()
    stream_id, call = rig.call_bytes("/t/Keep")
    rig.say(call)
    primitive = {
        "zero window": window_update(stream_id, 0),
        "window overflow": window_update(stream_id, 2**31 - 1),
        "headers again": rig.headers(stream_id, end=True),
        "data again": frame(DATA, END_STREAM, stream_id, b"x"),
    }[what]
    rig.say(primitive)
    assert len(rig.goaways) == 1
    assert rig.kept.cancelled == 1
    assert_ended_for(rig, "protocol_error")


@pytest.mark.parametrize(
    "changed",
    [
        {"grpc_timeout": "0n"},
        {"grpc_timeout": "never"},
        {"_path": "/t/Nope"},
        {"_method": "GET"},
        {"content_type": "text/html"},
        {"x_bin": "*"},
    ],
)
def test_made_you_reset__early_errors_are_limited(changed: dict[str, str]) -> None:
    """Each way to have us end a stream early takes from the same account as a reset."""
    rig = Rig(TransportLimits(resets_burst=20, resets_per_s=1))

    def attack() -> Iterator[bytes]:
        for _ in range(40):
            rig.loop.now_s += 0.01
            yield rig.call_bytes("/t/Keep", **changed)[1]

    assert until_closed(rig, attack()) <= 22
    assert rig.goaway_codes[0] == ENHANCE_YOUR_CALM
    assert_ended_for(rig, "flood")


def test_made_you_reset__deadlines_are_limited() -> None:
    """Having us cancel handlers by tiny deadlines takes from it too, however slots come free."""
    rig = Rig(TransportLimits(resets_burst=20, resets_per_s=1))
    for _ in range(22):
        rig.say(rig.call_bytes("/t/Keep", grpc_timeout="1m")[1])
        rig.loop.advance(0.02)
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    rig.kept.reply_all()
    assert_ended_for(rig, "flood")


# Header blocks: CONTINUATION floods (CVE-2024-27316), HPACK bombs (CVE-2016-6581).


@pytest.mark.parametrize("is_empty", [False, True])
def test_continuation__the_ninth_frame_is_a_flood(is_empty: bool) -> None:
    """Eight pass, also empty ones; with the ninth ngh2 is dead and the GOAWAY is made by hand."""
    rig = Rig()
    stream_id = rig.stream_id()
    block = rig.block(rig.fields())
    pieces = (
        [b""] * 7 + [block]
        if is_empty
        else [block[index : index + 4] for index in range(0, 28, 4)] + [block[28:]]
    )
    eight = frame(HEADERS, 0, stream_id) + b"".join(
        frame(CONTINUATION, END_HEADERS if index == 7 else 0, stream_id, piece)
        for index, piece in enumerate(pieces)
    )
    rig.say(eight + rig.data(stream_id, message()))
    assert rig.stream(stream_id).status == 0
    ninth = frame(HEADERS, 0, stream_id + 2, block) + frame(CONTINUATION, 0, stream_id + 2) * 9
    rig.say(ninth)
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert rig.goaways[0].last_stream_id == stream_id
    assert_ended_for(rig, "flood")


def test_hpack__references_to_a_large_entry_are_a_bomb() -> None:
    """One 4 kB entry and 12,000 one-byte references: dead before it is unpacked."""
    rig = Rig()
    stream_id = rig.stream_id()
    # RFC 7541 6.2.1: a literal with indexing, then 6.1: references to entry 62, the newest.
    entry = b"\x40" + b"\x01a" + b"\x7f" + bytes([0x80 + 2_900 % 128, 2_900 // 128]) + b"x" * (127 + 2_900)
    block = rig.block(rig.fields()) + entry + b"\xbe" * 12_000
    rig.say(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, block))
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert_ended_for(rig, "flood")


@pytest.mark.parametrize(("fields", "is_fatal"), [(64, False), (128, False), (129, True), (5_000, True)])
def test_hpack__the_number_of_fields_has_a_soft_and_a_hard_limit(fields: int, is_fatal: bool) -> None:
    """Over 64 the call fails, over 128 the connection ends, however small they are."""
    rig = Rig()
    stream_id = rig.stream_id()
    block = rig.block(rig.fields()) + b"\x90" * (
        fields - 6
    )  # static entry 16: accept-encoding: gzip, deflate
    rig.say(frame(HEADERS, END_HEADERS, stream_id, block))
    if is_fatal:
        assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
        assert_ended_for(rig, "flood")
    else:
        assert rig.stream(stream_id).status == (8 if fields > 64 else None)
        assert not rig.goaways


def test_hpack__a_huge_field_has_a_soft_and_a_hard_limit() -> None:
    """Over 8 KiB the call fails, over 32 KiB the connection ends."""
    rig = Rig()
    assert rig.request(x_big="x" * 9_000).status == 8
    stream_id = rig.stream_id()
    block = rig.block(rig.fields(x_big="x" * 50_000))
    rig.say(
        frame(HEADERS, 0, stream_id, block[:16_000])
        + frame(CONTINUATION, 0, stream_id, block[16_000:32_000])
        + frame(CONTINUATION, END_HEADERS, stream_id, block[32_000:])
    )
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert_ended_for(rig, "flood")


def test_hpack__size_updates_cost_nothing_but_bytes() -> None:
    """Thousands of table size updates in one block are accepted and harmless."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(
        frame(HEADERS, END_HEADERS, stream_id, b"\x20\x3f\xe1\x1f" * 4_000 + rig.block(rig.fields()))
        + rig.data(stream_id, message())
    )
    assert rig.stream(stream_id).status == 0


# Control frames.


def test_settings__a_huge_one_is_a_flood() -> None:
    """32 entries pass, 33 do not."""
    rig = Rig()
    rig.say(settings_frame(*((0xF000 + index, 1) for index in range(32))))
    assert rig.request().status == 0
    rig.say(settings_frame(*((0xF000 + index, 1) for index in range(33))))
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert_ended_for(rig, "flood")


@pytest.mark.parametrize("per_read", [1, 1_000])
def test_settings__many_are_a_flood(per_read: int) -> None:
    """A thousand empty ones, in one read or each in its own: ended, with few acks queued."""
    rig = Rig()
    taken = until_closed(rig, [settings_frame() * per_read] * (1_000 // per_read + 1))
    assert 0 < taken <= 33
    assert ENHANCE_YOUR_CALM in rig.goaway_codes
    assert sum(each.type == SETTINGS and "ACK" in each.flags for each in rig.frames) <= 34
    assert_ended_for(rig, "flood")


def test_settings__window_flips_over_many_streams_are_a_flood() -> None:
    """Each flip makes us walk all streams (CVE-2019-9515): a few pass, many end the connection."""
    rig = Rig()
    for _ in range(100):
        rig.request("/t/Keep")
    flip = settings_frame((4, 0)) + settings_frame((4, 2**31 - 1))
    assert 0 < until_closed(rig, [flip] * 500) <= 17
    assert_ended_for(rig, "flood")


def test_settings__now_and_then_is_fine() -> None:
    """One a second for ever, as a client that tunes its window might."""
    rig = Rig()
    for index in range(100):
        rig.say(settings_frame((4, 65_535 + index)))
        rig.loop.advance(1)
    assert not rig.goaways


def test_ping__ten_thousand_unread_are_a_flood() -> None:
    """Many in one read overrun the acks that ngh2 keeps: dead, GOAWAY by hand."""
    rig = Rig()
    rig.transport.is_peer_reading = False
    rig.say(frame(PING, 0, 0, b"12345678") * 3_000)
    assert len(rig.transport.unread) < 10_000
    rig.transport.peer_reads()
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert_ended_for(rig, "flood")


def test_ping__more_than_may_be_is_too_many() -> None:
    """gRPC proposal A8: the third early PING gets GOAWAY with 'too_many_pings'."""
    rig = Rig()
    for index in range(4):
        assert not rig.goaways, index
        rig.say(frame(PING, 0, 0, b"12345678"))
        rig.loop.advance(1)
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert rig.goaways[0].additional_data == b"too_many_pings"
    assert_ended_for(rig, "too_many_pings")


def test_ping__around_answers_and_at_the_interval_is_fine() -> None:
    """grpc's bandwidth PINGs after each answer, and a keepalive every ten seconds, pass for ever."""
    rig = Rig()
    for _ in range(50):
        rig.request()
        rig.say(frame(PING, 0, 0, b"bdp_ping"))
        rig.loop.advance(0.1)
        rig.say(frame(PING, 0, 0, b"bdp_ping"))
    for _ in range(20):
        rig.loop.advance(10.1)
        rig.say(frame(PING, 0, 0, b"alive???"))
    assert not rig.goaways


def test_malformed__requests_that_make_us_reset_are_limited() -> None:
    """2,000 header blocks that break RFC 9113 8.2: ended long before the last."""
    rig = Rig(TransportLimits(resets_burst=100))

    def attack() -> Iterator[bytes]:
        for _ in range(2_000):
            yield rig.headers(rig.stream_id(), [*rig.fields(), ("connection", "close")])

    taken = until_closed(rig, attack())
    assert 0 < taken <= 110
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert rig.connection.streams.calls == {}
    assert_ended_for(rig, "flood")


@pytest.mark.parametrize(
    "kind",
    ["empty data", "unknown frame", "priority", "priority update"],
)
def test_glitches__frames_that_mean_nothing_are_limited(kind: str) -> None:
    """1,050 of each in a moment end the connection."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields("/t/Keep")))
    nonsense = {
        "empty data": frame(DATA, 0, stream_id),
        "unknown frame": frame(0xBB, 0, 0, b"x"),
        "priority": frame(PRIORITY, 0, stream_id, b"\0\0\0\0\x10"),
        "priority update": frame(0x10, 0, 0, struct.pack(">I", stream_id) + b"u=1"),
    }[kind]
    rig.say(nonsense * 10)
    assert not rig.goaways
    for _ in range(21):
        if rig.goaways:
            break
        rig.say(nonsense * 50)
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert_ended_for(rig, "flood")


def test_glitches__an_empty_end_is_none() -> None:
    """Thousands of requests that end with an empty DATA frame, as some clients send them, are served."""
    rig = Rig()
    for _ in range(1_200):
        stream_id = rig.stream_id()
        rig.say(
            rig.headers(stream_id)
            + rig.data(stream_id, message(), end=False)
            + frame(DATA, END_STREAM, stream_id)
        )
    assert rig.ended(0) == 1_200


def test_dust__a_message_in_single_bytes_is_a_flood() -> None:
    """64 KiB in one-byte DATA frames: ended after a few hundred."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id))
    framed = message(b"x" * 65_000)
    taken = until_closed(rig, (rig.data(stream_id, bytes([byte]), end=False) for byte in framed))
    assert 0 < taken <= 20
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert rig.core.buffered_bytes == 0
    assert_ended_for(rig, "flood")


def test_dust__a_message_in_ordinary_pieces_is_none() -> None:
    """A large message in frames of 256 bytes is served."""
    rig = Rig()
    stream_id = rig.stream_id()
    framed = message(b"x" * 60_000)
    pieces = [framed[start : start + 256] for start in range(0, len(framed), 256)]
    rig.say(rig.headers(stream_id) + b"".join(rig.data(stream_id, piece, end=False) for piece in pieces))
    rig.say(frame(DATA, END_STREAM, stream_id))
    rig.say(window_update(stream_id, 100_000) + window_update(0, 100_000))
    assert rig.stream(stream_id).status == 0


def test_window_updates__must_be_earned() -> None:
    """100,000 of them on a connection that hardly calls: ended at once."""
    rig = Rig()
    rig.request()
    assert 0 < until_closed(rig, [window_update(0, 1)] * 100_000) <= 40
    assert rig.goaway_codes == [ENHANCE_YOUR_CALM]
    assert_ended_for(rig, "flood")


def test_window_updates__many_calls_do_not_save_up_a_flood() -> None:
    """What thousands of honest calls have earned is bounded."""
    rig = Rig()
    for _ in range(2_000):
        rig.request()
    taken = until_closed(rig, [window_update(0, 1) * 100] * 1_000)
    assert taken * 100 <= WINDOW_UPDATES_SAVED_MAX + 200
    assert_ended_for(rig, "flood")


def test_window_updates__an_honest_client_passes() -> None:
    """Two for each answer, for ever."""
    rig = Rig()
    for _ in range(500):
        stream_id, call = rig.call_bytes(body=b"x" * 100)
        rig.say(call + window_update(0, 105) + window_update(stream_id, 105))
    assert rig.ended(0) == 500


def test_gzip__a_bomb_is_not_unpacked() -> None:
    """We have no decompression, so there is nothing to blow up: identity only."""
    rig = Rig()
    stream_id = rig.stream_id()
    head = rig.headers(stream_id, rig.fields(grpc_encoding="gzip"))
    rig.say(head + rig.data(stream_id, message(b"\x1f\x8b" + b"\0" * 1_000, flag=1)))
    assert rig.stream(stream_id).status == 12


@pytest.mark.parametrize("evil", ["a\r\nb: c", "a\nb", "a\0b", "a\x7fb", "é", "\ud800"])
def test_injection__nothing_that_is_echoed_leaves_its_header(evil: str) -> None:
    """A handler that echoes the request in its status cannot be made to write another header."""
    rig = Rig()
    stream = rig.request(
        "/t/Refuse", evil.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    )
    (block,) = stream.blocks
    assert set(block) == {":status", "content-type", "grpc-status", "grpc-message"}
    assert block["grpc-message"].isprintable()
    assert block["grpc-message"].isascii()


@pytest.mark.parametrize("value", ["a\r\nb", "a\0b", " a", "a "])
def test_injection__such_values_do_not_come_in(value: str) -> None:
    """RFC 9113 8.2.1, by ngh2: the stream is reset, no handler runs, the connection lives."""
    rig = Rig()
    stream = rig.request("/t/Keep", x_evil=value)
    assert stream.reset == 1
    assert rig.kept.calls == []
    assert rig.request().status == 0


def test_end__bytes_after_a_goaway_are_not_parsed() -> None:
    """Once all has been said, input is read and thrown away, whatever it is, for a second at most."""
    rig = Rig()
    rig.say(frame(DATA, 0, 0, b"x"))
    written = rig.transport.writes
    for _ in range(10):
        rig.say(
            rig.call_bytes("/t/Keep")[1]
            + frame(PING, 0, 0, b"12345678")
            + frame(SETTINGS, ACK, 0)
            + b"\xff" * 100
        )
    assert rig.kept.calls == []
    assert rig.transport.writes == written
    rig.loop.advance(1.5)
    assert rig.closed_for == ["protocol_error"]

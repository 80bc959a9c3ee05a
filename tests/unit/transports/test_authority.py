"""Authorities that name no host are served, and everything else reaches nghttp2 as it came."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.transports.fast.authority import REQUESTS_INSPECTED, AuthorityFilter
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    PRIORITY,
    Rig,
    frame,
    message,
    settings_frame,
)

PATH = "/run/sidecar/grpc.sock"
ODD = (PATH, "", None, "unix:///run/x.sock", "@abstract", "user@host", "a b", 'a"b', "é")


@pytest.mark.parametrize("authority", ODD)
@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_authority__is_served_whatever_it_is(authority: str | None, byte_by_byte: bool) -> None:
    """More often than is looked at, so also once the client's table holds it."""
    rig = Rig()
    for _ in range(2 * REQUESTS_INSPECTED):
        stream_id, call = rig.call_bytes(_authority=authority)
        rig.say(call, byte_by_byte=byte_by_byte)
        assert rig.stream(stream_id).status == 0
    assert not rig.goaways


def test_authority__good_and_odd_ones_on_one_connection() -> None:
    """A client may change it from call to call, in both directions."""
    rig = Rig()
    for authority in ("test", PATH, "test", None, "other:80", "", "[::1]:9191", PATH):
        assert rig.request(_authority=authority).status == 0
        assert rig.request(_authority=authority, grpc_timeout="1S").status == 0


def test_authority__nothing_is_looked_at_after_the_first_good_ones() -> None:
    """A proxy's connection costs nothing more from then on."""
    rig = Rig()
    for _ in range(REQUESTS_INSPECTED):
        assert rig.connection.inspects_authority
        rig.request()
    assert not rig.connection.inspects_authority
    assert rig.request().status == 0


def test_authority__in_a_block_of_several_frames() -> None:
    """Cut into CONTINUATION frames, padded, with a priority: the same request."""
    rig = Rig()
    for cut in (1, 5, 20):
        stream_id = rig.stream_id()
        block = rig.block(rig.fields(_authority=PATH))
        head = frame(HEADERS, 0x28, stream_id, b"\x03" + b"\0\0\0\0\x10" + block[:cut] + b"\0\0\0")
        tail = frame(CONTINUATION, END_HEADERS, stream_id, block[cut:])
        rig.say(head + tail + rig.data(stream_id, message()))
        assert rig.stream(stream_id).status == 0


def test_authority__trailers_end_a_request_that_was_written_anew() -> None:
    """They refer to the client's table, as headers do."""
    rig = Rig()
    for _ in range(3):
        stream_id = rig.stream_id()
        head = rig.headers(stream_id, [*rig.fields(_authority=PATH), ("x-more", "1")])
        body = rig.data(stream_id, message(), end=False)
        rig.say(head + body + rig.headers(stream_id, [("x-more", "1")], end=True))
        assert rig.stream(stream_id).status == 0


@pytest.mark.parametrize(
    "fields",
    [
        [(":authority", PATH), (":authority", PATH)],
        [(":authority", "a\0b")],
        [("connection", "close")],
        [("X-Upper", "1")],
    ],
)
def test_authority__other_mistakes_are_still_refused(fields: list[tuple[str, str]]) -> None:
    """Only that stream, with PROTOCOL_ERROR, before and after headers are written anew."""
    rig = Rig()
    for _ in range(2):
        stream_id = rig.stream_id()
        pseudo = [field for field in rig.fields(_authority=None) if field[0].startswith(":")]
        rig.say(rig.headers(stream_id, [*pseudo, *fields, ("te", "trailers")]))
        assert rig.stream(stream_id).reset == 1
        assert rig.request(_authority=PATH).status == 0


def test_authority__a_block_that_cannot_be_read_ends_the_connection() -> None:
    """COMPRESSION_ERROR, also when nghttp2 no longer sees what the client has encoded."""
    for before in ("test", PATH):
        rig = Rig()
        rig.request(_authority=before)
        rig.say(frame(HEADERS, END_HEADERS | END_STREAM, rig.stream_id(), b"\xff\xff\xff\x7f"))
        assert rig.goaway_codes in ([1], [9])
        assert rig.transport.has_written_eof


def test_authority__what_is_held_is_bounded() -> None:
    """A block without an end is handed to nghttp2, which has its own bound on it."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(frame(HEADERS, 0, stream_id, b"\x83"))
    for _ in range(20):
        if rig.transport.has_written_eof:
            break
        rig.say(frame(CONTINUATION, 0, stream_id, b""))
    assert rig.goaways


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=20))
def test_filter__passes_on_what_it_does_not_understand(noise: bytes, cuts: list[int]) -> None:
    """Good requests and then anything, in any pieces: not a byte is changed, lost or made up."""
    encoder = hpack.Encoder()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/t/Echo"), (":authority", "test")]
    good = frame(HEADERS, END_HEADERS, 1, encoder.encode(fields)) + frame(PRIORITY, 0, 1, bytes(5))
    sent = PREFACE + settings_frame() + good + noise
    filtered, rest = AuthorityFilter(TransportLimits()), sent
    passed = b""
    for cut in cuts:
        passed += filtered.feed(rest[:cut])
        rest = rest[cut:]
    passed += filtered.feed(rest)
    assert sent.startswith(passed)
    assert len(passed) >= len(sent) - len(noise)

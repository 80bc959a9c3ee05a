"""Peers that are slow on purpose: what they hold is bounded in bytes and in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidecar.transports.fast.lifetime import LINGER_S
from sidecar.transports.fast.read_scheduler import READ_BYTES
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    Rig,
    frame,
    message,
    window_update,
)


def drip(rig: Rig, data: bytes, seconds: float) -> None:
    """Say one byte of *data* a second, as long as the server takes them."""
    for byte in data[: int(seconds)]:
        if rig.transport.has_written_eof or rig.closed_for:
            return
        rig.say(bytes([byte]))
        rig.loop.advance(1)


def test_headers__a_block_that_stops_half_way_ends_the_connection() -> None:
    """HEADERS without END_HEADERS and then nothing: gone after twice the header time, at the latest."""
    rig = Rig(TransportLimits(header_timeout_s=5, idle_timeout_s=300))
    rig.say(frame(HEADERS, 0, 1, b"\x83"))
    rig.loop.advance(12)
    assert rig.transport.has_written_eof or rig.closed_for


# Windows that are opened late, little or never.


@pytest.mark.parametrize("window_bytes", [0, 1])
def test_window__an_answer_that_is_never_taken_is_reset(window_bytes: int) -> None:
    """After the write time-out the stream is gone; the connection serves on."""
    rig = Rig(TransportLimits(write_timeout_s=20), window_bytes=window_bytes)
    stream = rig.request(body=b"x" * 1_000)
    rig.loop.advance(19)
    assert rig.stream(1).reset is None
    rig.loop.advance(2)
    assert rig.stream(1) is stream
    assert stream.reset == 8
    assert len(stream.data) == window_bytes
    assert rig.connection.queued_body_bytes == 0
    assert rig.connection.streams.calls == {}
    assert rig.request("/t/Refuse").status == 5


def test_window__dribbling_does_not_help() -> None:
    """A byte of window a second is progress, but an answer must be taken as a whole in time."""
    rig = Rig(TransportLimits(write_timeout_s=20), window_bytes=1)
    rig.request(body=b"x" * 1_000)
    for _ in range(22):
        rig.say(window_update(1, 1))
        rig.loop.advance(1)
    assert rig.stream(1).reset == 8


def test_window__the_body_of_an_http_error_is_an_answer_too() -> None:
    """An open request whose 415 body the peer does not take ends all the same."""
    rig = Rig(window_bytes=0)
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields(_method="GET")))
    assert rig.stream(stream_id).reset is None
    rig.loop.advance(21)
    assert rig.stream(stream_id).reset == 8


def test_window__many_untaken_answers_end_the_connection() -> None:
    """What waits for windows counts against the write buffer of the connection."""
    rig = Rig(TransportLimits(write_buffer_bytes_max=100_000), window_bytes=0)
    most = 0
    for _ in range(100):
        if rig.transport.is_aborted:
            break
        rig.say(rig.call_bytes(body=b"x" * 10_000)[1])
        most = max(most, rig.connection.queued_body_bytes)
    rig.loop.settle()
    assert most <= 110_050
    assert rig.closed_for == ["slow_reader"]


def test_window__a_stream_that_nobody_reads_loses_its_call() -> None:
    """Messages of a Watch pile up to a bound; then its handler is told to stop."""
    rig = Rig(TransportLimits(stream_queue_bytes_max=10_000), window_bytes=0)
    rig.request("/t/Watch")
    (call,) = rig.watched.calls
    sent = 0
    while not rig.watched.cancelled:
        call.send(b"x" * 1_000)
        rig.loop.settle()
        sent += 1
    assert sent == 10
    assert rig.stream(1).reset == 8
    assert rig.connection.queued_body_bytes == 0
    call.finish()
    assert rig.core.running == 0


# A peer that sends and does not read.


def test_unread__stops_our_reading_and_ends_in_time() -> None:
    """Windows wide open, nothing read: we hold the write mark and one read's answers, then give up."""
    rig = Rig(TransportLimits(write_buffer_bytes_max=1 << 20, write_timeout_s=20))
    rig.say(window_update(0, 1 << 30))
    rig.transport.is_peer_reading = False
    for _ in range(10_000):
        if not rig.transport.is_reading:
            break
        rig.say(rig.call_bytes(body=b"x" * 1_000)[1])
    assert not rig.transport.is_reading
    assert len(rig.transport.unread) <= (1 << 18) + READ_BYTES
    rig.loop.advance(19)
    assert rig.closed_for == []
    rig.loop.advance(2)
    assert rig.closed_for == ["slow_reader"]


def test_unread__late_answers_pile_up_to_a_bound() -> None:
    """Answers to kept calls wait inside while the peer does not read; too many end the connection."""
    rig = Rig(TransportLimits(write_buffer_bytes_max=100_000))
    for _ in range(200):
        rig.request("/t/Keep")
    rig.transport.is_peer_reading = False
    most = 0
    for call in rig.kept.calls:
        call.reply(b"x" * 5_000)
        rig.loop.settle()
        most = max(most, rig.connection.queued_body_bytes + len(rig.transport.unread))
    assert most <= 100_000 + 25_000 + 2 * 5_100
    assert rig.closed_for == ["slow_reader"]
    assert rig.core.running == 0


def test_unread__a_peer_that_reads_again_is_served_on() -> None:
    """Reading and writing resume where they stopped; no answer is lost."""
    rig = Rig(TransportLimits(write_buffer_bytes_max=4_000))
    rig.transport.is_peer_reading = False
    stream_ids = []
    while rig.transport.is_reading:
        stream_id, call = rig.call_bytes(body=b"x" * 300)
        stream_ids.append(stream_id)
        rig.say(call)
    rig.transport.peer_reads()
    rig.loop.settle()
    assert rig.transport.is_reading
    assert rig.request().status == 0
    assert {rig.stream(stream_id).status for stream_id in stream_ids} == {0}


def test_unread__kept_answers_leave_when_the_peer_reads() -> None:
    """What was answered while writing was paused is written when it resumes."""
    rig = Rig(TransportLimits(write_buffer_bytes_max=4_000))
    kept = rig.request("/t/Keep")
    rig.transport.is_peer_reading = False
    rig.say(rig.call_bytes(body=b"x" * 2_000)[1])
    rig.kept.reply_all()
    rig.loop.settle()
    assert kept.status is None
    rig.transport.peer_reads()
    rig.loop.settle()
    assert rig.stream(1) is kept
    assert kept.status == 0


# Slow-loris: one byte a second at each stage.


def test_drip__a_preface() -> None:
    """Ten seconds for the handshake."""
    rig = Rig(starts=False)
    drip(rig, PREFACE, 24)
    assert rig.goaways
    assert rig.loop.now_s < 1_012
    rig.loop.advance(LINGER_S + 0.5)
    assert rig.closed_for == ["handshake"]


def slow_header_block(rig: Rig, stream_id: int) -> bytes:
    """One HEADERS frame."""
    return rig.headers(stream_id, rig.fields(x_long="x" * 200))


def slow_frame_header(rig: Rig, stream_id: int) -> bytes:
    """Not even the nine bytes that begin a frame."""
    return slow_header_block(rig, stream_id)[:8]


def slow_continuation(rig: Rig, stream_id: int) -> bytes:
    """A header block in several frames, the first of which is there at once."""
    block = rig.block(rig.fields(x_long="x" * 200))
    rig.say(frame(HEADERS, 0, stream_id, block[:5]))
    return frame(CONTINUATION, 0, stream_id, block[5:6]) * 5


def slow_data(rig: Rig, stream_id: int) -> bytes:
    """One DATA frame, after whole headers."""
    rig.say(rig.headers(stream_id))
    return rig.data(stream_id, message(b"x" * 500))


@pytest.mark.parametrize("slowly", [slow_header_block, slow_frame_header, slow_continuation, slow_data])
def test_drip__a_frame(slowly: Callable[[Rig, int], bytes]) -> None:
    """Five seconds for a frame or header block to arrive; whole frames before it do not count for it."""
    rig = Rig()
    rig.loop.advance(3)
    rig.request()
    data, start_s = slowly(rig, rig.stream_id()), rig.loop.now_s
    drip(rig, data, 60)
    assert rig.goaways
    assert 5 <= rig.loop.now_s - start_s <= 8
    rig.loop.advance(LINGER_S + 1.5)
    assert rig.closed_for == ["header_timeout"]
    assert rig.core.buffered_bytes == 0


def test_drip__a_request_in_whole_frames() -> None:
    """Each frame in time, the request never complete: thirty seconds, then the call is over."""
    rig = Rig(TransportLimits(request_timeout_s=30))
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id))
    for piece in (message(b"x" * 100)[:5], *[b"x"] * 9):
        rig.say(rig.data(stream_id, piece, end=False))
        rig.loop.advance(3.1)
    stream = rig.stream(stream_id)
    assert (stream.status, stream.reset) == (4, 0)
    assert rig.core.buffered_bytes == 0
    assert rig.request().status == 0


def test_drip__a_request_with_a_deadline() -> None:
    """Its own deadline is sooner; no handler runs."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields("/t/Keep", grpc_timeout="100m")))
    rig.loop.advance(0.4)
    assert rig.stream(stream_id).status == 4
    rig.say(rig.data(stream_id, message()))
    assert rig.kept.calls == []


def test_drip__a_request_that_completes_after_its_deadline_runs_no_handler() -> None:
    """Also between two looks."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields("/t/Keep", grpc_timeout="10m")))
    rig.loop.now_s += 0.011
    rig.say(rig.data(stream_id, message()))
    assert rig.stream(stream_id).status == 4
    assert rig.kept.calls == []


# Uploads that never end.


def test_upload__half_requests_are_bounded_per_connection() -> None:
    """1,024 streams of nearly a whole message each: past the bound they are refused, and soon the peer is."""
    limits = TransportLimits(message_bytes_max=60_000, buffered_bytes_per_connection_max=500_000)
    rig = Rig(limits)
    most = 0
    for _ in range(1_024):
        stream_id = rig.stream_id()
        rig.say(rig.headers(stream_id))
        half = message(b"x" * 60_000)[:-1]
        for start in range(0, len(half), 16_384):
            rig.say(rig.data(stream_id, half[start : start + 16_384], end=False))
        most = max(most, rig.core.buffered_bytes)
    assert most <= 500_000 + 16_384
    assert rig.ended(8) >= 1_000
    rig.hang_up()
    assert rig.core.buffered_bytes == 0


def test_upload__half_requests_are_bounded_in_the_process() -> None:
    """Many connections together hold no more than the process allows; a small call is still served."""
    limits = TransportLimits(message_bytes_max=15_000, buffered_bytes_max=100_000)
    first = Rig(limits)
    rigs = [first, *(Rig(core=first.core) for _ in range(9))]
    for rig in rigs:
        for _ in range(3):
            stream_id = rig.stream_id()
            rig.say(rig.headers(stream_id) + rig.data(stream_id, message(b"x" * 15_000)[:-1], end=False))
    assert first.core.buffered_bytes <= 100_000
    assert first.ended(8) == 30 - 6
    assert rigs[9].request().status == 0
    for rig in rigs:
        rig.hang_up()
    assert first.core.buffered_bytes == 0


def test_upload__aborted_ones_give_their_bytes_and_their_window_back() -> None:
    """Half uploads that are reset again and again neither leak bytes nor use the window up."""
    rig = Rig(TransportLimits(buffered_bytes_per_connection_max=200_000))
    for _ in range(100):
        stream_id = rig.stream_id()
        rig.say(rig.headers(stream_id) + rig.data(stream_id, message(b"x" * 16_000)[:10_000], end=False))
        assert rig.core.buffered_bytes == 10_000
        rig.say(frame(3, 0, stream_id, b"\0\0\0\x08"))
        assert rig.core.buffered_bytes == 0
    assert rig.request(body=b"x" * 10_000).status == 0


def test_upload__to_an_answered_call_is_thrown_away() -> None:
    """Bytes for a call that was refused are dropped; the connection lives."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields("/t/Nope")))
    rig.say(rig.data(stream_id, b"x" * 10_000, end=False) + frame(DATA, END_STREAM, stream_id, b"x" * 100))
    assert rig.core.buffered_bytes == 0
    assert rig.request().status == 0

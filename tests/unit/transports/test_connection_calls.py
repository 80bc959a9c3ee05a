"""Calls through one connection: handlers, answers, errors, deadlines, cancellation, slots."""

from __future__ import annotations

import logging

import pytest

from sidecar.rpc.calls import StreamCall, StreamMethod, UnaryCall, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import (
    ACK,
    PREFACE,
    SETTINGS,
    Rig,
    frame,
    message,
    reset,
    settings_frame,
    window_update,
)


def test_call__ok_is_headers_message_trailers() -> None:
    """PROTOCOL-HTTP2.md: 200 and content-type, the message, grpc-status 0 at the end."""
    rig = Rig()
    stream = rig.request(body=b"abc")
    assert stream.blocks == [
        {":status": "200", "content-type": "application/grpc"},
        {"grpc-status": "0"},
    ]
    assert stream.data == message(b"abc")
    assert stream.is_ended
    assert rig.ended(0) == 1


def test_call__many_in_one_read_leave_in_one_write() -> None:
    """However many calls a read brings, their answers are one write."""
    rig = Rig()
    calls = [rig.call_bytes(body=b"%d" % index) for index in range(50)]
    before = rig.transport.writes
    rig.say(b"".join(call for _, call in calls))
    assert rig.transport.writes == before + 1
    assert [rig.stream(stream_id).data for stream_id, _ in calls] == [
        message(b"%d" % index) for index in range(50)
    ]
    assert rig.ended(0) == 50


def test_call__late_answers_of_one_turn_leave_in_one_write() -> None:
    """Answers to kept calls wait for the end of the turn and go together."""
    rig = Rig()
    streams = [rig.request("/t/Keep") for _ in range(20)]
    before = rig.transport.writes
    rig.kept.reply_all(b"late")
    assert rig.transport.writes == before
    rig.loop.turn()
    assert rig.transport.writes == before + 1
    assert rig.request().status == 0
    assert {stream.data for stream in streams} == {message(b"late")}


def test_call__is_answered_when_everything_comes_byte_by_byte() -> None:
    """From the preface on, the cuts between reads mean nothing."""
    rig = Rig(starts=False)
    stream_id, call = rig.call_bytes()
    rig.say(PREFACE + settings_frame() + frame(SETTINGS, ACK, 0) + call, byte_by_byte=True)
    assert rig.stream(stream_id).status == 0


def test_call__handlers_get_what_the_caller_sent() -> None:
    """The serialized request, metadata by name, and the deadline on the loop's clock."""
    seen: list[tuple[bytes, str | None, float | None]] = []

    def handle(request: bytes, call: UnaryCall) -> bytes:
        seen.append((request, call.metadata("x-id"), call.deadline_s))
        return b""

    rig = Rig(methods=[UnaryMethod("/t/See", handle)])
    rig.request("/t/See", b"body", x_id="7", grpc_timeout="200m")
    rig.request("/t/See", b"more")
    assert seen == [(b"body", "7", pytest.approx(rig.loop.time() + 0.2)), (b"more", None, None)]


def test_call__equal_headers_are_read_once() -> None:
    """Proxies repeat themselves: a request shares what the one before it with equal headers was read into."""
    rig = Rig()
    requests = []
    for timeout in ("100m", "100m", "200m", "100m"):
        rig.request("/t/Keep", grpc_timeout=timeout)
        requests.append(rig.kept.calls[-1].request)
    assert requests[0] is requests[1]
    assert len({id(request) for request in requests}) == 3


def test_call__large_headers_are_not_kept() -> None:
    """What a connection remembers of headers is small, whatever its peer sends."""
    rig = Rig()
    rig.request("/t/Keep", x_big="x" * 3_000)
    rig.request("/t/Keep", x_big="x" * 3_000)
    first, second = rig.kept.calls
    assert first.request is not second.request


def test_call__an_rpc_error_is_told_in_full() -> None:
    """Trailers-Only with its code and its detail, encoded."""
    rig = Rig()
    stream = rig.request("/t/Refuse", "näh\n".encode())
    assert stream.is_trailers_only
    assert (stream.status, stream.detail) == (5, "n%C3%A4h%0A")
    assert stream.reset is None
    assert rig.ended(5) == 1


def test_call__another_exception_is_unknown_and_secret(caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns nothing of it, the log all, at most once a second."""
    rig = Rig()
    with caplog.at_level(logging.ERROR, "sidecar.transports"):
        streams = [rig.request("/t/Break") for _ in range(3)]
        rig.loop.advance(1.1)
        rig.request("/t/Break")
    assert [stream.status for stream in streams] == [2] * 3
    assert all("secret" not in stream.detail for stream in streams)
    assert ["/t/Break" in record.getMessage() for record in caplog.records] == [True, True]
    assert caplog.records[0].exc_info is not None
    assert rig.ended(2) == 4


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"_path": "/t/Nope"}, 12),
        ({"grpc_timeout": "soon"}, 13),
        ({"grpc_timeout": "0S"}, 4),
        ({"x_bin": "*"}, 13),
        ({"x_big": "x" * 9_000}, 8),
    ],
)
def test_call__refused_headers_end_the_request_at_once(changed: dict[str, str], code: int) -> None:
    """Trailers-Only, then RST(NO_ERROR) because the request is still open; what follows is ignored."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields(**changed)))
    stream = rig.stream(stream_id)
    assert stream.is_trailers_only
    assert (stream.status, stream.reset) == (code, 0)
    rig.say(rig.data(stream_id, message()))
    assert rig.request().status == 0
    assert rig.ended(code) == 1


@pytest.mark.parametrize(
    ("changed", "status"), [({"_method": "GET"}, "405"), ({"content_type": "text/html"}, "415")]
)
def test_call__what_is_not_grpc_gets_http(changed: dict[str, str], status: str) -> None:
    """A status and a text body; counted as no gRPC call."""
    rig = Rig()
    stream = rig.request(**changed)
    assert stream.blocks[0][":status"] == status
    assert b"gRPC server" in stream.data
    assert stream.is_ended
    assert sum(rig.ended(code) for code in range(17)) == 0


def test_call__http_errors_can_be_held_back() -> None:
    """For conformance tools; also when the stream or the connection is gone by then."""
    rig = Rig(http_error_delay_s=0.02)
    stream = rig.request(_method="GET")
    gone_id, gone = rig.call_bytes(_method="GET")
    rig.say(gone + reset(gone_id))
    assert not stream.blocks
    rig.loop.advance(0.1)
    assert rig.stream(1).blocks[0][":status"] == "405"
    assert not rig.stream(gone_id).blocks
    rig.request(_method="GET")
    rig.hang_up()
    rig.loop.advance(0.1)
    assert rig.closed_for == ["peer"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 12),
        (b"\0\0\0\0", 13),
        (message(b"abc")[:-1], 13),
        (message(b"a") + message(b"b"), 12),
        (message(b"a", flag=1), 13),
        (message(b"a", flag=2), 13),
        (message(b"x" * 11), 8),
    ],
)
@pytest.mark.parametrize("ends_with_headers", [False, True])
def test_call__a_bad_message_is_refused(body: bytes, code: int, ends_with_headers: bool) -> None:
    """Each framing fault has its status; an end without DATA is no message."""
    rig = Rig(TransportLimits(message_bytes_max=10))
    stream_id = rig.stream_id()
    if ends_with_headers:
        rig.say(rig.headers(stream_id, end=True))
        code = 12
    else:
        rig.say(rig.headers(stream_id) + rig.data(stream_id, body))
    assert rig.stream(stream_id).status == code
    assert rig.request(body=b"x" * 10).status == 0


def test_call__compressed_says_which_encodings_there_are() -> None:
    """compression.md: UNIMPLEMENTED with grpc-accept-encoding."""
    rig = Rig()
    stream_id = rig.stream_id()
    head = rig.headers(stream_id, rig.fields(grpc_encoding="gzip"))
    rig.say(head + rig.data(stream_id, message(b"a", flag=1)))
    stream = rig.stream(stream_id)
    assert (stream.status, stream.blocks[0]["grpc-accept-encoding"]) == (12, "identity")


def test_call__a_large_message_is_refused_before_it_arrives() -> None:
    """The prefix decides; the upload is stopped by RST(NO_ERROR) and nothing of it is kept."""
    rig = Rig(TransportLimits(message_bytes_max=100))
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id) + rig.data(stream_id, message(b"x" * 101)[:5], end=False))
    assert (rig.stream(stream_id).status, rig.stream(stream_id).reset) == (8, 0)
    assert rig.core.buffered_bytes == 0


def test_call__trailers_end_the_request() -> None:
    """RFC 9113 8.1; their content is ignored."""
    rig = Rig()
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id) + rig.data(stream_id, message(b"abc"), end=False))
    assert not rig.stream(stream_id).blocks
    rig.say(rig.headers(stream_id, [("x-checksum", "1")], end=True))
    assert rig.stream(stream_id).data == message(b"abc")
    assert rig.core.buffered_bytes == 0


def test_call__an_answer_larger_than_the_window_waits_for_it() -> None:
    """The message goes as the peer opens its window, the trailers after it."""
    rig = Rig(window_bytes=10)
    stream_id, call = rig.call_bytes(body=b"x" * 95)
    rig.say(call)
    assert len(rig.stream(stream_id).data) == 10
    assert not rig.stream(stream_id).is_ended
    rig.say(window_update(stream_id, 40))
    rig.say(window_update(stream_id, 1_000))
    assert rig.stream(stream_id).data == message(b"x" * 95)
    assert rig.stream(stream_id).status == 0


def test_call__the_peers_small_header_limit_costs_the_message_not_the_status() -> None:
    """ngh2 ignores SETTINGS_MAX_HEADER_LIST_SIZE; we drop what is not needed."""
    rig = Rig()
    rig.say(settings_frame((6, 1_000)))
    stream = rig.request("/t/Refuse", b"why")
    assert (stream.status, stream.detail) == (5, "")


def test_kept__a_late_answer_arrives() -> None:
    """A handler that returns None answers when it likes, once."""
    rig = Rig()
    stream = rig.request("/t/Keep")
    (call,) = rig.kept.calls
    assert rig.core.running == rig.metrics.value("sidecar_calls_running") == 1
    call.reply(b"late")
    call.reply(b"again")
    call.fail(StatusCode.INTERNAL, "again")
    rig.loop.settle()
    assert rig.stream(1) is stream
    assert (stream.data, stream.status) == (message(b"late"), 0)
    assert rig.core.running == rig.metrics.value("sidecar_calls_running") == 0
    assert (rig.ended(0), rig.ended(13)) == (1, 0)


def test_kept__a_late_failure_arrives() -> None:
    """Trailers-Only, and the slot is free."""
    rig = Rig()
    stream = rig.request("/t/Keep")
    rig.kept.calls[0].fail(StatusCode.UNAVAILABLE, "no store")
    rig.loop.settle()
    assert rig.stream(1).is_trailers_only
    assert (stream.status, stream.detail, rig.core.running) == (14, "no store", 0)


def test_kept__its_deadline_answers_for_it() -> None:
    """DEADLINE_EXCEEDED in time, on_cancel once, and the slot only when the handler ends."""
    rig = Rig()
    stream = rig.request("/t/Keep", grpc_timeout="200m")
    (call,) = rig.kept.calls
    rig.loop.advance(0.199)
    assert (rig.stream(1).status, rig.kept.cancelled) == (None, 0)
    rig.loop.advance(0.02)
    assert rig.stream(1).is_trailers_only
    assert (stream.status, rig.kept.cancelled, call.is_cancelled) == (4, 1, True)
    assert rig.core.running == 1
    call.reply(b"too late")
    rig.loop.settle()
    assert rig.core.running == 0
    assert stream.status == 4
    assert (rig.ended(4), rig.ended(0)) == (1, 0)


def test_kept__answered_calls_leave_no_deadline() -> None:
    """The wheel holds the connection's own look and nothing of the calls that are over."""
    rig = Rig()
    for _ in range(10):
        rig.request("/t/Keep", grpc_timeout="1M")
    assert len(rig.core.wheel) == 11
    rig.kept.reply_all()
    assert len(rig.core.wheel) == 1


@pytest.mark.parametrize("code", [0, 2, 8, 0xFFFF])
def test_kept__any_reset_cancels(code: int) -> None:
    """RFC 9113 6.4; the answer is dropped, the slot freed by the handler's end."""
    rig = Rig()
    stream = rig.request("/t/Keep", grpc_timeout="1M")
    (call,) = rig.kept.calls
    rig.say(reset(1, code))
    assert (rig.kept.cancelled, call.is_cancelled, rig.core.running) == (1, True, 1)
    assert len(rig.core.wheel) == 1
    call.fail(StatusCode.INTERNAL, "dropped")
    rig.loop.settle()
    assert (rig.core.running, stream.blocks) == (0, [])
    assert (rig.ended(1), rig.ended(13)) == (1, 0)


def test_kept__connection_loss_cancels_all() -> None:
    """Every handler is told, none is forgotten, and the connection itself is gone."""
    rig = Rig()
    for _ in range(5):
        rig.request("/t/Keep")
    rig.hang_up()
    assert (rig.kept.cancelled, rig.core.running) == (5, 5)
    rig.kept.reply_all()
    assert rig.core.running == 0
    assert len(rig.core.wheel) == 0
    assert rig.core.connections == set()
    assert rig.closed_for == ["peer"]


def test_kept__a_failing_on_cancel_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the connection and the other calls go on."""

    def broken() -> None:
        raise ValueError("in on_cancel")

    rig = Rig()
    rig.request("/t/Keep")
    rig.kept.calls[0].on_cancel = broken
    with caplog.at_level(logging.ERROR, "sidecar.transports"):
        rig.say(reset(1))
    assert "on_cancel of /t/Keep" in caplog.text
    assert rig.request().status == 0


def test_kept__on_cancel_may_end_the_call_itself() -> None:
    """A handler that gives up at once frees its slot at once."""
    rig = Rig()
    rig.request("/t/Keep")
    (call,) = rig.kept.calls
    call.on_cancel = lambda: call.fail(StatusCode.CANCELLED, "")
    rig.say(reset(1))
    assert rig.core.running == 0


def test_handler__may_end_the_call_before_it_returns() -> None:
    """reply or fail inside the handler counts; what it returns or raises after is ignored."""

    def replies(request: bytes, call: UnaryCall) -> bytes | None:
        call.reply(b"first")
        return b"second"

    def fails(request: bytes, call: UnaryCall) -> bytes | None:
        call.fail(StatusCode.ABORTED, "first")
        raise RpcError(StatusCode.INTERNAL, "second")

    rig = Rig(methods=[UnaryMethod("/t/Replies", replies), UnaryMethod("/t/Fails", fails)])
    assert rig.request("/t/Replies").data == message(b"first")
    assert rig.request("/t/Fails").status == 10
    assert rig.core.running == 0
    assert (rig.ended(0), rig.ended(10), rig.ended(13)) == (1, 1, 0)


def test_answer__to_a_stream_reset_in_the_same_read_is_dropped() -> None:
    """The request is complete and already cancelled when it is handled: no error, nothing sent."""
    rig = Rig()
    echo_id, echo = rig.call_bytes()
    refused_id, refused = rig.call_bytes("/t/Refuse")
    rig.say(echo + refused + reset(echo_id) + reset(refused_id))
    assert not rig.stream(echo_id).blocks
    assert not rig.stream(refused_id).blocks
    assert rig.request().status == 0


def test_stream__sends_any_number_of_messages() -> None:
    """Health's Watch: headers with the first message, messages when they come, trailers at the end."""
    rig = Rig()
    stream = rig.request("/t/Watch")
    (call,) = rig.watched.calls
    call.send(b"one")
    rig.loop.settle()
    assert rig.stream(1).data == message(b"one")
    call.send(b"two")
    call.finish()
    call.send(b"dropped")
    rig.loop.settle()
    assert rig.stream(1) is stream
    assert (stream.data, stream.status, stream.is_ended) == (message(b"one") + message(b"two"), 0, True)
    assert rig.core.running == 0


@pytest.mark.parametrize(("begins", "blocks"), [(True, 2), (False, 1)])
def test_stream__a_failure_is_its_trailers(begins: bool, blocks: int) -> None:
    """Trailers after messages, Trailers-Only before any."""
    rig = Rig()
    stream = rig.request("/t/Watch")
    (call,) = rig.watched.calls
    if begins:
        call.send(b"one")
    call.fail(StatusCode.UNAVAILABLE, "over")
    rig.loop.settle()
    assert rig.request().status == 0
    assert (len(stream.blocks), stream.status, stream.detail) == (blocks, 14, "over")


def test_stream__an_empty_one_is_trailers_only() -> None:
    """finish without a message."""
    rig = Rig()
    stream = rig.request("/t/Watch")
    rig.watched.calls[0].finish()
    rig.loop.settle()
    assert rig.stream(1).is_trailers_only
    assert (stream.status, rig.ended(0)) == (0, 1)


def test_stream__a_handler_may_answer_at_once() -> None:
    """Messages, end and exceptions inside the handler work as later ones do."""

    def count(request: bytes, call: StreamCall) -> None:
        call.send(b"1")
        call.send(b"2")
        call.finish()

    def fails(request: bytes, call: StreamCall) -> None:
        call.send(b"1")
        raise RpcError(StatusCode.DATA_LOSS, "then")

    rig = Rig(methods=[StreamMethod("/t/Count", count), StreamMethod("/t/Fails", fails)])
    counted, failed = rig.request("/t/Count"), rig.request("/t/Fails")
    assert (counted.data, counted.status) == (message(b"1") + message(b"2"), 0)
    assert (failed.data, failed.status) == (message(b"1"), 15)


def test_stream__its_deadline_and_reset_cancel_it() -> None:
    """A watcher that goes away is told to its handler, and messages to it are dropped."""
    rig = Rig()
    timed = rig.request("/t/Watch", grpc_timeout="100m")
    rig.watched.calls[0].send(b"x")
    rig.request("/t/Watch")
    rig.say(reset(3))
    rig.loop.advance(0.2)
    assert rig.request().status == 0
    assert (timed.status, rig.watched.cancelled) == (4, 2)
    for call in rig.watched.calls:
        call.send(b"dropped")
        call.finish()
    assert rig.core.running == 0


def test_call__its_whole_time_is_measured_once() -> None:
    """From the read of its first byte to the write of its answer, whether it is answered at once or late."""
    rig = Rig()
    calls = [rig.call_bytes(body=b"x") for _ in range(3)]
    rig.say(b"".join(call for _, call in calls))
    rig.request("/t/Keep")
    assert measured(rig) == 3
    rig.kept.reply_all(b"late")
    rig.loop.turn()
    assert measured(rig) == 4
    rig.request("/t/Refuse")
    assert measured(rig) == 4


def measured(rig: Rig) -> int:
    """How many calls were measured."""
    first = rig.metrics.slot("sidecar_request_duration_seconds", "grpc")
    bounds = rig.metrics.table.buckets_ns("sidecar_request_duration_seconds")
    return sum(rig.metrics.values[first : first + len(bounds) + 1])

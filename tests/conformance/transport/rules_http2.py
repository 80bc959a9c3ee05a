"""HTTP/2: framing, stream states, header fields (RFC 9113) and header compression (RFC 7541)."""

from __future__ import annotations

import struct

from .rules import Rule
from .wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    Field,
    Wire,
    fields,
    frame,
    message,
    settings,
)

WINDOW_MAX = 2**31 - 1


def _say(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> object:
    return lambda wire: wire.send(frame(kind, flags, stream_id, payload))


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _raw(data: bytes) -> object:
    return lambda wire: wire.send(data)


def _with(*extra: Field) -> object:
    """A call with more fields than usual."""

    def say(wire: Wire) -> None:
        wire.headers(1, [*fields(), *extra])
        wire.data(1, message(b"hello"))

    return say


def _pseudo_last(wire: Wire) -> None:
    good = fields()
    wire.headers(1, [*good[1:], good[0]])
    wire.data(1, message(b"hello"))


def _padded(wire: Wire) -> None:
    block = wire.block(fields())
    wire.send(frame(HEADERS, END_HEADERS | PADDED, 1, b"\x07" + block + bytes(7)))
    wire.send(frame(DATA, END_STREAM | PADDED, 1, b"\xff" + message(b"hello") + bytes(255)))


def _split_headers(wire: Wire) -> None:
    block = wire.block(fields())
    wire.send(frame(HEADERS, 0, 1, block[:1]) + frame(CONTINUATION, 0, 1))
    wire.send(frame(CONTINUATION, END_HEADERS, 1, block[1:]))
    wire.data(1, message(b"hello"))


def _interrupted_headers(kind: int, stream_id: int, payload: bytes) -> object:
    """Another frame where a CONTINUATION must come."""

    def say(wire: Wire) -> None:
        block = wire.block(fields())
        wire.send(frame(HEADERS, 0, 1, block[:8]) + frame(kind, END_HEADERS, stream_id, payload))

    return say


def _trailers(block: list[Field], flags: int = END_HEADERS | END_STREAM) -> object:
    """A call that ends with trailers instead of an END_STREAM on DATA."""

    def say(wire: Wire) -> None:
        wire.headers(1, fields())
        wire.data(1, message(b"hello"), end=False)
        wire.send(frame(HEADERS, flags, 1, wire.block(block)))

    return say


def _after_end(kind: int, flags: int) -> object:
    """A frame on a stream that the client has closed and whose handler still runs (RFC 9113 5.1)."""

    def say(wire: Wire) -> None:
        wire.request(1, method="Hold")
        payload = wire.block([("late", "1")]) if kind == HEADERS else b"late"
        wire.send(frame(kind, flags, 1, payload))

    return say


def _smaller_id(wire: Wire) -> None:
    wire.request(5)
    wire.finish(5)
    wire.request(3)


def _twice_on_one_id(wire: Wire) -> None:
    wire.request(1)
    wire.finish(1)
    wire.reset(1)


def _stream_overflow(wire: Wire) -> None:
    wire.request(1, method="Hold")
    wire.credit(1, WINDOW_MAX)


def _zero_increment(wire: Wire) -> None:
    wire.request(1, method="Hold")
    wire.credit(1, 0)


def _content_length(value: str) -> object:
    return _with(("content-length", value))


def _reserved_bit(wire: Wire) -> None:
    wire.send(frame(HEADERS, END_HEADERS, 1 | 1 << 31, wire.block(fields())))
    wire.send(frame(DATA, END_STREAM, 1 | 1 << 31, message(b"hello")))


def _unknown_flags(wire: Wire) -> None:
    wire.send(frame(HEADERS, END_HEADERS | 0x52, 1, wire.block(fields())))
    wire.send(frame(DATA, END_STREAM | 0xF6, 1, message(b"hello")))


def _body_in_pieces(wire: Wire) -> None:
    wire.headers(1, fields())
    for byte in message(b"hello"):
        wire.data(1, bytes((byte,)), end=False)
    wire.data(1, b"")


def _too_large_frame(kind: int) -> object:
    """RFC 9113 4.2: one byte over the SETTINGS_MAX_FRAME_SIZE that we leave at 16,384."""
    return _say(kind, 0, 0 if kind in (SETTINGS, PING) else 1, bytes(16_385))


PROTOCOL = "goaway PROTOCOL_ERROR"
SIZE = "goaway FRAME_SIZE_ERROR"
FLOW = "goaway FLOW_CONTROL_ERROR"
CODING = "goaway COMPRESSION_ERROR"
MALFORMED = "rst PROTOCOL_ERROR"

CONNECTION_RULES = (
    Rule("http1_request", "RFC 9113 3.4", PROTOCOL, _raw(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), opens=True),
    Rule(
        "h2c_upgrade",
        "RFC 9113 3.1",
        PROTOCOL,
        _raw(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n"),
        opens=True,
    ),
    Rule("wrong_preface", "RFC 9113 3.4", PROTOCOL, _raw(PREFACE[:-1] + b"\r"), opens=True),
    Rule(
        "first_frame_not_settings",
        "RFC 9113 3.4",
        PROTOCOL,
        _raw(PREFACE + frame(PING, 0, 0, bytes(8))),
        opens=True,
    ),
    Rule("preface_in_one_go_with_a_call", "RFC 9113 3.4", "served", lambda wire: (
        wire.send(PREFACE + settings()), wire.request(1)), opens=True),
)  # fmt: skip

FRAME_RULES = (
    Rule("data_frame_too_large", "RFC 9113 4.2", SIZE, _too_large_frame(DATA)),
    Rule("headers_frame_too_large", "RFC 9113 4.2", SIZE, _too_large_frame(HEADERS)),
    Rule("unknown_type", "RFC 9113 4.1", "served", _say(0xEE, 0xFF, 7, b"what?"), call_after=True),
    Rule("unknown_type_on_connection", "RFC 9113 4.1", "served", _say(0xEE, 0, 0), call_after=True),
    Rule("unknown_flags", "RFC 9113 4.1", "served", _unknown_flags),
    Rule("reserved_bit", "RFC 9113 4.1", "served", _reserved_bit),
    Rule("data_on_connection", "RFC 9113 6.1", PROTOCOL, _say(DATA, 0, 0, b"x")),
    Rule("data_on_idle_stream", "RFC 9113 5.1", PROTOCOL, _say(DATA, 0, 1, b"x")),
    Rule("data_padding_too_long", "RFC 9113 6.1", PROTOCOL, lambda wire: (
        wire.headers(1, fields()), wire.send(frame(DATA, PADDED, 1, b"\x05hell")))),
    Rule("data_after_end", "RFC 9113 5.1", "goaway STREAM_CLOSED", _after_end(DATA, 0)),
    Rule("body_in_one_byte_frames", "RFC 9113 6.1", "served", _body_in_pieces),
    Rule("padding", "RFC 9113 6.1", "served", _padded),
    Rule("headers_on_connection", "RFC 9113 6.2", PROTOCOL, lambda wire: wire.headers(0, fields())),
    Rule("headers_on_even_stream", "RFC 9113 5.1.1", PROTOCOL, lambda wire: wire.headers(2, fields())),
    Rule("headers_padding_too_long", "RFC 9113 6.2", PROTOCOL,
        _say(HEADERS, END_HEADERS | PADDED, 1, b"\x04\x82\x82")),
    Rule("headers_after_end", "RFC 9113 5.1", "goaway STREAM_CLOSED",
        _after_end(HEADERS, END_HEADERS | END_STREAM)),
    Rule("smaller_stream_id", "RFC 9113 5.1.1", "no answer", _smaller_id, stream=3),
    Rule("priority", "RFC 9113 5.3.2", "served", _say(PRIORITY, 0, 9, bytes(5)), call_after=True),
    Rule("priority_on_connection", "RFC 9113 6.3", "served", _say(PRIORITY, 0, 0, bytes(5)), call_after=True),
    Rule("rst_on_connection", "RFC 9113 6.4", PROTOCOL, _say(RST, 0, 0, _u32(8))),
    Rule("rst_on_idle_stream", "RFC 9113 6.4", PROTOCOL, _say(RST, 0, 1, _u32(8))),
    Rule("rst_of_wrong_size", "RFC 9113 6.4", SIZE, lambda wire: (
        wire.request(1, method="Hold"), wire.send(frame(RST, 0, 1, b"abc")))),
    Rule("rst_on_closed_stream", "RFC 9113 5.1", "served", _twice_on_one_id, call_after=True, stream=3),
    Rule("push_promise", "RFC 9113 8.4", PROTOCOL, lambda wire: (
        wire.headers(1, fields()),
        wire.send(frame(PUSH, END_HEADERS, 1, _u32(2) + wire.block(fields()))))),
    Rule("goaway_on_stream", "RFC 9113 6.8", PROTOCOL, _say(GOAWAY, 0, 1, bytes(8))),
    Rule("continuation_alone", "RFC 9113 6.10", PROTOCOL, _say(CONTINUATION, END_HEADERS, 1, b"\x82")),
    Rule("continuations", "RFC 9113 6.10", "served", _split_headers),
    Rule("continuation_of_other_stream", "RFC 9113 6.10", PROTOCOL,
        _interrupted_headers(CONTINUATION, 3, b"\x82")),
    Rule("ping_inside_headers", "RFC 9113 6.10", PROTOCOL, _interrupted_headers(PING, 0, bytes(8))),
    Rule("unknown_type_inside_headers", "RFC 9113 5.5", PROTOCOL, _interrupted_headers(0xEE, 1, b"")),
)  # fmt: skip

CONTROL_RULES = (
    Rule("settings_on_stream", "RFC 9113 6.5", PROTOCOL, _say(SETTINGS, 0, 1)),
    Rule("settings_of_wrong_size", "RFC 9113 6.5", SIZE, _say(SETTINGS, 0, 0, b"abc")),
    Rule("settings_ack_with_payload", "RFC 9113 6.5", SIZE, _say(SETTINGS, ACK, 0, bytes(6))),
    Rule("settings_push_2", "RFC 9113 6.5.2", PROTOCOL, _raw(settings((2, 2)))),
    Rule("settings_window_too_large", "RFC 9113 6.5.2", FLOW, _raw(settings((4, 2**31)))),
    Rule("settings_frame_size_too_small", "RFC 9113 6.5.2", PROTOCOL, _raw(settings((5, 16_383)))),
    Rule("settings_frame_size_too_large", "RFC 9113 6.5.2", PROTOCOL, _raw(settings((5, 2**24)))),
    Rule("settings_unknown", "RFC 9113 6.5.2", "served", _raw(settings((0xFE03, 1))), call_after=True),
    Rule("settings_window_change", "RFC 9113 6.9.2", "served",
        _raw(settings((4, 0)) + settings((4, 1 << 20))), call_after=True),
    Rule("ping_on_stream", "RFC 9113 6.7", PROTOCOL, _say(PING, 0, 1, bytes(8))),
    Rule("ping_of_wrong_size", "RFC 9113 6.7", SIZE, _say(PING, 0, 0, bytes(7))),
    Rule("ping_ack_unasked", "RFC 9113 6.7", "served", _say(PING, ACK, 0, bytes(8)), call_after=True),
    Rule("window_increment_zero", "RFC 9113 6.9", PROTOCOL, _say(WINDOW, 0, 0, _u32(0))),
    Rule("window_increment_zero_on_stream", "RFC 9113 6.9", PROTOCOL, _zero_increment),
    Rule("window_of_wrong_size", "RFC 9113 6.9", SIZE, _say(WINDOW, 0, 0, b"abc")),
    Rule("window_on_idle_stream", "RFC 9113 5.1", PROTOCOL, _say(WINDOW, 0, 1, _u32(1))),
    Rule("window_overflow", "RFC 9113 6.9.1", FLOW, _say(WINDOW, 0, 0, _u32(WINDOW_MAX))),
    Rule("window_overflow_on_stream", "RFC 9113 6.9.1", FLOW, _stream_overflow),
    Rule("window_overflow_by_settings", "RFC 9113 6.9.2", FLOW, lambda wire: (
        wire.request(1, method="Hold"),
        wire.credit(1, WINDOW_MAX - 65_535),
        wire.send(settings((4, 65_536))))),
    Rule("hpack_index_0", "RFC 7541 6.1", CODING, _say(HEADERS, END_HEADERS, 1, b"\x80")),
    Rule("hpack_index_unknown", "RFC 7541 2.3.3", CODING, _say(HEADERS, END_HEADERS, 1, b"\xff\x80\x01")),
    Rule("hpack_string_cut", "RFC 7541 5.2", CODING, _say(HEADERS, END_HEADERS, 1, b"\x00\x05ab")),
    Rule("hpack_huffman_padding", "RFC 7541 5.2", CODING,
        _say(HEADERS, END_HEADERS, 1, b"\x00\x81\x00\x01a")),
    Rule("hpack_table_too_large", "RFC 7541 6.3", CODING, _say(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f\x82")),
    Rule("hpack_table_update_late", "RFC 7541 4.2", CODING, _say(HEADERS, END_HEADERS, 1, b"\x82\x20")),
)  # fmt: skip

FIELD_RULES = (
    Rule("path_missing", "RFC 9113 8.3.1", MALFORMED, lambda wire: wire.request(_path=None)),
    Rule("path_empty", "RFC 9113 8.3.1", MALFORMED, lambda wire: wire.request(_path="")),
    Rule("method_missing", "RFC 9113 8.3.1", MALFORMED, lambda wire: wire.request(_method=None)),
    Rule("scheme_missing", "RFC 9113 8.3.1", MALFORMED, lambda wire: wire.request(_scheme=None)),
    Rule("pseudo_twice", "RFC 9113 8.3.1", MALFORMED, lambda wire: (
        wire.headers(1, [(":path", "/a"), *fields()]), wire.data(1, message(b"")))),
    Rule("pseudo_unknown", "RFC 9113 8.3", MALFORMED, lambda wire: wire.request(_what="1")),
    Rule("pseudo_of_response", "RFC 9113 8.3", MALFORMED, lambda wire: (
        wire.headers(1, [(":status", "200"), *fields()]), wire.data(1, message(b"")))),
    Rule("pseudo_after_field", "RFC 9113 8.3", MALFORMED, _pseudo_last),
    Rule("authority_missing", "RFC 9113 8.3.1", "served", lambda wire: (
        wire.headers(1, [*fields(_authority=None), ("host", "probe")]), wire.data(1, message(b"hello")))),
    Rule("name_in_upper_case", "RFC 9113 8.2.1", MALFORMED, _with(("X-Loud", "1"))),
    Rule("name_with_space", "RFC 9113 8.2.1", MALFORMED, _with(("x y", "1"))),
    Rule("name_with_colon", "RFC 9113 8.2.1", MALFORMED, _with(("x:y", "1"))),
    Rule("name_empty", "RFC 9110 5.1", MALFORMED, _with(("", "1"))),
    Rule("value_with_nul", "RFC 9113 8.2.1", MALFORMED, _with(("x-a", b"a\0b"))),
    Rule("value_with_cr", "RFC 9113 8.2.1", MALFORMED, _with(("x-a", b"a\rb"))),
    Rule("value_with_lf", "RFC 9113 8.2.1", MALFORMED, _with(("x-a", b"a\nb"))),
    Rule("value_with_outer_space", "RFC 9113 8.2.1", MALFORMED, _with(("x-a", b" a"))),
    Rule("value_empty", "RFC 9110 5.5", "served", _with(("tracestate", ""))),
    Rule("value_in_latin_1", "RFC 9110 5.5", "served", _with(("x-a", b"caf\xe9"))),
    Rule("connection_field", "RFC 9113 8.2.2", MALFORMED, _with(("connection", "close"))),
    Rule("keep_alive_field", "RFC 9113 8.2.2", MALFORMED, _with(("keep-alive", "1"))),
    Rule("transfer_encoding_field", "RFC 9113 8.2.2", MALFORMED, _with(("transfer-encoding", "chunked"))),
    Rule("te_other_than_trailers", "RFC 9113 8.2.2", MALFORMED, lambda wire: wire.request(te="gzip")),
    Rule("content_length_right", "RFC 9113 8.1.1", "served", _content_length("10")),
    Rule("content_length_wrong", "RFC 9113 8.1.1", MALFORMED, _content_length("9")),
    Rule("content_length_no_number", "RFC 9113 8.1.1", MALFORMED, _content_length("ten")),
    Rule("trailers", "RFC 9113 8.1", "served", _trailers([("x-checksum", "1")])),
    Rule("trailers_without_end", "RFC 9113 8.1", MALFORMED, _trailers([("x-checksum", "1")], END_HEADERS)),
    Rule("trailers_with_pseudo", "RFC 9113 8.1", MALFORMED, _trailers([(":path", "/")])),
)  # fmt: skip

HTTP2_RULES = (*CONNECTION_RULES, *FRAME_RULES, *CONTROL_RULES, *FIELD_RULES)

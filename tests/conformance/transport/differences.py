"""
Where the reference transport differs from the rules, and why that is acceptable: the one table.

The fast transport has no row: it keeps every rule. A difference that is not in the table fails, and so
does a row that no longer differs. docs/develop/conformance.md shows the same rows to readers; a test holds
the two together.

`grpc-core` is the C library under grpc.aio; it decides all of these before any code of ours runs.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOSES = (
    "grpc-core ends the connection at once but sends no GOAWAY to name the error; the client is cut off all "
    "the same"
)
STATUS_THEN_CLOSES = (
    "grpc-core ends the open stream with a status of its own, then the connection, without a GOAWAY; the "
    "client is cut off all the same"
)
SKIPS = (
    "grpc-core skips a frame that means nothing to it where RFC 9113 lets or makes a server close; nothing "
    "reaches a handler, and other calls go on"
)
RST_FOR_BAD_HEADERS = (
    "grpc-core resets a stream whose headers make no gRPC request, with another code than ours or than HTTP "
    "would have; no handler runs either way"
)
UNCHECKED_FIELD = (
    "grpc-core serves a request that breaks this rule of header fields; a proxy in front must keep it, and "
    "no handler of ours trusts metadata"
)
UNCHECKED_TYPE = "grpc-core ignores the content type of a call that is correct otherwise"
STATUS_FOR_BAD_FIELD = "grpc-core answers INTERNAL where HTTP/2 would reset the stream; no handler runs"
LENIENT_TIMEOUT = "grpc-core reads 9 digits and inner spaces too; the value is what a reader would expect"
ONE_MESSAGE_READ = (
    "the handler starts with the first message and grpc.aio is not asked for a second: one more read would "
    "cost every call"
)
CUT_IS_NONE = "grpc.aio reports a message that was cut short as no message; the call is refused either way"


@dataclass(frozen=True)
class Difference:
    """Rules that the reference breaks in one way: its outcome (several when grpc-core races) and why."""

    names: tuple[str, ...]
    observed: tuple[str, ...]
    why: str


def _row(names: str, observed: str | tuple[str, ...], why: str) -> Difference:
    return Difference(tuple(names.split()), (observed,) if isinstance(observed, str) else observed, why)


OTHER_RULES = {
    "settings_unacknowledged": "goaway SETTINGS_TIMEOUT",
    "idle_end": "goaway NO_ERROR",
    "goaway_from_client": "closed",
    "stream_ids_used_up": "goaway NO_ERROR",
    "takeover_under_load": "no call fails",
    "age_under_load": "no call fails",
    "wildcard_of_ipv4": "IPv4 only",
    "connection_metrics": "counted",
}
"""Rules that a test tells in code rather than as a row, and what they say."""

REFERENCE_DIFFERENCES = (
    _row(
        "http1_request h2c_upgrade wrong_preface first_frame_not_settings continuation_alone "
        "settings_on_stream settings_of_wrong_size settings_ack_with_payload settings_push_2 "
        "settings_window_too_large settings_frame_size_too_small settings_frame_size_too_large "
        "ping_of_wrong_size window_increment_zero window_of_wrong_size",
        "closed",
        CLOSES,
    ),
    _row(
        "headers_padding_too_long headers_frame_too_large hpack_index_0 hpack_index_unknown hpack_string_cut "
        "hpack_huffman_padding hpack_table_too_large hpack_table_update_late",
        "status 13, then closed",
        STATUS_THEN_CLOSES,
    ),
    _row(
        "continuation_of_other_stream ping_inside_headers rst_of_wrong_size unknown_type_inside_headers "
        "window_increment_zero_on_stream",
        "status 14, then closed",
        STATUS_THEN_CLOSES,
    ),
    _row(
        "trailers_without_end",
        ("status 14, then closed", "served", "served, then closed"),
        STATUS_THEN_CLOSES + "; the handler, which has its message already, may answer before",
    ),
    _row(
        "data_frame_too_large data_on_connection data_on_idle_stream data_after_end headers_on_connection "
        "headers_on_even_stream headers_after_end rst_on_connection rst_on_idle_stream push_promise "
        "goaway_on_stream ping_on_stream window_on_idle_stream window_overflow window_overflow_on_stream "
        "window_overflow_by_settings",
        "no answer",
        SKIPS,
    ),
    _row(
        "data_padding_too_long",
        "rst PROTOCOL_ERROR",
        "grpc-core resets only the stream, because no other stream is affected",
    ),
    _row(
        "unknown_flags",
        "rst PROTOCOL_ERROR",
        "grpc-core treats unknown flags of DATA as an error; no known client sends any",
    ),
    _row(
        "padding",
        "status 13, then closed",
        "grpc-core does not support padding in HEADERS; no gRPC client pads",
    ),
    _row(
        "te_missing",
        "rst INTERNAL_ERROR",
        "PROTOCOL-HTTP2 lets a server insist on `te: trailers`; every gRPC client sends it",
    ),
    _row(
        "method_get method_put method_missing path_missing scheme_missing",
        "rst INTERNAL_ERROR",
        RST_FOR_BAD_HEADERS,
    ),
    _row(
        "path_empty",
        "status 12",
        "for grpc-core an empty path is an unknown method; no handler runs either way",
    ),
    _row(
        "pseudo_after_field pseudo_of_response pseudo_twice value_with_cr value_with_lf value_with_nul "
        "value_with_outer_space connection_field keep_alive_field transfer_encoding_field "
        "content_length_wrong content_length_no_number trailers_with_pseudo",
        "served",
        UNCHECKED_FIELD,
    ),
    _row(
        "name_empty name_in_upper_case name_with_colon name_with_space pseudo_unknown",
        "status 13",
        STATUS_FOR_BAD_FIELD,
    ),
    _row(
        "te_other_than_trailers",
        "status 13, then status 13",
        STATUS_FOR_BAD_FIELD + "; it also finds the bad field again by its HPACK index",
    ),
    _row(
        "content_type_missing content_type_text content_type_web content_type_longer",
        "served",
        UNCHECKED_TYPE,
    ),
    _row("header_fields_too_many", "served", "grpc-core bounds the size of a header list, not its length"),
    _row(
        "metadata_binary_list",
        "status 13",
        "grpc-core does not split a list of binary values; no known client sends one",
    ),
    _row("timeout_malformed_3 timeout_malformed_6", "served", LENIENT_TIMEOUT),
    _row("messages_two message_and_a_half", "served", ONE_MESSAGE_READ),
    _row("message_cut message_cut_in_prefix", "status 12", CUT_IS_NONE),
    _row(
        "flag_2 flag_255",
        ("status 12", "served"),
        "grpc-core finds the bad flag while the message is already on its way to the handler: either may win",
    ),
    _row(
        "flag_1_unknown_encoding",
        "status 13",
        "grpc-core treats an unknown encoding as a broken call",
    ),
    _row(
        "flag_0_gzip",
        "status 12",
        "grpc-core refuses a disabled encoding whether or not a message uses it; clients announce "
        "one only to use it",
    ),
    _row(
        "idle_end",
        "goaway INTERNAL_ERROR",
        "grpc-core uses this code although nothing is wrong; no call is open",
    ),
    _row(
        "goaway_from_client",
        "left open",
        "grpc-core waits for the client, which is about to close, or for the idle time",
    ),
    _row(
        "takeover_under_load",
        "some calls fail",
        "grpc-core ends calls that arrive after its GOAWAY left and before the client has read it, at most "
        "those in flight and the ones that take their place; a restart without a failed call takes the "
        "fast transport",
    ),
    _row(
        "age_under_load",
        "some calls fail",
        "grpc-core closes the socket right after its last GOAWAY; a client that writes just then may lose "
        "the GOAWAY and take its calls for failed, in one of some thousand closures",
    ),
    _row(
        "wildcard_of_ipv4",
        "IPv6 too",
        "for grpc-core 0.0.0.0 means every address of every family; name an address where that matters",
    ),
    _row(
        "connection_metrics",
        "not counted",
        "grpc.aio does not report connections; calls are counted, except those that grpc-core ends itself",
    ),
    _row(
        "authority_absent",
        "rst INTERNAL_ERROR",
        "grpc-core rejects requests without an authority or a host; every gRPC client sends one",
    ),
    _row(
        "stream_ids_used_up",
        "served",
        "grpc-core expects the client to count its stream ids; `connection_age_max_s` helps",
    ),
)

LIMITS_NOT_KEPT = {
    "header_fields_max": "grpc-core bounds a header list by its size alone",
    "calls_per_turn_max": "grpc-core has threads of its own and hands over one call at a time",
    "buffered_bytes_per_connection_max": "grpc-core sizes its windows by the bandwidth it measures",
    "buffered_bytes_max": "grpc.aio cannot set grpc-core's resource quota",
    "unsent_bytes_max": "grpc.aio does not report which answers wait for their peers",
    "unsent_bytes_per_peer_max": "grpc.aio does not report which answers wait for their peers",
    "write_buffer_bytes_max": "grpc-core keeps answers that the peer does not read with their streams",
    "header_timeout_s": "grpc-core waits for a header block as long as the connection lives",
    "write_timeout_s": "grpc-core waits for a slow reader until keepalive or age end the connection",
    "resets_burst": "grpc-core has its own defense against rapid resets, which cannot be configured",
    "resets_per_s": "grpc-core has its own defense against rapid resets, which cannot be configured",
    "connections_per_peer_max": "grpc-core counts connections, not whose they are",
}
"""Limits that the reference transport cannot keep, and why; all others it must read."""

_REFERENCE = {name: row for row in REFERENCE_DIFFERENCES for name in row.names}


def allowed(transport: str, name: str, rule: str | None = None) -> tuple[str, ...]:
    """The outcomes that are right for *transport*: what *rule* says, or the row of *name* in the table."""
    if transport == "reference" and name in _REFERENCE:
        return _REFERENCE[name].observed
    return (OTHER_RULES[name] if rule is None else rule,)

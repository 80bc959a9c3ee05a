"""
gRPC over HTTP/2: what makes a call, and the status that answers what is none.

Source: grpc/doc/PROTOCOL-HTTP2.md, statuscodes.md and compression.md.
"""

from __future__ import annotations

from .rules import Rule
from .wire import Wire, fields, message

MESSAGE_BYTES_MAX = 1_024
"""The limit of the server that the rules are tried on."""

HEADER_LIST_BYTES_MAX = 8_192


def _body(body: bytes, *, end: bool = True, **changed: str | None) -> object:
    """A call whose body is exactly *body*."""

    def say(wire: Wire) -> None:
        wire.headers(1, fields(**changed))
        wire.data(1, body, end=end)

    return say


def _with(**changed: str | None) -> object:
    return lambda wire: wire.request(**changed)


def _timeout(value: str) -> object:
    return _with(grpc_timeout=value)


def _many_fields(count: int) -> object:
    def say(wire: Wire) -> None:
        wire.headers(1, [*fields(), *((f"x-{number}", "1") for number in range(count))])
        wire.data(1, message(b"hello"))

    return say


def _end_on_empty_data(wire: Wire) -> None:
    wire.headers(1, fields())
    wire.data(1, message(b"hello"), end=False)
    wire.data(1, b"")


def _prefix_split(wire: Wire) -> None:
    wire.headers(1, fields())
    wire.data(1, message(b"hello")[:3], end=False)
    wire.data(1, message(b"hello")[3:])


PH2 = "PROTOCOL-HTTP2"
STAT = "statuscodes"
COMP = "compression"

REQUEST_RULES = (
    Rule("method_get", PH2, "http 405", _with(_method="GET")),
    Rule("method_put", PH2, "http 405", _with(_method="PUT")),
    Rule("content_type_missing", PH2, "http 415", _with(content_type=None)),
    Rule("content_type_text", PH2, "http 415", _with(content_type="text/plain")),
    Rule("content_type_web", PH2, "http 415", _with(content_type="application/grpc-web")),
    Rule("content_type_longer", PH2, "http 415", _with(content_type="application/grpcx")),
    Rule("content_type_proto", PH2, "served", _with(content_type="application/grpc+proto")),
    Rule("content_type_parameter", PH2, "served", _with(content_type="application/grpc;v=1")),
    Rule("te_missing", PH2, "served", _with(te=None)),
    Rule("user_agent", PH2, "served", _with(user_agent="grpc-c++/1.2")),
    *(
        Rule(f"authority_{name}", PH2, "served", _with(_authority=value))
        for name, value in (
            ("socket_path", "/run/sidecar/grpc.sock"),
            ("socket_path_encoded", "%2Frun%2Fsidecar%2Fgrpc.sock"),
            ("unix_uri", "unix:///run/sidecar/grpc.sock"),
            ("abstract_socket", "@sidecar"),
            ("user", "user@host"),
            ("space", "a b"),
            ("empty", ""),
            ("absent", None),
        )
    ),
    Rule("authority_host_path", PH2, "served", _with(_authority=None, host="/run/sidecar/grpc.sock")),
    Rule("authority_and_host_path", PH2, "served", _with(host="/run/sidecar/grpc.sock")),
    Rule("method_unknown", STAT, "status 12", _with(_path="/probe.Probe/Nope")),
    Rule("service_unknown", STAT, "status 12", _with(_path="/no.Such/Echo")),
    Rule("path_root", STAT, "status 12", _with(_path="/")),
    Rule("path_with_query", STAT, "status 12", _with(_path="/probe.Probe/Echo?x=1")),
    Rule("path_with_slash", STAT, "status 12", _with(_path="/probe.Probe/Echo/")),
    Rule("path_in_other_case", STAT, "status 12", _with(_path="/probe.Probe/echo")),
    Rule("header_list_too_large", PH2, "status 8", _with(x_big="b" * HEADER_LIST_BYTES_MAX)),
    Rule("header_fields_too_many", PH2, "status 8", _many_fields(65)),
    Rule("metadata_binary", PH2, "served", _with(x_bin="AAECAw")),
    Rule("metadata_binary_padded", PH2, "served", _with(x_bin="AAECAw==")),
    Rule("metadata_binary_list", PH2, "served", _with(x_bin="AAEC,AAECAw==,AA")),
    Rule("metadata_binary_wrong", PH2, "status 13", _with(x_bin="!not base64!")),
)

TIMEOUT_RULES = (
    *(
        Rule(f"timeout_{text}", PH2, "served", _timeout(text))
        for text in ("1H", "1M", "9S", "9000m", "99999999u")
    ),
    Rule("timeout_in_ns", PH2, "served", _timeout("99999999n")),
    Rule("timeout_huge", PH2, "served", _timeout("99999999H")),
    Rule("timeout_zero", PH2, "status 4", _timeout("0S")),
    Rule("timeout_zero_ns", PH2, "status 4", _timeout("00n")),
    Rule("timeout_passes", STAT, "status 4", lambda wire: wire.request(method="Hold", grpc_timeout="20m")),
    *(
        Rule(f"timeout_malformed_{number}", PH2, "status 13", _timeout(text))
        for number, text in enumerate(("", "1", "S", "123456789S", "-1S", "1x", "1 S", "1.5S", "0x1S", "+1S"))
    ),
)  # fmt: skip

MESSAGE_RULES = (
    Rule("message_empty", PH2, "served", _body(message(b""))),
    Rule("message_largest", PH2, "served", _body(message(bytes(MESSAGE_BYTES_MAX)))),
    Rule("message_too_large", STAT, "status 8", _body(message(bytes(MESSAGE_BYTES_MAX + 1)))),
    Rule("message_too_large_by_prefix", STAT, "status 8", _body(b"\0\xff\xff\xff\xff", end=False)),
    Rule("message_cut", PH2, "status 13", _body(message(b"hello")[:-1])),
    Rule("message_cut_in_prefix", PH2, "status 13", _body(message(b"hello")[:3])),
    Rule("message_none", STAT, "status 12", lambda wire: wire.headers(1, fields(), end=True)),
    Rule("message_none_after_data", STAT, "status 12", _body(b"")),
    Rule("messages_two", STAT, "status 12", _body(message(b"one") + message(b"two"))),
    Rule("message_and_a_half", PH2, "status 12", _body(message(b"one") + message(b"two")[:-1])),
    Rule("message_prefix_split", PH2, "served", _prefix_split),
    Rule("end_on_empty_data", PH2, "served", _end_on_empty_data),
    Rule("flag_1_without_encoding", COMP, "status 13", _body(message(b"x", 1))),
    Rule("flag_1_identity", COMP, "status 13", _body(message(b"x", 1), grpc_encoding="identity")),
    Rule("flag_1_gzip", COMP, "status 12", _body(message(b"x", 1), grpc_encoding="gzip")),
    Rule("flag_1_unknown_encoding", COMP, "status 12", _body(message(b"x", 1), grpc_encoding="zip9")),
    Rule("flag_0_gzip", COMP, "served", _body(message(b"x"), grpc_encoding="gzip")),
    Rule("flag_0_identity", COMP, "served", _body(message(b"x"), grpc_encoding="identity")),
    Rule("flag_2", PH2, "status 13", _body(message(b"x", 2))),
    Rule("flag_255", PH2, "status 13", _body(message(b"x", 255))),
)

HANDLER_RULES = (
    Rule("handler_fails", STAT, "status 9", lambda wire: wire.request(method="Fail", body=b"\x09closed")),
    Rule("handler_crashes", STAT, "status 2", lambda wire: wire.request(method="Crash")),
    Rule("handler_ends_thrice", STAT, "served", lambda wire: wire.request(method="Twice")),
    Rule("stream", PH2, "served", lambda wire: wire.request(method="Count", body=b"3")),
    Rule("stream_of_nothing", PH2, "served", lambda wire: wire.request(method="Count", body=b"0")),
    Rule("stream_fails", STAT, "status 15", lambda wire: wire.request(method="FailAfterTwo")),
    Rule("stream_crashes", STAT, "status 2", lambda wire: wire.request(method="CrashStream")),
)

GRPC_RULES = (*REQUEST_RULES, *TIMEOUT_RULES, *MESSAGE_RULES, *HANDLER_RULES)

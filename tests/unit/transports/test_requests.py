"""Request headers: the method they find, the deadline they set, the refusal they get."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.rpc.calls import ExchangeMethod, StreamMethod, UnaryMethod
from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast import requests
from sidecar.transports.fast.engine import Headers
from sidecar.transports.fast.requests import TIMEOUT_S_MAX, Request, is_grpc, parse_timeout, read_request
from sidecar.transports.server import TransportLimits

ECHO = UnaryMethod("/t/Echo", lambda message, call: message)
WATCH = StreamMethod("/t/Watch", lambda message, call: None)
EXCHANGE = ExchangeMethod("/t/Exchange", lambda message, call: message)
METHODS = {b"/t/Echo": ECHO, b"/t/Watch": WATCH, b"/t/Exchange": EXCHANGE}


def headers(*extra: tuple[bytes, bytes], **changed: bytes | None) -> Headers:
    """A good call's headers; in names '_' stands for '-', a leading one for ':'; None = left out."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/t/Echo",
        b"content-type": b"application/grpc",
    }
    for name, value in changed.items():
        key = (":" + name[1:] if name.startswith("_") else name).replace("_", "-").encode()
        if value is None:
            del fields[key]
        else:
            fields[key] = value
    return (*fields.items(), *extra)


def read(*extra: tuple[bytes, bytes], **changed: bytes | None) -> Request:
    """Read them under the default limits."""
    return read_request(headers(*extra, **changed), METHODS, TransportLimits())


def code_of(request: Request) -> StatusCode | None:
    """The status of its refusal; None = it has a handler."""
    return None if request.refusal is None else request.refusal.code


@pytest.mark.pure
def test_requests__examples_are_true() -> None:
    """What the docstrings show is what happens."""
    assert doctest.testmod(requests) == doctest.TestResults(failed=0, attempted=2)


def test_read_request__finds_the_method() -> None:
    """A path leads to its handler and to its kind."""
    unary, streaming = read(), read(_path=b"/t/Watch")
    assert (unary.refusal, unary.handle, unary.path, unary.is_streaming) == (
        None,
        ECHO.handle,
        "/t/Echo",
        False,
    )
    assert (streaming.handle, streaming.is_streaming, streaming.is_exchange) == (WATCH.handle, True, False)
    exchange = read(_path=b"/t/Exchange")
    assert (exchange.is_streaming, exchange.is_exchange) == (True, True)
    assert unary.timeout_s is None
    assert not unary.is_encoded


@pytest.mark.parametrize("method", [b"GET", b"post", b"CONNECT", b""])
def test_read_request__only_post_is_grpc(method: bytes) -> None:
    """Anything but POST is HTTP that we do not serve (405)."""
    refusal = read(_method=method).refusal
    assert refusal is not None
    assert refusal.http_status == 405


def test_read_request__connect_without_a_path_is_refused() -> None:
    """CONNECT passes ngh2 without :path and :scheme; it must not break us."""
    request = read_request(((b":method", b"CONNECT"), (b":authority", b"a")), METHODS, TransportLimits())
    assert request.refusal is not None
    assert request.refusal.http_status == 405


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/grpc",
        b"application/grpc+proto",
        b"application/grpc;charset=utf-8",
        b"Application/GRPC+Proto",
    ],
)
def test_is_grpc__accepts_subtypes_and_parameters(content_type: bytes) -> None:
    """PROTOCOL-HTTP2.md: application/grpc [("+proto" / "+json" / {custom})]."""
    assert is_grpc(content_type)
    assert read(content_type=content_type).refusal is None


@pytest.mark.parametrize(
    "content_type",
    [None, b"", b"application/json", b"application/grpc-web", b"application/grpcx", b"application/grp"],
)
def test_read_request__other_content_is_refused(content_type: bytes | None) -> None:
    """No gRPC is HTTP 415, and gRPC-Web is another protocol."""
    refusal = read(content_type=content_type).refusal
    assert refusal is not None
    assert refusal.http_status == 415


@pytest.mark.parametrize(
    "path", [b"/t/Nope", b"/", b"", b"t/Echo", b"/t/Echo/", b"/t/Echo?a", b"/t/\xff", b"*"]
)
def test_read_request__an_unknown_path_is_unimplemented(path: bytes) -> None:
    """Paths are compared as bytes; there is nothing to normalize."""
    assert code_of(read(_path=path)) is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("value", "timeout_s"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"200m", 0.2),
        (b"500u", 500e-6),
        (b"10n", 10e-9),
        (b"00000001S", 1.0),
        (b"99999999H", TIMEOUT_S_MAX),
        (b"99999999M", TIMEOUT_S_MAX),
    ],
)
def test_parse_timeout__reads_each_unit(value: bytes, timeout_s: float) -> None:
    """One to eight digits and a unit; more than a day is a day."""
    assert parse_timeout(value) == pytest.approx(timeout_s)
    assert read(grpc_timeout=value).timeout_s == pytest.approx(timeout_s)


@pytest.mark.parametrize(
    "value",
    [b"", b"S", b"1", b"1s", b"1 S", b"-1S", b"+1S", b"1.5S", b"123456789S", b"1SS", b"\xd9\xa3S", b"1S\n"],
)
def test_read_request__a_malformed_timeout_is_internal(value: bytes) -> None:
    """PROTOCOL-HTTP2.md, "Timeout": the grammar leaves no room."""
    assert parse_timeout(value) is None
    assert code_of(read(grpc_timeout=value)) is StatusCode.INTERNAL


@pytest.mark.parametrize("value", [b"0S", b"00000000n"])
def test_read_request__no_time_left_has_expired(value: bytes) -> None:
    """grpc-java sends 0S: the deadline has passed, no handler runs."""
    assert code_of(read(grpc_timeout=value)) is StatusCode.DEADLINE_EXCEEDED


def test_parse_timeout__its_cache_is_bounded() -> None:
    """A client that varies its timeouts cannot grow it."""
    assert parse_timeout.cache_info().maxsize == 1_024


def test_read_request__a_large_header_list_is_refused_softly() -> None:
    """Up to the limit all is well, one byte more fails the call alone; 32 are added per field."""
    limits = TransportLimits(header_list_bytes_max=300)
    base = read_request(headers(), METHODS, limits)
    room = 300 - base.octets - 32 - 1
    fitting = read_request(headers((b"x", b"v" * room)), METHODS, limits)
    assert (fitting.refusal, fitting.octets) == (None, 300)
    larger = read_request(headers((b"x", b"v" * (room + 1))), METHODS, limits)
    assert code_of(larger) is StatusCode.RESOURCE_EXHAUSTED
    assert larger.refusal is not None
    assert "301 bytes" in larger.refusal.detail


def test_read_request__too_many_fields_are_refused_softly() -> None:
    """The number of fields has its own limit."""
    limits = TransportLimits(header_fields_max=6)
    two, three = ((b"a", b""), (b"b", b"")), ((b"a", b""), (b"b", b""), (b"c", b""))
    assert read_request(headers(*two), METHODS, limits).refusal is None
    assert code_of(read_request(headers(*three), METHODS, limits)) is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("value", [b"", b"AA", b"AA==", b"AAA", b"AAAA", b"AA,AAA=", b"AA, AAAA", b"+/8"])
def test_read_request__binary_metadata_may_go_unpadded(value: bytes) -> None:
    """Padding is optional, and repeats may have been joined by commas."""
    assert read((b"x-bin", value)).refusal is None


@pytest.mark.parametrize("value", [b"A", b"AAAAA", b"A*==", b"AA=A", b"\xff\xff", b"AA,A"])
def test_read_request__binary_metadata_must_be_base64(value: bytes) -> None:
    """What does not decode is INTERNAL."""
    assert code_of(read((b"x-bin", value))) is StatusCode.INTERNAL


def test_read_request__only_names_with_the_suffix_are_binary() -> None:
    """'-bin' elsewhere in a header means nothing."""
    assert read((b"x-binary", b"!"), (b"y", b"a-bin")).refusal is None


@pytest.mark.parametrize(
    ("value", "is_encoded"), [(None, False), (b"identity", False), (b"gzip", True), (b"", True)]
)
def test_read_request__knows_named_encodings(value: bytes | None, is_encoded: bool) -> None:
    """What a set compressed-flag will mean."""
    request = read() if value is None else read(grpc_encoding=value)
    assert request.is_encoded is is_encoded


def test_metadata__is_what_callers_sent_and_nothing_else() -> None:
    """Repeats are joined, absent names are None, and the protocol's own fields are no metadata."""
    request = read(
        (b"x-id", b"7"), (b"x-id", b"8"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"y", b"")
    )
    assert request.metadata("x-id") == "7,8"
    assert request.metadata("y") == ""
    absent = ("z", ":path", "te", "content-type", "grpc-timeout", "X-Id")
    assert {name: request.metadata(name) for name in absent} == dict.fromkeys(absent)


def test_metadata__bytes_outside_ascii_are_escaped() -> None:
    """Nothing but ASCII reaches a handler, so nothing else can be echoed by one."""
    assert read((b"x", b"a\xffb")).metadata("x") == "a\\xffb"


def test_request__a_refused_one_cannot_be_handled() -> None:
    """There is no handler to call by mistake."""
    with pytest.raises(AssertionError, match="no handler"):
        read(_path=b"/nope").handle(b"", None)


FIELDS = st.tuples(
    st.sampled_from(
        [
            b":path",
            b"content-type",
            b"grpc-timeout",
            b"grpc-encoding",
            b"x-a",
            b"x-b",
            b"x-bin",
            b"traceparent",
        ]
    ),
    st.sampled_from([b"", b"a", b"AAAA", b"1S", b"9" * 30, b"/t/Echo", b"application/grpc", b"identity"]),
)


def outcome(request: Request) -> tuple[object, ...]:
    """All that a request says."""
    refusal = request.refusal
    said = None if refusal is None else (refusal.code, refusal.detail, refusal.http_status)
    return (
        request.headers,
        request.octets,
        request.handle,
        request.path,
        request.is_streaming,
        request.timeout_s,
        request.is_encoded,
        said,
    )


@given(st.lists(FIELDS, max_size=4), st.lists(FIELDS, max_size=4), st.integers(0, 60))
def test_follow__is_either_what_reading_gives_or_nothing(
    first: list[tuple[bytes, bytes]], second: list[tuple[bytes, bytes]], room: int
) -> None:
    """The short cut for repeated headers never differs from the long way, at the size limit too."""
    limits = TransportLimits(header_list_bytes_max=read().octets + 100 + room)
    known = read_request(headers(*first), METHODS, limits)
    followed = known.follow(headers(*second), limits.header_list_bytes_max)
    if followed is not None:
        assert outcome(followed) == outcome(read_request(headers(*second), METHODS, limits))


def test_follow__takes_other_metadata_in_the_same_fields() -> None:
    """Trace ids change with each call; what else the headers say stays."""
    known = read((b"traceparent", b"00-1"), (b"x-id", b"7"), grpc_timeout=b"1S")
    followed = known.follow(headers((b"traceparent", b"00-22"), (b"x-id", b"8"), grpc_timeout=b"1S"), 8_192)
    assert followed is not None
    assert (followed.timeout_s, followed.octets, followed.metadata("x-id")) == (1.0, known.octets + 1, "8")


@pytest.mark.parametrize(
    "second",
    [
        headers((b"x", b"2"), _path=b"/t/Watch"),
        headers((b"x", b"2"), content_type=b"application/grpc+proto"),
        headers((b"y", b"1")),
        headers((b"x", b"1"), (b"y", b"1")),
        headers((b"x", b"1" * 9_000)),
    ],
)
def test_follow__leaves_everything_else_to_be_read(second: Headers) -> None:
    """Another method, type, name, number of fields or a size over the limit is no repetition."""
    assert read((b"x", b"1")).follow(second, 8_192) is None


def test_follow__a_refused_request_has_no_followers() -> None:
    """What was refused is read again each time."""
    assert read(_path=b"/nope").follow(headers(_path=b"/nope"), 8_192) is None

"""Headers that we send: constant ones, and the encoding of what is not constant."""

from __future__ import annotations

import doctest
from urllib.parse import unquote

import pytest

from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast import answers
from sidecar.transports.fast.answers import (
    MESSAGE_CHARACTERS_MAX,
    STATUS_HEADERS_BYTES_MAX,
    encode_message,
    http_error,
    status_headers,
    status_trailers,
)


@pytest.mark.pure
def test_answers__examples_are_true() -> None:
    """What the docstrings show is what happens."""
    assert doctest.testmod(answers) == doctest.TestResults(failed=0, attempted=1)


@pytest.mark.parametrize("detail", ["", "plain", "100% sure", "café ☕ 𝄞", "a\r\nb\0c\x7f", "%41"])
def test_encode_message__is_printable_ascii_and_decodes(detail: str) -> None:
    """Every octet outside 0x20-0x7E and '%' is escaped (PROTOCOL-HTTP2.md, "Percent-Encoded")."""
    encoded = encode_message(detail)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode()) == detail


def test_encode_message__uses_upper_case_hex() -> None:
    """As the gRPC libraries write it."""
    assert encode_message("\n/ü") == b"%0A/%C3%BC"


def test_encode_message__is_bounded() -> None:
    """However long a detail is, and whatever it holds, the header list stays small."""
    longest = encode_message("\U0001d11e" * 10_000)
    assert len(longest) == 12 * MESSAGE_CHARACTERS_MAX
    headers = status_headers(StatusCode.UNAUTHENTICATED, "\U0001d11e" * 10_000, names_encodings=True)
    assert sum(len(name) + len(value) + 32 for name, value in headers) <= STATUS_HEADERS_BYTES_MAX


def test_encode_message__a_lone_surrogate_is_replaced() -> None:
    """Text that is no Unicode cannot break the answer."""
    assert encode_message("a\ud800b") == b"a?b"


def test_status_headers__is_trailers_only() -> None:
    """HTTP 200, the content type, the status without leading zeros, the message."""
    assert status_headers(StatusCode.NOT_FOUND, "no such thing") == (
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"5"),
        (b"grpc-message", b"no such thing"),
    )


def test_status_headers__without_a_detail_there_is_no_message() -> None:
    """An empty field would only cost bytes."""
    assert status_trailers(StatusCode.OK, "") == answers.OK_TRAILERS
    assert b"grpc-message" not in dict(status_headers(StatusCode.INTERNAL, ""))


def test_status_headers__can_name_our_encodings() -> None:
    """compression.md: UNIMPLEMENTED for an encoding says which ones there are."""
    headers = status_headers(StatusCode.UNIMPLEMENTED, "x", names_encodings=True)
    assert dict(headers)[b"grpc-accept-encoding"] == b"identity"


def test_status_headers__caches_are_bounded() -> None:
    """Details vary, memory does not."""
    assert status_headers.cache_info().maxsize == 256
    assert status_trailers.cache_info().maxsize == 256


@pytest.mark.parametrize("status", [405, 415])
def test_http_error__says_what_is_served_here(status: int) -> None:
    """A browser or curl gets text, its length and, for a wrong method, the right one."""
    headers, body = http_error(status)
    fields = dict(headers)
    assert fields[b":status"] == str(status).encode()
    assert fields[b"content-length"] == str(len(body)).encode()
    assert fields.get(b"allow") == (b"POST" if status == 405 else None)
    assert b"gRPC" in body

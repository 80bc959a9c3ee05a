"""Reading bodies: chunks, their extensions and trailers, and every bound of theirs."""

from __future__ import annotations

import pytest

from sidecar.transports.http1.bodies import FRAMING_BYTES_MIN, LINES_PER_READ, ChunkedBody, SizedBody
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import HttpError


def read(body: ChunkedBody, data: bytes) -> tuple[bytes, bytes]:
    """What *body* makes of *data*, and what it leaves."""
    inbox, content = bytearray(data), b""
    while True:
        before = len(inbox)
        content += body.take(inbox, 1_000_000)
        if len(inbox) == before:
            return content, bytes(inbox)


def test_sized_body__takes_what_is_its_own() -> None:
    """In parts, and not a byte of the next request."""
    body, inbox = SizedBody(5), bytearray(b"hel")
    assert (body.take(inbox, 2), body.take(inbox, 9), body.is_whole) == (b"he", b"l", False)
    inbox += b"loGET"
    assert (body.take(inbox, 9), bytes(inbox), body.is_whole) == (b"lo", b"GET", True)


def test_chunked_body__sizes_extensions_and_trailers() -> None:
    """Extensions and trailers are read and ignored; what follows is left."""
    body = ChunkedBody(HttpLimits())
    data = b'5\r\nhello\r\n00b;a=b;c="d" \r\n, wonderful\r\n0;x\r\nA: b\r\nC: d\r\n\r\nGET'
    assert read(body, data) == (b"hello, wonderful", b"GET")
    assert body.is_whole


def test_chunked_body__holds_back_what_there_is_no_room_for() -> None:
    """So that a window bounds it."""
    body, inbox = ChunkedBody(HttpLimits()), bytearray(b"5\r\nhello\r\n0\r\n\r\n")
    assert [body.take(inbox, 2) for _ in range(3)] == [b"he", b"ll", b"o"]
    assert body.take(inbox, 2) == b"" and body.is_whole


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, b"x\r\n"),
        (400, b"\r\n"),
        (400, b"-1\r\n"),
        (400, b"0x5\r\n"),
        (400, b"5 5\r\n"),
        (400, b"123456789\r\n"),
        (400, b"5;a\x00\r\n"),
        (400, b"5;a\nb\r\n"),
        (400, b"5\r\nhello!\r\n"),
        (400, b"5\r\nhello0\r\n\r\n"),
        (400, b"0\r\nno colon\r\n\r\n"),
        (400, b"0\r\nA : b\r\n\r\n"),
        (400, b"0\r\n folded: b\r\n\r\n"),
        (400, b"5;" + b"e" * 300),
        (400, b"5;" + b"e" * 300 + b"\r\n"),
        (400, b"0\r\nA: " + b"t" * 10_000),
        (400, b"0\r\n" + b"A: b\r\n" * 40),
        (413, b"7ffffff\r\n"),
    ],
)
def test_chunked_body__what_is_refused(status: int, data: bytes) -> None:
    """Malformed, too long, too many, too large."""
    with pytest.raises(HttpError) as caught:
        read(ChunkedBody(HttpLimits()), data)
    assert caught.value.status == status


def test_chunked_body__many_chunks_are_too_large_together() -> None:
    """The bound is that of the whole body."""
    body = ChunkedBody(HttpLimits(body_bytes_max=10))
    with pytest.raises(HttpError) as caught:
        read(body, b"5\r\nhello\r\n" * 2 + b"1\r\n")
    assert caught.value.status == 413


def test_chunked_body__extensions_may_not_outweigh_the_content() -> None:
    """A chunk of one byte is fine, one of a byte with 200 of extension not for ever."""
    assert read(ChunkedBody(HttpLimits()), b"1\r\nx\r\n" * 10_000)[1] == b""
    chunk = b"1;" + b"e" * 200 + b"\r\nx\r\n"
    with pytest.raises(HttpError):
        read(ChunkedBody(HttpLimits()), chunk * (FRAMING_BYTES_MIN // 190 + 1))


def test_chunked_body__one_read_handles_a_bounded_number_of_lines() -> None:
    """Others have their turn in between."""
    body, inbox = ChunkedBody(HttpLimits()), bytearray(b"1\r\nx\r\n" * 1_000)
    assert len(body.take(inbox, 1_000)) <= LINES_PER_READ

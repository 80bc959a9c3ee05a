"""Length-prefixed messages: what is accepted, and when what is not is refused."""

from __future__ import annotations

import doctest
import struct

import pytest

from sidecar.rpc.statuses import StatusCode
from sidecar.transports import framing
from sidecar.transports.framing import CompressedError, FramingError, MessageReader, frame_message


def prefix(flag: int, size: int) -> bytes:
    """The five bytes before a message."""
    return struct.pack(">BI", flag, size)


@pytest.mark.pure
def test_framing__examples_are_true() -> None:
    """What the docstrings show is what happens."""
    assert doctest.testmod(framing) == doctest.TestResults(failed=0, attempted=1)


def test_frame_message__is_read_back() -> None:
    """What we frame, a reader takes."""
    reader = MessageReader(10)
    reader.feed(frame_message(b"0123456789"))
    assert reader.finish() == b"0123456789"


def test_reader__accepts_an_empty_message() -> None:
    """Five bytes are a whole message (health checks send it)."""
    reader = MessageReader(0)
    reader.feed(prefix(0, 0))
    assert reader.finish() == b""


def test_reader__refuses_a_large_message_by_its_prefix() -> None:
    """The limit decides when the prefix is complete, before a byte of the message is there."""
    reader = MessageReader(10)
    reader.feed(prefix(0, 11)[:4])
    with pytest.raises(FramingError) as caught:
        reader.feed(prefix(0, 11)[4:])
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert "11 bytes" in caught.value.detail
    assert "at most 10" in caught.value.detail


@pytest.mark.parametrize(
    ("flag", "is_encoded", "code", "kind"),
    [
        (1, False, StatusCode.INTERNAL, FramingError),
        (1, True, StatusCode.UNIMPLEMENTED, CompressedError),
        (2, False, StatusCode.INTERNAL, FramingError),
        (255, True, StatusCode.INTERNAL, FramingError),
    ],
)
def test_reader__refuses_flags(flag: int, is_encoded: bool, code: StatusCode, kind: type) -> None:
    """Compressed without an encoding is a contradiction, with one it is one that we lack (compression.md)."""
    reader = MessageReader(10, is_encoded=is_encoded)
    with pytest.raises(kind) as caught:
        reader.feed(prefix(flag, 1))
    assert caught.type is kind
    assert caught.value.code is code


def test_reader__a_named_encoding_alone_is_no_error() -> None:
    """A plain message is accepted whatever encoding the request names."""
    reader = MessageReader(10, is_encoded=True)
    reader.feed(frame_message(b"x"))
    assert reader.finish() == b"x"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", StatusCode.UNIMPLEMENTED),
        (b"\0", StatusCode.INTERNAL),
        (prefix(0, 2)[:4], StatusCode.INTERNAL),
        (prefix(0, 2) + b"x", StatusCode.INTERNAL),
    ],
)
def test_reader__refuses_a_request_that_ends_too_soon(data: bytes, code: StatusCode) -> None:
    """No message at all is a cardinality violation, half a one is broken (statuscodes.md)."""
    reader = MessageReader(10)
    reader.feed(data)
    with pytest.raises(FramingError) as caught:
        reader.finish()
    assert caught.value.code is code


def test_reader__refuses_a_second_message() -> None:
    """A unary request has one message; the first byte of another decides."""
    reader = MessageReader(10)
    reader.feed(frame_message(b"one"))
    with pytest.raises(FramingError) as caught:
        reader.feed(b"\0")
    assert caught.value.code is StatusCode.UNIMPLEMENTED


def test_reader__counts_pieces_and_bytes() -> None:
    """The rule against messages cut into dust needs both."""
    reader = MessageReader(10)
    for byte in frame_message(b"abc"):
        reader.feed(bytes([byte]))
    assert (reader.pieces, reader.received) == (8, 8)

"""gRPC messages under every way of cutting their bytes, in the reader and through a whole connection."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.transports.framing import ExchangeReader, FramingError, MessageReader, frame_message
from tests.unit.transports.rig import Rig, frame

LIMIT = 64

bodies = st.one_of(
    st.binary(max_size=80),
    st.binary(max_size=LIMIT).map(frame_message),
    st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=LIMIT + 8)).map(
        lambda pair: bytes([pair[0]]) + frame_message(pair[1])[1:]
    ),
    st.lists(st.binary(max_size=8), min_size=2, max_size=3).map(
        lambda parts: b"".join(map(frame_message, parts))
    ),
)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A body, and the same body in pieces, empty ones among them."""
    body = draw(bodies)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    edges = [0, *cuts, len(body)]
    return body, [body[start:end] for start, end in itertools.pairwise(edges)]


def outcome(pieces: list[bytes], is_encoded: bool = False) -> bytes | int:
    """The message, or the code it is refused with."""
    reader = MessageReader(LIMIT, is_encoded=is_encoded)
    try:
        for piece in pieces:
            reader.feed(piece)
        return reader.finish()
    except FramingError as error:
        return int(error.code)


@given(chunked(), st.booleans())
def test_reader__the_cuts_do_not_matter(case: tuple[bytes, list[bytes]], is_encoded: bool) -> None:
    """In pieces, in single bytes and whole, the same bytes have the same outcome."""
    body, pieces = case
    expected = outcome([body], is_encoded)
    assert outcome(pieces, is_encoded) == expected
    assert outcome([bytes([byte]) for byte in body], is_encoded) == expected


@given(st.binary(max_size=LIMIT))
def test_reader__what_we_frame_is_read_back(message: bytes) -> None:
    """Framing and reading are inverse."""
    assert outcome([frame_message(message)]) == message


@given(chunked())
def test_reader__never_keeps_more_than_limit_and_one_piece(case: tuple[bytes, list[bytes]]) -> None:
    """However a body is cut, what is accepted into memory is bounded."""
    reader = MessageReader(LIMIT)
    for piece in case[1]:
        try:
            reader.feed(piece)
        except FramingError:
            break
        assert reader.received <= LIMIT + 5


@given(
    st.lists(st.binary(max_size=LIMIT), min_size=1, max_size=6), st.lists(st.integers(0, 400), max_size=12)
)
def test_exchange_reader__the_cuts_do_not_matter(messages: list[bytes], cuts: list[int]) -> None:
    """Messages of an exchange come out whole and in order, each with the piece that completes it."""
    body = b"".join(map(frame_message, messages))
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    reader, found = ExchangeReader(LIMIT), []
    for start, end in itertools.pairwise(edges):
        found += reader.split(body[start:end])
        assert sum(len(message) + 5 for message in found) + reader.received == end
    assert (found, reader.messages, reader.finish()) == (messages, len(messages), b"")


@given(st.binary(min_size=1, max_size=LIMIT), st.integers(1, LIMIT + 4))
def test_exchange_reader__refuses_an_end_inside_a_message(message: bytes, cut: int) -> None:
    """What does not end after a message is INTERNAL; no message at all is UNIMPLEMENTED, as elsewhere."""
    reader = ExchangeReader(LIMIT)
    with pytest.raises(FramingError, match="no message"):
        reader.finish()
    body = frame_message(message)
    assert reader.split(body + body[: min(cut, len(body) - 1)]) == [message]
    with pytest.raises(FramingError, match="inside a message"):
        reader.finish()


@settings(max_examples=60)
@given(
    st.binary(max_size=40),
    st.lists(st.integers(0, 45), max_size=6),
    st.lists(st.integers(1, 200), max_size=6),
    st.booleans(),
)
def test_connection__neither_frames_nor_reads_matter(
    body: bytes, frame_cuts: list[int], read_cuts: list[int], ends_empty: bool
) -> None:
    """One call, its body in any DATA frames and its bytes in any reads, is answered alike."""
    rig = Rig()
    stream_id = rig.stream_id()
    framed = frame_message(body)
    edges = [0, *sorted(min(cut, len(framed)) for cut in frame_cuts), len(framed)]
    wire = rig.headers(stream_id)
    for index, (start, end) in enumerate(itertools.pairwise(edges)):
        is_last = index == len(edges) - 2 and not ends_empty
        wire += rig.data(stream_id, framed[start:end], end=is_last)
    if ends_empty:
        wire += frame(0, 1, stream_id)
    position = 0
    for size in read_cuts:
        rig.say(wire[position : position + size])
        position += size
    rig.say(wire[position:])
    stream = rig.stream(stream_id)
    assert (stream.status, stream.data) == (0, framed)

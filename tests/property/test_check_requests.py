"""The reader of CheckRequests agrees with protobuf, whatever the bytes."""

from __future__ import annotations

from typing import Any

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.policy import AccessRequest
from sidecar.services.check_requests import access_request, read_check

ASCII = st.text(st.characters(max_codepoint=0x7F), max_size=12) | st.just("x" * 200)
NAMES = st.sampled_from(["x-api-key", "authorization", "scope", "a", ""])
NUMBERS = st.integers(0, 2**32 - 1)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """The bytes of a CheckRequest with any of the fields that Envoy sets."""
    texts = draw(st.sampled_from([ASCII, ASCII, ASCII, ASCII | st.text(max_size=3)]))
    maps = st.dictionaries(NAMES, texts, max_size=3)
    is_usual = draw(st.booleans())
    request = CheckRequest()
    attributes = request.attributes
    if draw(st.booleans()):
        peers = [attributes.source, attributes.destination]
        for peer in peers:
            address = peer.address
            if is_usual or draw(st.booleans()):
                address.socket_address.address = draw(texts)
                address.socket_address.port_value = draw(NUMBERS)
            else:
                address.pipe.path = draw(texts)
            peer.principal = draw(texts)
    http = attributes.request.http
    http.method, http.path, http.host = draw(texts), draw(texts), draw(texts)
    http.headers.update(draw(maps))
    if draw(st.booleans()):
        attributes.request.time.seconds = draw(st.integers(-(2**40), 2**40))
        http.size = draw(st.integers(-1, 2**62))
        attributes.context_extensions.update(draw(maps))
        attributes.metadata_context.SetInParent()
        attributes.tls_session.sni = draw(texts)
    if not is_usual:
        attributes.metadata_context.filter_metadata["jwt"].update(
            {"sub": draw(texts), "roles": [1.5, True, None]}
        )
        http.raw_body = draw(st.binary(max_size=5))
        if draw(st.booleans()):
            http.header_map.headers.add(key=draw(NAMES), value=draw(texts))
    message: bytes = request.SerializeToString()
    return message


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Messages of which bytes were replaced, removed, repeated or inserted; also two messages in a row."""
    message = bytearray(draw(messages()))
    if draw(st.booleans()):
        message += draw(messages())
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(message)))
        end = draw(st.integers(start, min(len(message), start + 4)))
        piece = draw(st.binary(max_size=3) | st.just(bytes(message[start:end]) * 2))
        message[start:end] = piece
    return bytes(message)


def fields(request: AccessRequest, names: set[str]) -> tuple[object, ...]:
    """What a decision reads of *request*."""
    headers = {name: request.header(name) for name in sorted(names)}
    return request.method, request.path, request.peer, request.scope, request.dialect, headers


def by_protobuf(message: bytes) -> Any:
    """The message by protobuf; None = malformed."""
    try:
        return CheckRequest.FromString(message)
    except DecodeError:
        return None


def agree(message: bytes) -> bool:
    """Check that what is read is what protobuf reads; return whether it was read at all."""
    read = read_check(message)
    if read is None:
        return False
    parsed = by_protobuf(message)
    assert parsed is not None
    headers = parsed.attributes.request.http.headers
    names = {*headers, "x-api-key", "authorization", "scope", "a", ""}
    assert fields(read, names) == fields(access_request(parsed.attributes), names)
    return True


@given(messages())
def test_read_check__agrees_with_protobuf(message: bytes) -> None:
    """Whatever fields Envoy sets."""
    agree(message)


@given(mutated())
def test_read_check__of_mutated_bytes_agrees_with_protobuf(message: bytes) -> None:
    """Also of duplicated fields and messages; what protobuf refuses is never read."""
    agree(message)


@given(st.binary(max_size=60))
def test_read_check__of_any_bytes_agrees_with_protobuf(message: bytes) -> None:
    """Bytes that nobody made as a message."""
    agree(message)

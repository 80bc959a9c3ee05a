"""What is read of Envoy's CheckRequests."""

from __future__ import annotations

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from sidecar.services.check_requests import access_request, read_check


def usual() -> CheckRequest:
    """A message with the fields that Envoy always sets, and some that it can set."""
    request = CheckRequest()
    attributes = request.attributes
    for peer, address in ((attributes.source, "192.0.2.7"), (attributes.destination, "10.0.0.1")):
        peer.address.socket_address.address = address
        peer.address.socket_address.port_value = 51_234
        peer.principal = "spiffe://example.org/client"
    attributes.request.time.seconds = 1_795_000_000
    attributes.request.time.nanos = 123_456_000
    http = attributes.request.http
    http.id, http.method, http.path, http.host = "1234567890", "GET", "/v1/orders/42?x=1", "api.example.com"
    http.scheme, http.protocol, http.size, http.body = "https", "HTTP/1.1", -1, "abc"
    http.headers.update({"x-api-key": "sck_1", "user-agent": 300 * "x", "": "no name", "empty": ""})
    attributes.context_extensions.update({"scope": "orders:read", "other": "1"})
    attributes.metadata_context.SetInParent()
    attributes.route_metadata_context.SetInParent()
    attributes.tls_session.sni = "api.example.com"
    return request


def test_read_check__of_the_usual_message() -> None:
    """It is read without protobuf, with all that a decision needs."""
    request = read_check(usual().SerializeToString())
    assert request is not None
    assert (request.method, request.path, request.peer) == ("GET", "/v1/orders/42?x=1", "192.0.2.7")
    assert (request.scope, request.dialect) == ("orders:read", "ext_authz")
    assert [request.header(name) for name in ("x-api-key", "", "empty", "absent")] == [
        "sck_1",
        "no name",
        "",
        None,
    ]
    assert request.header("user-agent") == 300 * "x"


def test_read_check__without_the_peer() -> None:
    """If the address comes from elsewhere."""
    request = read_check(usual().SerializeToString(), reads_peer=False)
    assert request is not None
    assert request.peer == ""


def test_read_check__of_an_empty_message() -> None:
    """It is valid: every field has its default."""
    request = read_check(b"")
    assert request is not None
    assert (request.method, request.path, request.peer, request.scope) == ("", "", "", None)


def test_read_check__of_repeated_messages() -> None:
    """protobuf merges them: the last value of a field counts, also within a map."""
    second = CheckRequest()
    second.attributes.request.http.path = "/v2"
    second.attributes.request.http.headers["x-api-key"] = "sck_2"
    message = usual().SerializeToString() + second.SerializeToString()
    read, parsed = read_check(message), access_request(CheckRequest.FromString(message).attributes)
    assert read is not None
    for request in (read, parsed):
        assert (request.method, request.path, request.header("x-api-key")) == ("GET", "/v2", "sck_2")


def unusual(change: str) -> bytes:
    """The bytes of a message with one thing that is left to protobuf."""
    request = usual()
    attributes = request.attributes
    http = attributes.request.http
    match change:
        case "text outside ASCII":
            http.headers["x-name"] = "é"
        case "text outside ASCII that is not needed":
            http.host = "é.example.com"
        case "text outside ASCII behind a long value":
            http.headers["x-name"] = 300 * "x" + "é"
        case "another kind of address":
            attributes.source.address.pipe.path = "/run/proxy.sock"
        case "raw headers":
            http.header_map.headers.add(key="a", raw_value=b"b")
        case "metadata":
            attributes.metadata_context.filter_metadata["jwt"]["sub"] = "a"
        case "a large message":
            http.headers["cookie"] = 20_000 * "x"
    message: bytes = request.SerializeToString()
    return message[:-1] if change == "truncated" else message + (b"\x78\x01" if change == "unknown" else b"")


@pytest.mark.parametrize(
    "change",
    [
        "text outside ASCII",
        "text outside ASCII that is not needed",
        "text outside ASCII behind a long value",
        "another kind of address",
        "raw headers",
        "metadata",
        "a large message",
        "truncated",
        "unknown",
    ],
)
def test_read_check__leaves_the_unusual_to_protobuf(change: str) -> None:
    """What it does not understand, it does not read."""
    assert read_check(unusual(change)) is None

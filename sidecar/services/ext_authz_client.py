"""The client side of `ext_authz`, for `sidecar ask`: encodes requests and decodes answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from sidecar.domain.answers import Headers


class Checked(NamedTuple):
    """
    A decoded CheckResponse.

    `reason` and `decision_id` come from its dynamic metadata; `status` is the client's HTTP status,
    200 = the proxy forwards the request.
    """

    is_allowed: bool
    status: int
    reason: str
    decision_id: str
    client_headers: Headers
    upstream_headers: Headers
    body: str


def check_request(method: str, path: str, headers: Mapping[str, str], peer: str, scope: str = "") -> bytes:
    """Return a serialized CheckRequest as Envoy sends it; header names are lower case."""
    request = CheckRequest()
    attributes = request.attributes
    attributes.source.address.socket_address.address = peer
    http = attributes.request.http
    http.method, http.path, http.host, http.protocol = method, path, "api.example.com", "HTTP/1.1"
    http.headers.update(headers)
    if scope:
        attributes.context_extensions["scope"] = scope
    message: bytes = request.SerializeToString()
    return message


def read_status(message: bytes) -> int:
    """
    Return the HTTP status of a serialized CheckResponse, 200 = allowed; far cheaper than `read_response`.

    Raises:
        DecodeError: *message* is not a CheckResponse.
    """
    response = CheckResponse.FromString(message)
    return 200 if response.status.code == 0 else int(response.denied_response.status.code)


def read_response(message: bytes) -> Checked:
    """
    Decode a serialized CheckResponse.

    Raises:
        DecodeError: *message* is not a CheckResponse.
    """
    response = CheckResponse.FromString(message)
    metadata = response.dynamic_metadata.fields
    reason, decision_id = metadata["reason"].string_value, metadata["decision_id"].string_value
    if response.status.code == 0:
        allowed = response.ok_response
        client = [(added.header.key, added.header.value) for added in allowed.response_headers_to_add]
        upstream = [(header.header.key, header.header.value) for header in allowed.headers]
        return Checked(True, 200, reason, decision_id, client, upstream, "")
    denied = response.denied_response
    client = [(header.header.key, header.header.value) for header in denied.headers]
    return Checked(False, denied.status.code, reason, decision_id, client, [], denied.body)

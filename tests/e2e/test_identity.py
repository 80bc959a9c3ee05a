"""What the API learns about its caller, and that no caller can make it up."""

from __future__ import annotations

import pytest

from deploy.demo.envoy import Document, ingress_http
from tests.e2e.stack import Stack, StackKind, upstream_headers

IDENTITY = ("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id")
SPOOFED = [(name, "forged") for name in IDENTITY]


def test_identity__the_api_learns_who_calls(any_stack: Stack) -> None:
    """Integration, credential and decision reach the API; the API key does not."""
    reader = any_stack.people.reader
    headers = upstream_headers(any_stack.get("/v1/inventory/42", reader))
    assert headers["x-integration-id"] == ["reader"]
    assert headers["x-integration-name"] == ["Caf%C3%A9 Reader, 100 %25"]
    assert headers["x-credential-id"] == [reader.key.credential_id]
    assert len(headers["x-decision-id"]) == len(headers["x-decision-id"][0].split(",")) == 1
    assert "x-api-key" not in headers
    assert reader.key.api_key not in str(headers)


@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
def test_identity__a_forged_copy_is_overwritten(any_stack: Stack, spelling: type[str]) -> None:
    """Whatever a client claims to be, in any spelling and number, the API sees the decision's words alone."""
    forged = [(spelling(name), value) for name, value in SPOOFED * 2]
    headers = upstream_headers(any_stack.get("/v1/inventory/42", any_stack.people.reader, forged))
    assert headers["x-integration-id"] == ["reader"]
    assert [len(headers[name]) for name in IDENTITY] == [1, 1, 1, 1]
    assert "forged" not in str(headers)


def test_identity__a_twin_with_underscores_is_refused(stack: Stack) -> None:
    """Some servers read x_integration_id as x-integration-id, so Envoy lets neither spelling pass."""
    answer = stack.get("/v1/inventory/42", stack.people.reader, [("x_integration_id", "forged")])
    assert answer.status == 400


def test_identity__a_client_cannot_choose_its_address(stack: Stack) -> None:
    """x-client-ip is Envoy's word; x-forwarded-for of the client is not looked at."""
    claims = [("x-client-ip", "198.51.100.7"), ("x-forwarded-for", "198.51.100.7")]
    assert stack.get("/v1/inventory/42", stack.people.foreigner, claims).status == 403


def _open_route(document: Document) -> None:
    """Add /open, which Envoy forwards without asking the sidecar."""
    disabled = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
        "disabled": True,
    }
    routes = ingress_http(document)["route_config"]["virtual_hosts"][0]["routes"]
    routes.insert(
        0,
        {
            "match": {"path": "/open"},
            "route": {"cluster": "app"},
            "typed_per_filter_config": {"envoy.filters.http.ext_authz": disabled},
        },
    )


def test_identity__no_claim_passes_where_nobody_is_asked() -> None:
    """On a route without a check, the API gets no identity at all, not the client's invention."""
    stack = Stack(StackKind(unix=True, edit=_open_route))
    try:
        answer = stack.get("/open", headers=SPOOFED)
        assert answer.status == 200
        assert set(IDENTITY) & set(upstream_headers(answer)) == set()
        # The exact match is what keeps its neighbors closed.
        for near in ("/open/", "/open/../open/x", "/openx", "/Open", "/open;x"):
            assert stack.get(near, headers=SPOOFED).status == 403
    finally:
        stack.close()


@pytest.mark.parametrize("separator", [",", ", "])
def test_identity__two_keys_in_one_header_are_refused(any_stack: Stack, separator: str) -> None:
    """Which of two keys the API would believe is unknown, so neither is believed; one key twice is one."""
    key, other = any_stack.people.reader.key.api_key, any_stack.people.financier.key.api_key
    answer = any_stack.get("/v1/inventory/42", headers=[("x-api-key", key + separator + other)])
    assert (answer.status, answer.json()["reason"]) == (403, "unknown_credential")
    assert "two different API keys" in answer.json()["detail"]
    assert any_stack.get("/v1/inventory/42", headers=[("x-api-key", key + separator + key)]).status == 200


def test_identity__two_key_headers_are_refused(any_stack: Stack) -> None:
    """A different key in a second x-api-key, or in authorization beside one in x-api-key, spoils both."""
    reader, financier = any_stack.people.reader, any_stack.people.financier
    bearer = ("authorization", f"Bearer {financier.key.api_key}")
    for second in (*financier.headers, bearer):
        answer = any_stack.get("/v1/inventory/42", reader, [second])
        assert (answer.status, answer.json()["reason"]) == (403, "unknown_credential")
        assert "two different API keys" in answer.json()["detail"]


def test_identity__the_same_key_in_two_headers_reaches_nobody(any_stack: Stack) -> None:
    """It is one key, and both headers that carried it are removed."""
    reader = any_stack.people.reader
    answer = any_stack.get("/v1/inventory/42", reader, [("authorization", f"Bearer {reader.key.api_key}")])
    assert answer.status == 200
    assert not {"x-api-key", "authorization"} & set(upstream_headers(answer))


@pytest.mark.parametrize("value", ["Basic dXNlcjpwYXNz", "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0.c2ln"])
def test_identity__the_user_s_own_token_stays_with_the_api(any_stack: Stack, value: str) -> None:
    """Other credentials beside the API key are the API's business and reach it; the key does not."""
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader, [("authorization", value)])
    headers = upstream_headers(answer)
    assert headers["authorization"] == [value]
    assert "x-api-key" not in headers

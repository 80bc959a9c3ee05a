"""Path tricks: the sidecar and the API never read a request's path in two ways."""

from __future__ import annotations

import pytest

from tests.e2e.stack import Stack

# The reader may read /v1/inventory and not touch /v1/finance, so no spelling may reach the latter.
SPELLINGS = {
    "/v1/inventory/../finance/x": 403,
    "/v1/inventory/./../finance/x": 403,
    "/v1/inventory/%2e%2e/finance/x": 403,
    "/v1/inventory/.%2e/finance/x": 403,
    "/v1/inventory/%2E%2E/finance/x": 403,
    "/v1/inventory/..%2ffinance/x": 400,
    "/v1/inventory/..%2Ffinance/x": 400,
    "/v1/inventory/..%5cfinance/x": 400,
    "/v1/inventory/..\\finance/x": 403,
    "/v1/inventory\\..\\finance\\x": 403,
    "/v1/inventory/%252e%252e/finance/x": 403,
    "/v1/inventory/..%252ffinance/x": 403,
    "/v1/inventory/..;/finance/x": 403,
    "/v1/inventory/..;x=1/finance/x": 403,
    "/v1/inventory/%2e%2e;/finance/x": 403,
    "/v1/inventory/x;jsessionid=1": 403,
    "/v1/inventory/%00/x": 400,
    "/v1/inventory/a%0d%0ax-injected:%201": 403,
    "/v1/inventory/a%25b": 403,
    "/v1//finance/x": 403,
    "//v1/finance/x": 403,
    "/v1/%66inance/x": 403,
    "/V1/inventory/x": 403,
    "/v1/Inventory/x": 403,
    "/v1/inventory#/../finance": 400,
    "/v1/inventory/é": 400,
    "/../../etc/passwd": 403,
    "/": 403,
}


@pytest.mark.parametrize("path", SPELLINGS)
def test_paths__no_spelling_leads_past_the_route_table(stack: Stack, path: str) -> None:
    """Envoy refuses it (400), or the sidecar does (403); none reaches the API."""
    answer = stack.get(path.encode().decode("latin-1"), stack.people.reader)
    assert answer.status == SPELLINGS[path]
    assert answer.all("x-injected") == []


@pytest.mark.parametrize(
    ("path", "upstream"),
    [
        ("/v1/inventory/a%20b", "/v1/inventory/a%20b"),
        ("/v1/inventory/%61", "/v1/inventory/a"),
        ("/v1/inventory/x/", "/v1/inventory/x/"),
        ("/v1/inventory//x", "/v1/inventory/x"),
        ("/v1/inventory//../x", "/v1/inventory/x"),
        ("/v1/inventory/a/..;/x", "/v1/inventory/x"),
        ("/v1/orders/../inventory/x", "/v1/inventory/x"),
        ("/v1/inventory/x?next=/../finance/%2f;\\", "/v1/inventory/x?next=/../finance/%2f;\\"),
        ("/v1/inventory/caf%C3%A9", "/v1/inventory/caf%C3%A9"),
        ("/v1/inventory/%3f", "/v1/inventory/%3f"),
        ("/v1/inventory/" + "x" * 4_000, "/v1/inventory/" + "x" * 4_000),
    ],
)
def test_paths__an_unambiguous_spelling_passes(any_stack: Stack, path: str, upstream: str) -> None:
    """The API gets the one spelling that Envoy made and the sidecar judged; the query is left alone."""
    answer = any_stack.get(path, any_stack.people.reader)
    assert (answer.status, answer.json()["path"]) == (200, upstream)

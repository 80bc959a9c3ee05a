"""The middleware around real applications on real servers: the client's answers, the application's view."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sidecar.client import AsgiMiddleware, ClientDecision, WsgiMiddleware
from sidecar.client.http import IDENTITY_HEADERS, judged_path
from tests.waiting import PATIENCE_S

from .applications import ASGI, WSGI, serve
from .conftest import RunningSidecar

ORDERS = "/v1/orders/42"
FORGED = dict.fromkeys(IDENTITY_HEADERS, "forged")

each_application = pytest.mark.parametrize("name", [*ASGI, *WSGI])


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    """An HTTP client that uses no proxy."""
    with httpx.Client(trust_env=False) as client:
        yield client


@each_application
def test_middleware__lets_an_allowed_request_through(
    name: str, sidecar: RunningSidecar, browser: httpx.Client
) -> None:
    """The application learns who calls, sees no API key, and its answer carries the limits."""
    key = sidecar.acme
    with serve(name, sidecar.target) as url:
        sent = {
            **FORGED,
            "X-API-Key": key.api_key,
            "Authorization": f"Bearer {key.api_key}",
            "x-other": "kept",
        }
        answer = browser.get(f"{url}{ORDERS}?expand=lines", headers=sent)
    assert answer.status_code == 200
    assert answer.headers.get_list("x-ratelimit-limit") == ["60"]
    assert answer.headers["x-ratelimit-remaining"] == "59" and answer.headers["x-own"] == "kept"
    seen = answer.json()
    assert seen["path"] == ORDERS
    assert key.api_key not in json.dumps(seen)
    shown = {header: seen["headers"][header] for header in (*IDENTITY_HEADERS[:3], "x-other")}
    assert shown == {
        "x-integration-id": "acme",
        "x-integration-name": "Caf%C3%A9",
        "x-credential-id": key.credential_id,
        "x-other": "kept",
    }
    assert len(seen["headers"]["x-decision-id"]) == 22


@each_application
def test_middleware__answers_a_denied_request_itself(
    name: str, sidecar: RunningSidecar, browser: httpx.Client
) -> None:
    """403 and 429 with headers and problem body, true on HEAD and after a body, on one connection."""
    with serve(name, sidecar.target, client_ip_header="x-real-ip") as url:
        office = {"x-api-key": sidecar.office.api_key, "x-real-ip": "192.0.2.7"}
        assert browser.get(url + ORDERS, headers=office).status_code == 200
        limited = browser.get(url + ORDERS, headers=office)
        head = browser.head(url + ORDERS, headers=office)
        missing = browser.post(url + ORDERS, content=b"ignored")
        elsewhere = browser.get(url + ORDERS, headers={**office, "x-real-ip": "198.51.100.1"})
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "60")
    assert (limited.headers["x-ratelimit-limit"], limited.headers["x-ratelimit-remaining"]) == ("1", "0")
    assert limited.headers["content-type"] == "application/problem+json"
    assert limited.json()["reason"] == limited.headers["x-auth-reason"] == "rate_limited"
    assert (head.status_code, head.content, head.headers["retry-after"]) == (429, b"", "60")
    assert (missing.status_code, missing.json()["reason"]) == (403, "missing_credential")
    assert (elsewhere.status_code, elsewhere.json()["reason"]) == (403, "ip_not_allowed")


@each_application
def test_middleware__believes_no_header_for_the_address_unless_configured(
    name: str, sidecar: RunningSidecar, browser: httpx.Client
) -> None:
    """The address is the connection's; of a proxy's header the last element counts, and none is unknown."""
    office = {"x-api-key": sidecar.office.api_key}
    with serve(name, sidecar.target) as url:
        forged = browser.get(url + ORDERS, headers={**office, "x-forwarded-for": "192.0.2.7"})
    assert "127.0.0.1" in forged.json()["detail"]
    with serve(name, sidecar.target, client_ip_header="X-Forwarded-For") as url:
        chain = browser.get(url + ORDERS, headers={**office, "x-forwarded-for": "192.0.2.7, 198.51.100.1"})
        absent = browser.get(url + ORDERS, headers=office)
        right = browser.get(url + ORDERS, headers={**office, "x-forwarded-for": "198.51.100.1, 192.0.2.7"})
    assert "198.51.100.1" in chain.json()["detail"]
    assert "client_ip: '' is not an IP address" in absent.json()["detail"]
    assert right.status_code == 200


@each_application
@pytest.mark.parametrize(
    "path", ["/v1/orders/../finance/x", "/v1//orders/42", "/v1/orders/42;a", "/v1/orders/%00"]
)
def test_middleware__refuses_paths_that_can_be_read_in_two_ways(
    name: str, path: str, sidecar: RunningSidecar
) -> None:
    """They reach the sidecar as the server got them, and no application."""
    with serve(name, sidecar.target) as url:
        # Not httpx, which tidies paths.
        connection = http.client.HTTPConnection(
            httpx.URL(url).host, httpx.URL(url).port or 0, timeout=PATIENCE_S
        )
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"x-api-key": sidecar.acme.api_key})
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["reason"]) == (403, "path_refused")


@each_application
@pytest.mark.parametrize(("policy", "status"), [("closed", 503), ("open", 200)])
def test_middleware__follows_the_failure_policy(
    name: str, policy: str, status: int, sidecar: RunningSidecar, browser: httpx.Client
) -> None:
    """Without a sidecar nobody is believed: no identity and no API key reaches the application."""
    key = sidecar.acme.api_key
    sidecar.stop()
    with serve(name, sidecar.target, on_failure=policy) as url:
        answer = browser.get(
            url + ORDERS, headers={**FORGED, "x-api-key": key, "authorization": f"Bearer {key}"}
        )
    assert answer.status_code == status
    if policy == "closed":
        assert (answer.headers["retry-after"], answer.json()["reason"]) == ("1", "decision_unavailable")
    else:
        seen = answer.json()["headers"]
        assert seen.keys().isdisjoint({*IDENTITY_HEADERS, "x-api-key", "authorization"})
        assert answer.headers["x-ratelimit-limit"] == "of the application"


class Deciding:
    """A client that gives one decision, for what no server shows; keeps what it was asked."""

    def __init__(self, decision: ClientDecision) -> None:
        """Give *decision*."""
        self.decision = decision
        self.asked: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    async def decide(self, *question: str, **fields: Any) -> ClientDecision:
        """See `AsyncClient.decide`."""
        self.asked.append((question, fields))
        return self.decision


def asgi_answer(decision: ClientDecision, scope: dict[str, Any]) -> Any:
    """What the application saw of *scope* (None = nothing), and the messages that left."""
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the middleware reads nothing")

    client: Any = Deciding(decision)
    asyncio.run(AsgiMiddleware(app, client)(scope, receive, send))
    return (seen or [None])[0], sent


WEBSOCKET = {"type": "websocket", "path": ORDERS, "headers": [(b"x-integration-id", b"forged")]}
ALLOWED = ClientDecision(
    verdict="ALLOW",
    reason="ok",
    status=200,
    headers={"x-ratelimit-remaining": "59"},
    upstream_headers={"x-integration-id": "acme"},
)
DENIED = ClientDecision(
    verdict="DENY_429", reason="rate_limited", status=429, headers={"retry-after": "1"}, body=b"{}"
)


def test_asgi__an_allowed_websocket_opens_with_the_limits() -> None:
    """The application learns who calls, and the answer to the handshake carries the limits."""
    seen, sent = asgi_answer(ALLOWED, WEBSOCKET)
    assert seen["headers"] == [(b"x-integration-id", b"acme")]
    assert sent == [{"type": "websocket.accept", "headers": [(b"x-ratelimit-remaining", b"59")]}]


def test_asgi__a_denied_websocket_gets_the_true_answer() -> None:
    """Where the server has the extension for it, status, headers and body are those of the decision."""
    scope = {**WEBSOCKET, "extensions": {"websocket.http.response": {}}}
    headers = [(b"content-length", b"2"), (b"retry-after", b"1")]
    assert asgi_answer(DENIED, scope) == (
        None,
        [
            {"type": "websocket.http.response.start", "status": 429, "headers": headers},
            {"type": "websocket.http.response.body", "body": b"{}"},
        ],
    )


def test_asgi__a_denied_websocket_is_closed_where_the_server_can_do_no_more() -> None:
    """It is closed before it is accepted, which servers answer with 403."""
    assert asgi_answer(DENIED, WEBSOCKET) == (None, [{"type": "websocket.close", "code": 1008}])


def test_asgi__other_spellings_of_identity_headers_do_not_reach_the_application() -> None:
    """To an application behind CGI names, X_Integration_Id is the same header."""
    headers = [(b"x_integration_id", b"forged"), (b"X-Integration-Name", b"forged"), (b"x-other", b"kept")]
    seen, _ = asgi_answer(ALLOWED, {"type": "http", "method": "GET", "path": "/", "headers": headers})
    assert seen["headers"] == [(b"x-other", b"kept"), (b"x-integration-id", b"acme")]


def test_asgi__passes_the_lifespan_on_undecided() -> None:
    """Starting an application is no request."""
    seen, _ = asgi_answer(DENIED, {"type": "lifespan"})
    assert seen == {"type": "lifespan"}


@pytest.mark.parametrize(
    ("served", "raw", "judged"),
    [
        (b"/a b", b"/a%20b?x=%2f", "/a%20b"),  # as it came, without the query
        (b"/a/b", b"/a%2Fb", "/a%2Fb"),  # an encoded slash is seen, and refused by the sidecar
        (b"/app/a", b"/a", "/app/a"),  # rewritten: what is served counts
        (b"/a", b"http://other/a", "/a"),  # absolute form
        ("/é;x".encode(), b"", "/%C3%A9;x"),  # a server that tells the decoded path only
        (b"/%2e", b"", "/%252e"),
        (b"/\xff", b"/%ff", "/%ff"),
        (b"", b"", ""),
    ],
)  # fmt: skip
def test_judged_path__is_the_served_path(served: bytes, raw: bytes, judged: str) -> None:
    """What the sidecar judges decodes to what the application routes by."""
    assert judged_path(served, raw) == judged


@pytest.mark.parametrize("variable", ["RAW_URI", "REQUEST_URI"])
def test_wsgi__judges_the_undecoded_path_where_the_server_tells_it(variable: str) -> None:
    """Gunicorn and uWSGI provide it, each under a different name."""
    asked = []

    class Recording:
        """A client that keeps the path it is asked about."""

        def decide(self, method: str, path: str, **fields: Any) -> ClientDecision:
            """Deny, without words."""
            asked.append((method, path, fields))
            return ClientDecision(verdict="DENY_403", reason="path_refused", status=403)

    client: Any = Recording()
    environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/v1", "PATH_INFO": "/a/b", variable: "/v1/a%2Fb?c"}
    app: Any = None
    lines: list[Any] = []
    answer = WsgiMiddleware(app, client)(environ, lambda *line: lines.append(line))  # type: ignore[arg-type]
    assert asked == [("GET", "/v1/a%2Fb", {"headers": {}, "client_ip": ""})]
    assert (list(answer), lines) == ([b""], [("403 Forbidden", [("content-length", "0")])])

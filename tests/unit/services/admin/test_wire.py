"""The admin API on a real socket: what no client library would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from sidecar.domain.api_keys import generate_api_key
from sidecar.services.admin import call
from sidecar.services.admin.call import BODY_BYTES_MAX
from sidecar.transports.http1 import HttpServer
from sidecar.transports.http1.asgi import serve_asgi
from sidecar.transports.http1.work import OWN_LOOP
from sidecar.transports.server import Endpoint
from tests.unit.services.admin.admin_api import AdminApi
from tests.waiting import until


class AdminWire:
    """A socket to the API of one api."""

    def __init__(self, api: AdminApi, port: int) -> None:
        """Talk to *port*."""
        self.api = api
        self.port = port

    def send(
        self, *lines: str, body: bytes = b"", token: str | None = None, is_whole: bool = True
    ) -> tuple[int, Any]:
        """
        Send a request line and headers as they are; status and body of the answer.

        *is_whole* False = more of the body was announced than is sent, and nothing more will come.
        """
        return self.api.run(self.exchange(lines, body, token, is_whole))

    async def exchange(
        self, lines: tuple[str, ...], body: bytes, token: str | None, is_whole: bool
    ) -> tuple[int, Any]:
        """The same, on a loop that runs."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        request, *headers = lines
        if token is None:
            headers.append(f"Authorization: Bearer {self.api.token('ann')}")
        head = "\r\n".join([f"{request} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""])
        try:
            writer.write(head.encode("latin-1") + body)
            answer = await reader.read(-1) if is_whole else await _answer(reader)
        finally:
            writer.close()
        status_line, _, rest = answer.partition(b"\r\n")
        content = rest.partition(b"\r\n\r\n")[2]
        try:
            return int(status_line.split()[1]), json.loads(content)
        except ValueError:
            return int(status_line.split()[1]), content


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """The head and the body of one answer, on a connection that may stay open."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length")
    ]
    return head + await reader.readexactly(int(lengths[0]))


@pytest.fixture
def wire(api: AdminApi) -> Iterator[AdminWire]:
    """The API behind the HTTP server that the admin listener has."""

    async def start() -> tuple[HttpServer, int]:
        server = HttpServer(partial(serve_asgi, api.app), [Endpoint("127.0.0.1")], api.metrics, OWN_LOOP)
        [endpoint] = await server.start()
        return server, endpoint.port

    server, port = api.run(start())
    yield AdminWire(api, port)
    api.run(server.drain())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../v1/whoami",
        "/v1/./whoami",
        "/x/../v1/whoami",
        "/v1/integrations/../whoami",
        "/v1/%2e%2e/v1/whoami",
        "/v1/integrations/acme%2fsuspend",
        "//v1/whoami",
        "/v1/whoami/.",
        "http://x/v1//whoami",
    ],
)
def test_wire__a_path_has_one_spelling(wire: AdminWire, path: str) -> None:
    """Dots and escapes lead nowhere, with a token and without."""
    status, document = wire.send(f"GET {path}")
    assert (status, document["code"]) == (404, "not_found")
    assert wire.send(f"GET {path}", token="")[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        ("Authorization: Bearer TOKEN", "Authorization: Bearer TOKEN"),
        ("Authorization: Basic x", "authorization: Bearer TOKEN"),
        ("Authorization: Bearer TOKEN, Bearer TOKEN",),
        ("Authorization: Bearer", "\tTOKEN"),
        ("Authorization: BearerTOKEN",),
        ("Authorization: Bearer TOKEN\xa0",),
    ],
)
def test_wire__no_way_to_put_a_token_gets_round_the_one(wire: AdminWire, headers: tuple[str, ...]) -> None:
    """Two headers, folded ones, and characters that some would trim."""
    sent = (header.replace("TOKEN", wire.api.token("ann")) for header in headers)
    status, _ = wire.send("GET /v1/whoami", *sent, token="")
    assert status in (400, 401)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 422, "invalid_json"),
        (b"[]", 422, "invalid_value"),
        (b"null", 422, "invalid_value"),
        (b'"text"', 422, "invalid_value"),
        (b"\xff\xfe{}", 422, "invalid_json"),
        (b'{"rate_limit_rpm": 5, "rate_limit_rpm": 6}', 422, "invalid_json"),
        (b'{"rate_limit_rpm": NaN}', 422, "invalid_json"),
        (b'{"rate_limit_rpm": 5} x', 422, "invalid_json"),
        (b'{"rate_limit_rpm": 1e2}', 422, "invalid_value"),
        (b'{"rate_limit_rpm": ' + b"9" * 5_000 + b"}", 422, "invalid_json"),
        (b'{"rate_limit_rpm": ' + b"9" * 50 + b"}", 422, "invalid_value"),
        (b'{"reason": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, "invalid_json"),
        (b'{"rate_limit_rpm": 5, "reason": "\\ud800"}', 422, "invalid_json"),
        (b'{"rate_limit_rpm": 5, "reason": "\\u0000"}', 422, "invalid_value"),
    ],
)
def test_wire__a_body_is_json_that_has_one_meaning(
    wire: AdminWire, body: bytes, status: int, code: str
) -> None:
    """Whatever two readers might read differently is refused."""
    wire.api.create()
    before = wire.api.revision()
    headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    answered, document = wire.send("POST /v1/integrations/acme/limit/set", *headers, body=body)
    assert (answered, document["code"]) == (status, code)
    assert wire.api.revision() == before


@pytest.mark.parametrize("body", [b'{"id": "a\\udcffb"}', b'{"id": "b", "n\\ud800": 1}'])
def test_wire__half_of_a_surrogate_pair_is_no_text(wire: AdminWire, body: bytes) -> None:
    """No encoding can hold it, so neither an answer nor a record can; it is refused in any string."""
    headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    answered, document = wire.send("POST /v1/integrations", *headers, body=body)
    assert (answered, document["code"]) == (422, "invalid_json")
    whole = b'{"id": "whole", "name": "\\ud83d\\ude00"}'
    headers = ("Content-Type: application/json", f"Content-Length: {len(whole)}")
    assert wire.send("POST /v1/integrations", *headers, body=whole)[1]["integration"]["name"] == "\U0001f600"


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", "application/problem+json"],
)
def test_wire__a_body_of_another_type_is_refused(wire: AdminWire, content_type: str) -> None:
    """A form that a browser would send from elsewhere is no change."""
    headers = (f"Content-Type: {content_type}", "Content-Length: 2")
    status, document = wire.send("POST /v1/integrations", *headers, body=b"{}")
    assert (status, document["code"]) == (415, "unsupported_media_type")


def test_wire__json_with_a_charset_is_json(wire: AdminWire) -> None:
    """As many clients send it."""
    body = b'{"id": "acme", "name": "Acme"}'
    headers = ("Content-Type: application/json; charset=utf-8", f"Content-Length: {len(body)}")
    assert wire.send("POST /v1/integrations", *headers, body=body)[0] == 201


def test_wire__a_body_is_bounded(wire: AdminWire) -> None:
    """By what is announced before a byte is read, and by what comes."""
    headers = ("Content-Type: application/json", f"Content-Length: {BODY_BYTES_MAX + 1}")
    status, document = wire.send("POST /v1/changes", *headers, is_whole=False)
    assert (status, document["code"]) == (413, "body_too_large")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    headers = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    status, document = wire.send("POST /v1/changes", *headers, body=chunk * 17, is_whole=False)
    assert (status, document["code"]) == (413, "body_too_large")
    whole = b'{"changes": []' + b" " * (BODY_BYTES_MAX - 15) + b"}"
    headers = ("Content-Type: application/json", f"Content-Length: {len(whole)}")
    assert wire.send("POST /v1/changes", *headers, body=whole)[0] == 200


def test_wire__a_body_that_does_not_come_has_a_deadline(
    wire: AdminWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that drips holds its place no longer."""
    monkeypatch.setattr(call, "BODY_TIMEOUT_S", 0.05)
    headers = ("Content-Type: application/json", "Content-Length: 100")
    status, document = wire.send("POST /v1/integrations", *headers, body=b"{", is_whole=False)
    assert (status, document["code"]) == (408, "body_too_slow")


def test_wire__nobody_without_a_token_has_a_body_read(wire: AdminWire) -> None:
    """The answer comes before the body, however large it was announced."""
    headers = ("Content-Type: application/json", "Content-Length: 1000000")
    status, _ = wire.send("POST /v1/integrations", *headers, body=b"{", token="", is_whole=False)
    assert status == 401


def test_wire__a_client_that_leaves_is_not_waited_for(wire: AdminWire) -> None:
    """What it had begun to send is not done, and it is counted as one that nobody answered."""
    api = wire.api

    async def leave() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        head = (
            f"POST /v1/integrations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token('ann')}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        writer.write(head.encode())
        await writer.drain()
        writer.close()
        gone = api.metrics.slot("sidecar_admin_requests_total", "integrations", "POST", "other")
        await until(lambda: api.metrics.values[gone])

    before = api.revision()
    api.run(leave())
    assert api.revision() == before


def test_wire__a_role_counts_before_the_body_is_read(wire: AdminWire) -> None:
    """Who may not do it need not finish saying what."""
    token = f"Authorization: Bearer {wire.api.token('audrey')}"
    headers = (token, "Content-Type: application/json", "Content-Length: 1000")
    status, document = wire.send("POST /v1/integrations", *headers, body=b"{", token="", is_whole=False)
    assert (status, document["code"]) == (403, "role_forbids")


@pytest.mark.parametrize("path", ["/v1/audit/verify", "/v1/audit/export"])
def test_wire__long_work_ends_with_its_caller(
    wire: AdminWire, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A script that gives up and tries again does not pile it up, and gives its place back."""
    api = wire.api
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(query: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(api.registry, "audit", endless)

    async def leave() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        head = f"Host: x\r\nAuthorization: Bearer {api.token('ann')}\r\n\r\n"
        writer.write(f"GET {path} HTTP/1.1\r\n{head}".encode())
        await begun.wait()
        writer.close()
        await ended.wait()

    api.run(leave())
    assert wire.send("GET /v1/whoami")[0] == 200


def test_wire__an_export_is_streamed(wire: AdminWire) -> None:
    """In chunks, whole."""
    status, content = wire.send("GET /v1/audit/export")
    assert status == 200
    assert content.endswith(b"0\r\n\r\n") and content.count(b'"digest"') == 4


def test_wire__an_administrator_gets_through_whatever_others_hold_open(wire: AdminWire) -> None:
    """Silent connections, half-sent requests, a crowd with wrong tokens: a suspension is made."""
    api = wire.api
    api.create()
    stranger = generate_api_key("sca").api_key
    wrong = f"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stranger}\r\n\r\n".encode()

    async def suspended() -> tuple[int, Any]:
        held = []
        for sent in (b"", b"POST /v1/integrations HTTP/1.1\r\nHost:", wrong * 20):
            for _ in range(70):
                _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
                writer.write(sent)
                held.append(writer)
        body = b'{"reason": "leaked"}'
        lines = ("POST /v1/integrations/acme/suspend", "Content-Type: application/json")
        answer = await wire.exchange((*lines, f"Content-Length: {len(body)}"), body, None, True)
        for writer in held:
            writer.transport.abort()
        return answer

    status, view = api.run(suspended())
    assert (status, view["integration"]["status"]) == (200, "suspended")

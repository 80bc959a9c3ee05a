"""Forward auth, from a proxy's request to the answer that each kind of proxy is given."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.cidr import parse_cidr
from sidecar.services.forward_auth import DIALECTS, LIMIT_HEADERS, ForwardAuthService
from sidecar.stores.protocols import StoreFault
from tests.building import NOW_US, FixedStore, RecordingStore, make_decider, make_integration, make_key

TRUSTED = (parse_cidr("127.0.0.0/8"),)
PROXY = ("127.0.0.1", 4_000)
NGINX = {"x-original-method": "GET", "x-original-uri": "/v1/orders/42?a=b", "x-real-ip": "203.0.113.9"}
FORWARDED = {
    "x-forwarded-method": "GET",
    "x-forwarded-uri": "/v1/orders/42?a=b",
    "x-forwarded-for": "203.0.113.9",
}
HEADERS = {
    path: NGINX if dialect.address_header == "x-real-ip" else FORWARDED for path, dialect in DIALECTS.items()
}
DENIALS = {"/auth/nginx": 403, "/auth/accel": 429, "/auth/forward": 429, "/auth/haproxy": 429}
"""The status of an answer to one request too many."""


@dataclass
class ProxiedRequest:
    """A proxy's request and what was answered."""

    path: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    query: bytes = b""
    peer: tuple[str, int] | None = PROXY
    method: str = "GET"
    encoded: list[bytes] = field(default_factory=list)

    @property
    def request(self) -> ProxiedRequest:
        """The request is part of this object."""
        return self

    def answer(self, encoded: bytes) -> None:
        """Keep the answer."""
        self.encoded.append(encoded)

    @property
    def status(self) -> int:
        """The status of the one answer."""
        (encoded,) = self.encoded
        return int(encoded[:3])

    @property
    def fields(self) -> dict[str, str]:
        """The header fields of the answer; each is there once."""
        lines = self.encoded[0][3:].partition(b"\r\n\r\n")[0].decode().split("\r\n")
        fields = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in lines)
        assert len(fields) == len(lines)
        return fields

    @property
    def body(self) -> bytes:
        """The body of the answer, of the length in its header."""
        body = self.encoded[0].partition(b"\r\n\r\n")[2]
        assert self.fields["content-length"] == str(len(body))
        return body


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


def make_service(key: NewApiKey, style: AnswerStyle | None = None, **parts: Any) -> ForwardAuthService:
    """The service over 'acme', which may read orders sixty times a minute."""
    decider = make_decider(make_integration(key, **parts.pop("record", {})), **parts)
    return ForwardAuthService(decider, style or AnswerStyle(), TRUSTED, lambda: True)


def ask(
    service: ForwardAuthService,
    path: str,
    headers: dict[str, str],
    key: NewApiKey | None = None,
    **parts: Any,
) -> ProxiedRequest:
    """Ask at *path*."""
    all_headers = {**headers, **({} if key is None else {"x-api-key": key.api_key})}
    pairs = tuple((name.encode(), value.encode("latin-1")) for name, value in all_headers.items())
    asked = ProxiedRequest(path.encode(), pairs, **parts)
    service.serve(asked)
    return asked


@pytest.mark.parametrize("path", DIALECTS)
def test_allowed__identity_and_limits(path: str, key: NewApiKey) -> None:
    """Every dialect answers 200 without a body, with who calls and what is left."""
    asked = ask(make_service(key), path, HEADERS[path], key)
    assert (asked.status, asked.body) == (200, b"")
    fields = asked.fields
    assert [fields[name] for name in LIMIT_HEADERS[:2]] == ["60", "59"]
    assert fields["x-integration-id"] == "acme"
    assert fields["x-credential-id"] == key.credential_id
    assert fields["x-auth-status"] == "200"
    assert fields.get("x-accel-redirect") == ("@app" if path == "/auth/accel" else None)


@pytest.mark.parametrize("path", DIALECTS)
def test_denied__status_of_the_dialect(path: str, key: NewApiKey) -> None:
    """Each proxy gets a status that it passes on; the true one and the problem reach it in any case."""
    service = make_service(key, record={"burst": 1})
    ask(service, path, HEADERS[path], key)
    asked = ask(service, path, HEADERS[path], key)
    assert (asked.status, asked.fields["x-auth-status"]) == (DENIALS[path], "429")
    assert asked.fields["retry-after"] == "1"
    assert asked.fields["x-auth-reason"] == "rate_limited"
    text = asked.fields["x-auth-problem"] if path == "/auth/nginx" else asked.body.decode()
    problem = json.loads(text)
    assert (problem["status"], problem["reason"]) == (429, "rate_limited")
    assert problem["decision_id"] == asked.fields["x-decision-id"]
    assert (asked.body == b"") == (path == "/auth/nginx")


@pytest.mark.parametrize("path", DIALECTS)
def test_unauthenticated__401_where_it_is_set(path: str, key: NewApiKey) -> None:
    """nginx passes a 401 on as well as a 403."""
    asked = ask(make_service(key, AnswerStyle(unauthenticated_status=401)), path, HEADERS[path])
    assert asked.status == 401
    assert asked.fields["www-authenticate"] == 'Bearer realm="api"'


@pytest.mark.parametrize("path", DIALECTS)
def test_answers__of_equal_kind_share_a_template(path: str, key: NewApiKey) -> None:
    """Two answers of one kind differ in their figures and ids alone."""
    service = make_service(key)
    first, second = (ask(service, path, HEADERS[path], key).fields for _ in range(2))
    changed = {name for name in first if first[name] != second[name]}
    assert changed <= {"x-decision-id", "x-ratelimit-remaining", "x-ratelimit-reset"}
    assert (first["x-ratelimit-remaining"], second["x-ratelimit-remaining"]) == ("59", "58")


@pytest.mark.parametrize("path", DIALECTS)
def test_missing_header__named_with_its_directive(
    path: str, key: NewApiKey, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy that omits the request is refused with the reason, and logged once."""
    service = make_service(key)
    for missing in HEADERS[path]:
        caplog.clear()
        headers = {name: value for name, value in HEADERS[path].items() if name != missing}
        for _ in range(2):
            with caplog.at_level(logging.ERROR, "sidecar"):
                asked = ask(service, path, headers, key)
            assert (asked.status, asked.fields["x-auth-reason"]) == (403, "route_misconfigured")
        detail = json.loads(asked.fields.get("x-auth-problem") or asked.body)["detail"]
        assert f"needs the header {missing}" in detail
        assert len(caplog.records) == 1


def test_untrusted_peer__believed_in_nothing(key: NewApiKey) -> None:
    """A peer that is not a trusted proxy is refused, with the setting that would change that."""
    service = make_service(key)
    asked = ask(service, "/auth/forward", FORWARDED, key, peer=("192.0.2.7", 5))
    assert (asked.status, asked.fields["x-auth-reason"]) == (403, "route_misconfigured")
    detail = json.loads(asked.body)["detail"]
    assert "192.0.2.7" in detail
    assert "forward_auth.trusted_proxies" in detail
    assert ask(service, "/auth/forward", FORWARDED, key, peer=None).status == 200


def test_headers_of_another_dialect__not_read(key: NewApiKey) -> None:
    """A client's X-Forwarded-Uri means nothing to nginx's endpoint, and the other way round."""
    service = make_service(key)
    for path, other in (("/auth/nginx", FORWARDED), ("/auth/forward", NGINX)):
        spoofed = {**HEADERS[path], **dict.fromkeys(other, "/v1/admin")}
        assert ask(service, path, spoofed, key).status == 200
        assert ask(service, path, dict(other), key).status == 403


@pytest.mark.parametrize(
    ("chain", "status"),
    [
        ("198.51.100.7", 200),
        ("203.0.113.9, 198.51.100.7", 200),
        ("198.51.100.7, 203.0.113.9", 403),
        ("x", 403),
    ],
)
def test_address__is_the_last_one_that_the_proxy_added(chain: str, status: int, key: NewApiKey) -> None:
    """Entries to the left of the proxy's own are the client's claim."""
    service = make_service(key, record={"allowlist": ("198.51.100.0/24",)})
    assert ask(service, "/auth/forward", {**FORWARDED, "x-forwarded-for": chain}, key).status == status


@pytest.mark.parametrize(
    ("scope", "status", "reason"),
    [
        ("orders:read", 200, "ok"),
        ("orders%3Aread", 200, "ok"),
        ("none", 200, "ok"),
        ("finance:write", 403, "scope_missing"),
        ("oders:read", 403, "route_misconfigured"),
        ("none%20", 403, "route_misconfigured"),
    ],
)
def test_scope_in_the_path__goes_before_the_route_table(
    scope: str, status: int, reason: str, key: NewApiKey
) -> None:
    """The proxy's own address of the sidecar may state the scope, which no client can change."""
    headers = {**FORWARDED, "x-forwarded-uri": "/of/no/route"}
    service = make_service(key)
    for _ in range(2):
        asked = ask(service, f"/auth/forward/{scope}", headers, key)
        assert (asked.status, asked.fields["x-auth-reason"]) == (status, reason)
    assert ask(service, "/auth/forward/", headers, key).status == 404


@pytest.mark.parametrize("query", [b"scope=none", b"page=2", b"%"])
def test_query__is_the_clients_and_not_read(query: bytes, key: NewApiKey) -> None:
    """Caddy appends the client's query to the address of the sidecar."""
    headers = {**FORWARDED, "x-forwarded-uri": "/of/no/route"}
    asked = ask(make_service(key), "/auth/forward", headers, key, query=query)
    assert asked.fields["x-auth-reason"] == "route_unknown"


@given(address=st.text(st.characters(max_codepoint=255)), target=st.text(st.characters(max_codepoint=255)))
@pytest.mark.parametrize("path", DIALECTS)
def test_header_values__are_printable_whatever_came(path: str, address: str, target: str) -> None:
    """Nothing that a client or a proxy sends ends a header line or puts a control character into one."""
    key = make_key()
    dialect = DIALECTS[path]
    headers = {
        **HEADERS[path],
        dialect.address_header: address or "x",
        dialect.target_header: target,
        "content-type": address,
    }
    asked = ask(make_service(key, record={"allowlist": ("198.51.100.0/24",)}), path, headers, key)
    head = asked.encoded[0][3:].partition(b"\r\n\r\n")[0]
    assert all(0x20 <= byte <= 0x7E for line in head.split(b"\r\n") for byte in line)


def test_repeated_key__is_malformed(key: NewApiKey) -> None:
    """Two copies of the key header are joined, as Envoy joins them."""
    service = make_service(key)
    pairs = [*FORWARDED.items(), ("x-api-key", key.api_key), ("x-api-key", make_key().api_key)]
    asked = ProxiedRequest(b"/auth/forward", tuple((name.encode(), value.encode()) for name, value in pairs))
    service.serve(asked)
    assert asked.status == 403


def test_store__answers_later(key: NewApiKey) -> None:
    """A decision that waits for the shared store answers when the store does."""
    store = RecordingStore()
    service = make_service(key, store=store)
    asked = ask(service, "/auth/nginx", NGINX, key)
    assert asked.encoded == []
    store.answer(Taken(1, 59, 0, NOW_US + 1_000_000))
    assert asked.status == 200


@pytest.mark.parametrize(("path", "status"), [("/auth/nginx", 403), ("/auth/forward", 503)])
def test_store_unavailable__is_503(path: str, status: int, key: NewApiKey) -> None:
    """Without the store the answer is 503, and for nginx says so in x-auth-status."""
    asked = ask(make_service(key, store=FixedStore(StoreFault.UNAVAILABLE)), path, HEADERS[path], key)
    assert (asked.status, asked.fields["x-auth-status"]) == (status, "503")
    assert asked.fields["retry-after"] == "1"


@pytest.mark.parametrize("is_ready", [True, False])
def test_readyz__for_health_checks(is_ready: bool, key: NewApiKey) -> None:
    """Proxies may ask whether the sidecar is ready; nothing else is served."""
    decider = make_decider(make_integration(key))
    service = ForwardAuthService(decider, AnswerStyle(), TRUSTED, lambda: is_ready)
    assert ask(service, "/readyz", {}).status == (200 if is_ready else 503)
    asked = ask(service, "/v1/integrations", {})
    assert asked.status == 404
    assert b"/auth/nginx" in asked.body

"""What the registry says about a request, rule by rule and in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sidecar.domain.api_keys import NewApiKey, checksum
from sidecar.domain.cidr import parse_address
from sidecar.domain.client_address import ClientHeader, PeerAddress
from sidecar.domain.decisions import Reason
from sidecar.domain.integrations import Credential, Status
from sidecar.domain.paths import PATH_CHARS_MAX
from sidecar.domain.policy import (
    MISCONFIGURED_REPORTS_MAX,
    SCOPE_OVERRIDES_MAX,
    AccessRequest,
    Evaluation,
    Policy,
)
from sidecar.domain.scopes import Scope, ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from tests.building import CLIENT_IP, NOW_US, make_integration, make_key, make_policy, make_request

Evaluate = Callable[..., Evaluation]


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


@pytest.fixture
def evaluate(key: NewApiKey) -> Evaluate:
    """Evaluate a request with *key* against 'acme', whose record and policy the arguments shape."""

    def run(record: dict[str, Any] | None = None, policy: Policy | None = None, **request: Any) -> Evaluation:
        request.setdefault("api_key", key.api_key)
        snapshot = Snapshot.compile([make_integration(key, **(record or {}))])
        return (policy or make_policy()).evaluate(make_request(**request), snapshot, NOW_US)

    return run


def test_evaluate__allows(evaluate: Evaluate, key: NewApiKey) -> None:
    """A good key, route and scope: OK, with all that the answer needs to know."""
    evaluation = evaluate()
    assert evaluation.reason is Reason.OK
    assert evaluation.integration is not None and evaluation.integration.id == "acme"
    assert evaluation.credential is not None and evaluation.credential.id == key.credential_id
    assert evaluation.key_headers == ("x-api-key",)
    assert evaluation.scope == Scope("orders", "read")


def test_evaluate__a_key_as_bearer_token(evaluate: Evaluate, key: NewApiKey) -> None:
    """The header that carried the key is the one to take away from the upstream."""
    evaluation = evaluate(api_key=None, headers={"authorization": f"Bearer {key.api_key}"})
    assert (evaluation.reason, evaluation.key_headers) == (Reason.OK, ("authorization",))


def test_evaluate__no_key(evaluate: Evaluate) -> None:
    """Without a key nobody is known."""
    assert evaluate(api_key=None) == Evaluation(Reason.MISSING_CREDENTIAL)


def test_evaluate__a_mistyped_key(evaluate: Evaluate, key: NewApiKey) -> None:
    """A wrong checksum is malformed, even where the id is known."""
    assert evaluate(api_key=key.api_key[:-1] + "!") == Evaluation(Reason.MALFORMED_CREDENTIAL)


def test_evaluate__two_keys(evaluate: Evaluate, key: NewApiKey) -> None:
    """Two different keys are malformed, even when both are good; one key twice is not."""
    other = make_key().api_key
    beside = {"authorization": f"Bearer {other}"}
    for request in ({"headers": beside}, {"api_key": f"{key.api_key},{other}"}):
        evaluation = evaluate(**request)
        assert (evaluation.reason, evaluation.integration) == (Reason.MALFORMED_CREDENTIAL, None)
        assert "two different API keys" in evaluation.detail
    twice = evaluate(headers={"authorization": f"Bearer {key.api_key}"})
    assert (twice.reason, twice.key_headers) == (Reason.OK, ("x-api-key", "authorization"))


def test_evaluate__the_user_s_own_token_beside_the_key(evaluate: Evaluate) -> None:
    """It is the upstream's: not a second key, and not taken away."""
    evaluation = evaluate(headers={"authorization": "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0.c2ln"})
    assert (evaluation.reason, evaluation.key_headers) == (Reason.OK, ("x-api-key",))


def test_evaluate__a_key_nobody_has(evaluate: Evaluate) -> None:
    """A whole key with an unknown id, as after a revocation."""
    assert evaluate(api_key=make_key().api_key) == Evaluation(Reason.UNKNOWN_CREDENTIAL)


def test_evaluate__a_forged_secret_under_a_known_id(evaluate: Evaluate, key: NewApiKey) -> None:
    """The id is public: with another secret and a right checksum it is worth nothing."""
    body = f"sck_{key.credential_id}_{30 * '0'}"
    assert evaluate(api_key=body + checksum(body)) == Evaluation(Reason.UNKNOWN_CREDENTIAL)


@pytest.mark.parametrize(
    ("expires_at_us", "expected"), [(NOW_US + 1, Reason.OK), (NOW_US, Reason.EXPIRED_CREDENTIAL)]
)
def test_evaluate__expiry(evaluate: Evaluate, expires_at_us: int, expected: Reason) -> None:
    """A key works up to, and not at, the moment of its expiry."""
    assert evaluate({"expires_at_us": expires_at_us}).reason is expected


def test_evaluate__an_expired_key_shows_no_integration(evaluate: Evaluate) -> None:
    """It is answered like an unknown one, so nothing about its owner may reach the answer."""
    assert evaluate({"expires_at_us": 1}) == Evaluation(Reason.EXPIRED_CREDENTIAL)


def test_evaluate__each_credential_has_its_own_expiry() -> None:
    """An old key may expire while the new one works: an overlap."""
    old, new = make_key(), make_key()
    credentials = (
        Credential(old.credential_id, old.digest, expires_at_us=NOW_US),
        Credential(new.credential_id, new.digest),
    )
    snapshot = Snapshot.compile([make_integration(credentials=credentials)])
    outcomes = [
        make_policy().evaluate(make_request(api_key.api_key), snapshot, NOW_US).reason
        for api_key in (old, new)
    ]
    assert outcomes == [Reason.EXPIRED_CREDENTIAL, Reason.OK]


def test_evaluate__suspended(evaluate: Evaluate) -> None:
    """A suspended integration is known, so its limits can be shown, and refused."""
    evaluation = evaluate({"status": Status.SUSPENDED})
    assert evaluation.reason is Reason.INTEGRATION_SUSPENDED
    assert evaluation.integration is not None


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (CLIENT_IP, Reason.OK),
        (f"::ffff:{CLIENT_IP}", Reason.OK),
        ("198.51.101.1", Reason.IP_NOT_ALLOWED),
        ("2001:db8::1", Reason.IP_NOT_ALLOWED),
        ("", Reason.IP_NOT_ALLOWED),
        ("not an address", Reason.IP_NOT_ALLOWED),
    ],
)
def test_evaluate__allowlist(evaluate: Evaluate, peer: str, expected: Reason) -> None:
    """Only a known address within an entry passes; an unknown one is refused."""
    assert evaluate({"allowlist": ["198.51.100.0/24"]}, peer=peer).reason is expected


def test_evaluate__the_refused_address_is_reported(evaluate: Evaluate) -> None:
    """The answer can name the address it saw, or say that it saw none."""
    seen = evaluate({"allowlist": ["10.0.0.0/8"]})
    unseen = evaluate({"allowlist": ["10.0.0.0/8"]}, peer="")
    assert (seen.client_address, unseen.client_address) == (parse_address(CLIENT_IP), None)


def test_evaluate__no_allowlist_lets_any_address_in(evaluate: Evaluate) -> None:
    """Off means off, also for a client whose address is unknown."""
    assert evaluate(peer="").reason is Reason.OK


def test_evaluate__the_client_address_rule_decides(evaluate: Evaluate) -> None:
    """The configured header is believed, not the peer."""
    policy = make_policy(client_address=ClientHeader("x-client-ip"))
    allowlist = {"allowlist": ["10.0.0.0/8"]}
    assert evaluate(allowlist, policy, headers={"x-client-ip": "10.1.1.1"}).reason is Reason.OK
    assert evaluate(allowlist, policy, peer="10.1.1.1").reason is Reason.IP_NOT_ALLOWED


@pytest.mark.parametrize(
    "path", ["", "v1/orders/42", "/v1//orders", "/v1/../v1/orders/42", "/v1/orders/%2e%2e"]
)
def test_evaluate__odd_paths(evaluate: Evaluate, path: str) -> None:
    """A path that two programs could read differently is refused, whatever the route says."""
    for scope in ("", "orders:read", "none"):
        evaluation = evaluate(path=path, scope=scope)
        assert evaluation.reason is Reason.PATH_REFUSED
        assert evaluation.detail.startswith("The path ")


@pytest.mark.parametrize("scope", ["", "orders:read"])
def test_evaluate__a_path_that_is_too_long(evaluate: Evaluate, scope: str) -> None:
    """It has a separate reason, and the query does not count."""
    longest = "/v1/orders/".ljust(PATH_CHARS_MAX, "4")
    assert evaluate(path=f"{longest}?{longest}", scope=scope).reason is Reason.OK
    evaluation = evaluate(path=f"{longest}2", scope=scope)
    assert evaluation.reason is Reason.URI_TOO_LONG
    assert "at most 8192 characters" in evaluation.detail


def test_evaluate__a_path_that_leads_to_two_scopes(evaluate: Evaluate) -> None:
    """The route that is judged must be the one that is served."""
    policy = make_policy(routes=[("GET", "/users/@me", None), ("GET", "/users/{id}", "orders:write")])
    assert evaluate(None, policy, path="/users/@me").reason is Reason.OK
    evaluation = evaluate(None, policy, path="/users/%40me")
    assert evaluation.reason is Reason.PATH_REFUSED
    assert "different routes" in evaluation.detail


@pytest.mark.parametrize(
    ("method", "path", "reason", "scope"),
    [
        ("GET", "/v1/orders/42?expand=lines", Reason.OK, Scope("orders", "read")),
        ("HEAD", "/v1/orders/42", Reason.OK, Scope("orders", "read")),
        ("GET", "/v1/%6Frders/42", Reason.OK, Scope("orders", "read")),
        ("POST", "/v1/orders", Reason.SCOPE_MISSING, Scope("orders", "write")),
        ("GET", "/v1/finance/ledgers/1", Reason.SCOPE_MISSING, Scope("finance", "read")),
        ("GET", "/v1/status", Reason.OK, None),
        ("GET", "/v1/nowhere", Reason.ROUTE_UNKNOWN, None),
        ("DELETE", "/v1/orders/42", Reason.METHOD_NOT_ALLOWED, None),
        ("get", "/v1/orders/42", Reason.METHOD_NOT_ALLOWED, None),
        ("GET", "/v1/orders", Reason.METHOD_NOT_ALLOWED, None),
        ("GET", "/V1/orders/42", Reason.ROUTE_UNKNOWN, None),
    ],
)
def test_evaluate__routes(
    evaluate: Evaluate, method: str, path: str, reason: Reason, scope: Scope | None
) -> None:
    """The route's scope is asked for; a route without one is open to all known; no route is a refusal."""
    evaluation = evaluate(method=method, path=path)
    assert (evaluation.reason, evaluation.scope) == (reason, scope)


def test_evaluate__write_does_not_include_read(evaluate: Evaluate) -> None:
    """Scopes are compared as they are."""
    assert evaluate({"scopes": ["orders:write"]}).reason is Reason.SCOPE_MISSING


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        ("orders:read", Reason.OK),
        ("finance:read", Reason.SCOPE_MISSING),
        ("none", Reason.OK),
        ("orders:delete", Reason.ROUTE_MISCONFIGURED),
        ("unknown:read", Reason.ROUTE_MISCONFIGURED),
        ("taxonomies:write", Reason.ROUTE_MISCONFIGURED),
        ("Orders:read", Reason.ROUTE_MISCONFIGURED),
        ("none ", Reason.ROUTE_MISCONFIGURED),
        ("orders", Reason.ROUTE_MISCONFIGURED),
    ],
)
def test_evaluate__the_proxy_s_route_may_ask_for_a_scope(
    evaluate: Evaluate, scope: str, reason: Reason
) -> None:
    """It takes the place of the route table, both ways; what is no scope is the platform's mistake."""
    assert evaluate(path="/v1/finance/1", scope=scope).reason is reason


def test_evaluate__an_empty_scope_is_no_scope(key: NewApiKey) -> None:
    """A proxy that states nothing in particular is misconfigured; the route table does not step in."""
    request = AccessRequest("GET", "/v1/orders/42", {"x-api-key": key.api_key}.get, CLIENT_IP, "")
    snapshot = Snapshot.compile([make_integration(key)])
    assert make_policy().evaluate(request, snapshot, NOW_US).reason is Reason.ROUTE_MISCONFIGURED


def test_evaluate__a_misconfigured_scope_is_reported_once(key: NewApiKey) -> None:
    """What is wrong with it, once for each of the first ones; a caller's flood is not repeated."""
    reported: list[str] = []
    policy, snapshot = make_policy(), Snapshot.compile([make_integration(key)])
    policy.on_misconfigured = reported.append
    for number in [*range(MISCONFIGURED_REPORTS_MAX), 1, 2, 3, MISCONFIGURED_REPORTS_MAX]:
        policy.evaluate(make_request(key.api_key, scope=f"s{number}:read"), snapshot, NOW_US)
    policy.evaluate(make_request(key.api_key, scope="none"), snapshot, NOW_US)
    assert len(reported) == MISCONFIGURED_REPORTS_MAX
    assert reported[0].startswith("scope 's0:read' names the unknown category 's0'; known: inventory, ")


def test_evaluate__scopes_asked_for_by_proxies_are_bounded(key: NewApiKey) -> None:
    """A flood of different texts is answered, and not kept."""
    policy, snapshot = make_policy(), Snapshot.compile([make_integration(key)])
    for number in range(SCOPE_OVERRIDES_MAX + 10):
        request = make_request(key.api_key, scope=f"s{number}:read")
        assert policy.evaluate(request, snapshot, NOW_US).reason is Reason.ROUTE_MISCONFIGURED
    assert len(policy.overrides) == SCOPE_OVERRIDES_MAX
    assert (
        policy.evaluate(make_request(key.api_key, scope="orders:read"), snapshot, NOW_US).reason is Reason.OK
    )


def test_evaluate__scopes_asked_for_by_proxies_are_parsed_once(
    key: NewApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision parses nothing that an earlier one has parsed."""
    parsed: list[str] = []
    real = ScopeCatalogue.parse

    def parse(self: ScopeCatalogue, text: str) -> Scope:
        parsed.append(text)
        return real(self, text)

    policy, snapshot = make_policy(), Snapshot.compile([make_integration(key)])
    monkeypatch.setattr(ScopeCatalogue, "parse", parse)
    for scope in 3 * ["orders:read", "no scope"]:
        policy.evaluate(make_request(key.api_key, scope=scope), snapshot, NOW_US)
    assert parsed == ["orders:read", "no scope"]


def test_evaluate__the_first_rule_that_fails_gives_the_reason(key: NewApiKey) -> None:
    """Key, suspension, allowlist, path, scope: a request that breaks all gets one after another."""
    policy = make_policy()
    broken: dict[str, Any] = {"status": Status.SUSPENDED, "allowlist": ["10.0.0.0/8"], "scopes": ()}
    request: dict[str, Any] = {"api_key": key.api_key[:-1] + "!", "path": "//", "peer": CLIENT_IP}
    repairs: list[tuple[dict[str, Any], dict[str, Any], Reason]] = [
        ({}, {}, Reason.MALFORMED_CREDENTIAL),
        ({}, {"api_key": key.api_key}, Reason.EXPIRED_CREDENTIAL),
        ({"expires_at_us": None}, {}, Reason.INTEGRATION_SUSPENDED),
        ({"status": Status.ACTIVE}, {}, Reason.IP_NOT_ALLOWED),
        ({}, {"peer": "10.1.1.1"}, Reason.PATH_REFUSED),
        ({}, {"path": "/v1/orders"}, Reason.METHOD_NOT_ALLOWED),
        ({}, {"path": "/v1/orders/42"}, Reason.SCOPE_MISSING),
        ({"scopes": ("orders:read",)}, {}, Reason.OK),
    ]
    broken["expires_at_us"] = NOW_US
    for record_repair, request_repair, expected in repairs:
        broken |= record_repair
        request |= request_repair
        snapshot = Snapshot.compile([make_integration(key, **broken)])
        assert policy.evaluate(make_request(**request), snapshot, NOW_US).reason is expected


def test_evaluate__a_key_handed_over_by_itself(key: NewApiKey) -> None:
    """A caller that is no proxy states the key: headers are not looked into, nothing is to be removed."""
    snapshot = Snapshot.compile([make_integration(key)])

    def no_header(name: str) -> str:
        raise AssertionError(f"looked up {name}")

    request = AccessRequest("GET", "/v1/orders/42", no_header, "", api_key=key.api_key)
    evaluation = make_policy().evaluate(request, snapshot, NOW_US)
    assert (evaluation.reason, evaluation.key_headers) == (Reason.OK, ())
    for broken in ("", "junk"):
        request = AccessRequest("GET", "/v1/orders/42", no_header, "", api_key=broken)
        assert make_policy().evaluate(request, snapshot, NOW_US).reason is Reason.MALFORMED_CREDENTIAL


def test_evaluate__a_dialect_with_its_own_address_rule(key: NewApiKey) -> None:
    """Where the caller states the client's address, the configured header is not believed."""
    snapshot = Snapshot.compile([make_integration(key, allowlist=["10.0.0.0/8"])])
    policy = make_policy(client_address=ClientHeader("x-client-ip"))
    headers = {"x-api-key": key.api_key, "x-client-ip": "10.1.1.1"}
    for peer, expected in (("10.1.1.1", Reason.OK), ("", Reason.IP_NOT_ALLOWED)):
        request = AccessRequest("GET", "/v1/orders/42", headers.get, peer, address_rule=PeerAddress())
        assert policy.evaluate(request, snapshot, NOW_US).reason is expected

"""Getting in without a token, and round the one way in."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from sidecar.domain.accounts import AuthenticationError
from sidecar.domain.api_keys import checksum, generate_api_key
from sidecar.services.admin import authentication
from sidecar.services.admin.authentication import (
    ATTEMPTS_BURST,
    SOURCES_MAX,
    TABLE_FULL_RETRY_S,
    FailedAttempts,
    network_of,
)
from tests.administration import DAY_US, SECOND_US
from tests.building import ManualClock
from tests.unit.services.admin.admin_api import AdminApi

WHOAMI = "/v1/whoami"


def ask(
    api: AdminApi, *authorizations: str, path: str = WHOAMI, method: str = "GET", **given: Any
) -> httpx.Response:
    """A call with exactly these Authorization headers."""
    headers = [("Authorization", value) for value in authorizations]
    return api.run(_asking(api, method, path, headers + list(given.pop("more", [])), **given))


async def _asking(
    api: AdminApi, method: str, path: str, headers: list[tuple[str, str]], source: str = "192.0.2.1"
) -> httpx.Response:
    transport = httpx.ASGITransport(api.app, client=(source, 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin.example") as client:
        return await client.request(method, path, headers=headers)


def test_authentication__a_token_says_who_it_is(api: AdminApi) -> None:
    """Account, role, what it may do, and when it ends."""
    assert api.get(WHOAMI, "olli") == {
        "administrator": "olli",
        "name": "Olli",
        "role": "operator",
        "token_id": api.keys["olli"].credential_id,
        "expires_at": "2026-02-22T16:00:00.000000Z",
        "permissions": ["read_decisions", "read_integrations", "suspend"],
    }


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_authentication__the_schemes_case_does_not_matter(api: AdminApi, scheme: str) -> None:
    """RFC 9110 11.1."""
    assert ask(api, scheme + api.token("ann")).status_code == 200


def bad_headers(token: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """What is refused, and the word that the log has for it."""
    other = generate_api_key("sca").api_key
    return {
        "none": ((), "missing"),
        "empty": (("",), "malformed"),
        "scheme only": (("Bearer",), "malformed"),
        "blank token": (("Bearer ",), "malformed"),
        "other scheme": ((f"Basic {token}",), "malformed"),
        "no scheme": ((token,), "malformed"),
        "two headers": ((f"Bearer {token}", f"Bearer {token}"), "malformed"),
        "two tokens": ((f"Bearer {token} {token}",), "malformed"),
        "comma": ((f"Bearer {token}, Bearer {token}",), "malformed"),
        "tab": ((f"Bearer\t{token}",), "malformed"),
        "typo": ((f"Bearer {token[:-1]}" + ("0" if token[-1] != "0" else "1"),), "malformed"),
        "cut off": ((f"Bearer {token[:-8]}",), "malformed"),
        "upper case": ((f"Bearer {token.upper()}",), "malformed"),
        "an API key": ((f"Bearer {generate_api_key().api_key}",), "malformed"),
        "unknown id": ((f"Bearer {other}",), "unknown"),
        "huge": (("Bearer " + "x" * 5_000,), "malformed"),
    }


@pytest.mark.parametrize("case", bad_headers("sca_x_y"))
def test_authentication__each_way_round_ends_in_one_answer(
    api: AdminApi, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All get the same answer; the log has the true cause, and no token."""
    token = api.token("ann")
    headers, word = bad_headers(token)[case]
    answer = ask(api, *headers)
    document = api.refused(401, "unauthenticated", answer)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert document["detail"] == str(AuthenticationError("any")) and document["problems"] == []
    (line,) = [record for record in caplog.records if record.name == authentication.__name__]
    assert line.levelno == logging.WARNING
    fields: dict[str, Any] = vars(line)["event_fields"]
    assert (fields["why"], fields["source"], fields["path"]) == (word, "192.0.2.1", WHOAMI)
    assert fields["request_id"] == answer.headers["X-Request-Id"]
    assert bool(fields["token_id"]) is (word == "unknown")
    assert token not in str(fields) and not any(header and header in str(fields) for header in headers)


def test_authentication__a_wrong_secret_of_a_known_id_is_unknown(api: AdminApi) -> None:
    """The public id of a token opens nothing."""
    prefix, token_id, _ = api.token("ann").split("_")
    body = f"{prefix}_{token_id}_{'0' * 30}"
    api.refused(401, "unauthenticated", ask(api, f"Bearer {body}{checksum(body)}"))


def test_authentication__unknown_ids_and_wrong_secrets_take_one_path(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are looked up and both are compared, so that the time taken reveals nothing."""
    seen: list[tuple[str, bool]] = []
    real = authentication.authenticate

    def watched(token: str, holder: Any, now_us: int) -> Any:
        seen.append((token, holder is not None))
        return real(token, holder, now_us)

    monkeypatch.setattr(authentication, "authenticate", watched)
    prefix, token_id, _ = api.token("ann").split("_")
    body = f"{prefix}_{token_id}_{'0' * 30}"
    wrong, unknown = body + checksum(body), generate_api_key("sca").api_key
    answers = [ask(api, f"Bearer {token}") for token in (wrong, unknown)]
    assert seen == [(wrong, True), (unknown, False)]
    assert answers[0].status_code == answers[1].status_code == 401
    first, second = ({**answer.json(), "request_id": ""} for answer in answers)
    assert first == second


def test_authentication__an_expired_token_ends(api: AdminApi, caplog: pytest.LogCaptureFixture) -> None:
    """To the microsecond; the log says which token is to be renewed."""
    api.clock.advance(us=90 * DAY_US - 1)
    assert api.call("GET", WHOAMI).status_code == 200
    api.clock.advance(us=1)
    api.refused(401, "unauthenticated", api.call("GET", WHOAMI))
    fields = vars(caplog.records[-1])["event_fields"]
    assert (fields["why"], fields["token_id"]) == ("expired", api.keys["ann"].credential_id)


def test_authentication__a_revoked_token_and_a_removed_account_end_at_once(api: AdminApi) -> None:
    """The next call is refused."""
    token_id = api.get(WHOAMI, "olli")["token_id"]
    api.change(f"/v1/administrators/olli/tokens/{token_id}", None, method="DELETE")
    api.refused(401, "unauthenticated", api.call("GET", WHOAMI, None, "olli"))
    api.change("/v1/administrators/bob", None, method="DELETE")
    api.refused(401, "unauthenticated", api.call("GET", WHOAMI, None, "bob"))


@pytest.mark.parametrize(
    "path", [f"{WHOAMI}?token=TOKEN", f"{WHOAMI}?access_token=TOKEN", "/v1/integrations?key=TOKEN"]
)
def test_authentication__a_token_in_the_query_is_refused(api: AdminApi, path: str) -> None:
    """Query strings are in logs of proxies; even beside a good header such a call is refused."""
    path = path.replace("TOKEN", api.token("ann"))
    api.refused(401, "unauthenticated", ask(api, path=path))
    answer = ask(api, f"Bearer {api.token('ann')}", path=path)
    assert api.token("ann") not in api.refused(422, "invalid_value", answer)["detail"]


@pytest.mark.parametrize(
    "name", ["X-Api-Key", "Cookie", "Proxy-Authorization", "X-Authorization", "Sca-Token"]
)
def test_authentication__no_other_header_counts(api: AdminApi, name: str) -> None:
    """One way in."""
    answer = ask(api, more=[(name, f"Bearer {api.token('ann')}")])
    api.refused(401, "unauthenticated", answer)


@pytest.mark.parametrize(
    "path", ["/v1/openapi.json", "/v1/nosuch", "/", "/v1", "/v1/", "/docs", "/metrics", "/openapi.json"]
)
def test_authentication__paths_tell_nothing_without_a_token(api: AdminApi, path: str) -> None:
    """Whether a path exists is nobody's business before they say who they are."""
    api.refused(401, "unauthenticated", ask(api, path=path))


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "PROPFIND", "get"])
def test_authentication__no_method_is_let_through(api: AdminApi, method: str) -> None:
    """Neither without a token nor, for methods that no path knows, with one."""
    transport_method = method
    answer = ask(api, method=transport_method)
    assert answer.status_code == 401
    if method != "get":  # httpx writes it in upper case
        allowed = ask(api, f"Bearer {api.token('ann')}", method=method)
        assert (allowed.status_code, allowed.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_authentication__a_method_cannot_be_overridden(api: AdminApi, name: str) -> None:
    """What an auditor may read does not become what he may not do."""
    api.create()
    before = api.revision()
    answer = ask(api, f"Bearer {api.token('audrey')}", path="/v1/integrations/acme", more=[(name, "DELETE")])
    assert answer.status_code == 200
    assert api.revision() == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/%69ntegrations",
        "/v1/integrations/acme%2Fsuspend",
        "/v1/integrations/%2e%2e/whoami",
        "/v1/integrations/acme%00",
        "/%76%31/whoami",
        "/v1/whoami%20",
        "//v1/whoami",
        "/v1//whoami",
        "/v1/whoami/",
        "/V1/whoami",
        "/v1\\whoami",
        "/v1/whoami;x=1",
    ],
)
def test_authentication__a_path_has_one_spelling(api: AdminApi, path: str) -> None:
    """A rule of a proxy about paths cannot be passed by spelling one in another way; see also test_wire."""
    before = api.revision()
    for method in ("GET", "POST"):
        answer = ask(api, f"Bearer {api.token('ann')}", path=path, method=method)
        assert answer.status_code in (404, 422), answer.text
    assert api.revision() == before


def test_attempts__too_many_from_one_source_are_limited(
    api: AdminApi, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten at once and ten a minute; then 429 with the wait. Each of the ten is logged, all are counted."""
    for _ in range(ATTEMPTS_BURST):
        api.refused(401, "unauthenticated", ask(api))
    for _ in range(5):
        answer = ask(api)
        api.refused(429, "too_many_attempts", answer)
        assert answer.headers["Retry-After"] == "6"
    assert api.metrics.value("sidecar_admin_failed_attempts_total", "401") == ATTEMPTS_BURST
    assert api.metrics.value("sidecar_admin_failed_attempts_total", "429") == 5
    assert (
        len([record for record in caplog.records if record.name == authentication.__name__]) == ATTEMPTS_BURST
    )
    assert ask(api, source="192.0.2.2").status_code == 401, "another source has its own limit"
    api.clock.advance(us=6 * SECOND_US)
    api.refused(401, "unauthenticated", ask(api))
    api.refused(429, "too_many_attempts", ask(api))


def test_attempts__a_valid_token_passes_from_a_limited_source(api: AdminApi) -> None:
    """Anyone who shares a proxy with the administrators cannot lock them out."""
    for _ in range(ATTEMPTS_BURST + 5):
        ask(api)
    assert ask(api, f"Bearer {api.token('ann')}").status_code == 200
    api.refused(429, "too_many_attempts", ask(api))


def test_attempts__an_ipv6_network_is_one_source(api: AdminApi) -> None:
    """Anyone who has one address has its /64."""
    for number in range(ATTEMPTS_BURST):
        assert ask(api, source=f"2001:db8::{number:x}").status_code == 401
    assert ask(api, source="2001:db8::ffff:1:2:3").status_code == 429
    assert ask(api, source="2001:db8:0:1::1").status_code == 401


def test_attempts__a_source_is_read_in_one_spelling() -> None:
    """Mapped IPv4 is IPv4, a zone is no part of an address, a Unix socket is 'local'."""
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == network_of("fe80::2%eth1") == "fe80::"
    assert network_of("local") == "local"


def test_attempts__the_table_is_bounded() -> None:
    """A flood from everywhere takes no more memory than the table; further sources count as limited."""
    attempts = FailedAttempts(ManualClock(), sources_max=3)
    assert [attempts.note(f"192.0.2.{number}") for number in range(4)] == [0, 0, 0, TABLE_FULL_RETRY_S]
    assert attempts.note("192.0.2.0") == 0
    assert SOURCES_MAX == 10_000


def test_attempts__full_buckets_make_way() -> None:
    """Once nobody fails any more, the table is empty again."""
    clock = ManualClock()
    attempts = FailedAttempts(clock, sources_max=1)
    assert attempts.note("192.0.2.0") == 0
    clock.advance(us=6 * SECOND_US)
    assert attempts.note("192.0.2.1") == 0

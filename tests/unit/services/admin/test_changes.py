"""Changes of one integration: what each does, and how it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.domain.lifecycle.commands import COMMANDS
from sidecar.services.admin.change_table import BY_ACTION_NAME, ROWS, SecretKind
from sidecar.stores.registry.protocol import RegistryUnavailableError
from tests.administration import DAY_US, NOW_US
from tests.unit.services.admin.admin_api import AdminApi

ACME = "/v1/integrations/acme"
LATER = "2025-12-01T00:00:00Z"
"""A week after the clock of these tests."""

# Word by word: what must be done before and by whom; path below the integration, body, and what it says.
Step = tuple[str, str, dict[str, Any]]
SUSPENDED: tuple[Step, ...] = (
    ("bob", "/suspend", {"reason": "key leaked"}),
    ("ann", "/credentials/issue", {}),
)
HAPPY: dict[str, tuple[tuple[Step, ...], str, dict[str, Any] | None, str]] = {
    "integration.edit": ((), "", {"contact": "ops@acme.example"}, "changed contact"),
    "integration.delete": ((), "", None, "deleted 'Acme'"),
    "integration.suspend": ((), "/suspend", {"reason": "key leaked"}, "suspended; 1 live credential was"),
    "integration.reactivate": (SUSPENDED, "/reactivate", {"reason": "keys replaced"}, "reactivated"),
    "scopes.add": ((), "/scopes/add", {"scopes": ["orders:read"]}, "added orders:read"),
    "scopes.remove": ((), "/scopes/remove", {"scopes": ["inventory:read"]}, "removed inventory:read"),
    "allowlist.add": ((), "/allowlist/add", {"entries": ["203.0.113.0/24"]}, "added 203.0.113.0/24"),
    "allowlist.remove": ((), "/allowlist/remove", {"entries": ["192.0.2.0/25"]}, "removed 192.0.2.0/25"),
    "allowlist.set": ((), "/allowlist/set", {"entries": ["203.0.113.7"]}, "1 entry"),
    "allowlist.enable": ((("ann", "/allowlist/disable", {}),), "/allowlist/enable", {}, "on"),
    "allowlist.disable": ((), "/allowlist/disable", {}, "off"),
    "limit.set": ((), "/limit/set", {"rate_limit_rpm": 120, "burst": 10}, "set the limit to 120"),
    "limit.raise": ((), "/limit/raise", {"rate_limit_rpm": 600, "duration": "2h"}, "raised the limit to 600"),
    "limit.end_raise": (
        (("ann", "/limit/raise", {"rate_limit_rpm": 600, "until": LATER}),),
        "/limit/end-raise",
        {},
        "ended the temporary raise",
    ),
    "store_error.set": ((), "/on-store-error", {"policy": "local"}, "local"),
    "shadow.set": ((), "/shadow", {"shadow": ["limit", "allowlist"]}, "put allowlist, limit in shadow"),
    "credential.issue": ((), "/credentials/issue", {"expires_in": "1h"}, "issued credential"),
    "credential.rotate": ((), "/credentials/{key}/rotate", {"overlap": "1h"}, "rotated credential"),
    "credential.revoke": ((), "/credentials/{key}/revoke", {}, "revoked credential"),
    "credential.set_expiry": (
        (),
        "/credentials/{key}/expiry",
        {"expires_at": LATER},
        "changed when credential",
    ),
    "webhook_secret.generate": ((), "/webhook-secret/generate", {}, "generated webhook secret"),
    "webhook_secret.rotate": (
        (("ann", "/webhook-secret/generate", {}),),
        "/webhook-secret/rotate",
        {"overlap": "1h"},
        "rotated webhook secret",
    ),
}


def prepared(api: AdminApi, word: str) -> tuple[str, str, dict[str, Any] | None]:
    """Ready an integration for the change *word*; its method, path and body."""
    key = api.create()["credential_id"]
    steps, path, body, _ = HAPPY[word]
    for who, step, given in steps:
        api.change(ACME + step, given, who)
    return BY_ACTION_NAME[word].method, ACME + path.replace("{key}", key), body


def test_changes__the_table_has_every_command() -> None:
    """A command that the domain knows is reachable, exactly once."""
    assert sorted(row.action_name for row in ROWS) == sorted(command.action_name for command in COMMANDS)
    assert {*HAPPY, "integration.create"} == {row.action_name for row in ROWS}


@pytest.mark.parametrize("word", HAPPY)
def test_changes__each_is_made_and_put_on_record(api: AdminApi, word: str) -> None:
    """The answer shows the record afterwards; the trail says who, what, why, whence, and in which call."""
    method, path, body = prepared(api, word)
    before = api.run(api.registry.get("acme"))
    assert before is not None
    if body is None:
        path += "?reason=spring+cleaning"
    else:
        body = {**body, "reason": "spring cleaning"}
    answer = api.call(method, path, body, headers={"X-Request-Id": "req-7"})
    view = answer.json()
    assert answer.status_code == BY_ACTION_NAME[word].status, view
    assert view["is_change"] and view["is_in_force"] and not view["is_dry_run"]
    assert HAPPY[word][3] in view["summary"]
    assert view["integration"]["generation"] == before.generation + 1
    entry = api.trail()[-1]
    assert (entry["action"], entry["actor"], entry["reason"]) == (word, "ann", "spring cleaning")
    assert (entry["source"], entry["request_id"]) == ("192.0.2.1", "req-7")
    assert entry["generation"] == before.generation + 1
    assert view["position"] == f"0.{entry['sequence']}"
    assert str(api.put_in_force.positions[-1][1]) == view["position"].split(".")[1]
    if word == "integration.delete":
        assert view["is_deleted"] and "ETag" not in answer.headers
        api.refused(404, "integration_unknown", api.call("GET", ACME))
    else:
        assert answer.headers["ETag"] == f'"{before.generation + 1}"'


@pytest.mark.parametrize("word", HAPPY)
def test_changes__a_trial_says_the_same_and_writes_nothing(api: AdminApi, word: str) -> None:
    """dry_run shows what would be, without a secret, and the registry stays as it is."""
    method, path, body = prepared(api, word)
    revision, waited = api.revision(), len(api.put_in_force.positions)
    tried = api.change(path + "?dry_run=true", body, method=method, headers={"Idempotency-Key": "k"})
    assert tried["is_dry_run"] and tried["is_change"] and not tried["is_in_force"]
    assert tried["position"] is None
    assert HAPPY[word][3] in tried["summary"]
    if BY_ACTION_NAME[word].generates is not SecretKind.NOTHING:
        assert all(
            tried[name] is None for name in tried.keys() & {"api_key", "credential_id", "secret", "secret_id"}
        )
    assert api.revision() == revision
    assert len(api.put_in_force.positions) == waited
    made = api.change(path, body, method=method, headers={"Idempotency-Key": "k"})
    assert made["is_change"], "the trial must not have used the key up"
    for name in ("scopes", "ip_allowlist", "status", "effective_limit_rpm", "generation"):
        assert made["integration"][name] == tried["integration"][name]


def test_changes__a_created_integration_has_the_least(api: AdminApi) -> None:
    """What nobody asked for, it does not have; the answer says where it is."""
    answer = api.call("POST", "/v1/integrations", {"id": "acme", "name": "Acme"})
    assert (answer.status_code, answer.headers["Location"]) == (201, "/v1/integrations/acme")
    view = answer.json()
    assert "api_key" not in view
    shown = view["integration"]
    assert (shown["scopes"], shown["credentials"], shown["rate_limit_rpm"]) == ([], [], 60)
    assert (shown["is_allowlist_enabled"], shown["ip_allowlist"], shown["burst"]) == (False, [], None)
    assert (shown["generation"], shown["status"]) == (1, "active")


def test_changes__what_was_so_already_is_no_change(api: AdminApi) -> None:
    """It is answered well, and nothing is put on record."""
    api.create()
    revision = api.revision()
    view = api.change(f"{ACME}/scopes/add", {"scopes": ["inventory:read"]})
    assert (view["is_change"], view["position"], view["is_in_force"]) == (False, None, True)
    assert api.revision() == revision


def test_changes__four_eyes_and_new_keys_before_a_reactivation(api: AdminApi) -> None:
    """Neither the suspender, nor anybody before new keys were issued, lets an integration in again."""
    api.create()
    api.change(f"{ACME}/suspend", {"reason": "key leaked"})
    again = {"reason": "keys replaced"}
    api.refused(409, "no_new_credential", api.call("POST", f"{ACME}/reactivate", again, "bob"))
    api.change(f"{ACME}/credentials/issue", {})
    document = api.refused(403, "same_administrator", api.call("POST", f"{ACME}/reactivate", again))
    assert document["problems"][0]["remedy"].startswith("another administrator must do this")
    view = api.change(f"{ACME}/reactivate", again, "bob")
    assert [credential["state"] for credential in view["integration"]["credentials"]] == ["active"]


def test_changes__a_suspension_is_shown_with_its_author(api: AdminApi) -> None:
    """Who, when, why; and every key is invalidated."""
    api.create()
    shown = api.change(f"{ACME}/suspend", {"reason": "key leaked"}, "olli")["integration"]
    assert shown["status"] == "suspended"
    (suspension,) = shown["suspensions"]
    assert (suspension["by"], suspension["reason"]) == ("olli", "key leaked")
    assert suspension["at"].startswith("2025-11-24T16:00:00.")
    assert [credential["state"] for credential in shown["credentials"]] == ["invalidated"]


def test_changes__a_raise_is_shown_while_it_lasts(api: AdminApi) -> None:
    """It reverts by itself, and the views follow the clock."""
    api.create()
    shown = api.change(f"{ACME}/limit/raise", {"rate_limit_rpm": 600, "duration": "1h"})["integration"]
    assert (shown["effective_limit_rpm"], shown["rate_limit_rpm"]) == (600, 60)
    assert shown["limit_raise"] == {
        "rate_limit_rpm": 600,
        "burst": None,
        "until": "2025-11-24T17:00:00.000000Z",
    }
    api.clock.advance(us=DAY_US)
    shown = api.get(ACME)
    assert (shown["effective_limit_rpm"], shown["limit_raise"]) == (60, None)


def test_changes__notices_come_along(api: AdminApi) -> None:
    """What an administrator should know is beside what was done, under the API's names."""
    api.create()
    view = api.change(f"{ACME}/allowlist/add", {"entries": ["203.0.113.0/24", "2001:db8::/32"]})
    assert [notice["code"] for notice in view["notices"]] == ["mixed_families"]
    assert view["notices"][0]["field"] == "entries"


REFUSALS: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("/limit/set", {"rate_limit_rpm": 10_001}, 422, "invalid_value", "rate_limit_rpm"),
    ("/limit/set", {"rate_limit_rpm": "60"}, 422, "invalid_value", "rate_limit_rpm"),
    ("/limit/set", {"rate_limit_rpm": 60.0}, 422, "invalid_value", "rate_limit_rpm"),
    ("/limit/set", {"rate_limit_rpm": True}, 422, "invalid_value", "rate_limit_rpm"),
    ("/limit/set", {}, 422, "invalid_value", "rate_limit_rpm"),
    ("/limit/set", {"rate_limit_rpm": 60, "bust": 5}, 422, "invalid_value", "bust"),
    ("/limit/raise", {"rate_limit_rpm": 600}, 422, "invalid_value", "until"),
    (
        "/limit/raise",
        {"rate_limit_rpm": 600, "until": LATER, "duration": "5s"},
        422,
        "invalid_value",
        "duration",
    ),
    ("/limit/raise", {"rate_limit_rpm": 600, "until": "2020-01-01T00:00Z"}, 422, "invalid_value", "until"),
    ("/limit/raise", {"rate_limit_rpm": 600, "until": "2025-12-01T00:00:00"}, 422, "invalid_value", "until"),
    ("/limit/raise", {"rate_limit_rpm": 600, "until": 1764000000}, 422, "invalid_value", "until"),
    ("/limit/end-raise", {}, 404, "raise_unknown", ""),
    ("/scopes/add", {"scopes": ["orders:read", "nosuch:read"]}, 422, "unknown_scope", "scopes[1]"),
    ("/scopes/add", {"scopes": ["quality:write"]}, 422, "unknown_scope", "scopes[0]"),
    ("/scopes/add", {"scopes": ["orders:read", 7]}, 422, "invalid_value", "scopes[1]"),
    ("/allowlist/add", {"entries": ["10.0.0.1/8"]}, 422, "invalid_value", "entries[0]"),
    ("/allowlist/remove", {"entries": ["10.0.0.0/8"]}, 404, "entry_unknown", "entries"),
    ("/credentials/issue", {"expires_at": "2020-01-01T00:00Z"}, 422, "invalid_value", "expires_at"),
    ("/credentials/issue", {"expires_at": LATER, "expires_in": "9s"}, 422, "invalid_value", "expires_in"),
    ("/credentials/nosuch/revoke", {}, 404, "credential_unknown", "credential_id"),
    ("/webhook-secret/rotate", {"overlap": "31d"}, 422, "invalid_value", "overlap"),
    ("/suspend", {}, 422, "reason_required", "reason"),
    ("/suspend", {"reason": "  "}, 422, "reason_required", "reason"),
    ("/suspend", {"reason": "x" * 501}, 422, "invalid_value", "reason"),
    ("/suspend", {"reason": "leaked: sck_q2R8mW0bTz_" + "x" * 36}, 422, "holds_secret", "reason"),
    ("/reactivate", {"reason": "why not"}, 409, "not_suspended", ""),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "field"), REFUSALS)
def test_changes__a_refusal_names_field_and_remedy(
    api: AdminApi, path: str, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    """Nothing is written, and the answer says where, what was wrong and what to do, in the API's words."""
    api.create()
    before = api.revision()
    document = api.refused(status, code, api.call("POST", ACME + path, body))
    first = document["problems"][0]
    assert (first["code"], first["field"]) == (code, field)
    assert first["message"] and first["remedy"]
    detail = document["detail"].lower()  # a remedy after a question begins with a capital letter
    assert first["message"].lower() in detail and first["remedy"].lower() in detail
    assert "_us" not in first["field"]
    assert api.revision() == before


def test_changes__all_faults_are_named_at_once(api: AdminApi) -> None:
    """One look fixes them all."""
    api.create()
    answer = api.call("POST", f"{ACME}/scopes/add", {"scopes": ["a:read", "orders:read", "b:read"]})
    fields = [problem["field"] for problem in api.refused(422, "unknown_scope", answer)["problems"]]
    assert fields == ["scopes[0]", "scopes[2]"]


def test_changes__a_fault_never_quotes_what_was_sent(api: AdminApi) -> None:
    """A secret in the wrong field comes back in no answer."""
    api.create()
    key = api.token("bob")
    for body in (
        {"rate_limit_rpm": key},
        {"rate_limit_rpm": 5, "reason": key},
        {"rate_limit_rpm": 5, "extra": key},
    ):
        assert key not in api.call("POST", f"{ACME}/limit/set", body).text


def test_changes__create_refuses_under_the_names_of_its_body(api: AdminApi) -> None:
    """The domain's names of fields are not the API's."""
    bad_id = api.call("POST", "/v1/integrations", {"id": "Acme", "name": "Acme"})
    assert api.refused(422, "invalid_value", bad_id)["problems"][0]["field"] == "id"
    body = {"id": "a", "name": "A", "issue_credential": True, "credential_expires_at": "2020-01-01T00:00Z"}
    late = api.refused(422, "invalid_value", api.call("POST", "/v1/integrations", body))
    assert late["problems"][0]["field"] == "credential_expires_at"
    api.create()
    api.refused(409, "id_taken", api.call("POST", "/v1/integrations", {"id": "acme", "name": "Acme"}))
    api.change(ACME, None, method="DELETE")
    api.refused(409, "id_retired", api.call("POST", "/v1/integrations", {"id": "acme", "name": "Acme"}))


def test_changes__a_generation_that_was_read_guards_the_change(api: AdminApi) -> None:
    """If-Match lets a change pass only over what its author has seen."""
    tag = api.call("POST", "/v1/integrations", {"id": "acme", "name": "Acme"}).headers["ETag"]
    assert api.call("GET", ACME).headers["ETag"] == tag
    matching = {"headers": {"If-Match": tag}}
    second = api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5}, **matching)
    assert (second.status_code, second.headers["ETag"]) == (200, '"2"')
    late = api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 6}, **matching)
    document = api.refused(412, "generation_conflict", late)
    assert late.headers["ETag"] == '"2"'
    assert document["problems"][0]["field"] == "If-Match"
    assert (
        api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 6}, headers={"If-Match": "*"}).status_code
        == 200
    )
    tried = api.call("POST", f"{ACME}/limit/set?dry_run=true", {"rate_limit_rpm": 7}, **matching)
    api.refused(412, "generation_conflict", tried)


@pytest.mark.parametrize(
    "tag", ['W/"1"', "1", '"01"', '"1", "2"', '"one"', "", '""', '"99999999999999999999"']
)
def test_changes__a_tag_that_cannot_be_meant_is_refused(api: AdminApi, tag: str) -> None:
    """Ignoring it would make the change that its author wanted to guard."""
    api.create()
    answer = api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5}, headers={"If-Match": tag})
    assert api.refused(400, "invalid_header", answer)["problems"][0]["field"] == "If-Match"


def test_changes__those_that_cross_never_mix(api: AdminApi) -> None:
    """Of many changes over one generation exactly one is made; the others learn of it."""
    api.create()

    async def race() -> list[int]:
        calls = [
            api.calling("POST", f"{ACME}/limit/set", {"rate_limit_rpm": rpm}, headers={"If-Match": '"1"'})
            for rpm in range(1, 21)
        ]
        return sorted(answer.status_code for answer in await asyncio.gather(*calls))

    assert api.run(race()) == [200] + [412] * 19
    assert api.get(ACME)["generation"] == 2


def test_changes__concurrent_ones_without_a_guard_are_all_made(api: AdminApi) -> None:
    """Each is whole, each is on record, in some order."""
    api.create()

    async def race() -> set[int]:
        calls = [
            api.calling("POST", f"{ACME}/credentials/issue", {}, who)
            for who in ("ann", "bob")
            for _ in range(9)
        ]
        return {answer.status_code for answer in await asyncio.gather(*calls)}

    assert api.run(race()) == {201}
    assert api.get(ACME)["generation"] == 19
    assert api.get("/v1/audit/verify")["is_intact"]


@pytest.mark.parametrize("answer", [False, RegistryUnavailableError("away")])
def test_changes__not_yet_in_force_here_is_reported(api: AdminApi, answer: bool | Exception) -> None:
    """The change is made all the same, so it must not look like a failure."""
    api.create()
    api.put_in_force.answer = answer
    view = api.change(f"{ACME}/suspend", {"reason": "key leaked"})
    assert (view["is_change"], view["is_in_force"]) == (True, False)


@pytest.fixture(params=["credential", "webhook"])
def secret_of(request: pytest.FixtureRequest, api: AdminApi) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    """Makes a secret of each kind: the secret, and the answer it came in."""
    api.create()

    def make(headers: Any) -> tuple[str, dict[str, Any]]:
        if request.param == "credential":
            view = api.change(f"{ACME}/credentials/issue", {}, headers=headers)
            return view["api_key"], view
        view = api.change(f"{ACME}/webhook-secret/generate", {}, headers=headers)
        return view["secret"], view

    return make


def test_changes__a_secret_is_shown_once_and_never_again(
    api: AdminApi, secret_of: Callable[[Any], tuple[str, dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the record, not in lists, not on record, not in the log, not to a repeat of the call."""
    caplog.set_level("DEBUG")
    headers = {"Idempotency-Key": "once"}
    secret, view = secret_of(headers)
    assert len(secret) > 40
    repeated, again = secret_of(headers)
    assert repeated is None
    assert {**view, "api_key": None, "secret": None, "took_ms": 0} == {
        "api_key": None,
        "secret": None,
        **again,
        "took_ms": 0,
    }
    everywhere = "".join(
        api.call("GET", path).text
        for path in (
            "/v1/integrations",
            ACME,
            f"{ACME}/credentials",
            "/v1/audit",
            "/v1/audit/export",
            "/v1/review",
        )
    )
    hidden = secret.rsplit("_", 1)[-1]
    assert hidden not in everywhere
    assert hidden not in caplog.text and all(hidden not in str(vars(record)) for record in caplog.records)


def test_changes__a_webhook_secret_is_sealed_before_it_is_kept(api: AdminApi) -> None:
    """The store holds what the sealer made of it: 32 random bytes as Standard Webhooks writes them."""
    api.create()
    view = api.change(f"{ACME}/webhook-secret/generate", {})
    assert view["secret"].startswith("whsec_") and len(view["secret"]) == 6 + 44
    (kept,) = api.run(api.registry.webhook_secrets("acme"))
    assert (kept.id, kept.sealed) == (view["secret_id"], view["secret"][::-1])
    assert view["integration"]["webhook_secrets"][0]["id"] == view["secret_id"]


def test_changes__a_key_that_is_issued_is_the_one_on_record(api: AdminApi) -> None:
    """Id, key and record belong together, and a rotation names the new one."""
    first = api.create()
    assert (
        first["api_key"].split("_")[1]
        == first["credential_id"]
        == first["integration"]["credentials"][0]["id"]
    )
    path = f"{ACME}/credentials/{first['credential_id']}/rotate"
    second = api.change(path, {"overlap": "1h", "expires_at": LATER})
    old, new = second["integration"]["credentials"]
    assert (old["state"], old["replaced_by"], new["state"]) == (
        "overlapping",
        second["credential_id"],
        "active",
    )
    assert old["expires_at"] == "2025-11-24T17:00:00.000000Z"
    assert (new["id"], new["expires_at"]) == (second["credential_id"], "2025-12-01T00:00:00.000000Z")
    api.clock.now_us = NOW_US + 2 * 3_600_000_000
    assert api.get(f"{ACME}/credentials")["items"][0]["state"] == "expired"

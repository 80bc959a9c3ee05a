"""Idempotency keys: a repeat gets the first answer, and another request under the same key is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.administration import DAY_US
from tests.unit.services.admin.admin_api import AdminApi

ACME = "/v1/integrations/acme"
KEY = {"Idempotency-Key": "7f9c"}


def test_idempotency__a_repeat_changes_nothing_and_answers_the_same(api: AdminApi) -> None:
    """Status, record and position are those of the first time; the header says that it is a repeat."""
    body = {"id": "acme", "name": "Acme", "issue_credential": True}
    first = api.call("POST", "/v1/integrations", body, headers=KEY)
    revision = api.revision()
    second = api.call("POST", "/v1/integrations", body, headers=KEY)
    assert (first.status_code, second.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.headers["Location"] == first.headers["Location"]
    assert second.json()["api_key"] is None
    same = ("credential_id", "position", "summary", "integration", "is_change")
    assert [second.json()[name] for name in same] == [first.json()[name] for name in same]
    assert api.revision() == revision


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (f"{ACME}/limit/set", {"rate_limit_rpm": 6}, {}),
        (f"{ACME}/limit/set", {"rate_limit_rpm": 5, "reason": "x"}, {}),
        (f"{ACME}/limit/set", {"rate_limit_rpm": 5}, {"If-Match": "*"}),
        (f"{ACME}/suspend", {"reason": "x"}, {}),
        ("/v1/integrations/other/limit/set", {"rate_limit_rpm": 5}, {}),
        ("/v1/administrators/bob/tokens", {}, {}),
    ],
)
def test_idempotency__another_request_under_the_key_is_refused(
    api: AdminApi, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    """A key covers one method, path, body and guard."""
    api.create()
    api.create("other")
    api.change(f"{ACME}/limit/set", {"rate_limit_rpm": 5}, headers=KEY)
    revision = api.revision()
    answer = api.call("POST", path, body, headers={**KEY, **headers})
    document = api.refused(409, "idempotency_mismatch", answer)
    assert document["problems"][0]["field"] == "Idempotency-Key"
    assert api.revision() == revision


def test_idempotency__how_long_to_wait_is_no_part_of_the_request(api: AdminApi) -> None:
    """Who was cut off while waiting asks again without the wait, or with another."""
    api.create()
    api.change(f"{ACME}/suspend?wait=1s", {"reason": "x"}, headers=KEY)
    again = api.call("POST", f"{ACME}/suspend", {"reason": "x"}, headers=KEY)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert api.get(ACME)["generation"] == 2


def test_idempotency__keys_of_two_administrators_do_not_meet(api: AdminApi) -> None:
    """A key belongs to the administrator who sent it."""
    api.create()
    api.change(f"{ACME}/limit/set", {"rate_limit_rpm": 5}, headers=KEY)
    assert api.change(f"{ACME}/limit/set", {"rate_limit_rpm": 6}, "bob", headers=KEY)["is_change"]


def test_idempotency__a_refused_request_does_not_use_its_key_up(api: AdminApi) -> None:
    """The call may be corrected and sent again."""
    api.create()
    path = f"{ACME}/scopes/add"
    api.refused(422, "unknown_scope", api.call("POST", path, {"scopes": ["a:read"]}, headers=KEY))
    assert api.change(path, {"scopes": ["orders:read"]}, headers=KEY)["is_change"]


def test_idempotency__a_key_ends_after_a_day(api: AdminApi) -> None:
    """Then the same request is a new one."""
    api.create()
    path = f"{ACME}/credentials/issue"
    api.change(path, {}, headers=KEY)
    api.clock.advance(us=DAY_US + 1)
    assert api.change(path, {}, headers=KEY)["api_key"]


@pytest.mark.parametrize("key", ["x" * 129, "sck_q2R8mW0bTz_" + "x" * 36, "caf\xe9"])
def test_idempotency__a_key_that_cannot_stand_on_record_is_refused(api: AdminApi, key: str) -> None:
    """Too long, in the shape of a secret, or not ASCII."""
    api.create()
    headers = [
        (b"Idempotency-Key", key.encode("latin-1")),
        (b"Authorization", f"Bearer {api.token('ann')}".encode()),
    ]
    answer = api.call("POST", f"{ACME}/credentials/issue", {}, "", headers=dict(headers))
    assert api.refused(422, answer.json()["code"], answer)["problems"][0]["field"] == "Idempotency-Key"


def test_idempotency__accounts_and_tokens_too(api: AdminApi) -> None:
    """A repeat of a lost answer makes no second token."""
    body = {"id": "cat", "name": "Cat", "role": "auditor"}
    first = api.change("/v1/administrators", body, headers=KEY)
    second = api.call("POST", "/v1/administrators", body, headers=KEY)
    assert (second.status_code, second.headers["Idempotency-Replayed"]) == (201, "true")
    assert second.json()["token"] is None
    assert second.json()["token_id"] == first["token_id"]
    assert len(api.get("/v1/administrators/cat")["tokens"]) == 1

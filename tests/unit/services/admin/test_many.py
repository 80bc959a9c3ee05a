"""Many changes in one call: each whole or absent on its own."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.domain.lifecycle.commands import COMMANDS, GenerateWebhookSecret, RotateWebhookSecret
from sidecar.services.admin.many import MEMBERS
from sidecar.stores.registry.protocol import REQUESTS_MAX, RegistryUnavailableError
from tests.administration import digest
from tests.unit.services.admin.admin_api import AdminApi

LIMIT = {"action": "limit.set", "integration_id": "acme", "rate_limit_rpm": 5}


def send(api: AdminApi, *changes: dict[str, Any], query: str = "", **given: Any) -> Any:
    """What a call of *changes* answers."""
    return api.change(f"/v1/changes{query}", {"changes": list(changes)}, **given)


def test_many__every_command_that_draws_no_secret_can_stand_in_it() -> None:
    """A webhook secret is shown to the one caller who made it, so it has a separate call."""
    alone = {GenerateWebhookSecret.action_name, RotateWebhookSecret.action_name}
    assert set(MEMBERS) == {command.action_name for command in COMMANDS} - alone


def test_many__each_is_whole_or_absent_on_its_own(api: AdminApi) -> None:
    """In their order, each result in its place; a refusal stops nobody else."""
    view = send(
        api,
        {"action": "integration.create", "integration_id": "acme", "name": "Acme", "scopes": ["orders:read"]},
        {"action": "integration.create", "integration_id": "acme", "name": "Acme"},
        {"action": "scopes.add", "integration_id": "nosuch", "scopes": ["orders:read"]},
        {"action": "scopes.add", "integration_id": "acme", "scopes": ["orders:write", "nosuch:read"]},
        {**LIMIT, "expected_generation": 7},
        {**LIMIT, "expected_generation": 1},
        LIMIT,
    )
    results = view["results"]
    assert [result["status"] for result in results] == [201, 409, 404, 422, 412, 200, 200]
    assert [result["generation"] for result in results] == [1, None, None, None, None, 2, 2]
    assert [result["is_change"] for result in results] == [True] + [False] * 4 + [True, False]
    assert [result["problem"] and result["problem"]["code"] for result in results] == [
        None, "id_taken", "integration_unknown", "unknown_scope", "generation_conflict", None, None
    ]  # fmt: skip
    assert results[3]["problem"]["problems"][0]["field"] == "scopes[1]"
    assert (view["is_in_force"], view["is_dry_run"]) == (True, False)
    shown = api.get("/v1/integrations/acme")
    assert (shown["scopes"], shown["rate_limit_rpm"]) == (["orders:read"], 5)
    assert [result["action"] for result in api.trail()][-2:] == ["integration.create", "limit.set"]


def test_many__waits_once_for_all_of_them(api: AdminApi) -> None:
    """The last position of each partition is enough."""
    api.create()
    send(api, *({**LIMIT, "rate_limit_rpm": rpm} for rpm in range(1, 6)))
    assert [position.sequence for position in api.put_in_force.positions] == [5, 10]


def test_many__keys_are_given_by_their_public_half(api: AdminApi) -> None:
    """An API key that exists elsewhere keeps working; no secret passes through."""
    send(
        api,
        {
            "action": "integration.create",
            "integration_id": "acme",
            "name": "Acme",
            "credentials": [{"id": "first", "digest": digest("first")}],
        },
        {
            "action": "credential.issue",
            "integration_id": "acme",
            "credential": {"id": "second", "digest": digest("second"), "expires_at": "2026-01-01T00:00:00Z"},
        },
        {
            "action": "credential.rotate",
            "integration_id": "acme",
            "credential_id": "first",
            "overlap": "60s",
            "credential": {"id": "third", "digest": digest("third")},
        },
    )
    shown = {credential["id"]: credential for credential in api.get("/v1/integrations/acme")["credentials"]}
    assert {name: result["state"] for name, result in shown.items()} == {
        "first": "overlapping", "second": "active", "third": "active"
    }  # fmt: skip
    assert shown["second"]["expires_at"] == "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("member", "field"),
    [
        ({"action": "nosuch.word", "integration_id": "acme"}, "changes[1]"),
        ({"integration_id": "acme"}, "changes[1]"),
        ({"action": "webhook_secret.generate", "integration_id": "acme"}, "changes[1]"),
        ({**LIMIT, "rate_limit_rpm": "5"}, "changes[1].rate_limit_rpm"),
        ({**LIMIT, "extra": 5}, "changes[1].extra"),
        ({"action": "limit.set", "rate_limit_rpm": 5}, "changes[1].integration_id"),
        ({"action": "credential.revoke", "integration_id": "acme"}, "changes[1].credential_id"),
        ("limit.set", "changes[1]"),
    ],
)
def test_many__a_wrong_shape_refuses_the_whole_call(api: AdminApi, member: Any, field: str) -> None:
    """Nothing is done, and the answer says which member it is."""
    api.create()
    before = api.revision()
    answer = api.call("POST", "/v1/changes", {"changes": [LIMIT, member]})
    document = api.refused(422, "invalid_value", answer)
    assert document["problems"][0]["field"] == field
    assert api.revision() == before


def test_many__too_many_are_refused(api: AdminApi) -> None:
    """The bound of one call, and one more."""
    answer = api.call("POST", "/v1/changes", {"changes": [LIMIT] * (REQUESTS_MAX + 1)})
    assert api.refused(422, "invalid_value", answer)["problems"][0]["field"] == "changes"
    assert len(send(api, *[LIMIT] * REQUESTS_MAX)["results"]) == REQUESTS_MAX
    assert send(api)["results"] == []


def test_many__a_trial_writes_nothing(api: AdminApi) -> None:
    """Each is tried against what is stored now, not against the ones before it."""
    api.create()
    before = api.revision()
    view = send(
        api,
        {"action": "integration.create", "integration_id": "new", "name": "New"},
        {**LIMIT, "integration_id": "new"},
        LIMIT,
        query="?dry_run=true",
    )
    assert [result["status"] for result in view["results"]] == [200, 404, 200]
    assert [result["position"] for result in view["results"]] == [None, None, None]
    assert (view["is_dry_run"], view["is_in_force"]) == (True, False)
    assert api.revision() == before


def test_many__a_repeat_changes_nothing(api: AdminApi) -> None:
    """Each change of a call has its part of the key; those that were refused may go through."""
    api.create()
    changes = ({**LIMIT, "integration_id": "late"}, {**LIMIT, "rate_limit_rpm": 7}, LIMIT)
    headers = {"Idempotency-Key": "k"}
    first = send(api, *changes, headers=headers)
    api.create("late")
    again = send(api, *changes, headers=headers)
    assert [result["status"] for result in first["results"]] == [404, 200, 200]
    assert [result["status"] for result in again["results"]] == [200, 200, 200]
    assert again["results"][1:] == first["results"][1:]
    assert api.get("/v1/integrations/acme")["generation"] == 3
    other = api.call("POST", "/v1/changes", {"changes": [LIMIT]}, headers=headers).json()["results"]
    assert [result["problem"]["code"] for result in other] == ["idempotency_mismatch"]


@pytest.mark.parametrize(("count", "may_have_happened"), [(1, False), (2, True)])
def test_many__a_fault_in_the_middle_leaves_it_open(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch, count: int, may_have_happened: bool
) -> None:
    """The registry speaks of the part that failed; the parts before it may be in force."""

    async def fail(requests: Any) -> Any:
        raise RegistryUnavailableError("away")

    monkeypatch.setattr(api.registry, "apply_many", fail)
    answer = api.call("POST", "/v1/changes", {"changes": [LIMIT] * count})
    assert api.refused(503, "store_unavailable", answer)["may_have_happened"] is may_have_happened

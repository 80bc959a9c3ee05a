"""What administrators do by the API is in force for the next request through a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.demo.calling import Answer
from sidecar.domain.api_keys import credential_id_of

from .control_plane import ControlledStack

READ = ["inventory:read"]


@pytest.fixture(scope="module")
def stack() -> Iterator[ControlledStack]:
    """One stack for all; each test has a separate integration."""
    running = ControlledStack()
    yield running
    running.close()


def reason(answer: Answer) -> str:
    """Why a request was refused; '' = it was not."""
    return "" if answer.status == 200 else str(answer.json()["reason"])


def test_suspension__and_the_way_back(stack: ControlledStack) -> None:
    """
    A suspension refuses the very next request; only another administrator, after a new key, ends it.

    Then the new key is taken at once, and the old one never again.
    """
    old = stack.ann.create("leaky", scopes=READ, rate_limit_rpm=6_000)
    assert stack.get(old).status == 200
    stack.ann.change("/integrations/leaky/suspend", reason="the key leaked")
    refused = stack.get(old)
    assert (refused.status, reason(refused)) == (403, "integration_suspended")
    early = stack.bob.send("POST", "/integrations/leaky/reactivate", {"reason": "all is well"})
    assert (early.status, early.json()["code"]) == (409, "no_new_credential")
    fresh = stack.ann.change("/integrations/leaky/credentials/issue")["api_key"]
    assert reason(stack.get(fresh)) == "integration_suspended"
    own = stack.ann.send("POST", "/integrations/leaky/reactivate", {"reason": "all is well"})
    assert (own.status, own.json()["code"]) == (403, "same_administrator")
    assert reason(stack.get(fresh)) == "integration_suspended"
    stack.bob.change("/integrations/leaky/reactivate", reason="the key was replaced")
    assert stack.get(fresh).status == 200
    assert reason(stack.get(old)) == "unknown_credential"


def test_scopes__taken_away_and_given_back(stack: ControlledStack) -> None:
    """The next request that needs a scope which was taken away is refused; given back, it passes."""
    key = stack.ann.create("scoped", scopes=READ)
    assert stack.get(key).status == 200
    stack.ann.change("/integrations/scoped/scopes/remove", scopes=READ)
    assert reason(stack.get(key)) == "scope_missing"
    stack.ann.change("/integrations/scoped/scopes/add", scopes=READ)
    assert stack.get(key).status == 200


def test_allowlist__shuts_out_and_lets_in(stack: ControlledStack) -> None:
    """An allowlist without the caller's address refuses the next request; corrected, it passes again."""
    key = stack.ann.create("listed", scopes=READ)
    stack.ann.change("/integrations/listed/allowlist/set", entries=["198.51.100.0/24"])
    assert stack.get(key).status == 200  # not turned on yet
    stack.ann.change("/integrations/listed/allowlist/enable")
    assert reason(stack.get(key)) == "ip_not_allowed"
    stack.ann.change("/integrations/listed/allowlist/add", entries=["127.0.0.0/8"])
    assert stack.get(key).status == 200


def test_limit__changes_in_place(stack: ControlledStack) -> None:
    """The next request applies the new limit, and what was used stays used."""
    key = stack.ann.create("limited", scopes=READ, rate_limit_rpm=1, burst=10)
    left = [int(stack.get(key).one("x-ratelimit-remaining")) for _ in range(4)]
    assert left == [9, 8, 7, 6]
    stack.ann.change("/integrations/limited/limit/set", rate_limit_rpm=2, burst=10)
    answer = stack.get(key)
    assert answer.one("x-ratelimit-limit") == "2"
    # Half a minute more, and one token would have come back.
    assert int(answer.one("x-ratelimit-remaining")) in (5, 6)


def test_revocation__of_one_key(stack: ControlledStack) -> None:
    """A revoked key is unknown to the next request; the integration's other key goes on."""
    first = stack.ann.create("twokeys", scopes=READ)
    second = stack.ann.change("/integrations/twokeys/credentials/issue")["api_key"]
    stack.ann.change(f"/integrations/twokeys/credentials/{credential_id_of(first)}/revoke")
    assert reason(stack.get(first)) == "unknown_credential"
    assert stack.get(second).status == 200


def test_audit__knows_it_all(stack: ControlledStack) -> None:
    """Everything above is on record, and the record verifies while the sidecar serves."""
    stack.ann.create("recorded", scopes=READ)
    reported = stack.ann.get("/audit?integration=recorded")
    assert [entry["action"] for entry in reported["items"]] == ["integration.create"]
    assert stack.ann.get("/audit/verify")["is_intact"] is True

"""The quarterly review: each flag, and when it is raised."""

from __future__ import annotations

from typing import Any

from sidecar.domain.cidr import parse_address
from sidecar.stores.registry.protocol import CredentialUse
from tests.administration import DAY_US, MINUTE_US
from tests.unit.services.admin.admin_api import AdminApi


def flags(world: AdminApi, integration_id: str = "acme") -> set[str]:
    """The codes of the flags of one integration."""
    return {flag["code"] for flag in reviewed(world, integration_id)["flags"]}


def reviewed(world: AdminApi, integration_id: str = "acme") -> Any:
    """What the review shows of one integration."""
    (item,) = world.get(f"/v1/review?search={integration_id}", "audrey")["items"]
    return item


def use(world: AdminApi, credential_id: str) -> None:
    """A request with this credential, now."""
    seen = CredentialUse(credential_id, "acme", parse_address("192.0.2.9"), world.clock.now_us)
    world.run(world.registry.record_uses([seen]))


def test_review__a_tidy_integration_has_no_flag(world: AdminApi) -> None:
    """Allowlist on, a key that is young, used and will end, scopes of everyday data."""
    key = world.create(credential_expires_at="2026-01-01T00:00:00Z")["credential_id"]
    use(world, key)
    item = reviewed(world)
    assert item["flags"] == []
    assert item["scopes"] == [
        {"scope": "inventory:read", "sensitivity": "operational"},
        {"scope": "inventory:write", "sensitivity": "operational"},
    ]
    (credential,) = item["credentials"]
    assert (credential["age_days"], credential["unused_days"], credential["state"]) == (0, 0, "active")
    assert credential["last_used_address"] == "192.0.2.9"
    assert (item["is_allowlist_enabled"], item["suspended_since"]) == (True, None)


def test_review__what_needs_a_decision_is_flagged(world: AdminApi) -> None:
    """Sensitive data, open to every address, with a key for ever that nobody uses."""
    world.create(scopes=["crm:read", "finance:write", "orders:read"])
    world.change("/v1/integrations/acme/allowlist/disable")
    assert flags(world) == {
        "allowlist_off",
        "sensitive_scope",
        "credential_never_expires",
        "credential_never_used",
    }
    messages = [flag["message"] for flag in reviewed(world)["flags"] if flag["code"] == "sensitive_scope"]
    assert [text.split(":")[0] for text in messages] == ["crm", "finance"]


def test_review__age_counts_from_day_ninety_one(world: AdminApi) -> None:
    """A key older than ninety days, and one not used for as long."""
    key = world.create(credential_expires_at="2026-12-01T00:00:00Z")["credential_id"]
    use(world, key)
    lasting = world.change("/v1/administrators/audrey/tokens", {"expires_in": "350d"})["token"]
    headers = {"Authorization": f"Bearer {lasting}"}
    world.clock.advance(90 * DAY_US)
    assert world.get("/v1/review", "", headers=headers)["items"][0]["flags"] == []
    world.clock.advance(DAY_US + MINUTE_US)
    (item,) = world.get("/v1/review", "", headers=headers)["items"]
    assert [flag["code"] for flag in item["flags"]] == ["credential_old", "credential_unused"]
    assert all(flag["credential_id"] == key for flag in item["flags"])
    assert (item["credentials"][0]["age_days"], item["credentials"][0]["unused_days"]) == (91, 91)


def test_review__ended_keys_and_a_suspension(world: AdminApi) -> None:
    """What works no more, and since when."""
    world.create(credential_expires_at="2025-11-25T00:00:00Z")
    world.clock.advance(DAY_US)
    assert {"credential_expired", "no_live_credential"} <= flags(world)
    world.change("/v1/integrations/acme/suspend", {"reason": "x"})
    item = reviewed(world)
    assert item["suspended_since"] == "2025-11-25T16:00:00.000000Z"
    assert {"suspended", "credential_invalidated", "no_live_credential"} <= {
        flag["code"] for flag in item["flags"]
    }

"""The quarterly review: each flag, and when it is raised."""

from __future__ import annotations

from typing import Any

from sidecar.domain.cidr import parse_address
from sidecar.stores.registry.protocol import CredentialUse
from tests.administration import DAY_US, MINUTE_US
from tests.unit.services.admin.admin_api import AdminApi


def flags(api: AdminApi, integration_id: str = "acme") -> set[str]:
    """The codes of the flags of one integration."""
    return {flag["code"] for flag in reviewed(api, integration_id)["flags"]}


def reviewed(api: AdminApi, integration_id: str = "acme") -> Any:
    """What the review shows of one integration."""
    (item,) = api.get(f"/v1/review?search={integration_id}", "audrey")["items"]
    return item


def use(api: AdminApi, credential_id: str) -> None:
    """A request with this credential, now."""
    seen = CredentialUse(credential_id, "acme", parse_address("192.0.2.9"), api.clock.now_us)
    api.run(api.registry.record_uses([seen]))


def test_review__a_tidy_integration_has_no_flag(api: AdminApi) -> None:
    """Allowlist on, a key that is young, used and will end, scopes of everyday data."""
    key = api.create(credential_expires_at="2026-01-01T00:00:00Z")["credential_id"]
    use(api, key)
    item = reviewed(api)
    assert item["flags"] == []
    assert item["scopes"] == [
        {"scope": "inventory:read", "sensitivity": "operational", "last_used_at": None},
        {"scope": "inventory:write", "sensitivity": "operational", "last_used_at": None},
    ]
    (credential,) = item["credentials"]
    assert (credential["age_days"], credential["unused_days"], credential["state"]) == (0, 0, "active")
    assert credential["last_used_address"] == "192.0.2.9"
    assert (item["is_allowlist_enabled"], item["suspended_since"]) == (True, None)


def test_review__what_needs_a_decision_is_flagged(api: AdminApi) -> None:
    """Sensitive data, open to every address, with a key that never expires and that nobody uses."""
    api.create(scopes=["crm:read", "finance:write", "orders:read"])
    api.change("/v1/integrations/acme/allowlist/disable")
    assert flags(api) == {
        "allowlist_off",
        "sensitive_scope",
        "credential_never_expires",
        "credential_never_used",
    }
    messages = [flag["message"] for flag in reviewed(api)["flags"] if flag["code"] == "sensitive_scope"]
    assert [text.split(":")[0] for text in messages] == ["crm", "finance"]


def test_review__age_counts_from_day_ninety_one(api: AdminApi) -> None:
    """A key older than ninety days, and one not used for as long."""
    key = api.create(credential_expires_at="2026-12-01T00:00:00Z")["credential_id"]
    use(api, key)
    lasting = api.change("/v1/administrators/audrey/tokens", {"expires_in": "350d"})["token"]
    headers = {"Authorization": f"Bearer {lasting}"}
    api.clock.advance(us=90 * DAY_US)
    assert api.get("/v1/review", "", headers=headers)["items"][0]["flags"] == []
    api.clock.advance(us=DAY_US + MINUTE_US)
    (item,) = api.get("/v1/review", "", headers=headers)["items"]
    assert [flag["code"] for flag in item["flags"]] == ["credential_old", "credential_unused"]
    assert all(flag["credential_id"] == key for flag in item["flags"])
    assert (item["credentials"][0]["age_days"], item["credentials"][0]["unused_days"]) == (91, 91)


def test_review__ended_keys_and_a_suspension(api: AdminApi) -> None:
    """What works no more, and since when."""
    api.create(credential_expires_at="2025-11-25T00:00:00Z")
    api.clock.advance(us=DAY_US)
    assert {"credential_expired", "no_live_credential"} <= flags(api)
    api.change("/v1/integrations/acme/suspend", {"reason": "x"})
    item = reviewed(api)
    assert item["suspended_since"] == "2025-11-25T16:00:00.000000Z"
    assert {"suspended", "credential_invalidated", "no_live_credential"} <= {
        flag["code"] for flag in item["flags"]
    }

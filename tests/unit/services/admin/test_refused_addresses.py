"""The callers that an allowlist refused, by REST: from the decision log, with the entries that admit them."""

from __future__ import annotations

import pytest

from sidecar.services.admin import refused_addresses
from tests.decision_log import decision_row, write_segment
from tests.unit.services.admin.admin_api import AdminApi

PATH = "/v1/integrations/acme/refused-addresses"


@pytest.fixture
def logged(api: AdminApi) -> AdminApi:
    """An integration with an allowlist, and four refusals, one of them in shadow."""
    api.create(allowlist=["192.0.2.0/24"])
    api.change("/v1/integrations/acme/allowlist/enable", {})
    refused = {"verdict": "DENY_403", "reason": "ip_not_allowed"}
    rows = [
        decision_row(1, "1", client_address="198.51.100.7", **refused),
        decision_row(2, "2", client_address="198.51.100.7", **refused),
        decision_row(3, "3", client_address="2001:db8::1", would_deny="ip_not_allowed"),
        decision_row(4, "4", client_address="", **refused),
        decision_row(5, "5", client_address="192.0.2.7", **refused),
        decision_row(6, "6", client_address="203.0.113.1"),
        decision_row(7, "7", client_address="203.0.113.1", integration="bolt", **refused),
    ]
    write_segment(api.context.require_decision_log().reader.folder / "a", 1, rows)
    return api


def test_refused_addresses__with_entries_that_admit(logged: AdminApi) -> None:
    """Latest first, with counts, the entries of address and network, and whether it is admitted now."""
    answer = logged.get(f"{PATH}?since=2025-11-24T16:00:00Z", "olli")
    names = ("address", "entry", "network", "is_admitted_now", "refusals", "shadow_refusals")
    assert [tuple(item[name] for name in names) for item in answer["items"]] == [
        ("192.0.2.7", "192.0.2.7/32", "192.0.2.0/24", True, 1, 0),
        (None, None, None, False, 1, 0),
        ("2001:db8::1", "2001:db8::1/128", "2001:db8::/64", False, 0, 1),
        ("198.51.100.7", "198.51.100.7/32", "198.51.100.0/24", False, 2, 0),
    ]
    latest = answer["items"][-1]
    assert (latest["first_refused_at"], latest["refused_at"]) == (
        "2025-11-24T16:00:01.000000Z",
        "2025-11-24T16:00:02.000000Z",
    )
    assert answer["is_whole"]


def test_refused_addresses__are_bounded(logged: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest callers, and a word that there are more; by default of the last 30 days."""
    monkeypatch.setattr(refused_addresses, "ADDRESSES_MAX", 2)
    logged.clock.advance(seconds=60)
    answer = logged.get(PATH)
    assert ([item["address"] for item in answer["items"]], answer["is_whole"]) == (["192.0.2.7", None], False)
    logged.clock.advance(seconds=31 * 24 * 3_600)
    assert logged.get(PATH)["items"] == []

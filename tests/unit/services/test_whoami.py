"""What an integration is told about itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.integrations import Status
from sidecar.services.forward_auth import ForwardAuthService
from sidecar.services.whoami import QUOTA, WhoAmI
from sidecar.stores.protocols import StoreFault
from tests.building import NOW_US, FixedStore, RecordingStore, make_decider, make_integration, make_key
from tests.unit.services.test_forward_auth import PROXY, TRUSTED, ProxiedRequest

STRANGER = ("192.0.2.7", 5)


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


def make_service(key: NewApiKey, record: dict[str, Any] | None = None, **parts: Any) -> ForwardAuthService:
    """The listener's service over 'acme', with /whoami."""
    decider = make_decider(make_integration(key, **(record or {})), **parts)
    service = ForwardAuthService(decider, AnswerStyle(), TRUSTED, lambda: True)
    service.pages[b"/whoami"] = WhoAmI(decider, AnswerStyle(), service.caller_of).serve
    return service


def ask(
    service: ForwardAuthService, api_key: str, peer: tuple[str, int] = STRANGER, **headers: str
) -> ProxiedRequest:
    """Ask who *api_key* is."""
    fields = {"x-api-key": api_key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = tuple((name.encode(), value.encode()) for name, value in fields.items())
    asked = ProxiedRequest(b"/whoami", pairs, peer=peer)
    service.serve(asked)
    return asked


def test_whoami__shows_what_the_integration_may_do(key: NewApiKey) -> None:
    """Scopes, limit, remaining requests, address and expiry; asking takes nothing."""
    record = {"burst": 5, "allowlist": ("192.0.2.0/24",), "expires_at_us": NOW_US + 1_000_000}
    service = make_service(key, record)
    for _ in range(3):
        asked = ask(service, key.api_key)
        assert asked.status == 200
    shown = json.loads(asked.body)
    assert shown["integration"] == {"id": "acme", "name": "Acme GmbH", "status": "active"}
    assert shown["credential"]["id"] == key.credential_id
    assert shown["credential"]["expires_at"].endswith("Z")
    assert shown["scopes"] == ["orders:read"]
    expected = {"limit_rpm": 60, "burst": 5, "remaining": 5}
    assert expected.items() <= shown["rate_limit"].items()
    address = {"address": "192.0.2.7", "is_allowlist_enabled": True, "is_allowed": True}
    assert shown["client_address"] == address
    assert key.api_key not in asked.body.decode()


def test_whoami__only_a_trusted_proxy_states_the_address(key: NewApiKey) -> None:
    """A caller that asks directly cannot claim another address."""
    service = make_service(key, {"allowlist": ("198.51.100.0/24",)})
    for peer, is_allowed in ((PROXY, True), (STRANGER, False)):
        shown = json.loads(ask(service, key.api_key, peer, x_forwarded_for="198.51.100.9").body)
        assert shown["client_address"]["is_allowed"] is is_allowed


def test_whoami__a_suspended_integration_sees_its_status(key: NewApiKey) -> None:
    """It may still ask, so that its developer learns why every call is refused."""
    shown = json.loads(ask(make_service(key, {"status": Status.SUSPENDED}), key.api_key).body)
    assert shown["integration"]["status"] == "suspended"
    assert shown["client_address"]["is_allowed"] is None


def test_whoami__an_unknown_key_is_refused_as_by_the_api(key: NewApiKey) -> None:
    """With the same reason."""
    service = make_service(key)
    for api_key in ("", "sck_wrong", make_key().api_key):
        asked = ask(service, api_key)
        assert asked.status == 403
        assert json.loads(asked.body)["reason"] == ("unknown_credential" if api_key else "missing_credential")


def test_whoami__has_a_limit_of_its_own(key: NewApiKey) -> None:
    """So it is no way to load the store."""
    service = make_service(key)
    statuses = [ask(service, key.api_key).status for _ in range(QUOTA.burst + 1)]
    assert statuses == [200] * QUOTA.burst + [429]
    assert ask(service, key.api_key).fields["retry-after"] == "1"


def test_whoami__waits_for_the_shared_store(key: NewApiKey) -> None:
    """It peeks; without an answer of the store the figures are null."""
    store = RecordingStore()
    asked = ask(make_service(key, store=store), key.api_key)
    assert asked.encoded == []
    assert store.pending[0].asked == 0
    store.answer(Taken(0, 7, 0, NOW_US))
    assert json.loads(asked.body)["rate_limit"]["remaining"] == 7
    asked = ask(make_service(key, store=FixedStore(StoreFault.UNAVAILABLE)), key.api_key)
    assert json.loads(asked.body)["rate_limit"]["remaining"] is None

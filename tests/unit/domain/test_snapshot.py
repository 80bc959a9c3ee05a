"""The registry compiled for decisions."""

from __future__ import annotations

import pytest

from sidecar.domain.bucket import Quota
from sidecar.domain.cidr import parse_address
from sidecar.domain.integrations import Credential, IntegrationError, Status
from sidecar.domain.snapshot import Snapshot
from tests.building import make_integration, make_key

DIGEST = "sha256:" + 64 * "0"


def test_compile__indexes_integrations_and_credentials() -> None:
    """Both are found by id, and a credential leads to its integration."""
    key = make_key()
    snapshot = Snapshot.compile([make_integration(key, expires_at_us=7), make_integration(id="other")])
    assert set(snapshot.integrations) == {"acme", "other"}
    credential = snapshot.credentials[key.credential_id]
    assert credential.integration is snapshot.integrations["acme"]
    assert (credential.id, credential.expires_at_us) == (key.credential_id, 7)
    assert credential.digest.hex() == key.digest.removeprefix("sha256:")


def test_compile__what_decisions_need_is_worked_out_once() -> None:
    """Bucket, allowlist, scopes and status are ready; nothing of them is parsed per request."""
    record = make_integration(
        scopes=["orders:read"],
        allowlist=["10.0.0.0/8"],
        rate_limit_rpm=600,
        burst=7,
        generation=4,
        status=Status.SUSPENDED,
    )
    compiled = Snapshot.compile([record]).integrations["acme"]
    assert (compiled.buckets.owner, compiled.buckets.generation, compiled.buckets.keys) == (
        "acme",
        4,
        ("acme",),
    )
    assert compiled.buckets.quotas == (Quota(100_000, 7),)
    assert compiled.allowlist is not None
    assert compiled.allowlist.contains(parse_address("10.1.2.3"))
    assert not compiled.allowlist.contains(parse_address("11.1.2.3"))
    assert compiled.is_suspended
    assert (compiled.limit_rpm, compiled.scopes, compiled.name) == (600, record.scopes, "Acme GmbH")


def test_compile__no_allowlist_is_none_rather_than_an_empty_one() -> None:
    """An empty allowlist means off; an empty set of addresses would refuse everybody."""
    assert Snapshot.compile([make_integration()]).integrations["acme"].allowlist is None


def test_compile__takes_over_what_has_not_changed() -> None:
    """An equal record keeps its compiled form and what was rendered for it; a changed one does not."""
    first = Snapshot.compile([make_integration(id="same"), make_integration(id="changed")])
    second = Snapshot.compile(
        [make_integration(id="same"), make_integration(id="changed", rate_limit_rpm=61)], previous=first
    )
    assert second.integrations["same"] is first.integrations["same"]
    assert second.integrations["changed"] is not first.integrations["changed"]
    assert second.integrations["changed"].limit_rpm == 61


def test_compile__a_removed_integration_and_its_keys_are_gone() -> None:
    """Nothing of the previous snapshot survives but what is still in the records."""
    key = make_key()
    first = Snapshot.compile([make_integration(key)])
    second = Snapshot.compile([make_integration(id="other")], previous=first)
    assert set(second.integrations) == {"other"}
    assert not second.credentials


def test_compile__credentials_lead_to_the_integration_in_force() -> None:
    """A credential of an unchanged record leads to the very object that the new snapshot holds."""
    key = make_key()
    first = Snapshot.compile([make_integration(key)])
    second = Snapshot.compile([make_integration(key)], previous=first)
    assert second.credentials[key.credential_id].integration is second.integrations["acme"]


def test_compile__an_unchanged_credential_is_taken_over() -> None:
    """Answers rendered for a credential stay of use, so a reload does not leave them behind as garbage."""
    key = make_key()
    first = Snapshot.compile([make_integration(key)])
    second = Snapshot.compile([make_integration(key)], previous=first)
    assert second.credentials[key.credential_id] is first.credentials[key.credential_id]


def test_compile__refuses_two_integrations_of_one_id() -> None:
    """Which of them a bucket belongs to would be unknown."""
    with pytest.raises(IntegrationError, match="two integrations have the id 'acme': rename one"):
        Snapshot.compile([make_integration(), make_integration()])


def test_compile__refuses_a_credential_id_used_twice() -> None:
    """Across integrations and within one: an id must lead to one credential."""
    credential = Credential("k1", DIGEST)
    one = make_integration(id="one", credentials=(credential,))
    with pytest.raises(IntegrationError, match="credential id 'k1' of 'two' is also used by 'one'"):
        Snapshot.compile([one, make_integration(id="two", credentials=(credential,))])
    with pytest.raises(IntegrationError, match="credential id 'k1' of 'three' is also used by 'three'"):
        Snapshot.compile([make_integration(id="three", credentials=(credential, credential))])


def test_empty__knows_nobody() -> None:
    """A sidecar without a registry refuses every key."""
    assert not Snapshot.empty().integrations
    assert not Snapshot.empty().credentials

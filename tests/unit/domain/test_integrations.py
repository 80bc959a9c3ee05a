"""The rules that a single record keeps."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.domain.bucket import Quota, QuotaError
from sidecar.domain.cidr import parse_cidr
from sidecar.domain.integrations import (
    ALLOWLIST_ENTRIES_MAX,
    CREDENTIALS_MAX,
    Credential,
    Integration,
    IntegrationError,
    Status,
)

DIGEST = "sha256:" + 64 * "0"


def record(**fields: Any) -> Integration:
    """An integration with these fields."""
    return Integration(**{"id": "acme", "name": "Acme", **fields})


def test_integration__defaults_are_least_privilege() -> None:
    """Nothing but an id and a name: active, but without scopes or credentials, and 60 a minute."""
    plain = record()
    assert plain.status is Status.ACTIVE
    assert plain.scopes == frozenset()
    assert plain.credentials == ()
    assert plain.ip_allowlist == ()
    assert plain.quota == Quota.per_minute(60, 60)


@pytest.mark.parametrize("integration_id", ["a", "0", "acme.eu_1-x", "a" * 64])
def test_integration__good_ids(integration_id: str) -> None:
    """Ids are short lower-case words that need no escape in a header, a label or a store key."""
    assert record(id=integration_id).id == integration_id


@pytest.mark.parametrize(
    "integration_id", ["", "A", "-a", ".a", "a b", "a{b}", "a\n", "ä", "a:b", "a" * 65, "a/b"]
)
def test_integration__refuses_a_bad_id(integration_id: str) -> None:
    """The error quotes the id and says what ids are made of."""
    with pytest.raises(IntegrationError, match="must be 1-64 of a-z, 0-9") as refused:
        record(id=integration_id)
    assert repr(integration_id) in str(refused.value)


@pytest.mark.parametrize("name", ["A", "Acme GmbH", "Café 北京 100%", "x" * 128])
def test_integration__good_names(name: str) -> None:
    """A name is for people: any language."""
    assert record(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a\r\nx-admin: 1", "a\x00", "a\u2028b", "a\u202eb", "\ud800"]
)
def test_integration__refuses_a_bad_name(name: str) -> None:
    """Controls, line separators and direction overrides have no place in logs and headers."""
    with pytest.raises(IntegrationError, match="name of 'acme' must be 1-128 printable characters"):
        record(name=name)


def test_integration__bounds_its_allowlist() -> None:
    """Fifty entries fit; one more is refused with the remedy."""
    entries = tuple(parse_cidr(f"10.0.{number}.0/24") for number in range(ALLOWLIST_ENTRIES_MAX + 1))
    assert len(record(ip_allowlist=entries[1:]).ip_allowlist) == 50
    with pytest.raises(IntegrationError, match=r"'acme' has 51 entries; at most 50 .* merge"):
        record(ip_allowlist=entries)


def test_integration__bounds_its_credentials() -> None:
    """Twenty credentials fit; one more is refused with the remedy."""
    credentials = tuple(Credential(f"key{number}", DIGEST) for number in range(CREDENTIALS_MAX + 1))
    assert len(record(credentials=credentials[1:]).credentials) == 20
    with pytest.raises(IntegrationError, match="'acme' has 21 credentials; at most 20: revoke old ones"):
        record(credentials=credentials)


@pytest.mark.parametrize("fields", [{"rate_limit_rpm": 0}, {"rate_limit_rpm": 10_001}, {"burst": 0}])
def test_integration__refuses_an_impossible_quota(fields: dict[str, int]) -> None:
    """A record never holds a limit that the bucket could not keep."""
    with pytest.raises(QuotaError):
        record(**fields)


def test_integration__burst_stands_apart_from_the_limit() -> None:
    """An explicit burst may be smaller or larger than the limit."""
    assert record(rate_limit_rpm=600, burst=5).quota == Quota(100_000, 5)


@pytest.mark.parametrize("credential_id", ["a", "q2R8mW0bTz", "A-1", "x" * 32])
def test_credential__good_ids(credential_id: str) -> None:
    """Ids are what can be in a key between its underscores."""
    assert Credential(credential_id, DIGEST).id == credential_id


@pytest.mark.parametrize("credential_id", ["", "a_b", "a b", "é", "x" * 33, "a\n"])
def test_credential__refuses_a_bad_id(credential_id: str) -> None:
    """An id that no key could carry would never be found."""
    with pytest.raises(IntegrationError, match="must be 1-32 of 0-9, A-Z, a-z and '-'"):
        Credential(credential_id, DIGEST)


@pytest.mark.parametrize(
    "digest", ["", 64 * "0", "sha256:" + 63 * "0", "sha256:" + 64 * "A", "md5:" + 32 * "0", DIGEST + "\n"]
)
def test_credential__refuses_a_bad_digest(digest: str) -> None:
    """The error names the credential and the command that prints a digest, and never quotes the value."""
    with pytest.raises(IntegrationError, match=r"digest of credential 'k1' .* 'sidecar keys new'") as refused:
        Credential("k1", digest)
    assert digest == "" or digest not in str(refused.value)

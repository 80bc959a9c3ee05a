"""
Converts records of integrations to their stored form and their public form, and compares two records.

The stored form is complete and contains digests; the public form has no digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.domain.canonical import Json, canonical_json, sha256_hex
from sidecar.domain.cidr import parse_cidr
from sidecar.domain.effective import is_invalidated
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import (
    Credential,
    Integration,
    LimitRaise,
    Status,
    Suspension,
    WebhookSecret,
)
from sidecar.domain.scopes import Scope


def to_stored(record: Integration) -> dict[str, Json]:
    """
    Return the stored form of *record*; `from_stored` converts it back to an equal value.

    `on_store_error` and `single_person_at_us` are omitted if unset, so that older records keep their text,
    and thereby the digest in the audit log.
    """
    policy = record.on_store_error
    return {
        **_shared(record),
        **({} if policy is None else {"on_store_error": policy.value}),
        **({"single_person_at_us": record.single_person_at_us} if record.single_person_at_us else {}),
        "generation": record.generation,
        "credentials": [
            {
                "id": credential.id,
                "digest": credential.digest,
                "expires_at_us": credential.expires_at_us,
                "issued_at_us": credential.issued_at_us,
                "issued_generation": credential.issued_generation,
                "replaced_by": credential.replaced_by,
            }
            for credential in record.credentials
        ],
        "webhook_secrets": [
            {
                "id": webhook_secret.id,
                "issued_at_us": webhook_secret.issued_at_us,
                "expires_at_us": webhook_secret.expires_at_us,
            }
            for webhook_secret in record.webhook_secrets
        ],
        "changed_at_us": record.changed_at_us,
    }


def from_stored(stored: Mapping[str, Any]) -> Integration:
    """
    Convert the result of `to_stored` back; scopes of categories that are no longer configured are kept.

    Raises:
        KeyError: a field is missing.
        ValueError: a value violates a rule of the record.
    """
    limit_raise = stored["limit_raise"]
    policy = stored.get("on_store_error")
    return Integration(
        id=stored["id"],
        name=stored["name"],
        status=Status(stored["status"]),
        scopes=frozenset(_scope(text) for text in stored["scopes"]),
        rate_limit_rpm=stored["rate_limit_rpm"],
        burst=stored["burst"],
        ip_allowlist=tuple(parse_cidr(text) for text in stored["ip_allowlist"]),
        credentials=tuple(Credential(**credential) for credential in stored["credentials"]),
        generation=stored["generation"],
        contact=stored["contact"],
        owner=stored["owner"],
        third_party_manager=stored["third_party_manager"],
        is_allowlist_enabled=stored["is_allowlist_enabled"],
        limit_raise=LimitRaise(**limit_raise) if limit_raise is not None else None,
        suspensions=tuple(Suspension(**suspension) for suspension in stored["suspensions"]),
        suspended_generation=stored["suspended_generation"],
        webhook_secrets=tuple(
            WebhookSecret(**webhook_secret) for webhook_secret in stored["webhook_secrets"]
        ),
        created_at_us=stored["created_at_us"],
        changed_at_us=stored["changed_at_us"],
        on_store_error=FailPolicy(policy) if policy is not None else None,
        single_person_at_us=stored.get("single_person_at_us", 0),
    )


def stored_text(record: Integration) -> str:
    """Return the stored form as canonical JSON: equal records have equal texts."""
    return canonical_json(to_stored(record))


def record_digest(stored: str) -> str:
    """Return the digest by which the audit log detects a change of the stored record without an entry."""
    return sha256_hex("sidecar record\n" + stored)


def describe(record: Integration) -> dict[str, Json]:
    """Return the public form of *record*, for administrators and the audit log: no secrets, no digests."""
    return {
        **_shared(record),
        "on_store_error": record.on_store_error.value if record.on_store_error is not None else None,
        "single_person": record.single_person_at_us > 0,
        "credentials": {
            credential.id: _describe_credential(record, credential) for credential in record.credentials
        },
        "webhook_secrets": {
            webhook_secret.id: {"expires_at_us": webhook_secret.expires_at_us}
            for webhook_secret in record.webhook_secrets
        },
    }


def difference(
    before: Integration | None, after: Integration | None
) -> tuple[dict[str, Json], dict[str, Json]]:
    """
    Return the fields of two records that differ in their public form, before and after; None = no record.

    Equal fields are omitted, and so are equal members of credentials and secrets; a member on only one side
    was added or removed.
    """
    old = describe(before) if before is not None else {}
    new = describe(after) if after is not None else {}
    return changed_fields(old, new)


def changed_fields(
    old: Mapping[str, Json], new: Mapping[str, Json]
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return the fields of *old* and of *new* that differ; mappings are compared member by member."""
    before: dict[str, Json] = {}
    after: dict[str, Json] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        old_value, new_value = old.get(name), new.get(name)
        if name in old and name in new and old_value == new_value:
            continue
        if isinstance(old_value, Mapping) and isinstance(new_value, Mapping):
            old_value, new_value = changed_fields(old_value, new_value)
        if name in old:
            before[name] = old_value
        if name in new:
            after[name] = new_value
    return before, after


def _shared(record: Integration) -> dict[str, Json]:
    """Return the fields that both forms share."""
    return {
        "id": record.id,
        "name": record.name,
        "status": record.status.value,
        "contact": record.contact,
        "owner": record.owner,
        "third_party_manager": record.third_party_manager,
        "scopes": [str(scope) for scope in sorted(record.scopes)],
        "rate_limit_rpm": record.rate_limit_rpm,
        "burst": record.burst,
        "limit_raise": _limit_raise(record.limit_raise),
        "ip_allowlist": [str(entry) for entry in record.ip_allowlist],
        "is_allowlist_enabled": record.is_allowlist_enabled,
        "suspensions": [
            {
                "by": suspension.by,
                "at_us": suspension.at_us,
                "reason": suspension.reason,
                "generation": suspension.generation,
                "since_us": suspension.since_us,
            }
            for suspension in record.suspensions
        ],
        "suspended_generation": record.suspended_generation,
        "created_at_us": record.created_at_us,
    }


def _limit_raise(limit_raise: LimitRaise | None) -> Json:
    if limit_raise is None:
        return None
    return {
        "rate_limit_rpm": limit_raise.rate_limit_rpm,
        "burst": limit_raise.burst,
        "until_us": limit_raise.until_us,
    }


def _describe_credential(record: Integration, credential: Credential) -> dict[str, Json]:
    return {
        "issued_at_us": credential.issued_at_us,
        "expires_at_us": credential.expires_at_us,
        "replaced_by": credential.replaced_by,
        "is_invalidated": is_invalidated(record, credential),
    }


def _scope(text: str) -> Scope:
    category, _, access = text.partition(":")
    return Scope(category, access)

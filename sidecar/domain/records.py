"""
Records of integrations as plain values: as stores keep them, as administrators see them, and what differs.

The stored form is whole and holds digests; the public form never does.
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
    Everything in *record*; `from_stored` reads it back as an equal value.

    `on_store_error` and `single_person_at_us` are left out where they are not set, so that records from
    before there were such keep their text, and with it the digest that the audit log has of them.
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
    Read what `to_stored` wrote; scopes of categories that are no longer configured are kept.

    Raises:
        KeyError: a field is missing.
        ValueError: a value breaks a rule of the record.
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
    """The stored form as canonical JSON: equal records, equal text."""
    return canonical_json(to_stored(record))


def record_digest(stored: str) -> str:
    """What the audit log keeps of a stored record, to prove later that nobody changed it beside the log."""
    return sha256_hex("sidecar record\n" + stored)


def describe(record: Integration) -> dict[str, Json]:
    """*record* as administrators and the audit log see it: no secret, no digest; credentials by id."""
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
    What differs between two records in their public form, before and after.

    Fields that are equal are left out, and so are equal members of credentials and secrets; a member that
    stands on one side only was added or removed. None = no record.
    """
    old = describe(before) if before is not None else {}
    new = describe(after) if after is not None else {}
    return changed_fields(old, new)


def changed_fields(
    old: Mapping[str, Json], new: Mapping[str, Json]
) -> tuple[dict[str, Json], dict[str, Json]]:
    """The fields of *old* and of *new* that differ; mappings are compared member by member."""
    before: dict[str, Json] = {}
    after: dict[str, Json] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        one, other = old.get(name), new.get(name)
        if name in old and name in new and one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            one, other = changed_fields(one, other)
        if name in old:
            before[name] = one
        if name in new:
            after[name] = other
    return before, after


def _shared(record: Integration) -> dict[str, Json]:
    """The fields that look the same in both forms."""
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

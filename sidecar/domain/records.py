"""
Converts records of integrations to their stored form and their public form, and compares two records.

The stored form is complete and contains digests; the public form has no digests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from sidecar.domain.canonical import Json, canonical_json, sha256_hex
from sidecar.domain.cidr import parse_cidr
from sidecar.domain.effective import is_invalidated
from sidecar.domain.enforcement import Rule, rule_names
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import (
    DETAILS,
    Credential,
    Integration,
    LimitRaise,
    Status,
    Suspension,
    WebhookSecret,
)
from sidecar.domain.scopes import Scope

Part = TypeVar("Part", Credential, LimitRaise, Suspension, WebhookSecret)


class RecordField(NamedTuple):
    """
    A field of a record: `write` converts its value to JSON, and `read` converts it back; None = as it is.

    `is_optional` = omitted from the stored form while it has its default, so that records from before the
    field keep their text, and thereby their digest in the audit log. `is_public` = in the public form.
    """

    name: str
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None
    is_optional: bool = False
    is_public: bool = True


def _scope(text: str) -> Scope:
    """Parse a scope; its category may no longer be configured."""
    category, _, access = text.partition(":")
    return Scope(category, access)


def _part_field(name: str, part: type[Part], is_public: bool = True) -> RecordField:
    """Return the field that holds a tuple of *part*."""
    return RecordField(
        name,
        lambda values: [_plain(value) for value in values],
        lambda values: tuple(part(**value) for value in values),
        is_public=is_public,
    )


def _plain(value: Part) -> dict[str, Json]:
    return {name: getattr(value, name) for name in value.__slots__}


RECORD_FIELDS = (
    RecordField("id"),
    RecordField("name"),
    RecordField("status", lambda status: status.value, Status),
    *map(RecordField, DETAILS),
    RecordField(
        "scopes",
        lambda scopes: [str(scope) for scope in sorted(scopes)],
        lambda texts: frozenset(map(_scope, texts)),
    ),
    RecordField("rate_limit_rpm"),
    RecordField("burst"),
    RecordField("on_store_error", lambda policy: policy and policy.value, FailPolicy, is_optional=True),
    RecordField("shadow", rule_names, lambda names: frozenset(map(Rule, names)), is_optional=True),
    RecordField("limit_raise", lambda part: part and _plain(part), lambda part: part and LimitRaise(**part)),
    RecordField(
        "ip_allowlist", lambda entries: list(map(str, entries)), lambda texts: tuple(map(parse_cidr, texts))
    ),
    RecordField("is_allowlist_enabled"),
    _part_field("suspensions", Suspension),
    RecordField("suspended_generation"),
    RecordField("created_at_us"),
    RecordField("single_person_at_us", is_optional=True, is_public=False),
    RecordField("generation", is_public=False),
    _part_field("credentials", Credential, is_public=False),
    _part_field("webhook_secrets", WebhookSecret, is_public=False),
    RecordField("changed_at_us", is_public=False),
)
"""Every field of `Integration`; the stored, public and declared forms are derived from this table."""

_NAMES = tuple(field.name for field in RECORD_FIELDS)
_PUBLIC = tuple(field.name for field in RECORD_FIELDS if field.is_public)
_REQUIRED = tuple(field.name for field in RECORD_FIELDS if not field.is_optional)
_OPTIONAL = tuple(field.name for field in RECORD_FIELDS if field.is_optional)
_WRITERS = {field.name: field.write for field in RECORD_FIELDS if field.write is not None}
_READERS = {field.name: field.read for field in RECORD_FIELDS if field.read is not None}
_DEFAULTS = {field.name: field.default for field in fields(Integration)}


def written(record: Integration, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields *names* of *record* as JSON."""
    values = {name: getattr(record, name) for name in names}
    for name in values.keys() & _WRITERS.keys():
        values[name] = _WRITERS[name](values[name])
    return values


def has_default(record: Integration, name: str) -> bool:
    """Return whether the field *name* of *record* has its default."""
    return bool(getattr(record, name) == _DEFAULTS[name])


def to_stored(record: Integration) -> dict[str, Json]:
    """Return the stored form of *record*; `from_stored` converts it back to an equal value."""
    values = written(record, _NAMES)
    for name in _OPTIONAL:
        if has_default(record, name):
            del values[name]
    return values


def from_stored(stored: Mapping[str, Any]) -> Integration:
    """
    Convert the result of `to_stored` back; scopes of categories that are no longer configured are kept.

    Raises:
        KeyError: a field is missing.
        ValueError: a value violates a rule of the record.
    """
    values = {name: stored[name] for name in _REQUIRED}
    values.update((name, stored[name]) for name in _OPTIONAL if name in stored)
    for name in values.keys() & _READERS.keys():
        values[name] = _READERS[name](values[name])
    return Integration(**values)


def stored_text(record: Integration) -> str:
    """Return the stored form as canonical JSON: equal records have equal texts."""
    return canonical_json(to_stored(record))


def record_digest(stored: str) -> str:
    """Return the digest by which the audit log detects a change of the stored record without an entry."""
    return sha256_hex("sidecar record\n" + stored)


def describe(record: Integration) -> dict[str, Json]:
    """Return the public form of *record*, for administrators and the audit log: no secrets, no digests."""
    return {
        **written(record, _PUBLIC),
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


def _describe_credential(record: Integration, credential: Credential) -> dict[str, Json]:
    return {
        "issued_at_us": credential.issued_at_us,
        "expires_at_us": credential.expires_at_us,
        "replaced_by": credential.replaced_by,
        "is_invalidated": is_invalidated(record, credential),
    }

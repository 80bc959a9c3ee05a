"""
Converts records to answers of the API: times in RFC 3339, no secrets, no digests.

The types are the schemas of the answers in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, cast

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from sidecar.domain.accounts import Administrator, AdminToken
from sidecar.domain.cidr import block_of, format_address
from sidecar.domain.effective import is_invalidated, is_live, raise_in_force
from sidecar.domain.integrations import Credential, Integration
from sidecar.domain.lifecycle.outcome import Notice
from sidecar.domain.records import written
from sidecar.domain.scopes import ScopeCategory
from sidecar.services.admin.problems import api_name
from sidecar.services.admin.times import format_optional_time, format_time
from sidecar.stores.registry.protocol import LastUse, RefusedCaller, Registry, TokenUse

RoleWord = Literal["admin", "auditor", "operator"]
PolicyWord = Literal["deny", "allow", "local"]
RuleWord = Literal["allowlist", "scopes", "limit"]
CredentialState = Literal["active", "overlapping", "expired", "invalidated"]


class CredentialView(TypedDict):
    """An API key of an integration; the last use is only set where it was looked up."""

    id: str
    state: CredentialState
    issued_at: str | None
    expires_at: str | None
    replaced_by: str | None
    last_used_at: NotRequired[str | None]
    last_used_address: NotRequired[str | None]


class RefusedCallerView(TypedDict):
    """
    A caller with a valid API key that the allowlist refused.

    `address` null = the sidecar could not determine it: see the setting `client_ip`. `entry` is the allowlist
    entry that admits exactly this address, and `network` the one that admits its network, /24 or /64;
    `is_admitted_now` true = the allowlist now admits it.
    """

    address: str | None
    credential_id: str
    refused_at: str
    entry: str | None
    network: str | None
    is_admitted_now: bool


class WebhookSecretView(TypedDict):
    """A webhook signing secret, without the secret."""

    id: str
    issued_at: str | None
    expires_at: str | None


class LimitRaiseView(TypedDict):
    """A temporary raise of the limit that is in force."""

    rate_limit_rpm: int
    burst: int | None
    until: str


class SuspensionView(TypedDict):
    """Who suspended the integration, with the latest time and the first since the last reactivation."""

    by: str
    at: str
    since: str
    reason: str


class RecordView(TypedDict):
    """The fields of an integration that its view and its review share."""

    id: str
    name: str
    status: Literal["active", "suspended"]
    contact: str
    owner: str
    third_party_manager: str
    rate_limit_rpm: int
    limit_raise: LimitRaiseView | None
    ip_allowlist: list[str]
    is_allowlist_enabled: bool
    shadow: list[RuleWord]


class IntegrationView(RecordView):
    """
    One integration.

    `single_person_at` is when it was reactivated, if the suspender and the reactivating administrator may be
    one person; else null.
    """

    scopes: list[str]
    burst: int | None
    effective_limit_rpm: int
    on_store_error: PolicyWord | None
    refused_callers: NotRequired[list[RefusedCallerView]]
    credentials: list[CredentialView]
    webhook_secrets: list[WebhookSecretView]
    suspensions: list[SuspensionView]
    single_person_at: str | None
    generation: int
    created_at: str | None
    changed_at: str | None


class DurabilityView(TypedDict):
    """
    Whether the loss of a server can undo a change.

    `is_durable` false = it is on one server of the store alone, and lost with that one. `lacks_replicas` true
    = the store has replicas, or should have, and too few of them have the change: repeat it later.
    """

    is_durable: bool
    lacks_replicas: bool


def durability_view(registry: Registry, is_durable: bool) -> DurabilityView:
    """Return whether changes of *registry* are durable, by *is_durable* of all of them."""
    return {"is_durable": is_durable, "lacks_replicas": registry.has_replicas and not is_durable}


class NoticeView(TypedDict):
    """A warning about a change that was made."""

    code: str
    field: str
    message: str


class TokenView(TypedDict):
    """An administrator's token, without the token."""

    id: str
    issued_at: str
    expires_at: str
    is_expired: bool
    last_used_at: NotRequired[str | None]
    last_used_from: NotRequired[str | None]


class AdministratorView(TypedDict):
    """
    An administrator's account; removed accounts are kept, because ids are never reused.

    `is_recovered` true = created by 'sidecar admin recover', on the machine that holds the registry.
    """

    id: str
    name: str
    role: RoleWord
    created_at: str
    removed_at: str | None
    is_recovered: bool
    tokens: list[TokenView]


class ScopeCategoryView(TypedDict):
    """A category of scopes with its scopes."""

    name: str
    title: str
    sensitivity: str
    is_read_only: bool
    scopes: list[str]


def record_view(record: Integration, now_us: int) -> RecordView:
    """Return the fields that every view of *record* has."""
    shared = written(record, RecordView.__annotations__)
    return cast(RecordView, {**shared, "limit_raise": limit_raise_view(record, now_us)})


def integration_view(
    record: Integration, now_us: int, uses: Mapping[str, LastUse] | None = None
) -> IntegrationView:
    """Return *record* as of *now_us*, with the last use of its credentials if *uses* is given."""
    limit_raise = raise_in_force(record, now_us)
    return {
        **record_view(record, now_us),  # without refused_callers
        **written(record, ("scopes", "burst", "on_store_error", "generation")),  # type: ignore[typeddict-item]
        "effective_limit_rpm": (limit_raise or record).rate_limit_rpm,
        "credentials": credential_views(record, now_us, uses),
        "webhook_secrets": [
            {
                "id": webhook_secret.id,
                "issued_at": format_optional_time(webhook_secret.issued_at_us),
                "expires_at": format_optional_time(webhook_secret.expires_at_us),
            }
            for webhook_secret in record.webhook_secrets
        ],
        "suspensions": [
            {
                "by": suspension.by,
                "at": format_time(suspension.at_us),
                "since": format_time(suspension.since_us),
                "reason": suspension.reason,
            }
            for suspension in record.suspensions
        ],
        "single_person_at": format_optional_time(record.single_person_at_us),
        "created_at": format_optional_time(record.created_at_us),
        "changed_at": format_optional_time(record.changed_at_us),
    }


def credential_views(
    record: Integration, now_us: int, uses: Mapping[str, LastUse] | None = None
) -> list[CredentialView]:
    """Return the credentials of *record* in the order of issue."""
    return [_credential(record, credential, now_us, uses) for credential in record.credentials]


def credential_state(record: Integration, credential: Credential, now_us: int) -> CredentialState:
    """Return the state of a credential at *now_us*."""
    if is_invalidated(record, credential):
        return "invalidated"
    if not is_live(record, credential, now_us):
        return "expired"
    return "overlapping" if credential.replaced_by else "active"


def notice_view(notice: Notice) -> NoticeView:
    """Return *notice* with the API's name of its field."""
    return {"code": notice.code, "field": api_name(notice.field), "message": notice.message}


def refused_caller_view(record: Integration, caller: RefusedCaller) -> RefusedCallerView:
    """Return a caller that the allowlist of *record* refused."""
    view: RefusedCallerView = {
        "address": None,
        "credential_id": caller.credential_id,
        "refused_at": format_time(caller.at_us),
        "entry": None,
        "network": None,
        "is_admitted_now": not (record.is_allowlist_enabled and record.ip_allowlist),
    }
    if caller.address:
        view["address"] = format_address(caller.address)
        view["entry"] = str(block_of(caller.address, 8 * len(caller.address)))
        view["network"] = str(block_of(caller.address, 24 if len(caller.address) == 4 else 64))
        view["is_admitted_now"] |= any(entry.contains(caller.address) for entry in record.ip_allowlist)
    return view


def administrator_view(
    administrator: Administrator, now_us: int, uses: Mapping[str, TokenUse] | None = None
) -> AdministratorView:
    """Return *administrator* with its tokens, and their last use if *uses* is given."""
    removed_at_us = administrator.removed_at_us
    return {
        "id": administrator.id,
        "name": administrator.name,
        "role": administrator.role.value,
        "created_at": format_time(administrator.created_at_us),
        "removed_at": format_time(removed_at_us) if removed_at_us is not None else None,
        "is_recovered": administrator.is_recovered,
        "tokens": [_token(token, now_us, uses) for token in administrator.tokens],
    }


def _token(token: AdminToken, now_us: int, uses: Mapping[str, TokenUse] | None) -> TokenView:
    view: TokenView = {
        "id": token.id,
        "issued_at": format_time(token.issued_at_us),
        "expires_at": format_time(token.expires_at_us),
        "is_expired": token.expires_at_us <= now_us,
    }
    if uses is not None:
        use = uses.get(token.id)
        view["last_used_at"] = format_time(use.at_us) if use is not None else None
        view["last_used_from"] = use.source if use is not None else None
    return view


def category_view(category: ScopeCategory) -> ScopeCategoryView:
    """Return *category* with its scopes."""
    accesses = ("read",) if category.read_only else ("read", "write")
    return {
        "name": category.name,
        "title": category.title,
        "sensitivity": category.sensitivity.value,
        "is_read_only": category.read_only,
        "scopes": [f"{category.name}:{access}" for access in accesses],
    }


def _credential(
    record: Integration, credential: Credential, now_us: int, uses: Mapping[str, LastUse] | None
) -> CredentialView:
    view: CredentialView = {
        "id": credential.id,
        "state": credential_state(record, credential, now_us),
        "issued_at": format_optional_time(credential.issued_at_us),
        "expires_at": format_optional_time(credential.expires_at_us),
        "replaced_by": credential.replaced_by or None,
    }
    if uses is not None:
        use = uses.get(credential.id)
        view["last_used_at"] = format_time(use.at_us) if use is not None else None
        view["last_used_address"] = format_address(use.address) if use is not None else None
    return view


def limit_raise_view(record: Integration, now_us: int) -> LimitRaiseView | None:
    """Return the temporary raise, if it is in force."""
    limit_raise = raise_in_force(record, now_us)
    if limit_raise is None:
        return None
    return {
        "rate_limit_rpm": limit_raise.rate_limit_rpm,
        "burst": limit_raise.burst,
        "until": format_time(limit_raise.until_us),
    }

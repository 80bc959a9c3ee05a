"""
The commands that administrators can run on integrations.

Their values are unchecked: `machine.Lifecycle.apply` checks them, so that API, command line and files get the
same errors. Fields that end in `_us` are microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sidecar.domain.integrations import DEFAULT_LIMIT_RPM, Details
from sidecar.domain.roles import Action


@dataclass(frozen=True, slots=True)
class NewCredential:
    """The public part of a new API key; the key itself is never passed here."""

    id: str
    digest: str
    expires_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """
    An encrypted webhook signing secret, which is stored beside the record, never in it.

    The store keeps `sealed` as it is; the service that generated the secret encrypts it.
    """

    id: str
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """
    The base of all commands. `reason` is recorded; suspend and reactivate require it.

    `action_name` is the action's name in the audit log and never changes once published.
    """

    action_name: ClassVar[str]
    action: ClassVar[Action]

    integration_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateIntegration(Command, Details):
    """Create an integration. Least privilege: no scopes and no credentials unless they are given."""

    action_name = "integration.create"
    action = Action.CREATE

    name: str
    scopes: tuple[str, ...] = ()
    rate_limit_rpm: int = DEFAULT_LIMIT_RPM
    burst: int | None = None
    allowlist: tuple[str, ...] = ()
    """Entries; if there are any, the allowlist is turned on."""
    credentials: tuple[NewCredential, ...] = ()
    on_store_error: str | None = None
    """See `SetOnStoreError`."""
    shadow: tuple[str, ...] = ()
    """See `SetShadow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDetails(Command):
    """Change the name and the details that `texts` has; '' clears a detail."""

    action_name = "integration.edit"
    action = Action.EDIT

    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteIntegration(Command):
    """Delete the integration permanently; audit entries are kept, and the id is never reused."""

    action_name = "integration.delete"
    action = Action.DELETE


@dataclass(frozen=True, slots=True, kw_only=True)
class AddScopes(Command):
    """Add scopes, `category:read` or `category:write`."""

    action_name = "scopes.add"
    action = Action.SCOPES

    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveScopes(Command):
    """Remove scopes, in force from the next request on."""

    action_name = "scopes.remove"
    action = Action.SCOPES

    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAllowlist(Command):
    """Replace all entries; whether the allowlist is on stays as it is."""

    action_name = "allowlist.set"
    action = Action.ALLOWLIST

    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAllowlistEntries(Command):
    """Add entries."""

    action_name = "allowlist.add"
    action = Action.ALLOWLIST

    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAllowlistEntries(Command):
    """Remove entries, written as in the list."""

    action_name = "allowlist.remove"
    action = Action.ALLOWLIST

    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableAllowlist(Command):
    """
    Turn the allowlist on: only its entries may call; needs at least one entry.

    `in_shadow` True puts the allowlist in shadow, False enforces it, None keeps that as it is.
    """

    action_name = "allowlist.enable"
    action = Action.ALLOWLIST

    in_shadow: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DisableAllowlist(Command):
    """Turn the allowlist off: every address may call; the entries are kept."""

    action_name = "allowlist.disable"
    action = Action.ALLOWLIST


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRateLimit(Command):
    """
    Set the permanent limit, in force at once; ends a temporary raise.

    `in_shadow` True puts the limit in shadow, False enforces it, None keeps that as it is.
    """

    action_name = "limit.set"
    action = Action.LIMIT

    rate_limit_rpm: int
    burst: int | None = None
    in_shadow: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseLimit(Command):
    """Raise the limit until a time; it then reverts automatically."""

    action_name = "limit.raise"
    action = Action.LIMIT

    rate_limit_rpm: int
    until_us: int
    burst: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLimitRaise(Command):
    """End a temporary raise early."""

    action_name = "limit.end_raise"
    action = Action.LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOnStoreError(Command):
    """
    Set the policy while the store is unavailable: 'deny', 'allow' or 'local'.

    None = the policy in the configuration of each sidecar.
    """

    action_name = "store_error.set"
    action = Action.LIMIT

    on_store_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetShadow(Command):
    """Set the rules that are in shadow, by the names of `Rule`; empty = every rule is enforced."""

    action_name = "shadow.set"
    action = Action.SHADOW

    shadow: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueCredential(Command):
    """Add a credential."""

    action_name = "credential.issue"
    action = Action.CREDENTIALS

    credential: NewCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateCredential(Command):
    """Issue a credential that replaces another, which keeps working for `overlap_us`; 0 = it ends at once."""

    action_name = "credential.rotate"
    action = Action.CREDENTIALS

    credential_id: str
    credential: NewCredential
    overlap_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeCredential(Command):
    """Revoke a credential at once and permanently."""

    action_name = "credential.revoke"
    action = Action.CREDENTIALS

    credential_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCredentialExpiry(Command):
    """Change when a credential expires; None = never."""

    action_name = "credential.set_expiry"
    action = Action.CREDENTIALS

    credential_id: str
    expires_at_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend(Command):
    """
    Block every request at once, and invalidate all current credentials permanently.

    Scopes, allowlist, limit and audit entries are kept. On a suspended integration it invalidates
    credentials that were issued since, and this administrator can no longer reactivate it either.
    """

    action_name = "integration.suspend"
    action = Action.SUSPEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactivate(Command):
    """Reactivate a suspended integration, by another administrator and with new credentials."""

    action_name = "integration.reactivate"
    action = Action.REACTIVATE


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateWebhookSecret(Command):
    """Create the first signing secret of the integration's webhooks."""

    action_name = "webhook_secret.generate"
    action = Action.WEBHOOK_SECRETS

    secret: SealedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateWebhookSecret(Command):
    """Replace the signing secret; the old one keeps signing for `overlap_us`; 0 = it ends at once."""

    action_name = "webhook_secret.rotate"
    action = Action.WEBHOOK_SECRETS

    secret: SealedSecret
    overlap_us: int = 0


COMMANDS: tuple[type[Command], ...] = (
    CreateIntegration,
    EditDetails,
    DeleteIntegration,
    AddScopes,
    RemoveScopes,
    SetAllowlist,
    AddAllowlistEntries,
    RemoveAllowlistEntries,
    EnableAllowlist,
    DisableAllowlist,
    SetRateLimit,
    RaiseLimit,
    EndLimitRaise,
    SetOnStoreError,
    SetShadow,
    IssueCredential,
    RotateCredential,
    RevokeCredential,
    SetCredentialExpiry,
    Suspend,
    Reactivate,
    GenerateWebhookSecret,
    RotateWebhookSecret,
)
"""All commands; the tables of states and handlers have a row for each."""

"""
Commands: everything an administrator can ask to be done to an integration, as values.

They hold what the administrator wrote, unchecked: `machine.Lifecycle.apply` checks it, so that every way
in (API, command line, file) gets the same answers. Fields that end in `_us` are microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sidecar.domain.integrations import DEFAULT_LIMIT_RPM
from sidecar.domain.roles import Action


@dataclass(frozen=True, slots=True)
class NewCredential:
    """The public half of a fresh API key; the key itself never comes here."""

    id: str
    digest: str
    expires_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """
    A webhook signing secret on its way to where it is kept: beside the record, never in it.

    `sealed` is what the store keeps as it is; the service that made the secret encrypts it.
    """

    id: str
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """
    What all commands have. `reason` goes on record; suspend and reactivate need one.

    `word` is the action's name in the audit log and never changes once published.
    """

    word: ClassVar[str]
    action: ClassVar[Action]

    integration_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateIntegration(Command):
    """Make a new integration. Least privilege: no scopes and no credentials unless they are named."""

    word = "integration.create"
    action = Action.CREATE

    name: str
    contact: str = ""
    owner: str = ""
    third_party_manager: str = ""
    scopes: tuple[str, ...] = ()
    rate_limit_rpm: int = DEFAULT_LIMIT_RPM
    burst: int | None = None
    allowlist: tuple[str, ...] = ()
    """Entries; naming some also turns the allowlist on."""
    credentials: tuple[NewCredential, ...] = ()
    on_store_error: str | None = None
    """See `SetOnStoreError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDetails(Command):
    """Change who it is and whom to ask; None leaves a field as it is, '' empties it."""

    word = "integration.edit"
    action = Action.EDIT

    name: str | None = None
    contact: str | None = None
    owner: str | None = None
    third_party_manager: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteIntegration(Command):
    """End the integration for good: its trail stays, its id is never used again."""

    word = "integration.delete"
    action = Action.DELETE


@dataclass(frozen=True, slots=True, kw_only=True)
class AddScopes(Command):
    """Permit more: `category:read` or `category:write`."""

    word = "scopes.add"
    action = Action.SCOPES

    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveScopes(Command):
    """Permit less, from the next request on."""

    word = "scopes.remove"
    action = Action.SCOPES

    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAllowlist(Command):
    """Replace all entries; whether the allowlist is on stays as it is."""

    word = "allowlist.set"
    action = Action.ALLOWLIST

    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAllowlistEntries(Command):
    """Let more addresses in."""

    word = "allowlist.add"
    action = Action.ALLOWLIST

    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAllowlistEntries(Command):
    """Take entries out, as they stand in the list."""

    word = "allowlist.remove"
    action = Action.ALLOWLIST

    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableAllowlist(Command):
    """Let only addresses of the entries in; needs at least one entry."""

    word = "allowlist.enable"
    action = Action.ALLOWLIST


@dataclass(frozen=True, slots=True, kw_only=True)
class DisableAllowlist(Command):
    """Let every address in; the entries are kept."""

    word = "allowlist.disable"
    action = Action.ALLOWLIST


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRateLimit(Command):
    """Set the lasting limit, in force at once; it also ends a temporary raise."""

    word = "limit.set"
    action = Action.LIMIT

    rate_limit_rpm: int
    burst: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseLimit(Command):
    """Raise the limit until a moment; then it reverts by itself."""

    word = "limit.raise"
    action = Action.LIMIT

    rate_limit_rpm: int
    until_us: int
    burst: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLimitRaise(Command):
    """End a temporary raise before its time."""

    word = "limit.end_raise"
    action = Action.LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOnStoreError(Command):
    """
    Set what answers while the bucket cannot be asked: 'deny', 'allow' or 'local'.

    None = what the configuration of each sidecar says.
    """

    word = "store_error.set"
    action = Action.LIMIT

    on_store_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueCredential(Command):
    """Add a credential."""

    word = "credential.issue"
    action = Action.CREDENTIALS

    credential: NewCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateCredential(Command):
    """Issue a credential in place of another, which works on for `overlap_us`; 0 = it ends at once."""

    word = "credential.rotate"
    action = Action.CREDENTIALS

    credential_id: str
    credential: NewCredential
    overlap_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeCredential(Command):
    """End a credential at once and for ever."""

    word = "credential.revoke"
    action = Action.CREDENTIALS

    credential_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCredentialExpiry(Command):
    """Let a credential end at a moment; None = it never expires."""

    word = "credential.set_expiry"
    action = Action.CREDENTIALS

    credential_id: str
    expires_at_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend(Command):
    """
    Block every request at once, and invalidate every credential that exists now, for ever.

    Scopes, allowlist, limit and trail are kept. It works on a suspended integration too: credentials that
    were issued since are invalidated, and this administrator can no longer reactivate it either.
    """

    word = "integration.suspend"
    action = Action.SUSPEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactivate(Command):
    """Let a suspended integration in again: by someone else than its suspenders, with new credentials."""

    word = "integration.reactivate"
    action = Action.REACTIVATE


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateWebhookSecret(Command):
    """Make the first signing secret of the integration's webhooks."""

    word = "webhook_secret.generate"
    action = Action.WEBHOOK_SECRETS

    secret: SealedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateWebhookSecret(Command):
    """Replace the signing secret; the old one signs along for `overlap_us`; 0 = it ends at once."""

    word = "webhook_secret.rotate"
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
    IssueCredential,
    RotateCredential,
    RevokeCredential,
    SetCredentialExpiry,
    Suspend,
    Reactivate,
    GenerateWebhookSecret,
    RotateWebhookSecret,
)
"""Every command; the tables of states and handlers have one row for each."""

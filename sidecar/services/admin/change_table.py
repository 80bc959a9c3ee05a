"""
The table of every change of an integration: its command, path and body, and how to build the command.

The endpoints, /v1/changes and the documentation are generated from it; a test fails for a command without a
row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import Code, refusal
from sidecar.services.admin import bodies as b
from sidecar.services.admin.times import SECOND_US

INTEGRATION = "/v1/integrations/{integration_id}"
CREDENTIAL = INTEGRATION + "/credentials/{credential_id}"


class SecretKind(Enum):
    """The secret that a change generates; it is shown once."""

    NOTHING = "nothing"
    API_KEY = "api_key"
    WEBHOOK_SECRET = "secret"  # noqa: S105 - a field of the API, no password


@dataclass(frozen=True, slots=True)
class CommandInputs:
    """
    The inputs of a command.

    `body` is an instance of the row's model; `credentials` are the public parts of API keys, generated here
    or by the caller.
    """

    integration_id: str
    body: Any
    reason: str
    now_us: int
    credential_id: str = ""
    credentials: tuple[c.NewCredential, ...] = ()
    secret: c.SealedSecret | None = None

    @property
    def on(self) -> dict[str, str]:
        """The fields of every command."""
        return {"integration_id": self.integration_id, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """
    One kind of change.

    `body` None = the reason is in the query string. `member` is the model of its fields in /v1/changes;
    None = not allowed there, because it generates a secret.
    """

    command: type[c.Command]
    method: str
    path: str
    tag: str
    summary: str
    body: type[b.Body] | None
    build: Callable[[CommandInputs], c.Command]
    member: type[b.Body] | None
    generates: SecretKind = SecretKind.NOTHING
    status: int = 200
    examples: tuple[dict[str, object], ...] = ()

    @property
    def action_name(self) -> str:
        """The command's name in the audit log."""
        return self.command.action_name

    @property
    def names_credential(self) -> bool:
        """Whether the path names a credential."""
        return "{credential_id}" in self.path


def _copied(command: type[c.Command]) -> Callable[[CommandInputs], c.Command]:
    """Return a function that builds *command* from the fields of the body that have the same name."""
    names = {field.name for field in fields(command)} - {field.name for field in fields(c.Command)}

    def build(given: CommandInputs) -> c.Command:
        values = {name: getattr(given.body, name) for name in names if hasattr(given.body, name)}
        if "credentials" in names:
            values["credentials"] = given.credentials
        texts = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return command(**given.on, **(values | texts))

    return build


def _raise_limit(given: CommandInputs) -> c.Command:
    body = given.body
    until_us = one_end("until", body.until, "duration", body.duration, given.now_us)
    if until_us is None:
        raise refusal(
            Code.INVALID_VALUE,
            "until",
            "the temporary raise has no end",
            "send 'until' with a time such as 2026-12-01T00:00Z, or 'duration' such as 2h",
        )
    return c.RaiseLimit(**given.on, rate_limit_rpm=body.rate_limit_rpm, until_us=until_us, burst=body.burst)


def _set_on_store_error(given: CommandInputs) -> c.Command:
    return c.SetOnStoreError(**given.on, on_store_error=given.body.policy)


def _rotate(given: CommandInputs) -> c.Command:
    return c.RotateCredential(
        **given.on,
        credential_id=given.credential_id,
        credential=given.credentials[0],
        overlap_us=given.body.overlap * SECOND_US,
    )


def _set_expiry(given: CommandInputs) -> c.Command:
    return c.SetCredentialExpiry(
        **given.on, credential_id=given.credential_id, expires_at_us=given.body.expires_at
    )


def _generate_secret(given: CommandInputs) -> c.Command:
    assert given.secret is not None  # the row generates one
    return c.GenerateWebhookSecret(**given.on, secret=given.secret)


def _rotate_secret(given: CommandInputs) -> c.Command:
    assert given.secret is not None  # the row generates one
    return c.RotateWebhookSecret(**given.on, secret=given.secret, overlap_us=given.body.overlap * SECOND_US)


def one_end(at_name: str, at_us: int | None, in_name: str, in_s: int | None, now_us: int) -> int | None:
    """
    Return an end that is given as a time or as a duration; None = neither.

    Raises:
        InvalidError: both are given.
    """
    if at_us is not None and in_s is not None:
        raise refusal(
            Code.INVALID_VALUE,
            in_name,
            f"{at_name} and {in_name} cannot be used together",
            "send one of them",
        )
    return now_us + in_s * SECOND_US if in_s is not None else at_us


ROWS: tuple[ChangeRow, ...] = (
    ChangeRow(
        c.CreateIntegration, "POST", "/v1/integrations", "integrations", "Create an integration",
        b.NewIntegration, _copied(c.CreateIntegration), b.IntegrationTerms, SecretKind.API_KEY, 201,
        ({"id": "acme", "name": "Acme", "scopes": ["orders:read"], "issue_credential": True},),
    ),
    ChangeRow(
        c.EditDetails, "PATCH", INTEGRATION, "integrations", "Change name, contact, owner or manager",
        b.Details, _copied(c.EditDetails), b.Details, examples=({"contact": "ops@acme.example"},),
    ),
    ChangeRow(
        c.DeleteIntegration, "DELETE", INTEGRATION, "integrations", "Delete it permanently",
        None, _copied(c.DeleteIntegration), b.ReasonOnly,
    ),
    ChangeRow(
        c.Suspend, "POST", INTEGRATION + "/suspend", "standing",
        "Suspend: block every request, and invalidate every API key permanently",
        b.ReasonRequired, _copied(c.Suspend), b.ReasonRequired, examples=({"reason": "key leaked"},),
    ),
    ChangeRow(
        c.Reactivate, "POST", INTEGRATION + "/reactivate", "standing",
        "Reactivate, by another administrator, after new API keys were issued",
        b.ReasonRequired, _copied(c.Reactivate), b.ReasonRequired, examples=({"reason": "keys replaced"},),
    ),
    ChangeRow(
        c.AddScopes, "POST", INTEGRATION + "/scopes/add", "scopes", "Add scopes",
        b.ScopeNames, _copied(c.AddScopes), b.ScopeNames, examples=({"scopes": ["orders:read"]},),
    ),
    ChangeRow(
        c.RemoveScopes, "POST", INTEGRATION + "/scopes/remove", "scopes",
        "Remove scopes, in force from the next request on",
        b.ScopeNames, _copied(c.RemoveScopes), b.ScopeNames, examples=({"scopes": ["orders:read"]},),
    ),
    ChangeRow(
        c.AddAllowlistEntries, "POST", INTEGRATION + "/allowlist/add", "allowlist", "Add entries",
        b.AllowlistEntries, _copied(c.AddAllowlistEntries), b.AllowlistEntries,
        examples=({"entries": ["192.0.2.0/24"]},),
    ),
    ChangeRow(
        c.RemoveAllowlistEntries, "POST", INTEGRATION + "/allowlist/remove", "allowlist",
        "Remove entries, written as in the list",
        b.AllowlistEntries, _copied(c.RemoveAllowlistEntries), b.AllowlistEntries,
        examples=({"entries": ["192.0.2.0/24"]},),
    ),
    ChangeRow(
        c.SetAllowlist, "POST", INTEGRATION + "/allowlist/set", "allowlist", "Replace all entries",
        b.AllowlistEntries, _copied(c.SetAllowlist), b.AllowlistEntries,
        examples=({"entries": ["192.0.2.0/24"]},),
    ),
    ChangeRow(
        c.EnableAllowlist, "POST", INTEGRATION + "/allowlist/enable", "allowlist",
        "Turn the allowlist on: only its entries may call",
        b.AllowlistSwitch, _copied(c.EnableAllowlist), b.AllowlistSwitch,
        examples=({"in_shadow": True},),
    ),
    ChangeRow(
        c.DisableAllowlist, "POST", INTEGRATION + "/allowlist/disable", "allowlist",
        "Turn the allowlist off; the entries are kept",
        b.ReasonOnly, _copied(c.DisableAllowlist), b.ReasonOnly,
    ),
    ChangeRow(
        c.SetRateLimit, "POST", INTEGRATION + "/limit/set", "limit",
        "Set the permanent limit; ends a temporary raise",
        b.PermanentLimit, _copied(c.SetRateLimit), b.PermanentLimit,
        examples=({"rate_limit_rpm": 600, "burst": 100},),
    ),
    ChangeRow(
        c.RaiseLimit, "POST", INTEGRATION + "/limit/raise", "limit", "Raise the limit temporarily",
        b.TemporaryLimit, _raise_limit, b.TemporaryLimit,
        examples=({"rate_limit_rpm": 3000, "duration": "2h"},),
    ),
    ChangeRow(
        c.EndLimitRaise, "POST", INTEGRATION + "/limit/end-raise", "limit",
        "End a temporary raise early",
        b.ReasonOnly, _copied(c.EndLimitRaise), b.ReasonOnly,
    ),
    ChangeRow(
        c.SetOnStoreError, "POST", INTEGRATION + "/on-store-error", "limit",
        "Set how to answer while the store of buckets is unavailable",
        b.StorePolicy, _set_on_store_error, b.StorePolicy, examples=({"policy": "local"},),
    ),
    ChangeRow(
        c.SetShadow, "POST", INTEGRATION + "/shadow", "shadow",
        "Set the rules that are counted but refuse nothing",
        b.ShadowRules, _copied(c.SetShadow), b.ShadowRules, examples=({"shadow": ["allowlist"]},),
    ),
    ChangeRow(
        c.IssueCredential, "POST", INTEGRATION + "/credentials/issue", "credentials",
        "Issue an API key, shown once",
        b.CredentialTerms, lambda given: c.IssueCredential(**given.on, credential=given.credentials[0]),
        b.ReasonOnly, SecretKind.API_KEY, 201, ({"expires_in": "90d"},),
    ),
    ChangeRow(
        c.RotateCredential, "POST", CREDENTIAL + "/rotate", "credentials",
        "Issue an API key, shown once, that replaces another, which keeps working for an overlap",
        b.RotationTerms, _rotate, b.Overlap, SecretKind.API_KEY, 201, ({"overlap": "24h"},),
    ),
    ChangeRow(
        c.RevokeCredential, "POST", CREDENTIAL + "/revoke", "credentials",
        "Revoke an API key at once and permanently",
        b.ReasonOnly, lambda given: c.RevokeCredential(**given.on, credential_id=given.credential_id),
        b.ReasonOnly,
    ),
    ChangeRow(
        c.SetCredentialExpiry, "POST", CREDENTIAL + "/expiry", "credentials",
        "Change when an API key expires",
        b.Expiry, _set_expiry, b.Expiry, examples=({"expires_at": "2027-01-01T00:00:00Z"},),
    ),
    ChangeRow(
        c.GenerateWebhookSecret, "POST", INTEGRATION + "/webhook-secret/generate", "webhook_secrets",
        "Create the first webhook signing secret, shown once",
        b.ReasonOnly, _generate_secret, None, SecretKind.WEBHOOK_SECRET, 201,
    ),
    ChangeRow(
        c.RotateWebhookSecret, "POST", INTEGRATION + "/webhook-secret/rotate", "webhook_secrets",
        "Replace the webhook signing secret, shown once; the old one keeps signing for an overlap",
        b.Overlap, _rotate_secret, None, SecretKind.WEBHOOK_SECRET, 201, ({"overlap": "24h"},),
    ),
)  # fmt: skip

BY_ACTION_NAME: Mapping[str, ChangeRow] = {row.action_name: row for row in ROWS}

"""
Integrations: the client systems that own credentials, scopes, an allowlist and a quota.

These are the records as administrators keep them. `snapshot` compiles them for decisions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from sidecar.domain.api_keys import CREDENTIAL_ID, DIGEST
from sidecar.domain.bucket import Quota
from sidecar.domain.cidr import Cidr
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.scopes import Scope

INTEGRATION_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAME_LENGTH_MAX = 128
ALLOWLIST_ENTRIES_MAX = 50
CREDENTIALS_MAX = 20
SUSPENSIONS_MAX = 100
WEBHOOK_SECRETS_MAX = 2
DEFAULT_LIMIT_RPM = 60


class IntegrationError(ValueError):
    """An integration's record breaks a rule; the message names the field and the remedy."""


class Status(Enum):
    """Whether an integration may call at all."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Credential:
    """
    One API key of an integration, without its secret.

    `id` is public and stands in logs; `digest` is 'sha256:' and 64 hex digits; `expires_at_us` is
    microseconds since the epoch, None = never. `issued_generation` is the generation of the record that
    issued it, 0 = declared in a file; `replaced_by` is the credential it was rotated to, '' = none.
    """

    id: str
    digest: str
    expires_at_us: int | None = None
    issued_at_us: int = 0
    issued_generation: int = 0
    replaced_by: str = ""

    def __post_init__(self) -> None:
        """Refuse ids and digests that no key could have."""
        if not CREDENTIAL_ID.fullmatch(self.id):
            raise IntegrationError(f"credential id {self.id!r} must be 1-32 of 0-9, A-Z, a-z and '-'")
        if not DIGEST.fullmatch(self.digest):
            raise IntegrationError(
                f"digest of credential {self.id!r} must be 'sha256:' and 64 lower-case hex digits;"
                " 'sidecar keys new' prints one"
            )


@dataclass(frozen=True, slots=True)
class Suspension:
    """
    That an administrator suspended the integration: who, when, why, and in which generation.

    Whoever suspends it again is named once, by the latest time; `since_us` is then still the first one.
    """

    by: str
    at_us: int
    reason: str
    generation: int
    since_us: int


@dataclass(frozen=True, slots=True)
class LimitRaise:
    """A higher rate limit until `until_us`; it ends by itself. `burst` None = the raised limit."""

    rate_limit_rpm: int
    burst: int | None
    until_us: int


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """
    A signing secret of the integration's webhooks, without the secret; `expires_at_us` None = never.

    The secret itself is kept beside the record, never in it: no list or export can show it.
    """

    id: str
    issued_at_us: int
    expires_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class Integration:
    """
    One integration's record.

    `rate_limit_rpm` 1 ... 10,000 requests per minute; `burst` None = the limit; `ip_allowlist` empty
    = off. `generation` rises by one with every change of the record.

    `is_allowlist_enabled` False keeps the entries and lets every address in. `suspensions` are those
    since the last reactivation, one per administrator, the latest last; `suspended_generation` is the
    generation of the latest suspension ever: a credential issued before it never works again.
    What is in force at a moment, `domain.effective` says. `on_store_error` is what answers while the bucket
    cannot be asked; None = what the configuration of each sidecar says. `single_person_at_us` is when it was
    reactivated, if its suspender and whoever reactivated it may be one person; else 0.
    """

    id: str
    name: str
    status: Status = Status.ACTIVE
    scopes: frozenset[Scope] = frozenset()
    rate_limit_rpm: int = DEFAULT_LIMIT_RPM
    burst: int | None = None
    ip_allowlist: tuple[Cidr, ...] = ()
    credentials: tuple[Credential, ...] = ()
    generation: int = 1
    contact: str = ""
    owner: str = ""
    third_party_manager: str = ""
    is_allowlist_enabled: bool = True
    limit_raise: LimitRaise | None = None
    suspensions: tuple[Suspension, ...] = ()
    suspended_generation: int = 0
    webhook_secrets: tuple[WebhookSecret, ...] = ()
    created_at_us: int = 0
    changed_at_us: int = 0
    on_store_error: FailPolicy | None = None
    single_person_at_us: int = 0

    def __post_init__(self) -> None:
        """Hold the rules that a single record must keep."""
        if not INTEGRATION_ID.fullmatch(self.id):
            raise IntegrationError(
                f"integration id {self.id!r} must be 1-64 of a-z, 0-9, '.', '_' and '-',"
                " starting with a letter or digit"
            )
        if not 1 <= len(self.name) <= NAME_LENGTH_MAX or not self.name.isprintable():
            raise IntegrationError(
                f"name of {self.id!r} must be 1-{NAME_LENGTH_MAX} printable characters, not {self.name!r}"
            )
        if len(self.ip_allowlist) > ALLOWLIST_ENTRIES_MAX:
            raise IntegrationError(
                f"ip_allowlist of {self.id!r} has {len(self.ip_allowlist)} entries;"
                f" at most {ALLOWLIST_ENTRIES_MAX} are allowed: merge neighbouring networks"
            )
        if len(self.credentials) > CREDENTIALS_MAX:
            raise IntegrationError(
                f"{self.id!r} has {len(self.credentials)} credentials;"
                f" at most {CREDENTIALS_MAX}: revoke old ones"
            )
        if len(self.suspensions) > SUSPENSIONS_MAX or len(self.webhook_secrets) > WEBHOOK_SECRETS_MAX:
            raise IntegrationError(
                f"{self.id!r} has {len(self.suspensions)} suspensions and {len(self.webhook_secrets)} webhook"
                f" secrets; at most {SUSPENSIONS_MAX} and {WEBHOOK_SECRETS_MAX} are kept"
            )
        _ = self.quota

    @property
    def quota(self) -> Quota:
        """
        The quota of its bucket.

        Raises:
            QuotaError: the limit or the burst is outside its range.
        """
        return Quota.per_minute(self.rate_limit_rpm, self.burst)

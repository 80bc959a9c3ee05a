"""
Integrations: the client systems that own credentials, scopes, an allowlist and a quota.

These are the stored records. `snapshot` compiles them for decisions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple

from sidecar.domain.api_keys import CREDENTIAL_ID, DIGEST
from sidecar.domain.bucket import Quota
from sidecar.domain.cidr import Cidr
from sidecar.domain.enforcement import NO_RULES, Rule
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
    """A record violates a rule; the message names the field and the remedy."""


class Status(Enum):
    """The status of an integration; the requests of a suspended integration are denied."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Credential:
    """
    One API key of an integration, without its secret.

    `id` is public and appears in logs; `digest` is 'sha256:' and 64 hex digits; `expires_at_us` is in
    microseconds since the epoch, None = never. `issued_generation` is the record's generation at issue,
    0 = declared in a file; `replaced_by` is the id of the credential that replaces it, '' = none.
    """

    id: str
    digest: str
    expires_at_us: int | None = None
    issued_at_us: int = 0
    issued_generation: int = 0
    replaced_by: str = ""

    def __post_init__(self) -> None:
        """Reject invalid ids and digests."""
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
    The suspension of an integration by one administrator.

    If the same administrator suspends it again, `at_us` is the latest time and `since_us` the first.
    """

    by: str
    at_us: int
    reason: str
    generation: int
    since_us: int


@dataclass(frozen=True, slots=True)
class LimitRaise:
    """A higher rate limit that ends automatically at `until_us`; `burst` None = the raised limit."""

    rate_limit_rpm: int
    burst: int | None
    until_us: int


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """
    The public part of a signing secret for webhooks; `expires_at_us` None = never.

    The secret itself is stored apart from the record, so that no list or export can show it.
    """

    id: str
    issued_at_us: int
    expires_at_us: int | None = None


class DetailText(NamedTuple):
    """The name of a detail in texts, and its description."""

    label: str
    help: str


def _detail(label: str, help: str) -> Any:
    return field(default="", metadata={"text": DetailText(label, help)})


@dataclass(frozen=True, kw_only=True)  # no slots, so that a class may have another base
class Details:
    """
    The optional texts of a record: files, commands, the API and the command line have what is here.

    A further one must be optional in `records.RECORD_FIELDS`, because stored records lack it.
    """

    contact: str = _detail("contact", "The contact for questions.")
    owner: str = _detail("owner", "The person or team responsible for it.")
    third_party_manager: str = _detail("third-party manager", "The third party that operates it, if any.")


DETAILS: Mapping[str, DetailText] = {detail.name: detail.metadata["text"] for detail in fields(Details)}
SEARCHED = f"id, name, {', '.join(text.label for text in DETAILS.values())} and credential ids"
"""What a search for integrations looks at."""


@dataclass(frozen=True, slots=True)
class Integration(Details):
    """
    One integration's record.

    `rate_limit_rpm` is 1 ... 10,000 requests per minute; `burst` None = the limit; `ip_allowlist` empty
    = off. `generation` increases by one with every change of the record.

    `is_allowlist_enabled` False keeps the entries and admits every address. `suspensions` are those since the
    last reactivation, one per administrator, the latest last; `suspended_generation` is the generation of the
    latest suspension: credentials that were issued before it are permanently invalid. `domain.effective`
    computes the effective state. `on_store_error` is the policy while the bucket is unavailable; None = the
    policy in each sidecar's configuration. `single_person_at_us` is the time of a reactivation by an account
    that may belong to the suspender; 0 = no such reactivation. `shadow` are the rules that are evaluated and
    counted, but refuse nothing.
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
    is_allowlist_enabled: bool = True
    limit_raise: LimitRaise | None = None
    suspensions: tuple[Suspension, ...] = ()
    suspended_generation: int = 0
    webhook_secrets: tuple[WebhookSecret, ...] = ()
    created_at_us: int = 0
    changed_at_us: int = 0
    on_store_error: FailPolicy | None = None
    single_person_at_us: int = 0
    shadow: frozenset[Rule] = NO_RULES

    def __post_init__(self) -> None:
        """Check the rules for a single record."""
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
                f" at most {ALLOWLIST_ENTRIES_MAX} are allowed: merge neighboring networks"
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
        The quota of the integration's bucket.

        Raises:
            QuotaError: the limit or the burst is out of range.
        """
        return Quota.per_minute(self.rate_limit_rpm, self.burst)

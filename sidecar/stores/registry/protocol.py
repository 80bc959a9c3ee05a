"""
The protocol of registries; tests/conformance/registry checks every store against it.

Guarantees
    * A change is one commit: the new record with the next generation, its audit entry, claimed ids and
      sealed secrets. It is atomic, also in a crash.
    * The rules of `domain.lifecycle` hold at the time of the commit, whatever other processes do.
    * The result of a call is durable, and every later read of the same registry includes it.
    * No call blocks the event loop; each ends within its deadline; all queues are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sidecar.domain.accounts import Administrator
from sidecar.domain.audit import AuditEntry, StoredEntry
from sidecar.domain.changes import (
    AdminCommitted,
    AdminRequest,
    ChangeRequest,
    Committed,
    LiveSidecar,
    Revision,
)
from sidecar.domain.cidr import Address
from sidecar.domain.integrations import Integration, Status
from sidecar.domain.lifecycle.commands import SealedSecret
from sidecar.domain.lifecycle.outcome import Outcome
from sidecar.domain.refusals import RefusedError
from sidecar.stores.registry.derived import DerivedProblem

PAGE_MAX = 500
"""Maximum size of a page of a list or of the audit log."""
CHANGES_MAX = 1_000
"""Maximum number of records that `changes_since` returns; the next call continues from there."""
REQUESTS_MAX = 1_000
"""Maximum number of changes of one `apply_many`."""
USES_MAX = 10_000
"""Maximum number of uses of one `record_uses`."""
IDEMPOTENCY_KEYS_MAX = 10_000
IDEMPOTENCY_LIFETIME_US = 24 * 3_600 * 1_000_000
SEEN_WINDOW_US = 3_600 * 1_000_000
"""How long an address counts as seen, for the lock-out warning."""
REFUSED_MAX = 20
"""Maximum number of refused callers (address and credential) kept per integration, the latest ones."""
REFUSED_WINDOW_US = 30 * 24 * 3_600 * 1_000_000
"""How long a refused caller is listed."""
TOKEN_USES_MAX = 10_000
"""Maximum number of administrators' tokens whose last use is kept."""


class RegistryError(Exception):
    """
    The registry failed; the message says what to do.

    `may_have_happened` False = nothing was changed. True = the change may be in force: read the registry, or
    repeat the change with the same idempotency key.
    """

    def __init__(self, message: str, *, may_have_happened: bool = False) -> None:
        """*message* says what to do."""
        super().__init__(message)
        self.may_have_happened = may_have_happened


class RegistryUnavailableError(RegistryError):
    """The store is unreachable, locked, full or broken."""


class RegistryReplacedError(RegistryUnavailableError):
    """The store has another registry than this process follows, none, or an older state of it."""


class RegistryDamagedError(RegistryError):
    """The data in the store is not a valid registry, or a guard of the store refused a write."""


class RegistryOverloadedError(RegistryError):
    """Too many calls are waiting; this call was not started."""


class RegistryTimeoutError(RegistryError):
    """The deadline passed."""


class RegistryClosedError(RegistryError):
    """The registry was closed; this call was not started."""


def lost_record(*ids: str) -> str:
    """The error text for records that are missing although no administrator deleted the integrations."""
    named = ", ".join(sorted(ids)[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    return (
        f"the store lost the records of {named}: their keys were evicted, or removed by another program. Set"
        " maxmemory-policy noeviction, and restore a backup of the store"
    )


@dataclass(frozen=True, slots=True)
class ListQuery:
    """
    Which integrations to list, ordered by id.

    `search` matches id, name, contact, owner, third-party manager and credential ids, ignoring case; '' =
    all. `after` is the cursor of the previous page, '' = from the start; `limit` is 1 to `PAGE_MAX`.
    """

    search: str = ""
    status: Status | None = None
    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class IntegrationPage:
    """One page of a list; `next_after` is the cursor of the next page, '' = last page."""

    records: tuple[Integration, ...]
    next_after: str


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """
    Which audit entries to read, in the order of their chain.

    `subject` ('integration:<id>' or 'administrator:<id>'), `actor` and `action` must be equal, '' = any;
    `since_us` <= time < `until_us`. `newest_first` reverses the order. `after` is the cursor of the previous
    page; `limit` is 1 to `PAGE_MAX`.
    """

    chain: int = 0
    subject: str = ""
    actor: str = ""
    action: str = ""
    since_us: int = 0
    until_us: int = 2**53
    newest_first: bool = False
    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class AuditPage:
    """One page of the audit log as stored: parse an entry with `domain.audit.parse_entry`."""

    entries: tuple[StoredEntry, ...]
    next_after: str


class RegistryView(NamedTuple):
    """
    All integrations at one revision.

    `lost` are the ids of integrations whose records are missing; `registry_id` is set for a shared store.
    """

    revision: Revision
    records: tuple[Integration, ...]
    lost: tuple[str, ...] = ()
    registry_id: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """
    The changes since a revision.

    `revision` is where to continue. `records` are the current records of changed integrations, `deleted` the
    ids of deleted ones. `is_reset` = the store does not have that revision (for example, a backup was
    restored): `records` is empty, and the caller must load all. `has_more` = call again at once.
    """

    revision: Revision
    records: tuple[Integration, ...] = ()
    deleted: tuple[str, ...] = ()
    is_reset: bool = False
    has_more: bool = False


class CredentialUse(NamedTuple):
    """The latest use of a credential from an address."""

    credential_id: str
    integration_id: str
    address: Address
    at_us: int


class LastUse(NamedTuple):
    """When and from where a credential was last used; approximate by the write-behind interval."""

    at_us: int
    address: Address


class RefusedCaller(NamedTuple):
    """
    The latest time that an integration's allowlist refused a valid credential from an address.

    `address` b"" = the client address is unknown: see the setting `client_ip`.
    """

    integration_id: str
    credential_id: str
    address: Address
    at_us: int


class TokenUse(NamedTuple):
    """The latest use of an administrator's token; `source` is the caller's address."""

    token_id: str
    at_us: int
    source: str


class RecordProof(NamedTuple):
    """
    A record to compare with its latest audit entry: equal digests prove that the record matches the log.

    `subject` is as in the audit log; `digest` is `domain.records.record_digest` of the stored record.
    `is_deleted` is the stored status; `problems` are the differences between the record and its derived data.
    """

    subject: str
    chain: int
    sequence: int
    digest: str
    is_deleted: bool = False
    problems: tuple[str, ...] = ()


class Registry(Protocol):
    """
    Integrations, administrators and their audit log.

    Any method may raise `RegistryError`; those that make changes may raise `RefusedError`, and then nothing
    was changed.
    """

    async def apply(self, request: ChangeRequest) -> Committed:
        """
        Make one change, and return once it is durable.

        A repeated request with the same idempotency key gets the earlier result.

        Raises:
            RefusedError: nothing was changed; also if the key was used for another request.
        """

    async def apply_many(self, requests: Sequence[ChangeRequest]) -> tuple[Committed | RefusedError, ...]:
        """
        Make up to `REQUESTS_MAX` changes in order, each atomic on its own.

        This is much cheaper than separate calls of `apply`. A refused change does not stop the others.
        """

    async def preview(self, request: ChangeRequest) -> Outcome:
        """
        Return what `apply` would do now, with its notices, and change nothing.

        Raises:
            RefusedError: `apply` would raise it.
        """

    async def get(self, integration_id: str) -> Integration | None:
        """The integration with this id; None = unknown or deleted."""

    async def was_deleted(self, integration_id: str) -> bool:
        """Whether an administrator deleted the integration with this id."""

    async def list(self, query: ListQuery) -> IntegrationPage:
        """
        One page of integrations.

        Raises:
            InvalidError: the limit or the cursor is invalid.
        """

    async def load_all(self) -> RegistryView:
        """Every integration, at one revision."""

    async def revision(self) -> Revision:
        """The current revision."""

    async def changes_since(self, revision: Revision, timeout_s: float = 0.0) -> Changes:
        """
        Return the changes since *revision*; wait up to *timeout_s* for a change.

        Changes of other processes count, too. At the timeout the result is empty.
        """

    async def audit(self, query: AuditQuery) -> AuditPage:
        """
        One page of the audit log.

        Raises:
            InvalidError: the limit or the cursor is invalid.
        """

    async def chains(self, subject: str = "") -> tuple[int, ...]:
        """All chains, or the chain with the entries of *subject*."""

    async def record_proofs(self, chain: int, after: str = "") -> tuple[RecordProof, ...]:
        """Up to `PAGE_MAX` proofs of records in *chain*, ordered by subject, after subject *after*."""

    async def entry_problems(self, chain: int, entries: Sequence[AuditEntry]) -> tuple[DerivedProblem, ...]:
        """Indexes and claims of ids that differ from *entries* of *chain*."""

    async def chain_problems(self, chain: int) -> tuple[DerivedProblem, ...]:
        """Ids that the store lists without a record, and guards of the store that are missing."""

    async def webhook_secrets(self, integration_id: str) -> tuple[SealedSecret, ...]:
        """The sealed secrets of the integration's webhooks, for signing."""

    async def record_uses(self, uses: Sequence[CredentialUse]) -> None:
        """Record uses of credentials; may be lost in a crash; an older use never replaces a newer one."""

    async def last_uses(self, integration_id: str) -> Mapping[str, LastUse]:
        """When and from where each credential of the integration was last used, by credential id."""

    async def addresses_seen(self, integration_id: str) -> tuple[Address, ...]:
        """The addresses of the integration's requests within the last hour, newest first; bounded."""

    async def record_refusals(self, refusals: Sequence[RefusedCaller]) -> None:
        """Record callers that an allowlist refused; may be lost in a crash."""

    async def refused_callers(self, integration_id: str) -> tuple[RefusedCaller, ...]:
        """The refused callers within `REFUSED_WINDOW_US`, newest first; at most `REFUSED_MAX`."""

    async def record_token_uses(self, uses: Sequence[TokenUse]) -> None:
        """Record uses of administrators' tokens; may be lost in a crash."""

    async def token_uses(self) -> Mapping[str, TokenUse]:
        """The last use of each used token, by token id; at most the `TOKEN_USES_MAX` latest."""

    async def administer(self, request: AdminRequest) -> AdminCommitted:
        """
        Make one change of administrators, and return once it is durable.

        Raises:
            RefusedError: nothing was changed.
        """

    async def administrators(self) -> tuple[Administrator, ...]:
        """Every account, also removed ones, ordered by id."""

    async def token_holder(self, token_id: str) -> Administrator | None:
        """The account that a token id belongs to, None = unknown; also updates the clock of `now_us`."""

    @property
    def has_replicas(self) -> bool:
        """Whether this registry has replicas or should have: a change may be on too few of them."""

    def now_us(self) -> int:
        """
        The time by which this registry decides what has expired; never waits.

        For a shared store it is the store's time, so that all sidecars decide alike; before the first reply
        it is this machine's time.
        """

    async def announce(self, sidecar_id: str, revision: Revision) -> None:
        """Record that a sidecar is alive and has *revision* in force; may be lost in a crash."""

    async def live_sidecars(self) -> tuple[LiveSidecar, ...]:
        """The sidecars that announced themselves within `SIDECAR_LIFETIME_US`, ordered by id."""

    async def aclose(self) -> None:
        """Finish the calls in flight and release the store; later calls are refused."""

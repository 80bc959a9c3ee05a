"""
What a registry promises, whichever store it is in. tests/conformance/registry holds every store to it.

Promises
    * A change is one commit: the new record with the next generation, its audit entry, claimed ids and
      kept secrets. It is whole or absent, also after a crash at any point.
    * The rules of `domain.lifecycle` hold at the moment of the commit, whatever other processes do.
    * What a call returned is durable, and every later read of the same registry sees it.
    * No call blocks the event loop; each ends within its deadline; everything that waits is bounded.
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
"""Members of one page of a list or of the audit log."""
CHANGES_MAX = 1_000
"""Records of one answer to `changes_since`; the next call goes on from there."""
REQUESTS_MAX = 1_000
"""Changes of one `apply_many`."""
USES_MAX = 10_000
"""Uses of one `record_uses`."""
IDEMPOTENCY_KEYS_MAX = 10_000
IDEMPOTENCY_LIFETIME_US = 24 * 3_600 * 1_000_000
SEEN_WINDOW_US = 3_600 * 1_000_000
"""How long an address counts as seen, for the lock-out warning."""
REFUSED_MAX = 20
"""Refused callers of one integration that are kept: address and credential, the latest ones."""
REFUSED_WINDOW_US = 30 * 24 * 3_600 * 1_000_000
"""How long a refused caller is shown."""
TOKEN_USES_MAX = 10_000
"""Administrators' tokens whose last use is kept."""


class RegistryError(Exception):
    """
    The registry could not do its part; the message says what to do.

    `may_have_happened` False = nothing was changed. True = only a look at the registry, or a repeat under
    the same idempotency key, can tell.
    """

    def __init__(self, message: str, *, may_have_happened: bool = False) -> None:
        """Say what to do, and whether the change may be in force."""
        super().__init__(message)
        self.may_have_happened = may_have_happened


class RegistryUnavailableError(RegistryError):
    """The store cannot be reached, is locked, full or broken."""


class RegistryReplacedError(RegistryUnavailableError):
    """The store holds another registry than the one that is followed, none, or an older state of it."""


class RegistryDamagedError(RegistryError):
    """What the store holds is not a registry's, or a guard of the store refused what was to be written."""


class RegistryOverloadedError(RegistryError):
    """Too many calls are waiting; this one was not begun."""


class RegistryTimeoutError(RegistryError):
    """The deadline passed."""


class RegistryClosedError(RegistryError):
    """The registry was closed; this call was not begun."""


def lost_record(*ids: str) -> str:
    """What to say where records are gone from the store, though nobody deleted the integrations."""
    named = ", ".join(sorted(ids)[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    return (
        f"the store lost the records of {named}: their keys were evicted or removed around the registry. Set"
        " maxmemory-policy noeviction, and restore a backup of the store"
    )


@dataclass(frozen=True, slots=True)
class ListQuery:
    """
    Which integrations to list, in order of their ids.

    `search` is looked for in id, name, contact, owner, third-party manager and credential ids, whatever
    the case; '' = all. `after` is the cursor of the page before, '' = from the start; `limit` is 1 ... 500.
    """

    search: str = ""
    status: Status | None = None
    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class IntegrationPage:
    """One page of a list; `next_after` is the cursor of the next page, '' = this is the last."""

    records: tuple[Integration, ...]
    next_after: str


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """
    Which audit entries to read, in the order of their chain.

    `subject` ('integration:<id>' or 'administrator:<id>'), `actor` and `action` are compared whole,
    '' = any; `since_us` <= time < `until_us`. `newest_first` turns the order round. `after` is the cursor of
    the page before; `limit` is 1 ... 500.
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
    """One page of the audit log, as kept: read an entry with `domain.audit.parse_entry`."""

    entries: tuple[StoredEntry, ...]
    next_after: str


class RegistryView(NamedTuple):
    """
    All integrations at one moment.

    `lost` are the ids of those whose records are gone from the store; `registry_id` is that of a registry in
    a shared store.
    """

    revision: Revision
    records: tuple[Integration, ...]
    lost: tuple[str, ...] = ()
    registry_id: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What has changed since a revision.

    `revision` is where to go on from. `records` are the integrations as they are now, `deleted` the ids of
    those that ended. `is_reset` = the store cannot tell from that revision on (it was replaced by a backup,
    for example): then `records` is empty, and the caller loads all. `has_more` = call again at once.
    """

    revision: Revision
    records: tuple[Integration, ...] = ()
    deleted: tuple[str, ...] = ()
    is_reset: bool = False
    has_more: bool = False


class CredentialUse(NamedTuple):
    """That a credential was used from an address, the latest time it was."""

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
    That the allowlist of an integration refused a valid credential from an address, the latest time.

    `address` b"" = it could not be worked out: see the setting `client_ip`.
    """

    integration_id: str
    credential_id: str
    address: Address
    at_us: int


class TokenUse(NamedTuple):
    """That an administrator's token was used, the latest time; `source` is where the call came from."""

    token_id: str
    at_us: int
    source: str


class RecordProof(NamedTuple):
    """
    A record beside its latest audit entry: equal digests prove that nobody changed it around the log.

    `subject` is as in the audit log; `digest` is `domain.records.record_digest` of what is stored now.
    `is_deleted` is what the store takes the integration for; `problems` say what is kept beside the record
    and does not follow from it.
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

    Any method may raise `RegistryError`; those that change something also `RefusedError`, and then
    nothing was changed.
    """

    async def apply(self, request: ChangeRequest) -> Committed:
        """
        Make one change, and return once it is durable.

        A request whose idempotency key this administrator used before gets the earlier result.

        Raises:
            RefusedError: nothing was changed; also when the key was used for another request.
        """

    async def apply_many(self, requests: Sequence[ChangeRequest]) -> tuple[Committed | RefusedError, ...]:
        """
        Make up to `REQUESTS_MAX` changes, each whole or absent on its own, in order.

        It costs far less than as many calls of `apply`. A refused change does not stop the others.
        """

    async def preview(self, request: ChangeRequest) -> Outcome:
        """
        Work out what `apply` would do now, with its notices, and change nothing.

        Raises:
            RefusedError: as `apply` would.
        """

    async def get(self, integration_id: str) -> Integration | None:
        """The integration with this id; None = there is none, or it was deleted."""

    async def was_deleted(self, integration_id: str) -> bool:
        """Whether there was an integration with this id, and an administrator deleted it."""

    async def list(self, query: ListQuery) -> IntegrationPage:
        """
        One page of integrations.

        Raises:
            InvalidError: the limit or the cursor.
        """

    async def load_all(self) -> RegistryView:
        """Every integration, at one revision."""

    async def revision(self) -> Revision:
        """How far the registry is now."""

    async def changes_since(self, revision: Revision, timeout_s: float = 0.0) -> Changes:
        """
        What has changed since *revision*; waits up to *timeout_s* for something to change.

        Returns:
            As soon as there is a change, also one by another process; at the timeout empty changes.
        """

    async def audit(self, query: AuditQuery) -> AuditPage:
        """
        One page of the audit log.

        Raises:
            InvalidError: the limit or the cursor.
        """

    async def chains(self, subject: str = "") -> tuple[int, ...]:
        """The chains that there are, or the one that holds the entries of *subject*."""

    async def record_proofs(self, chain: int, after: str = "") -> tuple[RecordProof, ...]:
        """Up to `PAGE_MAX` proofs of records in *chain*, in order of subject, those after *after*."""

    async def entry_problems(self, chain: int, entries: Sequence[AuditEntry]) -> tuple[DerivedProblem, ...]:
        """Where indexes and claims of ids differ from what *entries* of *chain* say."""

    async def chain_problems(self, chain: int) -> tuple[DerivedProblem, ...]:
        """What the store lists beside *chain* without a record, and guards of the store that are gone."""

    async def webhook_secrets(self, integration_id: str) -> tuple[SealedSecret, ...]:
        """The sealed secrets of the integration's webhooks that are still kept, for whoever signs."""

    async def record_uses(self, uses: Sequence[CredentialUse]) -> None:
        """Note uses of credentials; may be lost in a crash, and never go back in time."""

    async def last_uses(self, integration_id: str) -> Mapping[str, LastUse]:
        """When and from where each credential of the integration was last used, by credential id."""

    async def addresses_seen(self, integration_id: str) -> tuple[Address, ...]:
        """Where the integration's requests came from within the last hour, the latest first; bounded."""

    async def record_refusals(self, refusals: Sequence[RefusedCaller]) -> None:
        """Note callers that an allowlist refused; may be lost in a crash, and never go back in time."""

    async def refused_callers(self, integration_id: str) -> tuple[RefusedCaller, ...]:
        """The latest refused callers within `REFUSED_WINDOW_US`, the latest first; at most `REFUSED_MAX`."""

    async def record_token_uses(self, uses: Sequence[TokenUse]) -> None:
        """Note uses of administrators' tokens; may be lost in a crash, and never go back in time."""

    async def token_uses(self) -> Mapping[str, TokenUse]:
        """The last use of each token that was used, by token id; at most `TOKEN_USES_MAX`, the latest."""

    async def administer(self, request: AdminRequest) -> AdminCommitted:
        """
        Make one change of the administrators, and return once it is durable.

        Raises:
            RefusedError: nothing was changed.
        """

    async def administrators(self) -> tuple[Administrator, ...]:
        """Every account, removed ones too, in order of their ids."""

    async def token_holder(self, token_id: str) -> Administrator | None:
        """The account that a token id belongs to; None = nobody's. `now_us` is then known."""

    @property
    def has_replicas(self) -> bool:
        """Whether other servers have copies of this registry, or should: too few may have a change."""

    def now_us(self) -> int:
        """
        The time by which this registry judges what expires, as it was last told; never waits.

        Where the store is shared it is the store's, so that all its users judge alike. Until the store has
        told it, it is this machine's.
        """

    async def announce(self, sidecar_id: str, revision: Revision) -> None:
        """Say that a sidecar is alive and has followed the registry to *revision*; may be lost in a crash."""

    async def live_sidecars(self) -> tuple[LiveSidecar, ...]:
        """The sidecars that announced themselves within `SIDECAR_LIFETIME_US`, by id."""

    async def aclose(self) -> None:
        """Finish what was begun and let go of the store; calls that come later are refused."""

"""The registry protocol over one SQLite file, for any number of processes on one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from sidecar.domain.accounts import Administrator
from sidecar.domain.audit import AuditEntry
from sidecar.domain.changes import (
    AdminCommitted,
    AdminRequest,
    ChangeRequest,
    Committed,
    LiveSidecar,
    Revision,
)
from sidecar.domain.cidr import Address
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.commands import SealedSecret
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.lifecycle.outcome import Outcome
from sidecar.domain.refusals import RefusedError
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.base import CALL_TIMEOUT_S, WatchedRegistry, require_at_most
from sidecar.stores.registry.derived import DerivedProblem
from sidecar.stores.registry.protocol import (
    REQUESTS_MAX,
    USES_MAX,
    AuditPage,
    AuditQuery,
    Changes,
    CredentialUse,
    IntegrationPage,
    LastUse,
    ListQuery,
    RecordProof,
    RefusedCaller,
    RegistryView,
    TokenUse,
)
from sidecar.stores.registry.sqlite import derived, reads, writes
from sidecar.stores.registry.sqlite.file import Connect, connect, open_database
from sidecar.stores.registry.sqlite.thread import BATCH_MAX, POLL_INTERVAL_S, QUEUE_MAX, SqliteThread
from sidecar.stores.registry.sqlite.transactions import Durability, Work

CLOSE_TIMEOUT_S = 10.0

Result = TypeVar("Result")


class SqliteRegistry(WatchedRegistry):
    """
    See `Registry`. There is one chain and one partition. Waiting callers get changes of this process at once,
    those of other processes within the poll interval.
    """

    def __init__(self, path: Path, lifecycle: Lifecycle, clock_us: Callable[[], int]) -> None:
        """Use `SqliteRegistry.open` instead."""
        super().__init__()
        self.path = path
        self._lifecycle = lifecycle
        self._clock_us = clock_us
        self._thread: SqliteThread

    @classmethod
    async def open(
        cls,
        path: Path,
        lifecycle: Lifecycle,
        *,
        clock_us: Callable[[], int] = wall_clock_us,
        poll_interval_s: float = POLL_INTERVAL_S,
        connect: Connect = connect,
    ) -> SqliteRegistry:
        """
        Open the registry in the file at *path*; a new file is created, an older one is migrated.

        Args:
            path: the file; its folder must exist.
            lifecycle: the rules of changes.
            clock_us: the clock, read once per change.
            poll_interval_s: how often to check for changes of other processes while a caller waits for them.
            connect: opens the connection.

        Raises:
            RegistryError: the file cannot be used.
        """
        registry = cls(path, lifecycle, clock_us)
        registry._thread = SqliteThread(
            partial(open_database, path, connect), registry._wake, QUEUE_MAX, poll_interval_s, path
        )
        await registry._thread.start()
        return registry

    async def apply(self, request: ChangeRequest) -> Committed:
        """See `Registry.apply`."""
        return await self._write(
            lambda database: writes.change(database, self._lifecycle, request, self._clock_us())
        )

    async def apply_many(self, requests: Sequence[ChangeRequest]) -> tuple[Committed | RefusedError, ...]:
        """See `Registry.apply_many`: one transaction per `BATCH_MAX` changes."""
        require_at_most(len(requests), REQUESTS_MAX, "changes")
        outcomes: list[Committed | RefusedError] = []
        for first in range(0, len(requests), BATCH_MAX):
            batch = requests[first : first + BATCH_MAX]
            made = await self._write(partial(self._change_many, batch))
            for outcome in made:
                if not isinstance(outcome, (Committed, RefusedError)):
                    raise outcome
                outcomes.append(outcome)
        return tuple(outcomes)

    async def preview(self, request: ChangeRequest) -> Outcome:
        """See `Registry.preview`."""
        return await self._read(
            lambda database: writes.preview(database, self._lifecycle, request, self._clock_us())
        )

    async def get(self, integration_id: str) -> Integration | None:
        """See `Registry.get`."""
        found = await self._read(lambda database: reads.record(database, integration_id))
        return found.record if found is not None and not found.is_deleted else None

    async def was_deleted(self, integration_id: str) -> bool:
        """See `Registry.was_deleted`."""
        found = await self._read(lambda database: reads.record(database, integration_id))
        return found is not None and found.is_deleted

    async def list(self, query: ListQuery) -> IntegrationPage:
        """See `Registry.list`."""
        return await self._read(lambda database: reads.list_records(database, query))

    async def load_all(self) -> RegistryView:
        """See `Registry.load_all`."""
        return await self._read(reads.load_all)

    async def revision(self) -> Revision:
        """See `Registry.revision`."""
        return await self._read(reads.revision)

    async def audit(self, query: AuditQuery) -> AuditPage:
        """See `Registry.audit`."""
        return await self._read(lambda database: reads.audit_page(database, query))

    async def chains(self, subject: str = "") -> tuple[int, ...]:
        """See `Registry.chains`."""
        return (0,)

    async def record_proofs(self, chain: int, after: str = "") -> tuple[RecordProof, ...]:
        """See `Registry.record_proofs`."""
        return await self._read(lambda database: reads.record_proofs(database, after)) if chain == 0 else ()

    async def entry_problems(self, chain: int, entries: Sequence[AuditEntry]) -> tuple[DerivedProblem, ...]:
        """See `Registry.entry_problems`."""
        return await self._read(lambda database: derived.entry_problems(database, entries))

    async def chain_problems(self, chain: int) -> tuple[DerivedProblem, ...]:
        """See `Registry.chain_problems`."""
        return await self._read(derived.file_problems)

    async def webhook_secrets(self, integration_id: str) -> tuple[SealedSecret, ...]:
        """See `Registry.webhook_secrets`."""
        return await self._read(lambda database: reads.webhook_secrets(database, integration_id))

    async def record_uses(self, uses: Sequence[CredentialUse]) -> None:
        """See `Registry.record_uses`."""
        require_at_most(len(uses), USES_MAX, "uses")
        await self._write(lambda database: writes.record_uses(database, uses), Durability.LAX)

    async def last_uses(self, integration_id: str) -> Mapping[str, LastUse]:
        """See `Registry.last_uses`."""
        return await self._read(lambda database: reads.last_uses(database, integration_id))

    async def addresses_seen(self, integration_id: str) -> tuple[Address, ...]:
        """See `Registry.addresses_seen`."""
        return await self._read(
            lambda database: reads.addresses_seen(database, integration_id, self._clock_us())
        )

    async def record_refusals(self, refusals: Sequence[RefusedCaller]) -> None:
        """See `Registry.record_refusals`."""
        require_at_most(len(refusals), USES_MAX, "refused callers")
        await self._write(lambda database: writes.record_refusals(database, refusals), Durability.LAX)

    async def refused_callers(self, integration_id: str) -> tuple[RefusedCaller, ...]:
        """See `Registry.refused_callers`."""
        return await self._read(
            lambda database: reads.refused_callers(database, integration_id, self._clock_us())
        )

    async def record_token_uses(self, uses: Sequence[TokenUse]) -> None:
        """See `Registry.record_token_uses`."""
        require_at_most(len(uses), USES_MAX, "uses of tokens")
        await self._write(lambda database: writes.record_token_uses(database, uses), Durability.LAX)

    async def token_uses(self) -> Mapping[str, TokenUse]:
        """See `Registry.token_uses`."""
        return await self._read(reads.token_uses)

    async def administer(self, request: AdminRequest) -> AdminCommitted:
        """See `Registry.administer`."""
        return await self._write(lambda database: writes.administer(database, request, self._clock_us()))

    async def administrators(self) -> tuple[Administrator, ...]:
        """See `Registry.administrators`."""
        return await self._read(reads.administrators)

    async def token_holder(self, token_id: str) -> Administrator | None:
        """See `Registry.token_holder`."""
        return await self._read(lambda database: reads.token_holder(database, token_id))

    @property
    def has_replicas(self) -> bool:
        """See `Registry.has_replicas`: always False for a file."""
        return False

    def now_us(self) -> int:
        """See `Registry.now_us`: this machine's time."""
        return self._clock_us()

    async def announce(self, sidecar_id: str, revision: Revision) -> None:
        """See `Registry.announce`."""
        await self._write(
            lambda database: writes.announce(database, sidecar_id, revision, self._clock_us()), Durability.LAX
        )

    async def live_sidecars(self) -> tuple[LiveSidecar, ...]:
        """See `Registry.live_sidecars`."""
        return await self._read(lambda database: reads.live_sidecars(database, self._clock_us()))

    async def aclose(self) -> None:
        """See `Registry.aclose`."""
        await self._thread.close(CLOSE_TIMEOUT_S)
        self._wake()

    def _change_many(
        self, requests: Sequence[ChangeRequest], database: sqlite3.Connection
    ) -> tuple[Committed | BaseException, ...]:
        return writes.change_many(database, self._lifecycle, requests, self._clock_us())

    async def _read(self, work: Work[Result]) -> Result:
        return await self._thread.call(work, Durability.READ, CALL_TIMEOUT_S)

    async def _read_changes(self, revision: Revision, is_waiting: bool) -> Changes:
        return await self._read(lambda database: reads.changes_since(database, revision))

    async def _write(self, work: Work[Result], durability: Durability = Durability.LASTING) -> Result:
        return await self._thread.call(work, durability, CALL_TIMEOUT_S)

    def _watch(self, is_watched: bool) -> None:
        self._thread.watch(is_watched)

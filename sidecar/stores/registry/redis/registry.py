"""The registry protocol over Redis, for a fleet of sidecars, with one chain per partition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from sidecar.domain.accounts import Administrator
from sidecar.domain.administrators import Bootstrap
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
from sidecar.domain.integrations import INTEGRATION_ID, Integration
from sidecar.domain.lifecycle.commands import SealedSecret
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.lifecycle.outcome import Outcome
from sidecar.domain.refusals import RefusedError
from sidecar.stores.redis.connect import HandshakeError
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.urls import StoreUrl
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
    RegistryClosedError,
    RegistryError,
    RegistryOverloadedError,
    RegistryTimeoutError,
    RegistryView,
    TokenUse,
)
from sidecar.stores.registry.redis import derived, follow, presence, reads
from sidecar.stores.registry.redis.administration import Administration
from sidecar.stores.registry.redis.audit_log import audit_page
from sidecar.stores.registry.redis.commits import BATCH_MAX, Committer, Result
from sidecar.stores.registry.redis.feed import Feed
from sidecar.stores.registry.redis.history import History
from sidecar.stores.registry.redis.identity import Identity, accept
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys
from sidecar.stores.registry.redis.nodes import (
    LIMITS,
    REPLICATION,
    REPLY_TIMEOUT_S,
    Command,
    Nodes,
    Replication,
)
from sidecar.stores.registry.redis.reads import Reader, all_of

CALLS_MAX = 1_024
"""Maximum number of concurrent calls; more are refused."""
LOOK_INTERVAL_S = 1.0
"""How often a waiting caller polls for changes, and how often the registry's identity is checked."""


class RedisRegistry(WatchedRegistry):
    """
    See `Registry`. The first call connects; reconnecting is automatic.

    A change is one script call in the partition of its integration. If the connection is lost before the
    reply, the chain shows whether the change was committed.
    """

    _poll_interval_s = LOOK_INTERVAL_S

    def __init__(
        self,
        url: StoreUrl,
        lifecycle: Lifecycle,
        *,
        clock_us: Callable[[], int] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        limits: StoreLimits = LIMITS,
        replication: Replication = REPLICATION,
        registry_id: str = "",
    ) -> None:
        """
        Use the store at *url* under the rules of *lifecycle*.

        Args:
            url: the address of the store, with prefix and partitions.
            lifecycle: the rules of changes.
            clock_us: replaces the server's clock, only in tests.
            timeout_s: the deadline of each call.
            limits: bounds of connecting.
            replication: when a change is durable.
            registry_id: the only registry that is accepted, '' = the first one that is found.
        """
        super().__init__()
        space = KeySpace(url.prefix, url.partitions)
        self.url = url
        self._clock_us = clock_us
        self._timeout_s = timeout_s
        self._keys = RegistryKeys(space)
        self._nodes = Nodes(url, space, limits, replication)
        self._feed = Feed(self._nodes, self._keys.channel, self._wake)
        self._committer = Committer(self._nodes, self._keys, lifecycle, clock_us)
        self._administration = Administration(self._nodes, self._keys, clock_us)
        self._history = History()
        self._identity = Identity(str(url), url.kind, self._keys, self._history, registry_id)
        self._identity_due_s = 0.0
        self.on_history_lost: Callable[[], None] = lambda: None
        """Called when a server lacks the followed history: all records are invalid until a reload."""
        self._identity.on_forget = lambda: self.on_history_lost()
        self._feed.on_question = self._answer
        self._answers: set[asyncio.Task[None]] = set()
        self._calls = 0
        self._is_closed = False

    async def apply(self, request: ChangeRequest) -> Committed:
        """See `Registry.apply`."""
        async with self._call() as deadline_s:
            partition = self._keys.partition_of(request.command.integration_id)
            await self._require_known(deadline_s)
            [outcome] = await self._committer.change(partition, [request], deadline_s)
        if isinstance(outcome, RefusedError):
            raise outcome
        self._see(outcome)
        return outcome

    async def apply_many(self, requests: Sequence[ChangeRequest]) -> tuple[Committed | RefusedError, ...]:
        """See `Registry.apply_many`: partitions concurrently, each in batches of `BATCH_MAX`."""
        await self._nodes.learn_layout(monotonic() + self._timeout_s)
        require_at_most(len(requests), REQUESTS_MAX, "changes")
        if _share_credential_ids(requests):
            return tuple([await self._outcome(request) for request in requests])
        by_partition: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            partition = self._keys.partition_of(request.command.integration_id)
            by_partition.setdefault(partition, []).append(index)
        outcomes: dict[int, Result] = {}

        async def change(partition: int, indexes: Sequence[int]) -> None:
            for first in range(0, len(indexes), BATCH_MAX):
                batch = indexes[first : first + BATCH_MAX]
                async with self._call() as deadline_s:
                    await self._require_known(deadline_s)
                    made = await self._committer.change(partition, [requests[n] for n in batch], deadline_s)
                for outcome in made:
                    self._see(outcome)
                outcomes.update(zip(batch, made, strict=True))

        await all_of(*(change(*part) for part in by_partition.items()))
        return tuple(outcomes[index] for index in range(len(requests)))

    async def preview(self, request: ChangeRequest) -> Outcome:
        """See `Registry.preview`."""
        async with self._reading() as reader:
            return await self._committer.preview(reader, request)

    async def get(self, integration_id: str) -> Integration | None:
        """See `Registry.get`."""
        if not INTEGRATION_ID.fullmatch(integration_id):
            return None
        async with self._reading() as reader:
            found, head = await reads.latest_record(reader, integration_id)
            await self._confirm_absence(reader, found)
        self._history.see(head)
        return found.record if found is not None and not found.is_deleted else None

    async def was_deleted(self, integration_id: str) -> bool:
        """See `Registry.was_deleted`."""
        async with self._reading() as reader:
            found = await reads.record(reader, integration_id)
        return found is not None and found.is_deleted

    async def list(self, query: ListQuery) -> IntegrationPage:
        """See `Registry.list`."""
        async with self._reading() as reader:
            page = await reads.list_records(reader, query)
            await self._confirm_absence(reader, page.records)
            return page

    async def load_all(self) -> RegistryView:
        """See `Registry.load_all`."""
        async with self._reading(is_known=False) as reader:
            await self._identity.check(reader)
            view, heads = await reads.load_all(reader)
        for head in heads:
            self._history.deliver(head)
        return view._replace(registry_id=self._identity.known)

    async def revision(self) -> Revision:
        """See `Registry.revision`."""
        async with self._reading() as reader:
            return Revision(tuple(head.sequence for head in await reads.heads(reader)))

    async def audit(self, query: AuditQuery) -> AuditPage:
        """See `Registry.audit`."""
        async with self._reading() as reader:
            return await audit_page(reader, query)

    async def chains(self, subject: str = "") -> tuple[int, ...]:
        """See `Registry.chains`: one per partition; administrators are in the first."""
        await self._nodes.learn_layout(monotonic() + self._timeout_s)
        if not subject:
            return tuple(range(self._keys.partitions))
        kind, _, name = subject.partition(":")
        return (self._keys.partition_of(name) if kind == "integration" else 0,)

    async def record_proofs(self, chain: int, after: str = "") -> tuple[RecordProof, ...]:
        """See `Registry.record_proofs`."""
        async with self._reading() as reader:
            return await derived.record_proofs(reader, chain, after)

    async def entry_problems(self, chain: int, entries: Sequence[AuditEntry]) -> tuple[DerivedProblem, ...]:
        """See `Registry.entry_problems`."""
        async with self._reading() as reader:
            return await derived.entry_problems(reader, chain, entries)

    async def chain_problems(self, chain: int) -> tuple[DerivedProblem, ...]:
        """See `Registry.chain_problems`."""
        async with self._reading() as reader:
            return await derived.chain_problems(reader, chain)

    async def webhook_secrets(self, integration_id: str) -> tuple[SealedSecret, ...]:
        """See `Registry.webhook_secrets`."""
        async with self._reading() as reader:
            return await reads.webhook_secrets(reader, integration_id)

    async def record_uses(self, uses: Sequence[CredentialUse]) -> None:
        """See `Registry.record_uses`."""
        require_at_most(len(uses), USES_MAX, "uses")
        async with self._reading() as reader:
            await presence.record_uses(reader, uses)

    async def last_uses(self, integration_id: str) -> Mapping[str, LastUse]:
        """See `Registry.last_uses`."""
        async with self._reading() as reader:
            return await reads.last_uses(reader, integration_id)

    async def addresses_seen(self, integration_id: str) -> tuple[Address, ...]:
        """See `Registry.addresses_seen`."""
        async with self._reading() as reader:
            return await presence.addresses_seen(reader, integration_id, await self._now_us(reader))

    async def record_refusals(self, refusals: Sequence[RefusedCaller]) -> None:
        """See `Registry.record_refusals`."""
        require_at_most(len(refusals), USES_MAX, "refused callers")
        async with self._reading() as reader:
            await presence.record_refusals(reader, refusals)

    async def refused_callers(self, integration_id: str) -> tuple[RefusedCaller, ...]:
        """See `Registry.refused_callers`."""
        async with self._reading() as reader:
            return await presence.refused_callers(reader, integration_id, await self._now_us(reader))

    async def record_token_uses(self, uses: Sequence[TokenUse]) -> None:
        """See `Registry.record_token_uses`."""
        require_at_most(len(uses), USES_MAX, "uses of tokens")
        async with self._reading() as reader:
            await presence.record_token_uses(reader, uses)

    async def token_uses(self) -> Mapping[str, TokenUse]:
        """See `Registry.token_uses`."""
        async with self._reading() as reader:
            return await presence.token_uses(reader)

    async def administer(self, request: AdminRequest) -> AdminCommitted:
        """See `Registry.administer`."""
        async with self._call() as deadline_s:
            await self._require_known(deadline_s)
            if isinstance(request.command, Bootstrap):
                await self._identity.begin(Reader(self._nodes, self._keys, deadline_s))
            made = await self._administration.administer(request, deadline_s)
        if made.entry is not None:
            self._history.see(made.entry.head)
        return made

    async def administrators(self) -> tuple[Administrator, ...]:
        """See `Registry.administrators`."""
        async with self._reading() as reader:
            administrators = await reads.administrators(reader)
            await self._confirm_absence(reader, administrators)
            return administrators

    async def token_holder(self, token_id: str) -> Administrator | None:
        """See `Registry.token_holder`."""
        async with self._reading() as reader:
            holder = await reads.token_holder(reader, token_id)
            await self._confirm_absence(reader, holder)
            return holder

    @property
    def has_replicas(self) -> bool:
        """See `Registry.has_replicas`."""
        return self._nodes.has_replicas

    def now_us(self) -> int:
        """See `Registry.now_us`: the clock of the node of partition 0, which times all changes."""
        return self._nodes.clock.now_us() if self._clock_us is None else self._clock_us()

    async def announce(self, sidecar_id: str, revision: Revision) -> None:
        """See `Registry.announce`."""
        async with self._reading() as reader:
            now_us = self._clock_us() if self._clock_us is not None else 0
            await presence.announce(reader, sidecar_id, revision, now_us)

    async def live_sidecars(self) -> tuple[LiveSidecar, ...]:
        """See `Registry.live_sidecars`."""
        async with self._reading() as reader:
            return await presence.live_sidecars(reader, await self._now_us(reader))

    async def aclose(self) -> None:
        """See `Registry.aclose`."""
        self._is_closed = True
        await self._feed.close()
        for answer in self._answers:
            answer.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)
        await self._nodes.close()
        self._wake()

    async def _outcome(self, request: ChangeRequest) -> Committed | RefusedError:
        try:
            return await self.apply(request)
        except RefusedError as error:
            return error

    async def _read_changes(self, revision: Revision, is_waiting: bool) -> Changes:
        """Read the partitions that may have changed; all of them if the feed does not know."""
        await self._nodes.learn_layout(monotonic() + self._timeout_s)
        if is_waiting and not self._is_closed:
            self._feed.start()
        if len(revision.sequences) != self._keys.partitions:
            return Changes(await self.revision(), is_reset=True)
        known = self._feed.sequences
        partitions = [
            partition
            for partition, sequence in enumerate(revision.sequences)
            if not is_waiting or known.get(partition) != sequence
        ]
        async with self._reading() as reader:
            if partitions:
                await self._identity.check(reader, {HOME, *partitions})
            changes, heads = await follow.changes_since(reader, revision, partitions, self._history)
        if self._feed.sequences is known:  # else a new subscription may have missed changes
            for partition, head in heads.items():
                self._feed.update(partition, head.sequence)
        return changes

    async def _now_us(self, reader: Reader) -> int:
        return self._clock_us() if self._clock_us is not None else await reads.server_time_us(reader)

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[float]:
        """Count one call, read the layout, and yield the deadline on the monotonic clock."""
        if self._is_closed:
            raise RegistryClosedError("the registry was closed")
        if self._calls >= CALLS_MAX:
            raise RegistryOverloadedError(
                f"too many concurrent registry calls (limit {CALLS_MAX}); retry later"
            )
        self._calls += 1
        deadline_s = monotonic() + self._timeout_s
        try:
            await self._nodes.learn_layout(deadline_s)
            yield deadline_s
        finally:
            self._calls -= 1

    @property
    def registry_id(self) -> str:
        """The id of the registry that is followed, '' = not known yet."""
        return self._identity.known

    async def accept(self, was: str = "") -> tuple[str, str]:
        """
        Make sidecars that follow registry *was* follow the data in the store; see `identity.accept`.

        Returns:
            The former id in the store, '' = none, and the new id.
        """
        async with self._reading(is_known=False) as reader:
            return await accept(reader, was)

    async def check_link(self, link: Link, partitions: Iterable[int]) -> None:
        """
        Check before *link* is used that its server has the history that this process has followed.

        Raises:
            HandshakeError: the server lacks it; `on_history_lost` was called, which causes a reload.
            ErrorReply, LinkLostError, TimeoutError: the check failed.
        """
        if not self._identity.known:
            return

        async def run(commands: Sequence[Command]) -> list[Any]:
            return await all_of(*(link.request(*words) for words in commands))

        await self._nodes.learn_layout(monotonic() + REPLY_TIMEOUT_S)
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            found = await all_of(*(self._identity.read(partition, run) for partition in partitions))
        if not all(map(self._identity.is_followed, found)):
            self.on_history_lost()
            raise HandshakeError(
                f"the server lacks the history of registry {self._identity.known} that this sidecar followed"
            )

    async def _require_known(self, deadline_s: float) -> None:
        """
        Check that the store has the registry that is followed: every second, and after an error.

        Raises:
            RegistryReplacedError: the store has another registry, none, or an older state of it.
        """
        reader = Reader(self._nodes, self._keys, deadline_s)
        if self._identity.fault is not None or not self._identity.is_checked:
            await self._identity.check(reader)
        elif monotonic() >= self._identity_due_s:
            await self._identity.check(reader, (HOME,))
        else:
            return
        self._identity_due_s = monotonic() + LOOK_INTERVAL_S

    async def _confirm_absence(self, reader: Reader, found: object) -> None:
        """
        If nothing was *found*, check that the store was not emptied since the last check.

        Raises:
            RegistryReplacedError: the store was emptied or replaced.
        """
        if not found:
            await self._identity.check(reader, (HOME,))

    def _see(self, outcome: Result) -> None:
        """Add a committed change to the history."""
        if not isinstance(outcome, RefusedError) and outcome.entry is not None:
            self._history.see(outcome.entry.head)

    def _answer(self) -> None:
        """Answer a bootstrap that asks whether any sidecar follows a registry in this store."""
        if not self._identity.known or self._is_closed:
            return

        async def answer() -> None:
            with suppress(RegistryError):
                async with self._reading(is_known=False) as reader:
                    await self._identity.report(reader)

        task = asyncio.get_running_loop().create_task(answer())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    @asynccontextmanager
    async def _reading(self, *, is_known: bool = True) -> AsyncIterator[Reader]:
        """Run a call that makes no durable change, within its deadline."""
        async with self._call() as deadline_s:
            try:
                async with asyncio.timeout(self._timeout_s):
                    if is_known:
                        await self._require_known(deadline_s)
                    yield Reader(self._nodes, self._keys, deadline_s)
            except TimeoutError:
                raise RegistryTimeoutError(
                    f"the registry did not answer within {self._timeout_s:g} s"
                ) from None


def _share_credential_ids(requests: Sequence[ChangeRequest]) -> bool:
    """Whether two changes issue the same credential id, so that the order between partitions matters."""
    ids: list[str] = []
    for request in requests:
        credentials = [
            *getattr(request.command, "credentials", ()),
            getattr(request.command, "credential", None),
        ]
        ids += [credential.id for credential in credentials if credential is not None]
    return len(ids) != len(set(ids))

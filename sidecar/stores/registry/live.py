"""
The live view: keeps one process's snapshot up to date with a registry that other processes change.

All records are loaded once. Then changes are applied as they are pushed, and polled for in case a push was
lost. If the registry fails, the snapshot stays in force. When a take finds that an integration's record has
changed, the record is fetched at once, so a suspension takes effect everywhere even without a push.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, TypeAlias

from sidecar.domain.changes import Position, Revision
from sidecar.domain.effective import in_force, next_change_at_us
from sidecar.domain.integrations import Integration, IntegrationError, Status
from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.protocol import (
    Changes,
    Registry,
    RegistryDamagedError,
    RegistryError,
    RegistryReplacedError,
    lost_record,
)

log = logging.getLogger("sidecar.registry")

RECONCILE_INTERVAL_S = 30.0
ANNOUNCE_INTERVAL_S = 3.0
"""A third of the time after which a sidecar no longer counts as live."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 1.0
SMALL_CHANGE_MAX = 8
"""Maximum number of records that are compiled on the event loop; more are compiled in a thread."""
REFRESH_TIMEOUT_S = 1.0
REFRESHES_MAX = 1_024
"""Maximum number of integrations that are refreshed at a time."""
WAITS_MAX = 1_024
"""Maximum number of callers that wait for a change."""
PUSH_PATIENCE_S = 0.1
"""How long a registry that pushes changes may take before a wait polls it."""
PACE_S = 0.1
"""Minimum time between two reads that found changes: changes in quick succession are applied together."""
TIMER_MAX_S = 60.0
"""The timer reads the clock again after this time, because the clock may have been set."""

RunInThread: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs work in a thread and returns its result."""

OnSnapshot: TypeAlias = Callable[[Snapshot, Sequence[CompiledIntegration]], None]
"""Called on the event loop with each new snapshot and the compiled integrations that it replaces."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """
    How a registry is followed.

    `sidecar_id` is announced with the revision in force; '' = do not announce. `clock_us` is the clock by
    which temporary limit raises end: the store's if the store is shared. `push_patience_s` is how long a
    wait for a change relies on the push before it polls; `pace_s` is the minimum time between two reads that
    found changes; `jitter` spreads the reconciles of a fleet.
    """

    sidecar_id: str = ""
    reconcile_interval_s: float = RECONCILE_INTERVAL_S
    announce_interval_s: float = ANNOUNCE_INTERVAL_S
    retry_first_s: float = RETRY_FIRST_S
    run_in_thread: RunInThread = asyncio.to_thread
    clock_us: Callable[[], int] = wall_clock_us
    push_patience_s: float = PUSH_PATIENCE_S
    pace_s: float = PACE_S
    jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25)  # noqa: S311 - spreads load only


class LiveRegistry:
    """
    Follows *registry*; `snapshot` is in force, `is_loaded` = all records were loaded once.

    One task runs `run`; `refresh` may be called at any time on the same event loop.
    """

    def __init__(
        self,
        registry: Registry,
        on_snapshot: OnSnapshot,
        metrics: Metrics,
        options: LiveOptions | None = None,
    ) -> None:
        self.snapshot = Snapshot.unloaded()
        self.is_loaded = False
        self.on_trouble: Callable[[str], None] = lambda trouble: None
        """Called when the reason why the registry cannot be followed changes; '' = it is followed."""
        self._registry = registry
        self._on_snapshot = on_snapshot
        self._metrics = metrics
        self._options = options or LiveOptions()
        self._records: dict[str, Integration] = {}
        self._raised: set[str] = set()
        self._single_person: set[str] = set()
        self._overruled: dict[str, int] = {}
        self._revision: Revision | None = None
        self._reconcile_requested = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self._fetches: dict[str, list[Callable[[bool], None]]] = {}
        self._waits: list[tuple[Position, asyncio.Future[bool]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._refreshed: dict[str, int] = {}
        self._reconcile_at_s = 0.0
        self._announce_at_s = 0.0
        self._paced_until_s = 0.0
        self._reported_trouble = ""
        self._invalid_turn = 0
        """Reads that started at or before this turn belong to a history that is no longer valid."""
        self._followed = 0

    def invalidate(self) -> None:
        """Put all records out of force until they are loaded again, because a server lacks the history."""
        self._invalid_turn = self._next_turn()
        self._unload()
        self._reconcile_requested.set()

    def reconcile(self) -> None:
        """Read changes now rather than wait for a push."""
        self._reconcile_at_s = 0.0
        self._reconcile_requested.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        retry_s = self._options.retry_first_s
        try:
            while True:
                try:
                    if self._followed < self._invalid_turn:
                        self._revision, self._followed = None, self._invalid_turn
                    await (self._load() if self._revision is None else self._follow())
                    await self._announce()
                except (RegistryError, IntegrationError) as error:
                    self._report_failure(error)
                    if isinstance(error, RegistryReplacedError):
                        self._unload()
                        self._revision = None
                        self._records = {}  # an operator who accepts another history accepts all of it
                    await asyncio.sleep(retry_s * self._options.jitter())
                    retry_s = min(2 * retry_s, RETRY_MAX_S)
                else:
                    self._report_success()
                    retry_s = self._options.retry_first_s
        finally:
            await self.close()

    def refresh(self, integration_id: str, generation: int, done: Callable[[bool], None]) -> None:
        """
        Fetch the record of an integration, of which the store has *generation*, and put it into force.

        *done* is called once: True = the snapshot holds the fetched record, False = fetching failed.
        Concurrent calls for an integration share one fetch.
        """
        compiled = self.snapshot.integrations.get(integration_id)
        if (compiled.generation if compiled is not None else 0) == generation:
            done(True)  # the record was pushed meanwhile
            return
        waiting = self._fetches.get(integration_id)
        if waiting is not None:
            waiting.append(done)
        elif len(self._fetches) >= REFRESHES_MAX:
            done(False)
        else:
            self._fetches[integration_id] = [done]
            task = asyncio.get_running_loop().create_task(self._fetch(integration_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def waits(self) -> int:
        """Number of calls that wait for a change to be in force."""
        return len(self._waits)

    async def wait_for(self, position: Position, timeout_s: float) -> bool:
        """Wait until the snapshot includes the change at *position*; False = timeout."""
        if self._revision is not None and self._revision.covers(position):
            return True
        if len(self._waits) >= WAITS_MAX:
            return False
        loop = asyncio.get_running_loop()
        applied: asyncio.Future[bool] = loop.create_future()
        waiter = position, applied
        self._waits.append(waiter)
        poll = loop.call_later(self._options.push_patience_s, self.reconcile)
        try:
            async with asyncio.timeout(timeout_s):
                return await applied
        except TimeoutError:
            return False
        finally:
            poll.cancel()
            if waiter in self._waits:
                self._waits.remove(waiter)

    # Following.

    def _set_revision(self, revision: Revision) -> None:
        """Record that *revision* is in force, and end the waits for it."""
        self._revision = revision
        for position, applied in self._waits:
            if revision.covers(position) and not applied.done():
                applied.set_result(True)

    async def _load(self) -> None:
        """Load all records, and compile them in a thread."""
        started = self._next_turn()
        view = await self._registry.load_all()
        now_us, before = self._options.clock_us(), self.snapshot
        applicable = tuple(self._record_to_apply(record, started) for record in view.records)
        records = tuple(in_force(record, now_us) for record in applicable)
        loaded: Snapshot = await self._options.run_in_thread(
            lambda: Snapshot.compile(records, before).sharded()
        )
        if started <= self._invalid_turn:
            return
        if view.lost:
            log_event(log, logging.ERROR, "registry damaged", problem=lost_record(*view.lost))
            loaded.is_loaded = False  # an unknown key may belong to one of the lost integrations
        later = [id for id, turn in self._refreshed.items() if turn >= started]
        newer = {id: self._records.get(id) for id in later}
        self._records = {record.id: record for record in applicable}
        self._raised = {record.id for record in applicable if record.limit_raise is not None}
        self._single_person = {record.id for record in applicable if record.single_person_at_us}
        replaced = self.snapshot.integrations
        self._publish(loaded, [old for id, old in replaced.items() if loaded.integrations.get(id) is not old])
        self._keep_newer(newer)
        self._set_revision(view.revision)
        self.is_loaded = True
        self._reconcile_at_s = monotonic() + self._options.reconcile_interval_s * self._options.jitter()
        self._metrics.add("sidecar_registry_loads_total")
        named = {"registry_id": view.registry_id} if view.registry_id else {}
        log_event(log, logging.INFO, "registry loaded", integrations=len(loaded.integrations), **named)

    def _unload(self) -> None:
        """
        Put everything out of force: the same generation may mean another record in another history.

        The records are kept for `_record_to_apply`, in case the store has lost suspensions.
        """
        self._raised = set()
        retired = list(self.snapshot.integrations.values())
        if self.snapshot.is_loaded or retired:
            self._publish(Snapshot.unloaded(), retired)

    def _keep_newer(self, newer: Mapping[str, Integration | None]) -> None:
        """Put back records that were refreshed during the load, if they are newer; None = deleted."""
        fresh, deleted = [], []
        for id, record in newer.items():
            loaded = self._records.get(id)
            if record is None:
                deleted.append(id)
            elif loaded is None or loaded.generation < record.generation:
                fresh.append(record)
        self._apply(fresh, deleted, started=None)

    async def _follow(self) -> None:
        """Wait for pushed changes until a reconcile or announcement is due; then read changes."""
        assert self._revision is not None
        await asyncio.sleep(max(0.0, self._paced_until_s - monotonic()))
        started = self._next_turn()
        now_s = monotonic()
        wait_s = min(self._reconcile_at_s, self._announce_at_s) - now_s
        is_due = self._reconcile_at_s <= now_s
        if is_due:
            changes = await self._registry.changes_since(self._revision)
            self._reconcile_at_s = now_s + self._options.reconcile_interval_s * self._options.jitter()
        else:
            waited = await self._wait(self._revision, max(0.001, wait_s))
            if waited is None:
                return
            changes = waited
        if changes.is_reset:
            log_event(log, logging.ERROR, "the registry's history has changed, loading all records")
            self._unload()
            self._revision = None
            return
        await self._apply_changes(changes, started)

    async def _wait(self, revision: Revision, wait_s: float) -> Changes | None:
        """Return pushed changes; None = a reconcile was requested meanwhile."""
        loop = asyncio.get_running_loop()
        pushed = loop.create_task(self._registry.changes_since(revision, wait_s))
        asked = loop.create_task(self._reconcile_requested.wait())
        try:
            await asyncio.wait((pushed, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                self._reconcile_requested.clear()
            return pushed.result() if pushed.done() else None
        finally:
            for task in (pushed, asked):
                task.cancel()
            await asyncio.wait((pushed, asked))

    async def _apply_changes(self, changes: Changes, started: int) -> None:
        if started <= self._invalid_turn:
            return
        prepared: dict[str, CompiledIntegration] = {}
        if len(changes.records) > SMALL_CHANGE_MAX:
            now_us = self._options.clock_us()
            records = [in_force(record, now_us) for record in changes.records]
            prepared = await self._options.run_in_thread(
                lambda: {record.id: CompiledIntegration(record) for record in records}
            )
        try:
            self._apply(changes.records, changes.deleted, started, prepared)
        except IntegrationError:
            self._revision = None  # changes were read in another order than made: load all records
            raise
        self._set_revision(changes.revision)
        if changes.records or changes.deleted:
            self._announce_at_s = 0.0
            self._paced_until_s = monotonic() + self._options.pace_s

    async def _announce(self) -> None:
        now_s = monotonic()
        if now_s < self._announce_at_s or self._revision is None:
            return
        self._announce_at_s = now_s + self._options.announce_interval_s
        if self._options.sidecar_id:
            await self._registry.announce(self._options.sidecar_id, self._revision)

    def _report_failure(self, error: Exception) -> None:
        """Count the failure; log and report it when it has changed, not at every attempt."""
        self._metrics.add("sidecar_registry_follow_failures_total")
        self._metrics.set("sidecar_registry_in_touch", to=0)
        self._metrics.set("sidecar_registry_replaced", to=int(isinstance(error, RegistryReplacedError)))
        if str(error) != self._reported_trouble:
            self._reported_trouble = str(error)
            self.on_trouble(self._reported_trouble)
            log_event(
                log,
                logging.ERROR if isinstance(error, RegistryReplacedError) else logging.WARNING,
                "registry not followed",
                problem=self._reported_trouble,
            )

    def _report_success(self) -> None:
        self._metrics.set("sidecar_registry_in_touch", to=1)
        self._metrics.set("sidecar_registry_confirmed_timestamp_seconds", to=wall_clock_us() // 1_000_000)
        self._metrics.set("sidecar_registry_replaced", to=0)
        if self._reported_trouble:
            self._reported_trouble = ""
            self.on_trouble("")
            log_event(log, logging.INFO, "registry followed again")

    async def close(self) -> None:
        """End the waits and refreshes, and stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
        for _, applied in self._waits:
            if not applied.done():
                applied.set_result(False)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=REFRESH_TIMEOUT_S)

    # Refreshing one integration.

    async def _fetch(self, integration_id: str) -> None:
        is_known = False
        started = self._next_turn()
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                record = await self._registry.get(integration_id)
            is_missing = record is None and integration_id in self._records
            if is_missing and not await self._registry.was_deleted(integration_id):
                raise RegistryDamagedError(lost_record(integration_id))  # no administrator deleted it
            self._apply(*(([record], []) if record is not None else ([], [integration_id])), started)
            self._refreshed[integration_id] = self._next_turn()
            is_known = True
        except (RegistryError, IntegrationError, TimeoutError) as error:
            self._report_failure(error)
        finally:
            self._metrics.add("sidecar_registry_refreshes_total", "ok" if is_known else "failed")
            for done in self._fetches.pop(integration_id):
                done(is_known)

    def _next_turn(self) -> int:
        """Number a read that starts now, to compare it with later refreshes."""
        self._turn += 1
        return self._turn

    def _is_outdated(self, record: Integration, started: int | None) -> bool:
        """Whether a later read has already put a newer record into force."""
        if started is None or self._refreshed.get(record.id, 0) < started:
            return False
        held = self._records.get(record.id)
        return held is None or held.generation > record.generation

    def _record_to_apply(self, record: Integration, started: int | None) -> Integration:
        """
        Return the record to put into force: *record*, unless the store has lost a suspension.

        A failover to a replica that missed writes, or a restored backup, can undo a suspension that no
        administrator lifted. It stays in force here, under the generation that the store holds, until an
        administrator changes the integration.
        """
        held = self._records.get(record.id)
        is_active_again = (
            held is not None and held.status is Status.SUSPENDED and record.status is not Status.SUSPENDED
        )
        if held is not None and is_active_again and self._overruled.get(record.id) == record.generation:
            return held
        self._overruled.pop(record.id, None)
        is_late = started is not None and self._refreshed.get(record.id, 0) >= started
        if held is None or not is_active_again or is_late or record.generation >= held.generation:
            return record
        self._overruled[record.id] = record.generation
        log_event(
            log,
            logging.ERROR,
            "the store lost a suspension, this sidecar keeps the integration suspended: suspend it again, or"
            " make any other change to admit it",
            integration=record.id,
            lost_generation=held.generation,
            generation=record.generation,
        )
        return replace(held, generation=record.generation)

    # Applying records.

    def _apply(
        self,
        records: Iterable[Integration],
        deleted: Sequence[str],
        started: int | None,
        prepared: Mapping[str, CompiledIntegration] | None = None,
    ) -> None:
        """Put *records* into force and remove *deleted*; change nothing if they are inconsistent."""
        if started is not None and started <= self._invalid_turn:
            return
        fresh = [
            self._record_to_apply(record, started)
            for record in records
            if not self._is_outdated(record, started)
        ]
        if not fresh and not deleted:
            return
        now_us, before = self._options.clock_us(), self.snapshot
        after = before.with_changes([in_force(record, now_us) for record in fresh], deleted, prepared)
        for record in fresh:
            self._records[record.id] = record
            (self._raised.add if record.limit_raise is not None else self._raised.discard)(record.id)
            alone = self._single_person
            (alone.add if record.single_person_at_us else alone.discard)(record.id)
        for id in deleted:
            self._records.pop(id, None)
            self._overruled.pop(id, None)
            self._raised.discard(id)
            self._single_person.discard(id)
        ids = dict.fromkeys((*(record.id for record in fresh), *deleted))
        moved = [id for id in ids if after.integrations.get(id) is not before.integrations.get(id)]
        if moved:
            self._metrics.add("sidecar_registry_changes_total", by=len(moved))
            self._publish(after, [before.integrations[id] for id in moved if id in before.integrations])

    def _publish(self, snapshot: Snapshot, retired: Sequence[CompiledIntegration]) -> None:
        if len(self._refreshed) > REFRESHES_MAX:
            self._refreshed.clear()
        self.snapshot = snapshot
        self._metrics.set("sidecar_registry_single_person_integrations", to=len(self._single_person))
        self._on_snapshot(snapshot, retired)
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the end of the first temporary limit raise."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        now_us = self._options.clock_us()
        ends = [next_change_at_us(self._records[id], now_us) for id in self._raised]
        due_us = min((end for end in ends if end is not None), default=None)
        if due_us is not None:
            delay_s = min(max(0.001, (due_us - now_us) / 1e6), TIMER_MAX_S)
            self.timer = asyncio.get_running_loop().call_later(delay_s, self.apply_raises)

    def apply_raises(self) -> None:
        """Apply the records with temporary limit raises again, because a raise may have ended."""
        self.timer = None
        try:
            self._apply([self._records[id] for id in self._raised], (), started=None)
        except IntegrationError as error:
            self._report_failure(error)
        self._arm()

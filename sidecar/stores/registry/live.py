"""
The live view: keeps one process's snapshot true to a registry that others change.

All is loaded once. Then changes are followed as they are pushed, and looked for by the clock in case a push
was lost. Whatever fails, the snapshot in force stays. When a take finds that an integration's record has
changed, that one is fetched at once: so a suspension needs no push to be in force everywhere.
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
"""A third of the time after which a sidecar counts as gone."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 1.0
SMALL_CHANGE_MAX = 8
"""Records that are compiled on the event loop; more are compiled beside it."""
REFRESH_TIMEOUT_S = 1.0
REFRESHES_MAX = 1_024
"""Integrations that are fetched at a time because a take asked for it."""
REACHES_MAX = 1_024
"""Changes that are waited for at a time."""
REACH_PATIENCE_S = 0.1
"""Of a registry that pushes its changes."""
PACE_S = 0.1
"""Between two looks that found changes: those that follow each other closely are taken up together."""
TIMER_MAX_S = 60.0
"""The clock is looked at again after so long: it may have been set."""

Beside: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs work beside the event loop and gives its result."""

OnSnapshot: TypeAlias = Callable[[Snapshot, Sequence[CompiledIntegration]], None]
"""Called with each new snapshot and what it replaces, on the event loop."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """
    How a registry is followed.

    `sidecar_id` is announced with how far this process has come; '' = it is not. `clock_us` is the clock by
    which temporary raises of limits end, the store's where it is shared; `reach_patience_s` is how long a
    change that is waited for may be on its way before it is looked for; `pace_s` is the least time from a
    look that found changes to the next, so that changes which follow each other closely share one; `jitter`
    spreads the reconciles of a fleet.
    """

    sidecar_id: str = ""
    reconcile_interval_s: float = RECONCILE_INTERVAL_S
    announce_interval_s: float = ANNOUNCE_INTERVAL_S
    retry_first_s: float = RETRY_FIRST_S
    beside: Beside = asyncio.to_thread
    clock_us: Callable[[], int] = wall_clock_us
    reach_patience_s: float = REACH_PATIENCE_S
    pace_s: float = PACE_S
    jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25)  # noqa: S311 - spreads load only


class LiveRegistry:
    """
    Follows *registry*; `snapshot` is what is in force, `is_loaded` whether all was loaded once.

    One task runs `run`; `refresh` may be called at any time on the same event loop.
    """

    def __init__(
        self,
        registry: Registry,
        on_snapshot: OnSnapshot,
        metrics: Metrics,
        options: LiveOptions | None = None,
    ) -> None:
        """Nothing is asked before `run`."""
        self.snapshot = Snapshot.unloaded()
        self.is_loaded = False
        self.on_trouble: Callable[[str], None] = lambda trouble: None
        """Told why the registry cannot be followed, whenever that changes; '' = it is followed."""
        self._registry = registry
        self._on_snapshot = on_snapshot
        self._metrics = metrics
        self._options = options or LiveOptions()
        self._records: dict[str, Integration] = {}
        self._raised: set[str] = set()
        self._single_person: set[str] = set()
        self._overruled: dict[str, int] = {}
        self._revision: Revision | None = None
        self._asked = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._flights: dict[str, list[Callable[[bool], None]]] = {}
        self._reaches: list[tuple[Position, asyncio.Future[bool]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._refreshed: dict[str, int] = {}
        self._reconcile_at_s = 0.0
        self._announce_at_s = 0.0
        self._paced_until_s = 0.0
        self._told = ""
        self._doubted = 0
        """What was asked before this turn is of a history that no longer counts."""
        self._followed = 0

    def doubt(self) -> None:
        """A server does not hold what was followed: no record counts any more, until all was loaded anew."""
        self._doubted = self._begin()
        self._drop()
        self._asked.set()

    def reconcile(self) -> None:
        """Look for changes at once, whatever was pushed."""
        self._reconcile_at_s = 0.0
        self._asked.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        retry_s = self._options.retry_first_s
        try:
            while True:
                try:
                    if self._followed < self._doubted:
                        self._revision, self._followed = None, self._doubted
                    await (self._load() if self._revision is None else self._follow())
                    await self._announce()
                except (RegistryError, IntegrationError) as error:
                    self._failed(error)
                    if isinstance(error, RegistryReplacedError):
                        self._drop()
                        self._revision = None
                        self._records = {}  # an operator who accepts another history accepts all of it
                    await asyncio.sleep(retry_s * self._options.jitter())
                    retry_s = min(2 * retry_s, RETRY_MAX_S)
                else:
                    self._in_touch()
                    retry_s = self._options.retry_first_s
        finally:
            await self._end()

    def refresh(self, integration_id: str, generation: int, done: Callable[[bool], None]) -> None:
        """
        Put into force what the registry has now: it is not the record of *generation* that a take went by.

        *done* is called once: with True when the snapshot holds the record that was found, with False when
        the registry could not say. Calls that meet share one question.
        """
        compiled = self.snapshot.integrations.get(integration_id)
        if (compiled.generation if compiled is not None else 0) == generation:
            done(True)  # it was pushed meanwhile
            return
        waiting = self._flights.get(integration_id)
        if waiting is not None:
            waiting.append(done)
        elif len(self._flights) >= REFRESHES_MAX:
            done(False)
        else:
            self._flights[integration_id] = [done]
            task = asyncio.get_running_loop().create_task(self._fetch(integration_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def reach(self, position: Position, timeout_s: float) -> bool:
        """Wait until the snapshot includes the change at *position*; False = not within *timeout_s*."""
        if self._revision is not None and self._revision.covers(position):
            return True
        if len(self._reaches) >= REACHES_MAX:
            return False
        loop = asyncio.get_running_loop()
        reached: asyncio.Future[bool] = loop.create_future()
        reach = position, reached
        self._reaches.append(reach)
        look = loop.call_later(self._options.reach_patience_s, self.reconcile)
        try:
            async with asyncio.timeout(timeout_s):
                return await reached
        except TimeoutError:
            return False
        finally:
            look.cancel()
            if reach in self._reaches:
                self._reaches.remove(reach)

    # Following.

    def _follow_from(self, revision: Revision) -> None:
        """What is in force is that of *revision*: tell who waits for it."""
        self._revision = revision
        for position, reached in self._reaches:
            if revision.covers(position) and not reached.done():
                reached.set_result(True)

    async def _load(self) -> None:
        """Load all, and compile it beside the event loop."""
        started = self._begin()
        view = await self._registry.load_all()
        now_us, before = self._options.clock_us(), self.snapshot
        judged = tuple(self._judge(record, started) for record in view.records)
        records = tuple(in_force(record, now_us) for record in judged)
        loaded: Snapshot = await self._options.beside(lambda: Snapshot.compile(records, before).sharded())
        if started <= self._doubted:
            return
        if view.lost:
            log_event(log, logging.ERROR, "registry damaged", problem=lost_record(*view.lost))
            loaded.is_loaded = False  # a key that is not known may be one of theirs
        later = [id for id, turn in self._refreshed.items() if turn >= started]
        newer = {id: self._records.get(id) for id in later}
        self._records = {record.id: record for record in judged}
        self._raised = {record.id for record in judged if record.limit_raise is not None}
        self._single_person = {record.id for record in judged if record.single_person_at_us}
        replaced = self.snapshot.integrations
        self._show(loaded, [one for id, one in replaced.items() if loaded.integrations.get(id) is not one])
        self._keep_newer(newer)
        self._follow_from(view.revision)
        self.is_loaded = True
        self._reconcile_at_s = monotonic() + self._options.reconcile_interval_s * self._options.jitter()
        self._metrics.add("sidecar_registry_loads_total")
        named = {"registry_id": view.registry_id} if view.registry_id else {}
        log_event(log, logging.INFO, "registry loaded", integrations=len(loaded.integrations), **named)

    def _drop(self) -> None:
        """
        Put everything out of force: generations of another history may repeat, and mean other records.

        What was in force is remembered, for suspensions that the store may have lost; see `_judge`.
        """
        self._raised = set()
        retired = list(self.snapshot.integrations.values())
        if self.snapshot.is_loaded or retired:
            self._show(Snapshot.unloaded(), retired)

    def _keep_newer(self, newer: Mapping[str, Integration | None]) -> None:
        """Put back what was fetched while all was being loaded, where it is later; None = it had ended."""
        fresh, gone = [], []
        for id, record in newer.items():
            loaded = self._records.get(id)
            if record is None:
                gone.append(id)
            elif loaded is None or loaded.generation < record.generation:
                fresh.append(record)
        self._put(fresh, gone, started=None)

    async def _follow(self) -> None:
        """Wait for changes until the next thing is due; or look whether there are some."""
        assert self._revision is not None
        await asyncio.sleep(max(0.0, self._paced_until_s - monotonic()))
        started = self._begin()
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
            log_event(log, logging.ERROR, "the registry's history is another one: loading it whole")
            self._drop()
            self._revision = None
            return
        await self._take_up(changes, started)

    async def _wait(self, revision: Revision, wait_s: float) -> Changes | None:
        """What is pushed; None = a reconcile was asked for meanwhile."""
        loop = asyncio.get_running_loop()
        pushed = loop.create_task(self._registry.changes_since(revision, wait_s))
        asked = loop.create_task(self._asked.wait())
        try:
            await asyncio.wait((pushed, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                self._asked.clear()
            return pushed.result() if pushed.done() else None
        finally:
            for task in (pushed, asked):
                task.cancel()
            await asyncio.wait((pushed, asked))

    async def _take_up(self, changes: Changes, started: int) -> None:
        if started <= self._doubted:
            return
        prepared: dict[str, CompiledIntegration] = {}
        if len(changes.records) > SMALL_CHANGE_MAX:
            now_us = self._options.clock_us()
            records = [in_force(record, now_us) for record in changes.records]
            prepared = await self._options.beside(
                lambda: {record.id: CompiledIntegration(record) for record in records}
            )
        try:
            self._put(changes.records, changes.deleted, started, prepared)
        except IntegrationError:
            self._revision = None  # seen in another order than they were made: one look at all helps
            raise
        self._follow_from(changes.revision)
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

    def _failed(self, error: Exception) -> None:
        """Count it; say it once, not at every attempt."""
        self._metrics.add("sidecar_registry_follow_failures_total")
        self._metrics.set("sidecar_registry_in_touch", to=0)
        self._metrics.set("sidecar_registry_replaced", to=int(isinstance(error, RegistryReplacedError)))
        if str(error) != self._told:
            self._told = str(error)
            self.on_trouble(self._told)
            log_event(
                log,
                logging.ERROR if isinstance(error, RegistryReplacedError) else logging.WARNING,
                "registry not followed",
                problem=self._told,
            )

    def _in_touch(self) -> None:
        self._metrics.set("sidecar_registry_in_touch", to=1)
        self._metrics.set("sidecar_registry_replaced", to=0)
        if self._told:
            self._told = ""
            self.on_trouble("")
            log_event(log, logging.INFO, "registry followed again")

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for _, reached in self._reaches:
            if not reached.done():
                reached.set_result(False)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=REFRESH_TIMEOUT_S)

    # Fetching one.

    async def _fetch(self, integration_id: str) -> None:
        is_known = False
        started = self._begin()
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                record = await self._registry.get(integration_id)
            is_missing = record is None and integration_id in self._records
            if is_missing and not await self._registry.was_deleted(integration_id):
                raise RegistryDamagedError(lost_record(integration_id))  # nobody decided that it ends
            self._put(*(([record], []) if record is not None else ([], [integration_id])), started)
            self._refreshed[integration_id] = self._begin()
            is_known = True
        except (RegistryError, IntegrationError, TimeoutError) as error:
            self._failed(error)
        finally:
            self._metrics.add("sidecar_registry_refreshes_total", "ok" if is_known else "failed")
            for done in self._flights.pop(integration_id):
                done(is_known)

    def _begin(self) -> int:
        """The number of something that is asked now: tells what was put in force since."""
        self._turn += 1
        return self._turn

    def _is_overtaken(self, record: Integration, started: int | None) -> bool:
        """Whether a later question has already put a later record into force."""
        if started is None or self._refreshed.get(record.id, 0) < started:
            return False
        held = self._records.get(record.id)
        return held is None or held.generation > record.generation

    def _judge(self, record: Integration, started: int | None) -> Integration:
        """
        What to put into force: *record*, unless it lacks a suspension that was in force.

        A failover to a replica that missed writes, or a restored backup, can take a suspension back without
        anybody's decision. It stays in force here, under the generation that the store holds, until somebody
        changes the integration.
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
            "the store lost a suspension, the integration stays suspended here: suspend it again, or change"
            " it to let it in",
            integration=record.id,
            lost_generation=held.generation,
            generation=record.generation,
        )
        return replace(held, generation=record.generation)

    # Putting in force.

    def _put(
        self,
        records: Iterable[Integration],
        deleted: Sequence[str],
        started: int | None,
        prepared: Mapping[str, CompiledIntegration] | None = None,
    ) -> None:
        """Put *records* into force and *deleted* out of it; nothing is changed when they do not fit."""
        if started is not None and started <= self._doubted:
            return
        fresh = [
            self._judge(record, started) for record in records if not self._is_overtaken(record, started)
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
            self._show(after, [before.integrations[id] for id in moved if id in before.integrations])

    def _show(self, snapshot: Snapshot, retired: Sequence[CompiledIntegration]) -> None:
        if len(self._refreshed) > REFRESHES_MAX:
            self._refreshed.clear()
        self.snapshot = snapshot
        self._metrics.set("sidecar_registry_single_person_integrations", to=len(self._single_person))
        self._on_snapshot(snapshot, retired)
        self._arm()

    def _arm(self) -> None:
        """Have the timer fire when the first temporary raise ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_us = self._options.clock_us()
        ends = [next_change_at_us(self._records[id], now_us) for id in self._raised]
        due_us = min((end for end in ends if end is not None), default=None)
        if due_us is not None:
            delay_s = min(max(0.001, (due_us - now_us) / 1e6), TIMER_MAX_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._revert)

    def _revert(self) -> None:
        """Some raise may have ended: work out anew what is in force of those that had one."""
        self._timer = None
        try:
            self._put([self._records[id] for id in self._raised], (), started=None)
        except IntegrationError as error:
            self._failed(error)
        self._arm()

"""
The identity of the registry that a process follows: its random id, and the history seen so far.

The id is written to each partition when the registry is bootstrapped, and never changes. A process follows
the first id that it finds, or the one in its configuration. If the store has another registry or none, or
lacks entries that were seen, it was flushed, replaced or restored: its data is refused until an operator
accepts it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from sidecar.observe.logs import log_event
from sidecar.stores.redis.urls import StoreTopology
from sidecar.stores.registry.protocol import RegistryReplacedError
from sidecar.stores.registry.redis.feed import QUESTION
from sidecar.stores.registry.redis.history import History, Point
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys
from sidecar.stores.registry.redis.nodes import Command
from sidecar.stores.registry.redis.reads import Reader, all_of, head_command
from sidecar.stores.registry.redis.replies import entry_of, head_of

log = logging.getLogger("sidecar.registry")

ID_BYTES = 8
REMEMBERED_S = 60
"""TTL of the key by which a sidecar reports the registry that it follows; repeated every second."""
REPLACED_MAX = 8
"""Maximum number of former ids that are kept for sidecars that still follow them."""
ANSWER_TIMEOUT_S = 1.0
Run: TypeAlias = Callable[[Sequence[Command]], Awaitable[Sequence[Any]]]
"""Runs commands on one node and returns the replies."""
ACCEPT = "'sidecar registry accept' with the sidecar's configuration"


class PartitionState(NamedTuple):
    """
    The state of one partition.

    `is_in_use` = the partition has administrators or integrations; `has_latest` and `has_settled` = the chain
    contains the latest entry seen, and the one seen a minute ago; `sequence` is its last entry.
    """

    partition: int
    id: str
    is_in_use: bool
    has_latest: bool
    has_settled: bool
    sequence: int


class Identity:
    """
    Checks that the store of *keys* has the registry that this process follows.

    `known` is its id, '' = not known yet; `fault` is the error of the last check.
    """

    def __init__(
        self, where: str, kind: StoreTopology, keys: RegistryKeys, history: History, pinned: str = ""
    ) -> None:
        """*where* and *kind* describe the store's URL; *pinned* is the only id that is accepted, '' = any."""
        self.known = pinned
        self.fault: RegistryReplacedError | None = None
        self.is_checked = False
        self.on_forget: Callable[[], None] = lambda: None
        """Called when another history becomes valid, so that all data read before is invalid."""
        self._where = where
        self._keys = keys
        self._history = history
        self._pinned = pinned
        self._may_lose_latest = kind is not StoreTopology.STANDALONE

    async def check(self, reader: Reader, partitions: Iterable[int] | None = None) -> None:
        """
        Check *partitions*, None = all; a registry of an earlier version without an id gets one.

        Raises:
            RegistryReplacedError: the store has another registry, none, or an older state of it.
        """
        numbers = tuple(partitions if partitions is not None else range(self._keys.partitions))
        try:
            found = await all_of(*(self.read(number, _asking(reader, number)) for number in numbers))
            await self._check_found(reader, found)
        except RegistryReplacedError as error:
            self.fault = error
            if self.known:
                await self.report(reader)
            raise
        self.fault = None
        self.is_checked = self.is_checked or partitions is None

    async def read(self, partition: int, run: Run) -> PartitionState:
        """Read the state of *partition*; *run* runs commands on its node."""
        seen = (self._history.latest(partition), self._history.settled(partition))
        names = ("registry-id", "epoch")
        commands: list[Command] = [("GET", self._keys.named(partition, name)) for name in names]
        commands.append(head_command(self._keys, partition))
        for at in filter(None, seen):
            entry = f"{at.sequence}-0"
            commands.append(("XRANGE", self._keys.named(partition, "audit"), entry, entry))
        id, epoch, head, *places = await run(commands)
        sequence = head_of(partition, head).sequence
        has = [_holds(partition, at, reply) for at, reply in zip(filter(None, seen), places, strict=True)]
        return PartitionState(
            partition, (id or b"").decode(), bool(epoch or sequence), all(has[:1]), all(has[1:]), sequence
        )

    def is_followed(self, found: PartitionState) -> bool:
        """Whether a partition matches the history seen so far, if any."""
        return found.has_latest and (not self.known or found.id == self.known)

    async def begin(self, reader: Reader) -> None:
        """
        Write the id of a registry that is about to be bootstrapped, unless a sidecar follows a registry here.

        Raises:
            RegistryReplacedError: a sidecar follows a registry that the store lacks.
        """
        if self.known:
            return
        [subscribers] = await reader.ask(HOME, ("PUBLISH", self._keys.channel, QUESTION))
        deadline_s = asyncio.get_running_loop().time() + (ANSWER_TIMEOUT_S if subscribers else 0.0)
        while True:
            [remembered] = await reader.ask(HOME, ("GET", self._keys.named(HOME, "remembered")))
            if remembered is not None:
                raise RegistryReplacedError(
                    f"sidecars follow registry {remembered.decode()}, but the store {self._where} is empty:"
                    f" restore its data. To create a new registry, run 'sidecar registry accept' first"
                )
            if asyncio.get_running_loop().time() >= deadline_s:
                break
            await asyncio.sleep(ANSWER_TIMEOUT_S / 20)
        self.known = await self._write(reader, range(self._keys.partitions), secrets.token_hex(ID_BYTES))

    async def report(self, reader: Reader) -> None:
        """Write the id that this process follows, so that a bootstrap of an emptied store is refused."""
        key = self._keys.named(HOME, "remembered")
        await reader.ask(HOME, ("SET", key, self.known, "EX", REMEMBERED_S))

    async def _check_found(self, reader: Reader, found: Sequence[PartitionState]) -> None:
        home = next((state for state in found if state.partition == HOME), None)
        if home is not None and not home.id and not self.known:
            if not any(state.is_in_use for state in found):
                return  # not bootstrapped yet
            self.known = await self._write(reader, (state.partition for state in found), _new_id())
            return
        if home is not None and home.id != self.known:
            await self._adopt(reader, home.id)
        others = [state for state in found if state.id != self.known]
        fresh = [state.partition for state in others if not state.id and (state.is_in_use or _is_fresh(home))]
        for state in others:
            if state.partition not in fresh:
                raise self._replaced(state)
        if fresh:
            await self._write(reader, fresh, self.known)
        self._check_history([state for state in found if not state.has_latest])

    async def _adopt(self, reader: Reader, id: str) -> None:
        """Follow registry *id* ('' = none) of the store if none is known, or if an operator accepted it."""
        if not self.known:
            self.known = id
            return
        [replaced] = await reader.ask(HOME, ("GET", self._keys.named(HOME, "replaced")))
        if not id or self._pinned or self.known not in (replaced or b"").decode().split():
            raise self._replaced(PartitionState(HOME, id, False, True, True, 0))
        log_event(log, logging.WARNING, "registry accepted by an operator", was=self.known, now=id)
        self.known = id
        self._history.forget()
        self.on_forget()

    def _check_history(self, lost: Sequence[PartitionState]) -> None:
        """
        Handle partitions that lack entries that were seen.

        A failover may lose changes that replicas did not have yet and that were not acknowledged. Any other
        loss means that the data is an older copy.
        """
        for state in lost:
            seen = self._history.latest(state.partition)
            if seen is None:
                continue  # an operator has just accepted the store's history
            if not self._may_lose_latest or not state.has_settled:
                raise RegistryReplacedError(
                    f"the history of registry {self.known} in the store {self._where} went back: partition"
                    f" {state.partition} was at change {seen.sequence} and is now at {state.sequence}, so"
                    " changes are lost, perhaps suspensions; an older snapshot may have been restored."
                    f" Restore a newer one; or run {ACCEPT}, and repeat the lost changes"
                )
            log_event(
                log,
                logging.ERROR,
                "a failover lost changes that no replica had, loading the registry again",
                partition=state.partition,
                seen=seen.sequence,
                now=state.sequence,
            )
            self._history.forget(state.partition)
            self.on_forget()

    def _replaced(self, found: PartitionState) -> RegistryReplacedError:
        what = f"registry {found.id}" if found.id else "no registry"
        where = "" if found.partition == HOME else f" in partition {found.partition}"
        source = "the configuration names" if self._pinned else "this process follows"
        return RegistryReplacedError(
            f"the store {self._where} holds {what}{where}, but {source} registry {self.known}: Redis was"
            " flushed, restarted without its data, or replaced. Restore the data; or, to use the store as it"
            f" is now, run {ACCEPT}"
        )

    async def _write(self, reader: Reader, partitions: Iterable[int], id: str) -> str:
        """Write *id* to partitions without one, partition 0 first; return the id in partition 0."""
        first, *others = sorted(partitions)
        for partition in (first, *others):
            key = self._keys.named(partition, "registry-id")
            _, stored = await reader.ask(partition, ("SET", key, id, "NX"), ("GET", key))
            if partition == HOME:
                id = stored.decode()
        return id


async def accept(reader: Reader, was: str = "") -> tuple[str, str]:
    """
    Make sidecars that follow registry *was* follow the data in the store, under a new id.

    *was* '' = the registry that sidecars report to follow. Returns the store's former id, '' = none, and the
    new id.
    """
    keys = reader.keys
    names = ("registry-id", "replaced", "remembered")
    replies = await reader.ask(HOME, *(("GET", keys.named(HOME, name)) for name in names))
    found, replaced, remembered = ((reply or b"").decode() for reply in replies)
    former = dict.fromkeys(filter(None, (was, remembered, found, *replaced.split())))
    id = _new_id()
    await reader.ask(HOME, ("SET", keys.named(HOME, "replaced"), " ".join([*former][:REPLACED_MAX])))
    for partition in reversed(range(keys.partitions)):
        await reader.ask(partition, ("SET", keys.named(partition, "registry-id"), id))
    return found, id


def _new_id() -> str:
    return secrets.token_hex(ID_BYTES)


def _is_fresh(home: PartitionState | None) -> bool:
    """Whether the registry has only an id: its bootstrap is in progress, or was interrupted."""
    return home is not None and not home.is_in_use


def _asking(reader: Reader, partition: int) -> Run:
    return lambda commands: reader.ask(partition, *commands)


def _holds(partition: int, seen: Point, reply: list[Any]) -> bool:
    return bool(reply) and entry_of(partition, reply[0]).digest == seen.digest

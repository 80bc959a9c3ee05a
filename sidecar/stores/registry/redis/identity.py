"""
Which registry a process follows: the random id that it has for life, and how far its history was seen.

The id is written when the registry is bootstrapped, once in each partition. A process remembers the first
one that it finds, or is told by its configuration. A store that holds another registry or none, or whose
history lacks what was seen, was flushed, replaced or restored: nothing there is believed until an operator
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
"""How long a sidecar's claim that it remembers a registry is kept; it is repeated every second."""
REPLACED_MAX = 8
"""Former ids that are kept for sidecars which remember them."""
ANSWER_TIMEOUT_S = 1.0
Run: TypeAlias = Callable[[Sequence[Command]], Awaitable[Sequence[Any]]]
"""Asks one node, and gives its replies."""
ACCEPT = "'sidecar registry accept' where the configuration is"


class Found(NamedTuple):
    """
    What one partition tells of itself.

    `is_begun` = administrators or integrations were put on record; `has_latest` and `has_settled` = the chain
    holds the latest place that was seen of it, and what was seen a minute ago; `sequence` is its last entry.
    """

    partition: int
    id: str
    is_begun: bool
    has_latest: bool
    has_settled: bool
    sequence: int


class Identity:
    """
    Checks that the store of *keys* holds the registry that this process follows.

    `known` is its id, '' = none was found yet; `fault` is what was wrong when it was last checked.
    """

    def __init__(
        self, where: str, kind: StoreTopology, keys: RegistryKeys, history: History, pinned: str = ""
    ) -> None:
        """*where* and *kind* are those of the store's URL; *pinned* is the only id that counts, '' = any."""
        self.known = pinned
        self.fault: RegistryReplacedError | None = None
        self.is_checked = False
        self.on_forget: Callable[[], None] = lambda: None
        """Called when another history counts from now on: nothing that was read before does."""
        self._where = where
        self._keys = keys
        self._history = history
        self._pinned = pinned
        self._may_lose_latest = kind is not StoreTopology.STANDALONE

    async def check(self, reader: Reader, partitions: Iterable[int] | None = None) -> None:
        """
        Look at *partitions*, None = all; the first look gives a registry from before ids its own.

        Raises:
            RegistryReplacedError: the store holds another registry, none, or an older state of it.
        """
        looked_at = tuple(partitions if partitions is not None else range(self._keys.partitions))
        try:
            found = await all_of(*(self.look(one, _asking(reader, one)) for one in looked_at))
            await self._judge(reader, found)
        except RegistryReplacedError as error:
            self.fault = error
            if self.known:
                await self.claim(reader)
            raise
        self.fault = None
        self.is_checked = self.is_checked or partitions is None

    async def look(self, partition: int, run: Run) -> Found:
        """What *partition* tells of itself; *run* asks its node."""
        seen = (self._history.latest(partition), self._history.settled(partition))
        names = ("registry-id", "epoch")
        commands: list[Command] = [("GET", self._keys.once(partition, name)) for name in names]
        commands.append(head_command(self._keys, partition))
        for at in filter(None, seen):
            entry = f"{at.sequence}-0"
            commands.append(("XRANGE", self._keys.once(partition, "audit"), entry, entry))
        id, epoch, head, *places = await run(commands)
        sequence = head_of(partition, head).sequence
        has = [_holds(partition, at, reply) for at, reply in zip(filter(None, seen), places, strict=True)]
        return Found(
            partition, (id or b"").decode(), bool(epoch or sequence), all(has[:1]), all(has[1:]), sequence
        )

    def is_followed(self, found: Found) -> bool:
        """Whether a partition is as it was seen; what was never seen is."""
        return found.has_latest and (not self.known or found.id == self.known)

    async def begin(self, reader: Reader) -> None:
        """
        Give a registry that is about to be bootstrapped its id, unless a sidecar remembers one.

        Raises:
            RegistryReplacedError: one does.
        """
        if self.known:
            return
        [heard] = await reader.ask(HOME, ("PUBLISH", self._keys.channel, QUESTION))
        deadline_s = asyncio.get_running_loop().time() + (ANSWER_TIMEOUT_S if heard else 0.0)
        while True:
            [remembered] = await reader.ask(HOME, ("GET", self._keys.once(HOME, "remembered")))
            if remembered is not None:
                raise RegistryReplacedError(
                    f"sidecars remember registry {remembered.decode()}, and the store {self._where} is empty:"
                    f" restore its data. If it is to be a new registry, run 'sidecar registry accept' first"
                )
            if asyncio.get_running_loop().time() >= deadline_s:
                break
            await asyncio.sleep(ANSWER_TIMEOUT_S / 20)
        self.known = await self._write(reader, range(self._keys.partitions), secrets.token_hex(ID_BYTES))

    async def claim(self, reader: Reader) -> None:
        """Tell whoever comes to an emptied store that this process remembers a registry."""
        key = self._keys.once(HOME, "remembered")
        await reader.ask(HOME, ("SET", key, self.known, "EX", REMEMBERED_S))

    async def _judge(self, reader: Reader, found: Sequence[Found]) -> None:
        home = next((one for one in found if one.partition == HOME), None)
        if home is not None and not home.id and not self.known:
            if not any(one.is_begun for one in found):
                return  # nobody has bootstrapped it yet
            self.known = await self._write(reader, (one.partition for one in found), _new_id())
            return
        if home is not None and home.id != self.known:
            await self._meet(reader, home.id)
        strange = [one for one in found if one.id != self.known]
        fresh = [one.partition for one in strange if not one.id and (one.is_begun or _is_fresh(home))]
        for one in strange:
            if one.partition not in fresh:
                raise self._replaced(one)
        if fresh:
            await self._write(reader, fresh, self.known)
        self._judge_history([one for one in found if not one.has_latest])

    async def _meet(self, reader: Reader, id: str) -> None:
        """The store holds registry *id*, '' = none: believe it if none is known, or where it was accepted."""
        if not self.known:
            self.known = id
            return
        [replaced] = await reader.ask(HOME, ("GET", self._keys.once(HOME, "replaced")))
        if not id or self._pinned or self.known not in (replaced or b"").decode().split():
            raise self._replaced(Found(HOME, id, False, True, True, 0))
        log_event(log, logging.WARNING, "registry accepted by an operator", was=self.known, now=id)
        self.known = id
        self._history.forget()
        self.on_forget()

    def _judge_history(self, lost: Sequence[Found]) -> None:
        """
        The store lacks changes that were seen.

        A failover may lose what replicas did not have yet, and nobody was told that it was made. All else is
        an older copy.
        """
        for one in lost:
            seen = self._history.latest(one.partition)
            if seen is None:
                continue  # an operator has just accepted what is there
            if not self._may_lose_latest or not one.has_settled:
                raise RegistryReplacedError(
                    f"the history of registry {self.known} in the store {self._where} went back: partition"
                    f" {one.partition} had come to change {seen.sequence} and is at change {one.sequence}, so"
                    " changes are lost, and suspensions may be among them; was an older snapshot restored?"
                    f" Restore a newer one; or run {ACCEPT}, and repeat what was lost"
                )
            log_event(
                log,
                logging.ERROR,
                "a failover lost changes that no replica had, the registry is loaded anew",
                partition=one.partition,
                seen=seen.sequence,
                now=one.sequence,
            )
            self._history.forget(one.partition)
            self.on_forget()

    def _replaced(self, found: Found) -> RegistryReplacedError:
        what = f"registry {found.id}" if found.id else "no registry"
        where = "" if found.partition == HOME else f" in partition {found.partition}"
        source = "the configuration names" if self._pinned else "this process follows"
        return RegistryReplacedError(
            f"the store {self._where} holds {what}{where}, and {source} registry {self.known}: Redis was"
            " flushed, came back without its data, or is another one. Restore the data; or, if what is there"
            f" now is meant to be, run {ACCEPT}"
        )

    async def _write(self, reader: Reader, partitions: Iterable[int], id: str) -> str:
        """Write *id* wherever there is none, in partition 0 first; the id that stands there."""
        first, *others = sorted(partitions)
        for partition in (first, *others):
            key = self._keys.once(partition, "registry-id")
            _, stands = await reader.ask(partition, ("SET", key, id, "NX"), ("GET", key))
            if partition == HOME:
                id = stands.decode()
        return id


async def accept(reader: Reader, was: str = "") -> tuple[str, str]:
    """
    Have sidecars that follow registry *was* follow what the store holds now, whatever it is.

    '' = the one that they say they remember. Returns what the store held before, '' = none, and the new id.
    """
    keys = reader.keys
    names = ("registry-id", "replaced", "remembered")
    replies = await reader.ask(HOME, *(("GET", keys.once(HOME, name)) for name in names))
    found, replaced, remembered = ((reply or b"").decode() for reply in replies)
    former = dict.fromkeys(filter(None, (was, remembered, found, *replaced.split())))
    id = _new_id()
    await reader.ask(HOME, ("SET", keys.once(HOME, "replaced"), " ".join([*former][:REPLACED_MAX])))
    for partition in reversed(range(keys.partitions)):
        await reader.ask(partition, ("SET", keys.once(partition, "registry-id"), id))
    return found, id


def _new_id() -> str:
    return secrets.token_hex(ID_BYTES)


def _is_fresh(home: Found | None) -> bool:
    """Whether the registry has an id and nothing else yet: its bootstrap is under way, or broke off."""
    return home is not None and not home.is_begun


def _asking(reader: Reader, partition: int) -> Run:
    return lambda commands: reader.ask(partition, *commands)


def _holds(partition: int, seen: Point, reply: list[Any]) -> bool:
    return bool(reply) and entry_of(partition, reply[0]).digest == seen.digest

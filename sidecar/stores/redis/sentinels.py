"""
The Sentinels' word: which server is the primary, known as soon as one of them says so.

Every Sentinel of the URL is subscribed to and, in case a message was lost, asked again every second. They
learn of a failover one after another: the one with the highest configuration epoch is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.limits import Backoff
from sidecar.stores.redis.link import Link, PushLink
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.urls import Address

log = logging.getLogger(__name__)

CHANNELS = ("+switch-master", "+promoted-slave")
"""The Sentinel that leads a failover publishes the second one first, the others the first one."""
LOOK_INTERVAL_S = 1.0
LOOK_GAP_S = 0.1
"""Errors of the store cause a look at most that often."""
HANDOVER_S = 1.0
"""How long after a change of the primary sidecars may still take from the former one: ten times what
they need."""


class SentinelView(NamedTuple):
    """
    What one Sentinel says.

    `is_failing_over` = it leads a failover that is not decided yet; `is_switching` = it leads one that is and
    shows the new primary under the former one's name. `replicas` is how many may be promoted; `strays` are
    those that report to be primaries, such as a former one, or one just promoted. `age_s` is for how long the
    primary has been the one; `sentinels` is how many there are, this one included.
    """

    primary: Address
    epoch: int
    is_failing_over: bool
    is_switching: bool
    replicas: int
    strays: int
    age_s: float
    sentinels: int


class SentinelWord(NamedTuple):
    """
    What the Sentinels say together: the primary of the highest epoch, and the most cautious of the rest.

    `is_majority` tells whether most of the URL's Sentinels answered.
    """

    primary: Address
    is_failing_over: bool
    replicas: int
    is_majority: bool


class SentinelWatch:
    """
    Follows the Sentinels of one URL.

    `primary` is the latest word, None = none has spoken yet. *on_move* is called when another server becomes
    the primary, also for the first time; *on_count* with the number of Sentinels that are followed.
    """

    def __init__(
        self,
        connector: Connector,
        on_move: Callable[[Address], None],
        on_count: Callable[[int], None] = lambda followed: None,
    ) -> None:
        """Nothing is opened before `start` or the first question."""
        self.primary: Address | None = None
        self.replicas = 0
        """Replicas that the Sentinels would promote, as of the latest word."""
        self._epoch = -1
        self._service = connector.url.service
        self._moved_s = -HANDOVER_S
        self._on_move = on_move
        self._on_count = on_count
        self._followed = 0
        self._close_timeout_s = connector.limits.close_timeout_s
        subscriber = Connector(connector.url, connector.keys, connector.limits, (), PushLink)
        self._sentinels = [
            _Sentinel(address, connector, subscriber, self) for address in connector.url.addresses
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow, unless it was begun."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(sentinel.follow(), name=f"sentinel {sentinel.address}")
                for sentinel in self._sentinels
            ]

    async def close(self) -> None:
        """End all connections."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._close_timeout_s)
        for sentinel in self._sentinels:
            sentinel.end()

    def look_soon(self) -> None:
        """Something is wrong with the primary: ask now rather than at the next interval."""
        for sentinel in self._sentinels:
            sentinel.look_soon()

    async def ask(self, *, every: bool = False) -> SentinelWord:
        """
        Ask all Sentinels; the word of most of them, or with *every* of all that answer in time.

        Raises:
            HandshakeError: none of them names a primary.
        """
        looks = [asyncio.ensure_future(sentinel.look()) for sentinel in self._sentinels]
        most = len(looks) // 2 + 1
        views: list[SentinelView] = []
        troubles: list[str] = []
        try:
            for finished in asyncio.as_completed(looks):
                try:
                    views.append(await finished)
                except CONNECT_ERRORS as error:
                    troubles.append(str(error) or type(error).__name__)
                if len(views) >= most and not every:
                    break
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
        if not views:
            raise HandshakeError("; ".join(dict.fromkeys(troubles)))
        is_majority = len(views) >= most
        newest = max(views, key=lambda view: view.epoch)
        if is_majority and newest.epoch < self._epoch:
            self._take(newest)  # the service was removed and is monitored anew
        assert self.primary is not None
        replicas = max(view.replicas for view in views)
        if len(views) < len(looks):
            # The one that did not answer may lead a failover, and a stray be the replica that it promoted.
            replicas += max(view.strays for view in views)
        return SentinelWord(self.primary, any(view.is_failing_over for view in views), replicas, is_majority)

    async def handed_over(self) -> None:
        """Wait until every sidecar has had the time to leave the former primary."""
        wait_s = self._moved_s + HANDOVER_S - monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    # What one Sentinel tells.

    def note(self, view: SentinelView) -> None:
        """Go by *view* if it is newer than what was known."""
        is_newer = view.epoch > self._epoch
        # The leader of a failover may show the new primary a moment before the new epoch, or after it.
        is_leader = view.epoch == self._epoch and view.is_switching and view.primary != self.primary
        if is_newer or is_leader:
            self._take(view)
        elif view.primary == self.primary:
            self.replicas = view.replicas

    def count(self, change: int) -> None:
        """A Sentinel is followed, or no longer."""
        self._followed += change
        self._on_count(self._followed)

    def _take(self, view: SentinelView) -> None:
        former, self.primary = self.primary, view.primary
        self._epoch, self.replicas = view.epoch, view.replicas
        if former == view.primary:
            return
        now_s = monotonic()
        self._moved_s = now_s if former is not None or view.is_switching else now_s - view.age_s
        if former is not None:
            log.info(
                "the Sentinels name %s as the primary of %s instead of %s",
                *(view.primary, self._service, former),
            )
        self._on_move(view.primary)


class _Sentinel:
    """One Sentinel: a subscription, and a connection to ask."""

    def __init__(
        self, address: Address, connector: Connector, subscriber: Connector, watch: SentinelWatch
    ) -> None:
        self.address = address
        self._connector = connector
        self._subscriber = subscriber
        self._watch = watch
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._spoken = asyncio.Event()
        self._looked_s = -LOOK_GAP_S
        self._told = ""

    def look_soon(self) -> None:
        if monotonic() - self._looked_s >= LOOK_GAP_S:
            self._spoken.set()

    async def look(self) -> SentinelView:
        """Ask; CONNECT_ERRORS when it cannot say. What it says is noted."""
        self._looked_s = monotonic()
        service = self._connector.url.service
        try:
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                link = await self._open()
                # In this order: what it shows as the primary is never older than the epoch beside it.
                master, found, replicas = await asyncio.gather(
                    link.request("SENTINEL", "MASTER", service),
                    link.request("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
                    link.request("SENTINEL", "REPLICAS", service),
                )
            view = read_view(master, found, replicas)
        except ErrorReply as error:  # no such service, or no Sentinel
            raise HandshakeError(
                await self._connector.explain_sentinel(self.address) or str(error)
            ) from error
        except TimeoutError as error:
            self.end()  # replies come in order: one that is late holds up those that follow
            raise HandshakeError(f"Sentinel {self.address} does not answer in time") from error
        self._watch.note(view)
        return view

    async def follow(self) -> None:
        """Listen and look, for ever."""
        backoff = self._connector.limits.backoff()
        while True:
            try:
                await self._listen(backoff)
            except CONNECT_ERRORS as error:
                self._tell(str(error) or type(error).__name__)
            await asyncio.sleep(backoff.next_s())

    def end(self) -> None:
        """Close the connection that asks."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    async def _open(self) -> Link:
        async with self._connecting:
            if self._link is None or not self._link.is_open:
                self._link = await self._connector.open_sentinel(self.address)
            return self._link

    async def _listen(self, backoff: Backoff) -> None:
        """Subscribe, and look whenever the Sentinel speaks, until the connection ends."""
        link = await self._subscriber.open_sentinel(self.address)
        assert isinstance(link, PushLink)
        is_followed = False
        try:
            link.on_message = lambda message: self._spoken.set()
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                await asyncio.gather(*(link.request("SUBSCRIBE", channel) for channel in CHANNELS))
            while not link.lost.done():
                self._spoken.clear()
                view = await self.look()
                if not is_followed:
                    is_followed = True
                    backoff.reset()
                    self._watch.count(1)
                    self._tell("")
                    self._tell_others(view)
                await self._wait(link)
        finally:
            link.abort()
            if is_followed:
                self._watch.count(-1)

    async def _wait(self, link: Link) -> None:
        """Until it speaks, or for an interval; then make sure that it would be heard."""
        spoken = asyncio.ensure_future(self._spoken.wait())
        try:
            await asyncio.wait(
                (spoken, link.lost), timeout=LOOK_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not spoken.done():
                async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                    await link.request("PING")
        finally:
            spoken.cancel()

    def _tell(self, trouble: str) -> None:
        """Say a trouble once, and that it is over."""
        if trouble and self._watch.primary is None:
            return  # whoever asks for the primary tells it
        if trouble and not self._told:
            log.warning("Sentinel %s is not followed: %s; trying again", self.address, trouble)
        elif self._told and not trouble:
            log.info("Sentinel %s is followed", self.address)
        self._told = trouble

    def _tell_others(self, view: SentinelView) -> None:
        named = len(self._connector.url.addresses)
        if named == 1 and view.sentinels > 1:
            log.warning(
                "the store URL names 1 of %d Sentinels: name all of them, or a failover is missed while that"
                " one is away",
                view.sentinels,
            )


def read_view(master: Any, found: Any, replicas: Any) -> SentinelView:
    """
    Read SENTINEL MASTER, GET-MASTER-ADDR-BY-NAME and REPLICAS.

    Raises:
        HandshakeError: they are no such replies.
    """
    try:
        fields = _fields(master)
        primary = Address(found[0].decode(), int(found[1]))
        is_leader = "failover_in_progress" in fields["flags"].split(",")
        is_decided = (fields["ip"], int(fields["port"])) != (primary.host, primary.port)
        others = [_fields(replica) for replica in replicas]
        return SentinelView(
            primary,
            epoch=int(fields["config-epoch"]),
            is_failing_over=is_leader and not is_decided,
            is_switching=is_leader and is_decided,
            replicas=sum(_may_be_promoted(other, primary) for other in others),
            strays=sum(other["role-reported"] == "master" for other in others),
            age_s=int(fields["role-reported-time"]) / 1_000,
            sentinels=int(fields["num-other-sentinels"]) + 1,
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        raise HandshakeError("it does not know the service, or is no Sentinel") from None


def _fields(reply: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def _may_be_promoted(replica: Mapping[str, str], primary: Address) -> bool:
    """Whether a Sentinel that saw *replica* so may promote it in the place of *primary*, or just did."""
    return (
        not {"s_down", "o_down", "disconnected"} & set(replica["flags"].split(","))
        and replica["role-reported"] == "slave"
        and replica["master-link-status"] == "ok"
        and replica["slave-priority"] != "0"
        and (replica["master-host"], replica["master-port"]) == (primary.host, str(primary.port))
    )

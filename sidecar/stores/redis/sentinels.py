"""
Follow the Sentinels: which server is the primary, known as soon as one Sentinel reports a failover.

The sidecar subscribes to every Sentinel of the URL and also queries it every second, in case a message was
lost. During a failover Sentinels disagree: the one with the highest configuration epoch is right.
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
"""The Sentinel that leads a failover publishes +promoted-slave first; the others publish +switch-master."""
QUERY_INTERVAL_S = 1.0
QUERY_GAP_S = 0.1
"""Minimum time between queries that errors of the store cause."""
HANDOVER_S = 1.0
"""How long sidecars may still send takes to the former primary after a failover: ten times the usual."""


class SentinelView(NamedTuple):
    """
    The state of the service as one Sentinel reports it.

    `is_failing_over`: this Sentinel leads a failover and the new primary is not decided; `is_switching`: it
    leads a failover and reports the new primary already. `replicas` counts those that may be promoted;
    `strays` counts replicas that report to be primaries, such as a former primary or one just promoted.
    `age_s` is how long the primary has had its role; `sentinels` counts all Sentinels, this one included.
    """

    primary: Address
    epoch: int
    is_failing_over: bool
    is_switching: bool
    replicas: int
    strays: int
    age_s: float
    sentinels: int


class SentinelReport(NamedTuple):
    """
    The combined reports of the Sentinels: the primary of the highest epoch, and the worst case of the rest.

    `is_majority`: most Sentinels of the URL answered.
    """

    primary: Address
    is_failing_over: bool
    replicas: int
    is_majority: bool


class SentinelWatch:
    """
    Follows the Sentinels of one URL.

    `primary` is the latest known one, None = not known yet. *on_primary_change* is called when another server
    becomes the primary, also for the first time; *on_count* is called with the number of followed Sentinels.
    """

    def __init__(
        self,
        connector: Connector,
        on_primary_change: Callable[[Address], None],
        on_count: Callable[[int], None] = lambda followed: None,
    ) -> None:
        """Connect only at `start` or the first query."""
        self.primary: Address | None = None
        self.replicas = 0
        """Number of replicas that the Sentinels may promote, as of the latest report."""
        self._epoch = -1
        self._service = connector.url.service
        self._changed_s = -HANDOVER_S
        self._on_primary_change = on_primary_change
        self._on_count = on_count
        self._followed = 0
        self._close_timeout_s = connector.limits.close_timeout_s
        subscriber = Connector(connector.url, connector.keys, connector.limits, (), PushLink)
        self._sentinels = [
            _Sentinel(address, connector, subscriber, self) for address in connector.url.addresses
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to follow the Sentinels; calling it again has no effect."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(sentinel.follow(), name=f"sentinel {sentinel.address}")
                for sentinel in self._sentinels
            ]

    async def close(self) -> None:
        """Close all connections."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._close_timeout_s)
        for sentinel in self._sentinels:
            sentinel.end()

    def query_soon(self) -> None:
        """Query the Sentinels now rather than at the next interval, because the primary has a problem."""
        for sentinel in self._sentinels:
            sentinel.query_soon()

    async def ask(self, *, every: bool = False) -> SentinelReport:
        """
        Query all Sentinels; combine the reports of a majority, or with *every* of all that answer in time.

        Raises:
            HandshakeError: no Sentinel named a primary.
        """
        queries = [asyncio.ensure_future(sentinel.query()) for sentinel in self._sentinels]
        most = len(queries) // 2 + 1
        views: list[SentinelView] = []
        troubles: list[str] = []
        try:
            for finished in asyncio.as_completed(queries):
                try:
                    views.append(await finished)
                except CONNECT_ERRORS as error:
                    troubles.append(str(error) or type(error).__name__)
                if len(views) >= most and not every:
                    break
        finally:
            for query in queries:
                query.cancel()
            await asyncio.gather(*queries, return_exceptions=True)
        if not views:
            raise HandshakeError("; ".join(dict.fromkeys(troubles)))
        is_majority = len(views) >= most
        newest = max(views, key=lambda view: view.epoch)
        if is_majority and newest.epoch < self._epoch:
            self._adopt(newest)  # the service was removed and added to the Sentinels again
        assert self.primary is not None
        replicas = max(view.replicas for view in views)
        if len(views) < len(queries):
            # A Sentinel that did not answer may lead a failover and have promoted one of the strays.
            replicas += max(view.strays for view in views)
        return SentinelReport(
            self.primary, any(view.is_failing_over for view in views), replicas, is_majority
        )

    async def wait_for_handover(self) -> None:
        """Wait until every sidecar has had the time to disconnect from the former primary."""
        wait_s = self._changed_s + HANDOVER_S - monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    # Reports of one Sentinel.

    def update(self, view: SentinelView) -> None:
        """Adopt *view* if it is newer than the known state."""
        is_newer = view.epoch > self._epoch
        # The leader of a failover may report the new primary before the new epoch, or after it.
        is_leader = view.epoch == self._epoch and view.is_switching and view.primary != self.primary
        if is_newer or is_leader:
            self._adopt(view)
        elif view.primary == self.primary:
            self.replicas = view.replicas

    def count(self, change: int) -> None:
        """Add *change* to the number of followed Sentinels."""
        self._followed += change
        self._on_count(self._followed)

    def _adopt(self, view: SentinelView) -> None:
        former, self.primary = self.primary, view.primary
        self._epoch, self.replicas = view.epoch, view.replicas
        if former == view.primary:
            return
        now_s = monotonic()
        self._changed_s = now_s if former is not None or view.is_switching else now_s - view.age_s
        if former is not None:
            log.info(
                "the Sentinels name %s as the primary of %s instead of %s",
                *(view.primary, self._service, former),
            )
        self._on_primary_change(view.primary)


class _Sentinel:
    """One Sentinel: a subscription, and a connection for queries."""

    def __init__(
        self, address: Address, connector: Connector, subscriber: Connector, watch: SentinelWatch
    ) -> None:
        self.address = address
        self._connector = connector
        self._subscriber = subscriber
        self._watch = watch
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._query_wanted = asyncio.Event()
        self._queried_s = -QUERY_GAP_S
        self._logged_trouble = ""

    def query_soon(self) -> None:
        if monotonic() - self._queried_s >= QUERY_GAP_S:
            self._query_wanted.set()

    async def query(self) -> SentinelView:
        """Query the Sentinel and report its view to the watch; raises CONNECT_ERRORS."""
        self._queried_s = monotonic()
        service = self._connector.url.service
        try:
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                link = await self._open()
                # In this order the reported primary is never older than the reported epoch.
                master, found, replicas = await asyncio.gather(
                    link.request("SENTINEL", "MASTER", service),
                    link.request("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
                    link.request("SENTINEL", "REPLICAS", service),
                )
            view = read_view(master, found, replicas)
        except ErrorReply as error:  # an unknown service, or not a Sentinel
            raise HandshakeError(
                await self._connector.explain_sentinel(self.address) or str(error)
            ) from error
        except TimeoutError as error:
            self.end()  # replies come in order: a late reply delays those that follow
            raise HandshakeError(f"Sentinel {self.address} does not answer in time") from error
        self._watch.update(view)
        return view

    async def follow(self) -> None:
        """Subscribe and query until cancelled."""
        backoff = self._connector.limits.backoff()
        while True:
            try:
                await self._listen(backoff)
            except CONNECT_ERRORS as error:
                self._log_trouble(str(error) or type(error).__name__)
            await asyncio.sleep(backoff.next_s())

    def end(self) -> None:
        """Close the connection for queries."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    async def _open(self) -> Link:
        async with self._connecting:
            if self._link is None or not self._link.is_open:
                self._link = await self._connector.open_sentinel(self.address)
            return self._link

    async def _listen(self, backoff: Backoff) -> None:
        """Subscribe, and query at each message, until the connection ends."""
        link = await self._subscriber.open_sentinel(self.address)
        assert isinstance(link, PushLink)
        is_followed = False
        try:
            link.on_message = lambda message: self._query_wanted.set()
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                await asyncio.gather(*(link.request("SUBSCRIBE", channel) for channel in CHANNELS))
            while not link.lost.done():
                self._query_wanted.clear()
                view = await self.query()
                if not is_followed:
                    is_followed = True
                    backoff.reset()
                    self._watch.count(1)
                    self._log_trouble("")
                    self._warn_of_unlisted(view)
                await self._wait(link)
        finally:
            link.abort()
            if is_followed:
                self._watch.count(-1)

    async def _wait(self, link: Link) -> None:
        """Wait for a message, at most for an interval; then check that the subscription still works."""
        wanted = asyncio.ensure_future(self._query_wanted.wait())
        try:
            await asyncio.wait(
                (wanted, link.lost), timeout=QUERY_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not wanted.done():
                async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                    await link.request("PING")
        finally:
            wanted.cancel()

    def _log_trouble(self, trouble: str) -> None:
        """Log the first *trouble*, and later that it has ended."""
        if trouble and self._watch.primary is None:
            return  # the reconnector logs why there is no primary
        if trouble and not self._logged_trouble:
            log.warning("Sentinel %s is not followed: %s; retrying", self.address, trouble)
        elif self._logged_trouble and not trouble:
            log.info("Sentinel %s is followed", self.address)
        self._logged_trouble = trouble

    def _warn_of_unlisted(self, view: SentinelView) -> None:
        named = len(self._connector.url.addresses)
        if named == 1 and view.sentinels > 1:
            log.warning(
                "the store URL names 1 of %d Sentinels: add the others, or the sidecar misses a failover"
                " while that Sentinel is down",
                view.sentinels,
            )


def read_view(master: Any, found: Any, replicas: Any) -> SentinelView:
    """
    Parse the replies to SENTINEL MASTER, GET-MASTER-ADDR-BY-NAME and REPLICAS.

    Raises:
        HandshakeError: a reply is malformed.
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
        raise HandshakeError("the server does not know the service, or is not a Sentinel") from None


def _fields(reply: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def _may_be_promoted(replica: Mapping[str, str], primary: Address) -> bool:
    """Whether a Sentinel that reports *replica* in this state may promote it, or has just promoted it."""
    return (
        not {"s_down", "o_down", "disconnected"} & set(replica["flags"].split(","))
        and replica["role-reported"] == "slave"
        and replica["master-link-status"] == "ok"
        and replica["slave-priority"] != "0"
        and (replica["master-host"], replica["master-port"]) == (primary.host, str(primary.port))
    )

"""What the shared store says to a configuration: reachable, of the right kind, fit for what lives there."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from sidecar.process.config import Config
from sidecar.process.shared_store import store_limits
from sidecar.sources.file_faults import FaultList, FileFault
from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, other_layout
from sidecar.stores.redis.keys import KeySpace, read_layout
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.sentinels import SentinelWatch
from sidecar.stores.redis.server_info import NOEVICTION, ServerInfo, eviction_problem
from sidecar.stores.redis.slots import find_slots
from sidecar.stores.redis.urls import StoreTopology, StoreUrl
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys

TIMEOUT_S = 10.0


class OnlineReport(NamedTuple):
    """What the store answered, in words, and remarks."""

    facts: tuple[str, ...]
    warnings: tuple[FileFault, ...]


async def ask_store(config: Config) -> OnlineReport:
    """
    Ask the shared store of *config*; writes nothing there. An embedded store has nothing to ask.

    Raises:
        FileFaultsError: the store cannot be used as it is configured; says why.
    """
    url = config.settings.shared_store
    if url is None:
        return OnlineReport((), ())
    faults = FaultList(config.tree.file)
    report = OnlineReport((), ())
    space = KeySpace(url.prefix, url.partitions)
    limits = store_limits(config.settings.store_timeout_s)
    connector = Connector(url, space, limits, scripts=(), holds_registry=config.has_control_plane)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            link = await _open(connector, url, space)
            try:
                report = await _look(link, config, space, faults)
            finally:
                link.abort()
    except TimeoutError:
        problem = f"no answer within {TIMEOUT_S:g} s; look at the address, the network and the server"
        faults.put(config.fault(("store",), f"the store at {url} cannot be used: {problem}"))
    except CONNECT_ERRORS as error:
        problem = str(error) or type(error).__name__
        faults.put(config.fault(("store",), f"the store at {url} cannot be used: {problem}"))
    faults.raise_any()
    return report


async def _open(connector: Connector, url: StoreUrl, space: KeySpace) -> Link:
    """A link to the primary that holds the home partition."""
    if url.kind is StoreTopology.SENTINEL:
        watch = SentinelWatch(connector, lambda primary: None)
        try:
            return await connector.open((await watch.ask()).primary)
        finally:
            await watch.close()
    if url.kind is StoreTopology.STANDALONE:
        return await connector.open(url.addresses[0])
    owners = (await find_slots(connector, url.addresses)).owners(space)
    if HOME not in owners:
        raise ConnectionError(f"no node serves slot {space.slot_of(HOME)}, so the Cluster is not whole")
    return await connector.open(owners[HOME])


async def _look(link: Link, config: Config, space: KeySpace, faults: FaultList) -> OnlineReport:
    """What *link*, which the connector found fit, leads to."""
    facts = ["reachable"]
    warnings: list[FileFault] = []
    info = await _info(link)
    if info is None:
        warnings.append(
            config.fault(
                ("store",), "the server does not say what it evicts (INFO): allow +info for this user"
            )
        )
    else:
        facts.append(f"version {info.fields.get('valkey_version') or info.fields.get('redis_version')}")
        facts.append(f"maxmemory-policy {info.evicting_policy or NOEVICTION}")
        if info.evicting_policy:  # where the registry is, the connector has refused it
            problem = eviction_problem(link.address, info.evicting_policy, holds_registry=False)
            warnings.append(config.fault(("store",), problem))
    layout = (await link.request("GET", space.layout_key) or b"").decode(errors="replace")
    partitions = read_layout(layout)
    if partitions is not None and not space.is_settled:
        space.settle(partitions)
        facts.append(f"{partitions} partition{'s' if partitions > 1 else ''}")
    if layout and layout != space.layout:
        faults.put(config.fault(("store",), other_layout(space, layout)))
    if config.has_control_plane:
        # Only commands that the documented permissions allow.
        log = RegistryKeys(space).once(HOME, "audit")
        if await link.request("XREVRANGE", log, "+", "-", "COUNT", "1"):
            facts.append("a registry is there")
        else:
            facts.append("no registry")
            warnings.append(
                config.fault(
                    ("store",),
                    "no registry is there, so every API key is refused: create one with 'sidecar admin"
                    " bootstrap', or look whether prefix and database are right",
                )
            )
    return OnlineReport(tuple(facts), tuple(warnings))


async def _info(link: Link) -> ServerInfo | None:
    """What the server tells of itself; None = the user may not ask."""
    try:
        return ServerInfo.parse(await link.request("INFO"))
    except ErrorReply:
        return None

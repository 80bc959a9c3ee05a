"""Checks the shared store of a configuration: reachable, of the configured kind, with fitting settings."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from sidecar.process.config import Config
from sidecar.process.shared_store import store_limits
from sidecar.sources.file_faults import FaultList, FileFault
from sidecar.stores.clocks import wall_clock_us
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


PROBE_MS = 1_000
"""How long a key that proves that the store accepts writes stays there."""


class OnlineReport(NamedTuple):
    """Facts about the store, as text; warnings; and the store's clock minus this machine's."""

    facts: tuple[str, ...]
    warnings: tuple[FileFault, ...]
    clock_ahead_us: int = 0


async def ask_store(config: Config, *, tries_write: bool = False) -> OnlineReport:
    """
    Check the shared store of *config*; an embedded store needs no check.

    Nothing is written, unless *tries_write*: then one key that expires after a second.

    Raises:
        FileFaultsError: the store cannot be used as configured; the message gives the reason.
    """
    url = config.shared_store
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
                report = await _inspect(link, config, space, faults)
                if tries_write:
                    report = await _try_write(link, config, space, faults, report)
            finally:
                link.abort()
    except TimeoutError:
        problem = f"no answer within {TIMEOUT_S:g} s; check the address, the network and the server"
        faults.put(config.fault(("store",), f"the store at {url} cannot be used: {problem}"))
    except CONNECT_ERRORS as error:
        problem = str(error) or type(error).__name__
        faults.put(config.fault(("store",), f"the store at {url} cannot be used: {problem}"))
    faults.raise_any()
    return report


async def _open(connector: Connector, url: StoreUrl, space: KeySpace) -> Link:
    """Open a link to the primary that holds the home partition."""
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
        raise ConnectionError(f"no node of the Cluster serves slot {space.slot_of(HOME)}; see CLUSTER INFO")
    return await connector.open(owners[HOME])


async def _inspect(link: Link, config: Config, space: KeySpace, faults: FaultList) -> OnlineReport:
    """Report on the server at the end of *link*, which the connector has accepted."""
    facts = ["reachable"]
    warnings: list[FileFault] = []
    info = await _info(link)
    if info is None:
        warnings.append(
            config.fault(
                ("store",), "the eviction policy is unknown: allow this user the command INFO (ACL +info)"
            )
        )
    else:
        facts.append(f"version {info.fields.get('valkey_version') or info.fields.get('redis_version')}")
        facts.append(f"maxmemory-policy {info.evicting_policy or NOEVICTION}")
        if info.evicting_policy:  # with a registry, the connector has refused it
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
        log = RegistryKeys(space).named(HOME, "audit")
        if await link.request("XREVRANGE", log, "+", "-", "COUNT", "1"):
            facts.append("a registry is there")
        else:
            facts.append("no registry")
            warnings.append(
                config.fault(
                    ("store",),
                    "the store holds no registry, so every API key is refused: create one with 'sidecar admin"
                    " bootstrap', or check the prefix and the database",
                )
            )
    return OnlineReport(tuple(facts), tuple(warnings))


async def _try_write(
    link: Link, config: Config, space: KeySpace, faults: FaultList, report: OnlineReport
) -> OnlineReport:
    """Return *report* with the difference of the clocks; a store that accepts no write is a fault."""
    key = RegistryKeys(space).named(HOME, "doctor")
    try:
        await link.request("SET", key, "1", "PX", str(PROBE_MS))
    except ErrorReply as error:
        problem = f"the store accepts no writes: {error}; check its role, its memory and this user's ACL"
        faults.put(config.fault(("store",), problem))
    begun_us = wall_clock_us()
    seconds, rest_us = map(int, await link.request("TIME"))
    ahead_us = seconds * 1_000_000 + rest_us - (begun_us + wall_clock_us()) // 2
    return OnlineReport((*report.facts, "accepts writes"), report.warnings, ahead_us)


async def _info(link: Link) -> ServerInfo | None:
    """The server's INFO; None = the user may not run it."""

    try:
        return ServerInfo.parse(await link.request("INFO"))
    except ErrorReply:
        return None

"""The push of changes, with a real server: what was heard is never forgotten for an older look."""

from __future__ import annotations

import asyncio

from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.registry.redis.feed import Feed
from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Nodes
from tests.store_harness import StoreHarness


async def test_feed__a_look_that_was_overtaken_does_not_hide_a_change() -> None:
    """A change arrives before the first look at its partition ends: the later of the two counts."""
    harness = StoreHarness("standalone")

    url = harness.url(partitions="2")
    space = KeySpace(url.prefix, url.partitions)
    changed = asyncio.Event()
    nodes = Nodes(url, space)
    channel = RegistryKeys(space).channel
    feed = Feed(nodes, channel, changed.set)
    try:
        feed.start()
        while not feed.is_live:
            await changed.wait()
            changed.clear()
        link = await nodes.connector.open(url.addresses[0])
        assert await link.request("PUBLISH", channel, "1 7 acme") == 1
        await changed.wait()
        link.abort()
        feed.update(1, 6)
        feed.update(0, 3)
        assert feed.sequences == {0: 3, 1: 7}
    finally:
        await feed.close()
        await nodes.close()

"""Parsing INFO, and checking that a store URL fits the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sidecar.stores.redis.urls import Address, StoreTopology, StoreUrl

NOEVICTION = "noeviction"
"""The only maxmemory-policy under which a server never evicts keys."""

_SERVICE = re.compile(r"(?:^|,)name=([^,]+)")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The fields of INFO by name; a missing field reads as ''."""

    fields: Mapping[str, str]

    @classmethod
    def parse(cls, reply: Any) -> ServerInfo:
        """
        Parse the reply to INFO.

        >>> ServerInfo.parse(b"# Server\\r\\nredis_mode:cluster\\r\\n").mode
        'cluster'
        """
        text = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
        pairs = (line.partition(":") for line in text.splitlines() if line and line[0] != "#")
        return cls({name: value for name, _, value in pairs})

    @property
    def mode(self) -> str:
        """'standalone', 'sentinel' or 'cluster'."""
        mode = self.fields.get("redis_mode") or self.fields.get("server_mode", "")
        return "cluster" if self.fields.get("cluster_enabled") == "1" else mode

    @property
    def primary(self) -> Address | None:
        """The primary of this replica; None = the server is a primary, or INFO lacks the role."""
        if self.fields.get("role") != "slave":
            return None
        port = self.fields.get("master_port", "")
        return Address(self.fields.get("master_host", ""), int(port) if port.isdecimal() else 0)

    @property
    def services(self) -> tuple[str, ...]:
        """The services that a Sentinel monitors."""
        found = (
            _SERVICE.search(value)
            for name, value in sorted(self.fields.items())
            if re.fullmatch(r"master\d+", name)
        )
        return tuple(match[1] for match in found if match is not None)

    @property
    def evicting_policy(self) -> str:
        """The maxmemory-policy if it allows the server to evict keys, else ''."""
        policy = self.fields.get("maxmemory_policy", NOEVICTION)
        return "" if policy == NOEVICTION else policy


def topology_mismatch(url: StoreUrl, address: Address, info: ServerInfo) -> str:
    """Why *url* does not fit the server at *address*, and the URL that would; '' = it fits."""
    if info.mode == "sentinel" and url.kind is not StoreTopology.SENTINEL:
        return f"{address} is a Sentinel and stores no keys: use {_sentinel_url(url, address, info)}"
    if info.mode == "cluster" and url.kind is not StoreTopology.CLUSTER:
        return f"{address} is a node of a Redis Cluster: use {_url(url, StoreTopology.CLUSTER, address)}"
    if info.mode == "standalone" and url.kind is StoreTopology.CLUSTER:
        return (
            f"{address} is not a node of a Redis Cluster: use {_url(url, StoreTopology.STANDALONE, address)}"
        )
    if url.kind is StoreTopology.STANDALONE and info.primary is not None:
        primary = _url(url, StoreTopology.STANDALONE, info.primary)
        return f"{address} is a replica of {info.primary} and accepts no writes: use {primary}"
    return ""


def sentinel_problem(url: StoreUrl, address: Address, info: ServerInfo) -> str:
    """Why the server at *address* is not a Sentinel of the service of *url*; '' = it is one."""
    if info.mode != "sentinel":
        kind = StoreTopology.CLUSTER if info.mode == "cluster" else StoreTopology.STANDALONE
        noun = "a node of a Redis Cluster" if kind is StoreTopology.CLUSTER else "a Redis server"
        return f"{address} is {noun}, not a Sentinel: list the Sentinels, or use {_url(url, kind, address)}"
    if url.service not in info.services:
        known = ", ".join(info.services) or "none"
        return (
            f"{address} does not monitor the service {url.service!r}, only {known}: use"
            f" {_sentinel_url(url, address, info)}"
        )
    return ""


def eviction_problem(address: Address, policy: str, *, holds_registry: bool) -> str:
    """The warning that the server at *address* may evict keys, with the effect and the remedy."""
    what = (
        "it stores the registry: integrations would be lost"
        if holds_registry
        else "an evicted bucket is full again: requests beyond the limit would be admitted"
    )
    return (
        f"{address} may evict keys (maxmemory-policy {policy}), and {what}; set maxmemory-policy {NOEVICTION}"
        f" in its configuration file and at run time (CONFIG SET maxmemory-policy {NOEVICTION})"
    )


def _url(url: StoreUrl, kind: StoreTopology, address: Address) -> str:
    """The URL of *kind* at *address*, without options."""
    database = 0 if kind is StoreTopology.CLUSTER else url.database
    return str(replace(url, kind=kind, addresses=(address,), service="", database=database))


def _sentinel_url(url: StoreUrl, address: Address, info: ServerInfo) -> str:
    service = info.services[0] if info.services else "SERVICE"
    return str(replace(url, kind=StoreTopology.SENTINEL, addresses=(address,), service=service))

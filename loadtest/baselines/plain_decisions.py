"""
The decision as most people would write it first: redis-py, one EVALSHA a request, no tricks.

Networks and routes are parsed once; redis-py uses hiredis and pools its connections. The baselines beside
this file serve it over gRPC and over HTTP.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import redis.asyncio
import yaml

TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local tat = tonumber(redis.call('GET', KEYS[1]) or now)
if tat < now then tat = now end
local room = math.floor((now + burst * interval - tat) / interval)
if room < 1 then
  return {0, 0, tat + interval - burst * interval - now, tat}
end
tat = tat + interval
redis.call('SET', KEYS[1], string.format('%.0f', tat), 'PX', math.max(1, math.ceil((tat - now) / 1000)))
return {1, room - 1, 0, tat}
"""


@dataclass(frozen=True)
class Known:
    """An integration as this baseline keeps it."""

    id: str
    name: str
    credential_id: str
    scopes: frozenset[str]
    limit_rpm: int
    burst: int
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


@dataclass(frozen=True)
class Outcome:
    """What was decided: `reason` '' = allowed; `known` None = an unknown key."""

    reason: str
    known: Known | None
    decision_id: str
    limits: tuple[tuple[str, str], ...] = ()


class Decisions:
    """Decides by a registry file and routes; one Redis script call each."""

    def __init__(self, registry: Path, routes: list[dict[str, object]], client: redis.asyncio.Redis) -> None:
        """Read *registry* and compile *routes*."""
        self._known = _read_registry(registry)
        self._routes = [_compile_route(route) for route in routes]
        self._take = client.register_script(TAKE)

    async def decide(self, method: str, path: str, headers: Mapping[str, str]) -> Outcome:
        """Decide one request."""
        decision_id = uuid4().hex
        known = self._known.get(hashlib.sha256(headers.get("x-api-key", "").encode()).hexdigest())
        if known is None:
            return Outcome("unknown_credential", None, decision_id)
        reason = self._refusal(known, method, path.partition("?")[0], headers)
        interval_us = -(-60_000_000 // known.limit_rpm)
        admitted, remaining, wait_us, reset_us = await self._take(
            keys=[f"bucket:{known.id}"], args=[interval_us, known.burst]
        )
        limits = [
            ("x-ratelimit-limit", str(known.limit_rpm)),
            ("x-ratelimit-remaining", str(remaining)),
            ("x-ratelimit-reset", str(-(-reset_us // 1_000_000))),
        ]
        if not reason and not admitted:
            reason = "rate_limited"
            limits.append(("retry-after", str(max(1, -(-wait_us // 1_000_000)))))
        return Outcome(reason, known, decision_id, tuple(limits))

    def _refusal(self, known: Known, method: str, path: str, headers: Mapping[str, str]) -> str:
        if known.networks:
            address = ipaddress.ip_address(headers.get("x-client-ip", "0.0.0.0"))
            if not any(address in network for network in known.networks):
                return "ip_not_allowed"
        for methods, pattern, scope in self._routes:
            if method in methods and pattern.fullmatch(path):
                return "" if scope in known.scopes else "scope_missing"
        return "scope_missing"


def identity_of(known: Known, decision_id: str) -> list[tuple[str, str]]:
    """The headers that tell the upstream who calls."""
    return [
        ("x-integration-id", known.id),
        ("x-integration-name", known.name),
        ("x-credential-id", known.credential_id),
        ("x-decision-id", decision_id),
    ]


def _read_registry(path: Path) -> dict[str, Known]:
    known = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for record in yaml.load(path.read_text(), loader)["integrations"]:  # noqa: S506 - a safe loader either way
        for credential in record["credentials"]:
            known[credential["digest"].removeprefix("sha256:")] = Known(
                id=record["id"],
                name=record["name"],
                credential_id=credential["id"],
                scopes=frozenset(record["scopes"]),
                limit_rpm=record["rate_limit_rpm"],
                burst=record["burst"],
                networks=tuple(ipaddress.ip_network(text) for text in record["ip_allowlist"]),
            )
    return known


def _compile_route(route: dict[str, object]) -> tuple[frozenset[str], re.Pattern[str], str]:
    pattern = re.sub(r"\{[^}]*\}", "[^/]+", str(route["path"])).replace("/**", "(?:/.*)?")
    methods = route["methods"]
    assert isinstance(methods, list)
    return frozenset(methods), re.compile(pattern), str(route["scope"])

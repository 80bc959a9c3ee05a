"""
The sidecar most people would write first: grpc.aio, redis-py, one EVALSHA a request.

`python -m loadtest.baselines.evalsha_sidecar --listen HOST:PORT --redis URL --registry FILE` serves
Envoy's Check with the same decision as Sidecar: key by digest, allowlist, scope by route, token
bucket in Lua, limits and identity in the headers. It is written with care, not with tricks: networks
and routes are parsed once, uvloop runs the loop, redis-py uses hiredis and pools its connections.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import ipaddress
import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import redis.asyncio
import uvloop
import yaml
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

CHECK_SERVICE, CHECK_METHOD = "envoy.service.auth.v3.Authorization", "Check"

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


class Baseline:
    """Answers Check calls; one Redis script call each."""

    def __init__(self, registry: Path, routes: list[dict[str, object]], client: redis.asyncio.Redis) -> None:
        """Read *registry* and compile *routes*."""
        self._known = _read_registry(registry)
        self._routes = [_compile_route(route) for route in routes]
        self._take = client.register_script(TAKE)

    async def check(self, message: bytes, context: object) -> bytes:
        """Decide one request."""
        attributes = CheckRequest.FromString(message).attributes
        http = attributes.request.http
        decision_id = uuid4().hex
        known = self._known.get(hashlib.sha256(http.headers.get("x-api-key", "").encode()).hexdigest())
        if known is None:
            return _deny(403, 16, "unknown_credential", decision_id, [])
        reason = self._refusal(known, http.method, http.path.partition("?")[0], http.headers)
        interval_us = -(-60_000_000 // known.limit_rpm)
        admitted, remaining, wait_us, reset_us = await self._take(
            keys=[f"bucket:{known.id}"], args=[interval_us, known.burst]
        )
        limits = [
            ("x-ratelimit-limit", str(known.limit_rpm)),
            ("x-ratelimit-remaining", str(remaining)),
            ("x-ratelimit-reset", str(-(-reset_us // 1_000_000))),
        ]
        if reason:
            return _deny(403, 7, reason, decision_id, limits)
        if not admitted:
            wait = ("retry-after", str(max(1, -(-wait_us // 1_000_000))))
            return _deny(429, 8, "rate_limited", decision_id, [*limits, wait])
        return _allow(known, decision_id, limits)

    def _refusal(self, known: Known, method: str, path: str, headers: dict[str, str]) -> str:
        if known.networks:
            address = ipaddress.ip_address(headers.get("x-client-ip", "0.0.0.0"))
            if not any(address in network for network in known.networks):
                return "ip_not_allowed"
        for methods, pattern, scope in self._routes:
            if method in methods and pattern.fullmatch(path):
                return "" if scope in known.scopes else "scope_missing"
        return "scope_missing"


def _allow(known: Known, decision_id: str, limits: list[tuple[str, str]]) -> bytes:
    response = CheckResponse()
    identity = [
        ("x-integration-id", known.id),
        ("x-integration-name", known.name),
        ("x-credential-id", known.credential_id),
        ("x-decision-id", decision_id),
    ]
    response.status.code = 0
    response.ok_response.headers.extend(_options(identity))
    response.ok_response.headers_to_remove.append("x-api-key")
    response.ok_response.response_headers_to_add.extend(_options(limits))
    response.dynamic_metadata.update(
        {"integration": known.id, "decision_id": decision_id, "verdict": "ALLOW"}
    )
    message: bytes = response.SerializeToString()
    return message


def _deny(status: int, code: int, reason: str, decision_id: str, headers: list[tuple[str, str]]) -> bytes:
    response = CheckResponse()
    response.status.code = code
    denied = response.denied_response
    denied.status.code = status
    denied.headers.extend(_options([*headers, ("content-type", "application/problem+json")]))
    denied.body = json.dumps({"status": status, "reason": reason, "decision_id": decision_id})
    message: bytes = response.SerializeToString()
    return message


def _options(headers: list[tuple[str, str]]) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(
            header=HeaderValue(key=name, value=value),
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for name, value in headers
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


async def serve(listen: str, redis_url: str, config: Path, settings: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    client = redis.asyncio.from_url(redis_url)
    baseline = Baseline(config.parent / settings["registry"], settings["routes"], client)
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(baseline.check)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(CHECK_SERVICE, {CHECK_METHOD: handler}),)
    )
    server.add_insecure_port(listen)
    await server.start()
    print(f"baseline listens on {listen}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
    await client.aclose()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--config", type=Path, required=True, help="a sidecar.yaml; its registry and routes")
    arguments = parser.parse_args()
    settings = yaml.safe_load(arguments.config.read_text())
    uvloop.run(serve(arguments.listen, arguments.redis, arguments.config, settings))


if __name__ == "__main__":
    main()

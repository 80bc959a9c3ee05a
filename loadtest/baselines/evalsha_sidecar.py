"""
A straightforward sidecar as a baseline: grpc.aio, redis-py, one EVALSHA per request.

`python -m loadtest.baselines.evalsha_sidecar --listen HOST:PORT --redis URL --config FILE` serves
Envoy's Check with the same decision as Sidecar: see `plain_decisions`. uvloop runs the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc.aio
import redis.asyncio
import uvloop
import yaml
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from loadtest.baselines.plain_decisions import Decisions, Outcome, identity_of

CHECK_SERVICE, CHECK_METHOD = "envoy.service.auth.v3.Authorization", "Check"


class Baseline:
    """Answers Check calls."""

    def __init__(self, decisions: Decisions) -> None:
        """Answer with *decisions*."""
        self._decisions = decisions

    async def check(self, message: bytes, context: object) -> bytes:
        """Decide one request."""
        http = CheckRequest.FromString(message).attributes.request.http
        outcome = await self._decisions.decide(http.method, http.path, http.headers)
        return _allow(outcome) if not outcome.reason else _deny(outcome)


def _allow(outcome: Outcome) -> bytes:
    known = outcome.known
    assert known is not None
    response = CheckResponse()
    response.status.code = 0
    response.ok_response.headers.extend(_options(identity_of(known, outcome.decision_id)))
    response.ok_response.headers_to_remove.append("x-api-key")
    response.ok_response.response_headers_to_add.extend(_options(outcome.limits))
    response.dynamic_metadata.update(
        {"integration": known.id, "decision_id": outcome.decision_id, "verdict": "ALLOW"}
    )
    message: bytes = response.SerializeToString()
    return message


def _deny(outcome: Outcome) -> bytes:
    status, code = (429, 8) if outcome.reason == "rate_limited" else (403, 7 if outcome.known else 16)
    response = CheckResponse()
    response.status.code = code
    denied = response.denied_response
    denied.status.code = status
    denied.headers.extend(_options([*outcome.limits, ("content-type", "application/problem+json")]))
    denied.body = json.dumps({"status": status, "reason": outcome.reason, "decision_id": outcome.decision_id})
    message: bytes = response.SerializeToString()
    return message


def _options(headers: Iterable[tuple[str, str]]) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(
            header=HeaderValue(key=name, value=value),
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for name, value in headers
    ]


async def serve(listen: str, redis_url: str, config: Path, settings: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    client = redis.asyncio.from_url(redis_url)
    baseline = Baseline(Decisions(config.parent / settings["registry"], settings["routes"], client))
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

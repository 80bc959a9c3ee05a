"""Every limit that the configuration accepts is one that the transports can work with."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from sidecar.process.config import load_config
from sidecar.process.settings import LIMIT_MAX, LIMIT_MIN, Settings
from sidecar.process.wiring import grpc_server
from sidecar.services.health import CHECK_PATH, HealthService
from tests.building import make_metrics

COUNTS = [limit.name for limit in fields(Settings().transport_limits()) if isinstance(limit.default, int)]
SERVING = b"\x08\x01"


async def answer(transport: str, limits: dict[str, Any]) -> bytes:
    """What a server with these limits answers to a health check."""
    environ = {"SIDECAR_LISTEN__GRPC": "127.0.0.1:0", "SIDECAR_TRANSPORT": transport}
    config = load_config(
        None, environ | {f"SIDECAR_LIMITS__{name}".upper(): str(limits[name]) for name in limits}
    )
    health = HealthService()
    health.set_serving("", True)
    server = grpc_server(config, health.methods(), make_metrics())
    [endpoint] = await server.start()

    def ask() -> bytes:
        with grpc.insecure_channel(str(endpoint)) as channel:
            found: bytes = channel.unary_unary(CHECK_PATH, None, None)(b"", timeout=60)
            return found

    try:
        return await asyncio.to_thread(ask)
    finally:
        await server.drain(1.0)


@pytest.mark.parametrize("transport", ["fast", "grpcio"])
@pytest.mark.parametrize("name", COUNTS)
def test_limits__both_ends_of_each_range_serve(
    transport: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary call is answered with a limit at its least, and at its most."""
    monkeypatch.chdir(tmp_path)  # where there is no configuration file
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for value in (LIMIT_MIN.get(name, 1), LIMIT_MAX):
            assert runner.run(answer(transport, {name: value})) == SERVING


def test_limits__every_minimum_is_of_a_limit() -> None:
    """A minimum for a limit that was removed would do nothing."""
    assert set(LIMIT_MIN) <= set(COUNTS)

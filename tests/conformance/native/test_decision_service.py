"""The native service as its callers meet it: generated stubs, a real socket, both transports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.services.decider import Decider
from sidecar.services.decision_service import DecisionService
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.reference import ReferenceGrpcServer
from sidecar.transports.server import Endpoint, ListeningServer, TransportLimits
from sidecar.v1 import decision_pb2 as pb
from sidecar.v1.decision_pb2_grpc import DecisionServiceStub
from tests.building import make_decider, make_integration, make_key, make_metrics
from tests.waiting import PATIENCE_S

GUIDE = Path(__file__).parents[3] / "docs" / "integrate" / "api-native.md"

Server = Callable[..., ListeningServer]
both_transports = pytest.mark.parametrize("server", [FastGrpcServer, ReferenceGrpcServer])


def over_a_socket(server: Server, decider: Decider, use: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Serve *decider* on a free port and hand its address to *use*; all with a deadline."""

    async def run() -> None:
        methods = DecisionService(decider, AnswerStyle()).methods()
        serving = server(methods, (Endpoint("127.0.0.1", 0),), TransportLimits(), make_metrics())
        (endpoint,) = await serving.start()
        try:
            await asyncio.wait_for(use(str(endpoint)), PATIENCE_S)
        finally:
            await serving.drain(PATIENCE_S)

    asyncio.run(run())


def ask(key: NewApiKey, **fields: Any) -> pb.DecideRequest:
    """A request that is allowed, unless *fields* say otherwise."""
    return pb.DecideRequest(**{"method": "GET", "path": "/v1/orders/42", "api_key": key.api_key, **fields})


@both_transports
def test_decide__over_a_socket(server: Server) -> None:
    """An allow, a denial and an invalid argument reach the caller's stub as what they are."""
    key = make_key()

    async def use(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = DecisionServiceStub(channel)
            allowed = await stub.Decide(ask(key), timeout=PATIENCE_S)
            assert (allowed.verdict, allowed.remaining) == (pb.VERDICT_ALLOW, 59)
            denied = await stub.Decide(ask(key, path="/nowhere"), timeout=PATIENCE_S)
            assert (denied.verdict, denied.reason) == (pb.VERDICT_DENY_403, pb.REASON_ROUTE_UNKNOWN)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Decide(ask(key, client_ip="here"), timeout=PATIENCE_S)
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert str(failed.value.details()).startswith("client_ip: 'here' is not an IP address")

    over_a_socket(server, make_decider(make_integration(key)), use)


@both_transports
def test_decide_batch__over_a_socket(server: Server) -> None:
    """A whole batch fits into the default message limit and comes back in order."""
    key = make_key()

    async def use(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            requests = 256 * [ask(key, headers={}, client_ip="2001:db8:1234:5678:9abc:def0:1234:5678")]
            answer = await DecisionServiceStub(channel).DecideBatch(
                pb.DecideBatchRequest(requests=requests), timeout=PATIENCE_S
            )
            assert [response.remaining for response in answer.responses] == [*range(59, -1, -1), *196 * [0]]

    over_a_socket(server, make_decider(make_integration(key)), use)


def test_guide__its_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python example of docs/integrate/api-native.md, run unchanged against a real server."""
    key = make_key()
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)

    async def use(address: str) -> None:
        assert "127.0.0.1:9191" in example
        code = compile(example.replace("127.0.0.1:9191", address), str(GUIDE), "exec")
        for api_key in (key.api_key, "junk"):
            # The guide is our own file; its example blocks, so it runs beside the loop that serves it.
            await asyncio.to_thread(exec, code, {"api_key": api_key})

    over_a_socket(FastGrpcServer, make_decider(make_integration(key)), use)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "acme may go on; 59 of 60 a minute left"
    assert second.startswith("403 {") and "unknown_credential" in second

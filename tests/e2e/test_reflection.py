"""Server reflection of a real sidecar on both transports, as grpcurl and grpcio's client use it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from deploy.demo.sidecar import Owner, ReservedPort, Sidecar, write_registry
from sidecar.v1 import reflection_pb2 as pb
from sidecar.v1.reflection_pb2_grpc import ServerReflectionStub
from tests.waiting import PATIENCE_S

from .reflection_tools import TOOLS, Tool, ToolError

GUIDE = Path(__file__).parents[2] / "docs" / "integrate" / "grpcurl.md"
SERVICES = {
    "envoy.service.auth.v3.Authorization",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "sidecar.v1.DecisionService",
}

each_tool = pytest.mark.parametrize("tool", list(TOOLS.values()), ids=list(TOOLS))


@pytest.fixture(scope="module")
def owner() -> Owner:
    """An integration that may read orders."""
    return Owner("acme", "Acme", scopes=["orders:read"])


@contextlib.contextmanager
def serving(folder: Path, owner: Owner, transport: str, **settings: object) -> Iterator[str]:
    """The address of a sidecar that knows *owner*."""
    registry = folder / "registry.yaml"
    write_registry(registry, [owner])
    port = ReservedPort()
    with contextlib.closing(port):
        sidecar = Sidecar(folder, f"127.0.0.1:{port.number}", registry, transport=transport, **settings)
        try:
            yield sidecar.address
        finally:
            sidecar.stop()


@pytest.fixture(scope="module", params=["fast", "grpcio"])
def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, owner: Owner
) -> Iterator[str]:
    """A sidecar of each transport, with default settings."""
    with serving(tmp_path_factory.mktemp(request.param), owner, request.param) as bound:
        yield bound


@each_tool
def test_list__names_every_service(tool: Tool, address: str) -> None:
    """Those that proxies, callers and tools use."""
    assert set(tool(["-plaintext", address, "list"]).split()) >= SERVICES


@each_tool
def test_describe__every_listed_service_is_described(tool: Tool, address: str) -> None:
    """A tool that lists a service can show its methods and go on to their messages."""
    for service in tool(["-plaintext", address, "list"]).split():
        assert "rpc " in tool(["-plaintext", address, "describe", service])
    assert "context_extensions" in tool(
        ["-plaintext", address, "describe", "envoy.service.auth.v3.AttributeContext"]
    )


@each_tool
def test_guide__its_commands_run(tool: Tool, address: str, owner: Owner) -> None:
    """The commands of docs/integrate/grpcurl.md, run unchanged."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    printed = []
    for command in commands:
        text = command.replace("127.0.0.1:9191", address).replace("KEY", owner.key.api_key)
        program, *arguments = shlex.split(text)
        assert (program, "127.0.0.1:9191" in command) == ("grpcurl", True)
        printed.append(tool(arguments))
    listed, service, message, decided, checked, health = printed
    assert set(listed.split()) >= SERVICES
    assert "DecideBatch" in service and "client_ip" in message
    # Tools differ in how they spell the names of fields.
    assert json.loads(decided)["verdict"] == "VERDICT_ALLOW"
    for answer in (decided, checked):
        assert '"acme"' in answer
    assert json.loads(health) == {"status": "SERVING"}


def test_info__v1_answers_each_question_of_a_stream(address: str) -> None:
    """Several questions in one call, answered in order, also such as have no answer."""
    questions = [
        pb.ServerReflectionRequest(list_services="*"),
        pb.ServerReflectionRequest(file_containing_symbol="nobody.Service"),
        pb.ServerReflectionRequest(file_by_filename="sidecar/v1/decision.proto"),
    ]
    with grpc.insecure_channel(address) as channel:
        answers = list(
            ServerReflectionStub(channel).ServerReflectionInfo(iter(questions), timeout=PATIENCE_S)
        )
    assert [answer.original_request for answer in answers] == questions
    assert [answer.WhichOneof("message_response") for answer in answers] == [
        "list_services_response",
        "error_response",
        "file_descriptor_response",
    ]


@pytest.mark.parametrize("transport", ["fast", "grpcio"])
def test_setting__turns_it_off(transport: str, tmp_path: Path, owner: Owner) -> None:
    """With `reflection: false` the reflection service is unimplemented; the other services answer."""
    with serving(tmp_path, owner, transport, reflection=False) as address:
        for tool in TOOLS.values():
            with pytest.raises(ToolError, match=r"reflection API|UNIMPLEMENTED"):
                tool(["-plaintext", address, "list"])

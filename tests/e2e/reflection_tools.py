"""
Tools that know a server by its reflection alone: grpcurl, and grpcio's client behind the same arguments.

Each takes the arguments of grpcurl that docs/integrate/grpcurl.md uses, and returns what it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.waiting import PATIENCE_S

GRPCURL = Path(sys.executable).with_name("grpcurl")

Tool = Callable[[Sequence[str]], str]


class ToolError(Exception):
    """The server does not answer; the message holds what the tool says."""


def run_grpcurl(arguments: Sequence[str]) -> str:
    """What grpcurl prints, which asks by v1."""
    ran = subprocess.run(
        [str(GRPCURL), "-max-time", f"{PATIENCE_S:g}", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    if ran.returncode:
        raise ToolError(ran.stderr)
    return ran.stdout


def run_grpcio(arguments: Sequence[str]) -> str:
    """The same by the reflection client of grpcio, which asks by v1alpha."""
    words = [word for word in arguments if word != "-plaintext"]
    data = "{}"
    if words[0] == "-d":
        data, words = words[1], words[2:]
    target, verb, *symbol = words
    with grpc.insecure_channel(target) as channel:
        try:
            # Closes its stream when the channel is closed.
            database = ProtoReflectionDescriptorDatabase(channel)
            if verb == "list":
                return "\n".join(sorted(database.get_services()))
            pool: Any = DescriptorPool(database)  # type: ignore[no-untyped-call]
            return _describe(pool, symbol[0]) if verb == "describe" else _call(channel, pool, verb, data)
        except grpc.RpcError as error:
            raise ToolError(str(error)) from None


def _describe(pool: Any, symbol: str) -> str:
    try:
        members = [f"rpc {method.name}" for method in pool.FindServiceByName(symbol).methods]
    except KeyError:
        members = [field.name for field in pool.FindMessageTypeByName(symbol).fields]
    return "\n".join([symbol, *members])


def _call(channel: grpc.Channel, pool: Any, name: str, data: str) -> str:
    service, _, method_name = name.partition("/")
    method = pool.FindServiceByName(service).methods_by_name[method_name]
    request = json_format.Parse(
        data, message_factory.GetMessageClass(method.input_type)(), descriptor_pool=pool
    )
    answer = channel.unary_unary(
        f"/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )(request, timeout=PATIENCE_S)
    return json.dumps(json_format.MessageToDict(answer))


TOOLS: dict[str, Tool] = {"grpcio": run_grpcio} | ({"grpcurl": run_grpcurl} if GRPCURL.exists() else {})
"""Every tool of this machine."""

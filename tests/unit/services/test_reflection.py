"""Server reflection, from the bytes of a question to the bytes of its answer."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from sidecar.rpc.calls import ExchangeMethod, UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decision_service import DECIDE, DECIDE_BATCH
from sidecar.services.ext_authz import CHECK
from sidecar.services.reflection import SERVICE, ReflectionService
from sidecar.services.rls import SHOULD_RATE_LIMIT
from sidecar.v1 import reflection_pb2 as pb
from tests.building import FakeCall

# Loaded, but not served.
importlib.import_module("envoy.service.discovery.v3.ads_pb2")


def serve(*paths: str) -> ReflectionService:
    """Reflection of the services of *paths*."""
    return ReflectionService([UnaryMethod(path, lambda message, call: b"") for path in paths])


def ask(service: ReflectionService, **question: object) -> pb.ServerReflectionResponse:
    """The answer to *question*."""
    request = pb.ServerReflectionRequest(host="here", **question)  # type: ignore[arg-type]
    response = pb.ServerReflectionResponse.FromString(service.answer(request.SerializeToString(), FakeCall()))
    assert (response.valid_host, response.original_request) == ("here", request)
    return response


def files(response: pb.ServerReflectionResponse) -> dict[str, FileDescriptorProto]:
    """The files in an answer by their names, in order."""
    assert response.WhichOneof("message_response") == "file_descriptor_response"
    parsed = map(FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in parsed}


def is_complete(found: dict[str, FileDescriptorProto]) -> bool:
    """Whether a client can build a pool of *found* alone."""
    pool = descriptor_pool.DescriptorPool()
    pending = list(found.values())
    while pending:
        ready = [file for file in pending if not set(file.dependency) & {other.name for other in pending}]
        if not ready:
            return False
        for file in ready:
            pool.Add(file)  # type: ignore[no-untyped-call]
            pending.remove(file)
    return True


def test_methods__both_versions_are_answered_alike() -> None:
    """One handler under two names."""
    service = serve()
    assert service.methods() == tuple(
        ExchangeMethod(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", service.answer)
        for version in ("v1", "v1alpha")
    )


def test_list_services__names_those_that_are_served() -> None:
    """Each once, in order of their names, and reflection itself."""
    service = serve(CHECK, DECIDE, DECIDE_BATCH)
    names = [each.name for each in ask(service, list_services="*").list_services_response.service]
    assert names == [
        "envoy.service.auth.v3.Authorization",
        SERVICE,
        "sidecar.v1.DecisionService",
    ]


@pytest.mark.parametrize(
    "symbol",
    [
        "sidecar.v1.DecisionService",
        "sidecar.v1.DecisionService.Decide",
        "sidecar.v1.DecideRequest",
        "sidecar.v1.DecideRequest.method",
        "sidecar.v1.Verdict",
    ],
)
def test_file_containing_symbol__has_the_file_first_and_all_that_it_imports(symbol: str) -> None:
    """Services, methods, messages, fields and enums lead to their file."""
    found = files(ask(serve(DECIDE), file_containing_symbol=symbol))
    assert next(iter(found)) == "sidecar/v1/decision.proto"
    assert set(found) == {
        "sidecar/v1/decision.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/timestamp.proto",
    }
    assert is_complete(found)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        (CHECK, "envoy/service/auth/v3/external_auth.proto"),
        (SHOULD_RATE_LIMIT, "envoy/service/ratelimit/v3/rls.proto"),
    ],
)
def test_file_by_filename__reaches_imports_of_imports(path: str, file: str) -> None:
    """Envoy's messages have two dozen files behind them; each can be asked for alone, and fits an answer."""
    service = serve(path)
    found = files(ask(service, file_by_filename=file))
    assert len(found) > 20 and is_complete(found)
    for name in found:
        response = ask(service, file_by_filename=name)
        assert next(iter(files(response))) == name
        assert response.ByteSize() < 65_536


def test_extensions__are_found_by_type_and_number() -> None:
    """Those of files that belong to a service of ours, and no others."""
    service, options = serve(CHECK), "google.protobuf.MessageOptions"
    response = ask(service, all_extension_numbers_of_type=options).all_extension_numbers_response
    assert response.base_type_name == options and response.extension_number
    for number in response.extension_number:
        asked = pb.ExtensionRequest(containing_type=options, extension_number=number)
        assert is_complete(files(ask(service, file_containing_extension=asked)))


def asking(**questions: object) -> Iterable[object]:
    """Each question as a parameter."""
    return [pytest.param({kind: value}, id=f"{kind}-{value}"[:60]) for kind, value in questions.items()]


@pytest.mark.parametrize(
    "question",
    [
        *asking(
            file_by_filename="envoy/service/discovery/v3/ads.proto",
            file_containing_symbol="envoy.service.discovery.v3.AggregatedDiscoveryService",
            all_extension_numbers_of_type="envoy.service.discovery.v3.AdsDummy",
            file_containing_extension=pb.ExtensionRequest(containing_type="nothing", extension_number=1),
        ),
        *asking(
            file_by_filename="/etc/passwd",
            file_containing_symbol="nobody.Service",
            all_extension_numbers_of_type="",
            file_containing_extension=pb.ExtensionRequest(
                containing_type="google.protobuf.MessageOptions", extension_number=7
            ),
        ),
        {"file_containing_symbol": ""},
        {"file_containing_symbol": "é" * 1_000},
    ],
)
def test_answer__what_is_not_served_is_not_found(question: dict[str, object]) -> None:
    """Neither what does not exist nor what the process has loaded for other purposes is described."""
    response = ask(serve(CHECK), **question)
    assert response.error_response.error_code == StatusCode.NOT_FOUND


def test_answer__a_question_about_nothing_is_an_error_of_its_own() -> None:
    """It is answered: the stream goes on."""
    assert ask(serve()).error_response.error_code == StatusCode.INVALID_ARGUMENT


def test_answer__refuses_bytes_that_are_no_question() -> None:
    """As every service does."""
    with pytest.raises(RpcError) as refused:
        serve().answer(b"\xff", FakeCall())
    assert refused.value.code is StatusCode.INTERNAL


def test_service__without_its_messages_is_a_mistake_of_ours() -> None:
    """A service that cannot be described fails where the server is built, not when somebody asks."""
    with pytest.raises(KeyError):
        serve("/nobody.Service/Method")

"""gRPC services behind Envoy: a real client sees each denial as the status that it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import yaml

from deploy.demo.envoy import Document, cluster, named, tcp_address
from deploy.demo.sidecar import ROUTES, Owner
from tests.e2e.stack import Stack, StackKind
from tests.house.source import text_of
from tests.waiting import PATIENCE_S

METHOD = "/demo.Stock/Read"
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
"""What clients of gRPC services usually retry."""


class _Echo(grpc.GenericRpcHandler):
    """Answers every call with its request."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The handler of any method."""
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return request


def section() -> Document:
    """The configuration that docs/integrate/envoy.md gives below 'gRPC upstreams': the cluster of the API."""
    page = text_of("docs/integrate/envoy.md").split("## gRPC upstreams")[1]
    settings: Document = yaml.safe_load(page.split("```yaml")[1].split("```")[0])
    return settings


@pytest.fixture(scope="module")
def grpc_stack() -> Iterator[Stack]:
    """The TCP stack in front of a gRPC service, with the cluster settings of docs/integrate/envoy.md."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def edit(document: Document) -> None:
        app = cluster(document, "app")
        app.update(named(section()["clusters"], "app"))
        app["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": tcp_address(port)}}
        ]

    routes = (*ROUTES, {"methods": "POST", "path": "/demo.Stock/**", "scope": "inventory:read"})
    stack = Stack(StackKind(settings=(("routes", list(routes)),), edit=edit))
    yield stack
    stack.close()
    server.stop(None).wait(PATIENCE_S)


def call(
    stack: Stack,
    owner: Owner | None,
    method: str = METHOD,
    retries: Document = RETRIES,
    timeout: float = PATIENCE_S,
) -> grpc.Call:
    """One unary call through Envoy, with retries; the call with its status, whatever that is."""
    settings = [("grpc.service_config", json.dumps(retries))]
    metadata = [] if owner is None else owner.headers
    with grpc.insecure_channel(f"127.0.0.1:{stack.envoy.port}", settings) as channel:
        try:
            answer, done = channel.unary_unary(method).with_call(b"x", metadata=metadata, timeout=timeout)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return error
    assert answer == b"x"
    return done


def denied(stack: Stack) -> int:
    """How many denials Envoy has counted."""
    return stack.envoy.stat("http.ingress.ext_authz.denied")


def test_grpc_upstreams__an_allowed_call_passes(grpc_stack: Stack) -> None:
    """The service answers, and the client gets the limits as initial metadata."""
    done = call(grpc_stack, grpc_stack.people.reader)
    assert done.code() is grpc.StatusCode.OK
    assert dict(done.initial_metadata())["x-ratelimit-limit"] == "10000"


@pytest.mark.parametrize(
    ("who", "method", "code", "text"),
    [
        (None, METHOD, grpc.StatusCode.UNAUTHENTICATED, "API key missing: Send your API key"),
        ("stranger", METHOD, grpc.StatusCode.UNAUTHENTICATED, "API key not accepted: "),
        ("suspended", METHOD, grpc.StatusCode.PERMISSION_DENIED, "Integration suspended: "),
        ("foreigner", METHOD, grpc.StatusCode.PERMISSION_DENIED, "Address not allowed: Requests from"),
        (
            "financier",
            METHOD,
            grpc.StatusCode.PERMISSION_DENIED,
            "Scope missing: This call needs the scope",
        ),
        ("reader", "/demo.Other/Read", grpc.StatusCode.PERMISSION_DENIED, "Route unknown: "),
    ],
)
def test_grpc_upstreams__a_denial_is_a_status_and_a_text(
    grpc_stack: Stack, who: str | None, method: str, code: grpc.StatusCode, text: str
) -> None:
    """The code is that of the reason, the message says what to do, and nothing is tried again."""
    before = denied(grpc_stack)
    refused = call(grpc_stack, getattr(grpc_stack.people, who) if who else None, method)
    assert refused.code() is code
    assert refused.details().startswith(text)
    headers = dict(refused.initial_metadata()) | dict(refused.trailing_metadata())
    assert headers["x-auth-reason"] and headers["x-decision-id"]
    assert denied(grpc_stack) == before + 1


def test_grpc_upstreams__a_quota_is_resource_exhausted_and_not_retried(grpc_stack: Stack) -> None:
    """One call is one call; the wait is reported, and the text says when to come back."""
    owner = grpc_stack.people.limited()
    codes = [call(grpc_stack, owner).code() for _ in range(3)]
    before = denied(grpc_stack)
    refused = call(grpc_stack, owner)
    assert codes == 3 * [grpc.StatusCode.OK]
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details().startswith("Quota exceeded: 1 requests per minute are allowed; retry in ")
    headers = dict(refused.initial_metadata()) | dict(refused.trailing_metadata())
    assert int(headers["grpc-retry-pushback-ms"]) == int(headers["retry-after"]) * 1_000 > 0
    assert headers["x-ratelimit-remaining"] == "0"
    assert denied(grpc_stack) == before + 1


def test_grpc_upstreams__a_client_that_retries_quotas_waits_as_reported(grpc_stack: Stack) -> None:
    """Even where RESOURCE_EXHAUSTED is retried, the client does not come back before the wait is over."""
    owner = grpc_stack.people.limited()
    for _ in range(3):
        call(grpc_stack, owner)
    retries = json.loads(json.dumps(RETRIES).replace("UNAVAILABLE", "RESOURCE_EXHAUSTED"))
    before = denied(grpc_stack)
    refused = call(grpc_stack, owner, retries=retries, timeout=1)
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # it still waits for the minute to pass
    assert denied(grpc_stack) == before + 1


@pytest.mark.parametrize(
    ("content_type", "is_grpc"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=utf-8", False),
        ("application/grpc-web+proto", False),
        ("application/grpcx", False),
        ("Application/GRPC", False),
        ("application/json", False),
    ],
)
def test_grpc_upstreams__sidecar_and_envoy_mean_the_same_by_grpc(
    grpc_stack: Stack, content_type: str, is_grpc: bool
) -> None:
    """A denial has a gRPC status just where Envoy takes the call for one, and a body everywhere else."""
    answer = grpc_stack.send("POST", METHOD, None, [("content-type", content_type)], b"")
    assert (answer.status, answer.all("grpc-status")) == ((200, ["16"]) if is_grpc else (403, []))
    assert bool(answer.body) is not is_grpc

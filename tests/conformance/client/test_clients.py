"""Both clients over a real socket: decisions, deadlines, and what happens without a decision."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar.client import AsyncClient, Client, ClientDecision, NoDecisionError
from sidecar.client.decisions import decision_from
from sidecar.client.http import IDENTITY_HEADERS, KEY_HEADERS
from sidecar.domain import credential_sources
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import TlsFiles
from sidecar.v1 import decision_pb2 as pb
from tests.building import NOW_US, SECOND_US
from tests.certificates import Authority, write
from tests.waiting import PATIENCE_S, eventually

from .conftest import RunningSidecar

HUGE = "/" + "a" * 100_000
"""A path that makes the message larger than the sidecar accepts."""


def decide(
    kind: type[Client] | type[AsyncClient], target: str, /, *question: str, **fields: Any
) -> ClientDecision:
    """One decision by a client of *kind*; `on_failure`, `timeout_s` and `credentials` are the client's."""
    settings = {"timeout_s": PATIENCE_S} | {
        name: fields.pop(name) for name in ("on_failure", "timeout_s", "credentials") if name in fields
    }
    if kind is Client:
        with Client(target, **settings) as client:
            return client.decide(*question, **fields)

    async def ask() -> ClientDecision:
        async with AsyncClient(target, **settings) as client:
            return await client.decide(*question, **fields)

    return asyncio.run(ask())


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


both_clients = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both_clients
def test_decide__allows(kind: Any, sidecar: RunningSidecar) -> None:
    """An allowed decision has everything that an application needs, in its own types."""
    key = sidecar.acme.api_key
    decision = decide(kind, sidecar.target, "GET", "/v1/orders/42", headers={"X-API-Key": key})
    assert (decision.is_allowed, decision.verdict, decision.reason, decision.status) == (
        True,
        "ALLOW",
        "ok",
        200,
    )
    assert (decision.limit, decision.remaining, decision.retry_after) == (60, 59, None)
    assert decision.reset_at == datetime.fromtimestamp((NOW_US + SECOND_US) / SECOND_US, UTC)
    assert decision.headers["x-ratelimit-remaining"] == "59"
    assert decision.upstream_headers == {
        "x-integration-id": "acme",
        "x-integration-name": "Caf%C3%A9",
        "x-credential-id": sidecar.acme.credential_id,
        "x-decision-id": decision.decision_id,
    }
    assert (decision.removed_headers, decision.body, decision.error) == (("x-api-key",), b"", None)
    assert (decision.integration_id, decision.credential_id) == ("acme", sidecar.acme.credential_id)


@both_clients
def test_decide__denies(kind: Any, sidecar: RunningSidecar) -> None:
    """A denial is a complete HTTP answer, and shows nothing of the caller to the application."""
    question = {"api_key": sidecar.office.api_key, "client_ip": "192.0.2.7"}
    assert decide(kind, sidecar.target, "GET", "/v1/orders/42", **question).is_allowed
    limited = decide(kind, sidecar.target, scope="orders:read", **question)
    assert (limited.verdict, limited.reason, limited.status) == ("DENY_429", "rate_limited", 429)
    assert (limited.remaining, limited.retry_after) == (0, timedelta(seconds=60))
    assert limited.headers["retry-after"] == "60"
    assert json.loads(limited.body)["reason"] == "rate_limited"
    assert (limited.upstream_headers, limited.removed_headers) == ({}, ())
    unknown = decide(kind, sidecar.target, "GET", "/v1/orders/42")
    assert (unknown.verdict, unknown.reason, unknown.status) == ("DENY_403", "missing_credential", 403)
    assert unknown.integration_id == unknown.credential_id == ""


@both_clients
@pytest.mark.parametrize("place", ["silent", "nobody"])
def test_failure__no_answer_is_decided_by_the_policy(kind: Any, place: str, request: Any) -> None:
    """Closed refuses with its own answer, open lets pass, raise raises; all within the deadline."""
    target, question = request.getfixturevalue(place), ("GET", "/v1/orders/42")
    closed = decide(kind, target, *question, timeout_s=0.05)
    assert (closed.verdict, closed.status, closed.reason) == ("DENY_403", 503, "decision_unavailable")
    assert closed.headers["retry-after"] == "1" and json.loads(closed.body)["status"] == 503
    opened = decide(kind, target, *question, timeout_s=0.05, on_failure="open")
    assert (opened.is_allowed, opened.status, opened.headers, opened.upstream_headers) == (True, 200, {}, {})
    assert opened.error is not None and opened.error.is_no_answer
    with pytest.raises(NoDecisionError) as failed:
        decide(kind, target, *question, timeout_s=0.05, on_failure="raise")
    assert failed.value.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


@both_clients
@pytest.mark.parametrize("fields", [{"client_ip": "here"}, {"path": HUGE}], ids=["invalid", "too large"])
def test_failure__open_lets_nobody_in_by_a_request_that_cannot_be_judged(
    kind: Any, fields: dict[str, str], sidecar: RunningSidecar
) -> None:
    """An error that the request itself causes is refused by every policy."""
    question = {"method": "GET", "path": "/v1/orders/42", "api_key": sidecar.acme.api_key, **fields}
    for policy in ("open", "closed"):
        refused = decide(kind, sidecar.target, on_failure=policy, **question)
        assert (refused.is_allowed, refused.status) == (False, 503)
        assert refused.error is not None and not refused.error.is_no_answer


@both_clients
def test_failure__each_is_logged_with_its_cause(
    kind: Any, sidecar: RunningSidecar, caplog: pytest.LogCaptureFixture
) -> None:
    """Anyone who operates the application reads why it answers 503."""
    decide(kind, sidecar.target, "GET", "/", client_ip="here")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("sidecar.client", "WARNING")
    assert "INVALID_ARGUMENT: client_ip: 'here'" in record.getMessage()


def test_client__one_connection_serves_all_threads(sidecar: RunningSidecar) -> None:
    """Two hundred calls on one client, none lost; after `close` the next call opens a new connection."""
    with Client(sidecar.target, timeout_s=PATIENCE_S) as client:

        async def ask() -> list[ClientDecision]:
            calls = [
                asyncio.to_thread(client.decide, "GET", "/v1/orders/42", api_key="none") for _ in range(200)
            ]
            return await asyncio.gather(*calls)

        assert [decision.reason for decision in asyncio.run(ask())] == 200 * ["malformed_credential"]
        if isinstance(sidecar.server, FastGrpcServer):  # grpc-core does not tell
            assert sidecar.metrics.value("sidecar_connections_open") == 1
        client.close()
        assert client.decide("GET", "/v1/orders/42", api_key=sidecar.acme.api_key).is_allowed


def test_client__finds_a_sidecar_that_has_restarted(sidecar: RunningSidecar) -> None:
    """Calls fail at once while it is unavailable, and the same client is served again by itself."""
    with Client(sidecar.target, timeout_s=PATIENCE_S) as client:
        question = ("GET", "/v1/orders/42")
        assert client.decide(*question, api_key=sidecar.acme.api_key).is_allowed
        sidecar.stop()
        assert client.decide(*question, api_key=sidecar.acme.api_key).status == 503
        sidecar.restart()
        eventually(lambda: client.decide(*question, api_key=sidecar.acme.api_key).is_allowed)


@both_clients
def test_client__reaches_unix_sockets_and_tls(kind: Any, sidecar: RunningSidecar, tmp_path: Path) -> None:
    """The target of a Unix socket is written as in the configuration; TLS needs credentials."""
    question = ("GET", "/v1/orders/42")
    key = sidecar.acme.api_key
    authority = Authority("tests")
    files = TlsFiles(tmp_path / "server.crt", tmp_path / "server.key")
    write(files, authority.issue("sidecar"))
    sidecar.restart(tls=files)
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    # grpcio does not try a second time to connect, and on a busy machine its first attempt may fail.
    eventually(
        lambda: decide(kind, sidecar.target, *question, api_key=key, credentials=credentials).is_allowed
    )
    assert decide(kind, sidecar.target, *question, api_key=key).status == 503
    sidecar.restart(host="", port=0, tls=None, path=str(tmp_path / "grpc.sock"))
    eventually(lambda: decide(kind, sidecar.target, *question, api_key=key).is_allowed)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"timeout_s": 0}, "timeout_s is 0"), ({"on_failure": "deny"}, "on_failure is 'deny'")],
)
@both_clients
def test_client__refuses_settings_that_cannot_be_meant(kind: Any, settings: Any, problem: str) -> None:
    """A typing error in a policy must not become another policy."""
    with pytest.raises(ValueError, match=problem):
        kind("127.0.0.1:1", **settings)


@pytest.mark.parametrize("verdict", [pb.VERDICT_UNSPECIFIED, 77])
def test_decision__an_unknown_verdict_is_a_denial(verdict: Any) -> None:
    """A sidecar of a later version, or something that is no sidecar, admits nobody by it."""
    decision = decision_from(pb.DecideResponse(verdict=verdict, reason=verdict))
    assert (decision.is_allowed, decision.verdict, decision.status) == (False, "DENY_403", 403)


def test_client__knows_the_headers_of_the_sidecar() -> None:
    """What the client repeats, because it must not load the server's code, is what the server says."""
    assert IDENTITY_HEADERS == credential_sources.IDENTITY_HEADERS
    assert tuple(source.header for source in credential_sources.DEFAULT_SOURCES) == KEY_HEADERS


def test_import__loads_none_of_the_server() -> None:
    """An application that imports the client gets grpcio, protobuf, the messages and the client alone."""
    program = "import sys, sidecar.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    modules = loaded.stdout.split()
    own = {name for name in modules if name.startswith("sidecar.")}
    assert {name for name in own if not name.startswith(("sidecar.client", "sidecar.v1"))} == set()
    libraries = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    # grpc itself loads the last three where they are installed.
    assert {name for name in libraries if not name.startswith("_")} <= {
        "cython_runtime",
        "google",
        "grpc",
        "sidecar",
        "typing_extensions",
        "grpc_health",
        "grpc_reflection",
        "grpc_tools",
    }


@both_clients
def test_describe_caller__says_what_the_key_may_do(
    kind: type[Client] | type[AsyncClient], sidecar: RunningSidecar
) -> None:
    """Scopes, limit and the latest refusal; an unknown key is an error that names it."""

    async def ask(api_key: str) -> dict[str, Any]:
        if kind is AsyncClient:
            async with AsyncClient(sidecar.target, timeout_s=PATIENCE_S) as client:
                return await client.describe_caller(api_key=api_key)
        with Client(sidecar.target, timeout_s=PATIENCE_S) as blocking:
            return blocking.describe_caller(api_key=api_key)

    decide(kind, sidecar.target, "GET", "/nowhere", api_key=sidecar.acme.api_key)
    shown = asyncio.run(ask(sidecar.acme.api_key))
    assert shown["integration"]["id"] == "acme"
    assert shown["rate_limit"]["limit_rpm"] == 60
    assert [refusal["path"] for refusal in shown["refusals"]["latest"]] == ["/nowhere"]
    with pytest.raises(NoDecisionError) as refused:
        asyncio.run(ask("junk"))
    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED

"""`sidecar serve` as a real process: start, reload, drain, and what goes wrong."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import grpc
import pytest

from sidecar.cli.check_client import Asker, AskError, ClientTls
from sidecar.services.ext_authz_client import check_request
from sidecar.services.health import CHECK_PATH, WATCH_PATH
from tests.certificates import AuthorityFolder
from tests.unit.cli.test_cli import run
from tests.waiting import eventually

from .running import Configured, Running, admin_get, eventually_metric, metric

RELOADS = 'sidecar_registry_reloads_total{{result="{}"}}'


@pytest.mark.parametrize("transport", ["fast", "grpcio"])
def test_serve__answers_and_stops_gently(tmp_path: Path, transport: str) -> None:
    """It reports its real ports, serves each service, counts, is ready, and ends with 0 on SIGTERM."""
    configured = Configured(tmp_path, transport=transport)
    with configured.serve() as running:
        serving = running.event("serving")
        assert (serving["transport"], serving["level"]) == (transport, "info")
        [target], [admin] = serving["grpc"], serving["admin"]
        assert configured.ask(target).is_allowed
        with grpc.insecure_channel(target) as channel:
            check = channel.unary_unary(CHECK_PATH, None, None)
            for service in ("", "envoy.service.auth.v3.Authorization", "sidecar.v1.DecisionService"):
                request = b"\x0a" + bytes([len(service)]) + service.encode()
                assert check(request, timeout=60) == b"\x08\x01"  # SERVING
            batch = channel.unary_unary("/sidecar.v1.DecisionService/DecideBatch", None, None)
            assert batch(b"", timeout=60) == b""
        assert admin_get(admin, "/readyz")[0] == 200
        assert metric(admin, 'sidecar_decisions_total{reason="ok",verdict="ALLOW"}') == 1
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.event("stopped")
        assert configured.key.api_key not in running.printed()


def test_serve__unix_sockets(tmp_path: Path) -> None:
    """gRPC and admin on paths, both removed at the end. SIGINT stops; a second signal does not kill."""
    path, admin_path = tmp_path / "g.sock", tmp_path / "a.sock"
    configured = Configured(tmp_path, listen={"grpc": f"unix:{path}", "admin": f"unix:{admin_path}"})
    with configured.serve() as running:
        running.event("serving")
        assert configured.ask(f"unix:{path}").is_allowed
        running.signal(signal.SIGINT)
        eventually(lambda: running.signal(signal.SIGTERM) or not running.is_running, what="it ends")
        assert running.wait() in (0, 1)  # drained, or a machine so busy that the drain took a second
    assert not path.exists()
    assert not admin_path.exists()


def test_serve__is_not_ready_while_it_drains(tmp_path: Path) -> None:
    """A connection that does not leave keeps the drain going; load balancers see it in /readyz meanwhile."""
    configured = Configured(tmp_path, drain_timeout_s=60)
    with configured.serve() as running:
        serving = running.event("serving")
        [target], [admin] = serving["grpc"], serving["admin"]
        host, port = target.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as held:
            held.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
            held.sendall(OPEN_CALL)
            eventually_metric(admin, "sidecar_connections_open", 1)
            running.signal(signal.SIGTERM)
            status, body = eventually(lambda: draining_page(admin), what="/readyz says draining")
            assert status == 503
            assert json.loads(body)["components"]["grpc"] == {"is_ready": False, "state": "draining"}
            assert admin_get(admin, "/healthz")[0] == 200
            assert running.stop_at_once() == 1
    assert running.event("stopped at once")["signal"] == "SIGTERM"


def test_serve__signals_within_a_second_are_one(tmp_path: Path) -> None:
    """
    A wrapper signals a process and then its group: that is no wish to end at once.

    A watcher of health learns of the drain before its stream ends.
    """
    configured = Configured(tmp_path, drain_timeout_s=60)
    with configured.serve() as running:
        serving = running.event("serving")
        [target], [admin] = serving["grpc"], serving["admin"]
        with grpc.insecure_channel(target) as channel:
            watch = channel.unary_stream(WATCH_PATH, None, None)(b"", timeout=60)
            assert next(watch) == b"\x08\x01"
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                running.signal(number)
            assert next(watch) == b"\x08\x02"  # NOT_SERVING: it drains
        assert running.wait() == 0
        assert admin_get(admin, "/readyz")[0] == 0
    assert len(running.events("shutdown requested")) == 1
    assert running.events("stopped at once") == []


OPEN_CALL = (
    # HEADERS of stream 1, END_HEADERS without END_STREAM: :method POST, :scheme http, :path, :authority x,
    # te trailers, content-type application/grpc (RFC 7541 literals without indexing).
    lambda block: b"\0" + len(block).to_bytes(2, "big") + b"\x01\x04\0\0\0\x01" + block
)(
    b"\x83\x86"
    + b"\x04" + bytes([len(CHECK_PATH)]) + CHECK_PATH.encode()
    + b"\x01\x01x"
    + b"\x00\x02te\x08trailers"
    + b"\x00\x0ccontent-type\x10application/grpc"
)  # fmt: skip
"""A request that never ends: the call runs until it is cut off."""


def draining_page(admin: str) -> tuple[int, str] | None:
    """What /readyz says once the drain has begun."""
    page = admin_get(admin, "/readyz")
    return page if "draining" in page[1] else None


def test_serve__cuts_off_at_the_end_of_the_drain(tmp_path: Path) -> None:
    """The drain has a bound: a call that never ends does not keep the process, which reports it."""
    configured = Configured(tmp_path, drain_timeout_s=0.05)
    with configured.serve() as running:
        serving = running.event("serving")
        [target], [admin] = serving["grpc"], serving["admin"]
        host, port = target.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as held:
            held.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" + OPEN_CALL)
            eventually_metric(admin, "sidecar_connections_open", 1)
            running.signal(signal.SIGTERM)
            assert running.wait() == 0
    assert running.event("drain timed out: unfinished calls were aborted")["level"] == "warning"


def test_serve__reloads_on_sighup(tmp_path: Path) -> None:
    """A suspension holds from the next request on; a bad file changes nothing; the corrected one counts."""
    configured = Configured(tmp_path)
    with configured.serve() as running:
        serving = running.event("serving")
        [target], [admin] = serving["grpc"], serving["admin"]
        assert configured.ask(target).is_allowed
        configured.write_registry(status="suspended")
        running.signal(signal.SIGHUP)
        eventually_metric(admin, RELOADS.format("ok"), 1)
        assert configured.ask(target).reason == "integration_suspended"
        configured.registry.write_text("integrations: [{id: acme}]")
        running.signal(signal.SIGHUP)
        refused = running.event("registry file rejected; the previous registry stays in force")
        assert refused["faults"] == [
            f"{configured.registry}:1: integrations[0] (acme): 'name' is missing; add it"
        ]
        assert metric(admin, RELOADS.format("failed")) == 1
        assert configured.ask(target).reason == "integration_suspended"
        configured.write_registry()
        eventually_metric(admin, RELOADS.format("ok"), 2)
        assert configured.ask(target).is_allowed
        assert metric(admin, "sidecar_registry_integrations") == 1


def test_serve__tls_with_client_certificates(tmp_path: Path) -> None:
    """Both listeners speak TLS; a client without a certificate is not served; SIGHUP loads new files."""
    authority = AuthorityFolder(tmp_path)
    authority.sign("server")
    tls = {"cert": "server.crt", "key": "server.key", "client_ca": "ca.pem"}
    listen = {"grpc": {"address": "127.0.0.1:0", "tls": tls}, "admin": {"address": "127.0.0.1:0", "tls": tls}}
    configured = Configured(tmp_path, listen=listen)
    request = check_request("GET", "/v1", {"x-api-key": configured.key.api_key}, "")
    certificate, key = authority.sign("proxy")
    with configured.serve() as running:
        target = running.event("serving")["grpc"][0].replace("127.0.0.1", "localhost")
        with Asker(target, ClientTls(authority.ca, certificate, key)) as asker:
            assert asker.ask(request).is_allowed
        with Asker(target, ClientTls(authority.ca)) as asker, pytest.raises(AskError, match="UNAVAILABLE"):
            asker.ask(request)
        authority.sign("server")
        running.signal(signal.SIGHUP)
        running.event("TLS files reloaded: " + str(tmp_path / "server.crt"), 2)
        with Asker(target, ClientTls(authority.ca, certificate, key)) as asker:
            assert asker.ask(request).is_allowed


def test_serve__an_address_in_use_is_one_line(tmp_path: Path) -> None:
    """An address in use is reported in a sentence, with exit code 2; nothing is left behind."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        admin = tmp_path / "a.sock"
        configured = Configured(tmp_path, listen={"grpc": f"127.0.0.1:{port}", "admin": f"unix:{admin}"})
        with configured.serve() as running:
            assert running.wait() == 2
    reported = [line for line in running.printed().splitlines() if not line.startswith("{")]
    assert len(reported) == 1
    assert reported[0].startswith(
        f"sidecar: cannot listen on 127.0.0.1:{port}: it is in use by another program;"
    )
    assert not admin.exists()


def test_serve__a_bad_registry_at_the_start_is_reported(tmp_path: Path) -> None:
    """There is no former registry to stay with: it does not start, and says why, without a traceback."""
    configured = Configured(tmp_path)
    configured.registry.write_text("integrations: [{id: acme, name: A, burst: 0}]")
    with configured.serve() as running:
        assert running.wait() == 1
    assert running.printed().splitlines() == [
        "sidecar: 1 mistake; nothing was started or changed",
        f"  {configured.registry}:1: integrations[0] (acme).burst: burst is 0; it must be 1 to 1000000"
        " tokens",
    ]


def test_serve__without_any_configuration(tmp_path: Path) -> None:
    """Defaults serve; that no key can be accepted and no path is open is reported."""
    environment = {"SIDECAR_LISTEN__GRPC": "127.0.0.1:0", "SIDECAR_LISTEN__ADMIN": "[]"}
    (tmp_path / "empty.yaml").write_text("")
    with Running(tmp_path, "--config", str(tmp_path / "empty.yaml"), **environment) as running:
        serving = running.event("serving")
        assert serving["admin"] == []
        assert running.events("no registry: every API key is refused; set 'registry'")
        assert running.events("no routes: only paths whose scope the proxy states are open; set 'routes'")
        with Asker(serving["grpc"][0]) as asker:
            checked = asker.ask(check_request("GET", "/v1", {"x-api-key": "x"}, ""))
        assert (checked.status, checked.reason) == (403, "malformed_credential")


def test_serve__the_demo(tmp_path: Path) -> None:
    """`--demo` prints where it listens, a key that works, and a command that answers as it says."""
    demo = tmp_path / "demo"
    environment = {f"SIDECAR_LISTEN__{kind}": "127.0.0.1:0" for kind in ("GRPC", "HTTP", "ADMIN")}
    with Running(tmp_path, "--demo", "--demo-directory", str(demo), **environment) as running:
        [admin] = running.event("supervising")["admin"]
        printed = running.wait_for(
            lambda: running.printed() if "Press Ctrl-C to stop." in running.printed() else "", "the welcome"
        )
        command = re.search(r"^  sidecar (ask .*)$", printed, re.MULTILINE)
        assert command
        assert f"admin  {admin}" in printed

        first = run(*command[1].split())
        assert (first.exit_code, first.stdout.split()[:3]) == (0, ["allowed", "200", "ok"])
        assert "x-integration-id: acme-erp  (to the upstream)" in first.stdout
        several = run(*command[1].split(), "--count", "6")
        words = [line.split()[:3] for line in several.stdout.splitlines()]
        assert several.exit_code == 3
        assert words[0] == ["allowed", "200", "ok"]
        assert words[-1] == ["denied", "429", "rate_limited"]
        as_json = run(*command[1].split(), "--json")
        assert json.loads(as_json.stdout)["status"] in (200, 429)


@pytest.mark.parametrize(
    "client_ip",
    ["peer", {"header": "x-forwarded-for", "trusted_proxies": ["10.0.0.0/8"]}, {"header": "x-real-ip"}],
    ids=["peer", "forwarded", "header"],
)
def test_ask__ip_is_the_clients_address(tmp_path: Path, client_ip: object) -> None:
    """Whatever the sidecar uses, --ip is the client's address to it, as it is to `decide`."""
    configured = Configured(tmp_path, client_ip=client_ip)
    configured.write_registry(ip_allowlist=["192.0.2.0/24"])
    with configured.serve() as running:
        target = running.event("serving")["grpc"][0]
        for ip, code in (("192.0.2.9", 0), ("203.0.113.7", 3), ("10.0.0.9", 3)):
            for command in (("ask", "--target", target), ("decide",)):
                name, *options = command
                options += ["--config", str(configured.file), "--ip", ip, "--key", configured.key.api_key]
                result = run(name, "GET", "/v1/orders", *options)
                assert result.exit_code == code, (command, ip, result.output)


def test_ask__nobody_there_is_reported() -> None:
    """A sidecar that does not answer ends the command with 1 and a hint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        target = f"127.0.0.1:{free.getsockname()[1]}"
        result = run("ask", "GET", "/", "--target", target)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"sidecar: no answer from {target}: UNAVAILABLE (")
    assert result.stderr.count("\n") == 1

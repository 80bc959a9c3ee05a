"""The command line, in this process: arguments, output, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sidecar.cli.root import app
from sidecar.domain.api_keys import credential_id_of, digest_of
from sidecar.process.demo import prepare_demo
from sidecar.sources.yaml_nodes import read_yaml

HEAVY = ("pydantic", "httpx", "grpc", "uvloop", "httptools", "google.protobuf", "yaml", "prometheus_client",
         "asyncio")  # fmt: skip


def run(*arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Result:
    """Run one command."""
    return CliRunner().invoke(app, list(arguments), input=stdin, env=dict(env or {}))


@pytest.fixture
def demo(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """The configuration of a demo, and its keys."""
    prepared = prepare_demo(tmp_path)
    return str(prepared.config), prepared.api_keys


def test_cli__help_is_quick() -> None:
    """`--help` imports none of the large libraries, and none of the program behind it."""
    code = (
        "import sys; from sidecar.cli.root import app; from typer.testing import CliRunner;"
        "before = set(sys.modules); assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        f"print([name for name in {HEAVY} if name in before and name != 'asyncio'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


def test_keys_new__prints_a_key_and_its_registry_lines() -> None:
    """The lines are YAML for the registry; the key is one of ours and its digest is the one printed."""
    result = run("keys", "new")
    assert result.exit_code == 0
    found = re.search(r"^  (sck_\w+)$", result.output, re.MULTILINE)
    assert found
    key = found[1]
    lines = result.output[result.output.index("  - id:") :]
    assert str(read_yaml(lines)) == str(
        read_yaml(f'  - id: "{credential_id_of(key)}"\n    digest: {digest_of(key)}\n')
    )


def test_keys_new__as_json() -> None:
    """For programs: exactly the key and its credential."""
    result = run("keys", "new", "--json", "--prefix", "acme-prod")
    printed = json.loads(result.output)
    key = printed["api_key"]
    assert key.startswith("acme-prod_")
    assert printed == {"api_key": key, "credential": {"id": credential_id_of(key), "digest": digest_of(key)}}


def test_keys_new__refuses_a_prefix_that_parts_keys() -> None:
    """A wrong argument is reported in a sentence, with the code for wrong usage."""
    result = run("keys", "new", "--prefix", "a_b")
    assert result.exit_code == 2
    assert result.stderr.startswith("sidecar: prefix is 'a_b'; it must be ")


def test_check_config__sums_up(demo: tuple[str, dict[str, str]]) -> None:
    """Without mistakes it says what there is, and exits with 0."""
    result = run("check-config", demo[0])
    assert result.exit_code == 0
    assert "No mistakes." in result.output
    assert "3 integrations, 3 credentials" in result.output


def test_check_config__warns(tmp_path: Path) -> None:
    """What is valid but odd is reported, in the configuration and in the registry."""
    config, registry = tmp_path / "sidecar.yaml", tmp_path / "r.yaml"
    config.write_text("registry: r.yaml\nroutes: [{path: /**, scope: none}, {path: /a, scope: none}]\n")
    registry.write_text("integrations: [{id: a, name: A, ip_allowlist: [10.0.0.0/8, 10.0.0.0/9]}]")
    result = run("check-config", str(config))
    assert result.exit_code == 0
    assert "warning: " in result.output
    assert "routes[1]: never matches" in result.output
    assert "10.0.0.0/9 is already covered by 10.0.0.0/8" in result.output


@pytest.mark.parametrize(
    ("policy", "reported"),
    [("deny", "refused with 503"), ("allow", "allowed without a limit"), ("local", "its share of the limit")],
)
def test_check_config__says_what_answers_without_the_store(
    tmp_path: Path, policy: str, reported: str
) -> None:
    """The policy in words, and how many integrations have one of their own."""
    config, registry = tmp_path / "sidecar.yaml", tmp_path / "r.yaml"
    config.write_text(f"registry: r.yaml\nstore: redis://127.0.0.1:1\non_store_error: {policy}\n")
    registry.write_text(
        "integrations: [{id: a, name: A, on_store_error: local}, {id: b, name: B, on_store_error: deny},"
        " {id: c, name: C, on_store_error: local}, {id: d, name: D}]"
    )
    result = run("check-config", str(config))
    said = " ".join(result.output.split())
    assert result.exit_code == 0
    assert f"on_store_error {policy}: " in said
    assert reported in said
    assert "(integrations: 1 deny, 2 local)" in said
    assert "(timeout 50 ms)" in said
    assert "warning" not in said
    config.write_text("registry: r.yaml\n")
    embedded = " ".join(run("check-config", str(config)).output.split())
    assert "warning: on_store_error of integrations (1 deny, 2 local) has no effect" in embedded


def test_check_config__leaves_policies_in_the_store_alone(tmp_path: Path) -> None:
    """Integrations that are in the store are not asked for theirs."""
    config = tmp_path / "sidecar.yaml"
    config.write_text("store: redis://127.0.0.1:1\n")
    said = " ".join(run("check-config", str(config)).output.split())
    assert "each may have its own; not checked here" in said


def test_check_config__names_mistakes_of_all_files(tmp_path: Path) -> None:
    """Registry and TLS files are looked at, too; any mistake exits with 1."""
    config, registry = tmp_path / "sidecar.yaml", tmp_path / "r.yaml"
    config.write_text(
        "registry: r.yaml\nlisten: {grpc: {address: 127.0.0.1:0, tls: {cert: no.pem, key: no.key}}}\n"
    )
    registry.write_text("integrations: [{id: a}]")
    result = run("check-config", str(config))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0] == "sidecar: 2 mistakes; nothing was started or changed"
    assert "r.yaml:1: integrations[0] (a): 'name' is missing" in result.stderr
    assert "sidecar.yaml:2: listen.grpc" in result.stderr


def test_check_config__takes_the_environment_in(demo: tuple[str, dict[str, str]]) -> None:
    """It checks what `serve` would run."""
    result = run("check-config", demo[0], env={"SIDECAR_TRANSPORT": "slow"})
    assert result.exit_code == 1
    assert "SIDECAR_TRANSPORT: transport: must be 'fast' or 'grpcio', not 'slow'" in result.stderr


def test_decide__allows_and_explains(demo: tuple[str, dict[str, str]]) -> None:
    """Steps, verdict and headers for people; 0 for allow."""
    config, keys = demo
    result = run("decide", "GET", "/v1/orders/42", "-c", config, "--key", keys["acme-erp"])
    assert result.exit_code == 0
    assert result.output.startswith("ALLOW ok ")
    assert "the route requires orders:read" in result.output
    assert "x-api-key  removed before the upstream" in result.output
    assert keys["acme-erp"] not in result.output


@pytest.mark.parametrize(
    ("arguments", "integration", "reason", "status"),
    [
        (("GET", "/v1/orders/1"), None, "missing_credential", 403),
        (("GET", "/v1/orders/1", "-H", "X-API-Key: nonsense"), None, "malformed_credential", 403),
        (("GET", "/v1/orders/1", "-H", "x-api-key: other"), "acme-erp", "malformed_credential", 403),
        (("POST", "/v1/orders"), "legacy-import", "integration_suspended", 403),
        (("GET", "/v1/inventory/1", "--ip", "10.0.0.1"), "depot-scanner", "ip_not_allowed", 403),
        (("GET", "/v1/inventory/1", "--peer", "10.0.0.1"), "depot-scanner", "ip_not_allowed", 403),
        (("GET", "/v1/inventory/1"), "depot-scanner", "ip_not_allowed", 403),
        (("GET", "/v1/inventory/1", "--ip", "192.0.2.9"), "depot-scanner", "ok", 200),
        (("GET", "/v1/inventory/1", "--peer", "192.0.2.9"), "depot-scanner", "ok", 200),
        (("GET", "/v1/../orders"), "acme-erp", "path_refused", 403),
        (("GET", "/v1/nothing"), "acme-erp", "route_unknown", 403),
        (("GET", "/v1/nothing", "--scope", "inventory:read"), "acme-erp", "ok", 200),
    ],
)
def test_decide__every_reason_as_json(
    demo: tuple[str, dict[str, str]],
    arguments: tuple[str, ...],
    integration: str | None,
    reason: str,
    status: int,
) -> None:
    """Programs read the reason and the whole answer; a denial exits with 3."""
    config, keys = demo
    key = ("--key", keys[integration]) if integration else ()
    result = run("decide", *arguments, "-c", config, *key, "--json")
    printed = json.loads(result.output)
    assert (printed["reason"], printed["answer"]["status"]) == (reason, status)
    assert result.exit_code == (0 if status == 200 else 3)


def test_decide__a_key_need_not_be_typed(demo: tuple[str, dict[str, str]]) -> None:
    """From standard input, or from a variable: neither lands in the shell's history."""
    config, keys = demo
    asked = ("decide", "GET", "/v1/orders/1", "-c", config)
    assert run(*asked, "--key", "-", stdin=keys["acme-erp"] + "\n").exit_code == 0
    assert run(*asked, env={"SIDECAR_API_KEY": keys["acme-erp"]}).exit_code == 0
    nothing = run(*asked, "--key", "-", stdin="\n")
    assert (nothing.exit_code, nothing.stderr.startswith("sidecar: --key - reads")) == (2, True)


def test_decide__looks_where_the_configuration_says(tmp_path: Path) -> None:
    """The key goes into the first header that is looked at, with its scheme."""
    demo = prepare_demo(tmp_path)
    demo.config.write_text(demo.config.read_text() + "credentials: [authorization: Token]\n")
    arguments = ("decide", "GET", "/v1/orders/1", "-c", str(demo.config), "-k", demo.api_keys["acme-erp"])
    printed = json.loads(run(*arguments, "--json").output)
    assert printed["answer"]["removed_headers"] == ["authorization"]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (("--ip", "somewhere"), "'somewhere' is not an IP address"),
        (("--ip", "10.0.0.1", "--peer", "10.0.0.2"), "--ip and --peer"),
        (("-H", "nonsense"), "--header 'nonsense' has no ':'"),
        (("--header", ": value"), "write 'name: value'"),
    ],
)
def test_decide__wrong_arguments_are_reported(
    demo: tuple[str, dict[str, str]], arguments: tuple[str, ...], reported: str
) -> None:
    """Wrong usage exits with 2."""
    result = run("decide", "GET", "/v1", "-c", demo[0], *arguments)
    assert result.exit_code == 2
    assert reported in result.stderr


@pytest.mark.parametrize(
    "command", [("serve", "--config"), ("check-config",), ("decide", "GET", "/", "--config")]
)
def test_cli__a_missing_configuration_is_reported(tmp_path: Path, command: tuple[str, ...]) -> None:
    """No command shows a traceback for a file that is not there."""
    result = run(*command, str(tmp_path / "no.yaml"))
    assert result.exit_code == 1
    assert "no.yaml: cannot be read (No such file or directory)" in result.stderr
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (("--cert", "a"), "--cert and --cert-key must be given together"),
        (("--cert", "a", "--cert-key", "b"), "--cert and --cert-key must be given together"),
    ],
)
def test_ask__wrong_arguments_are_reported(arguments: tuple[str, ...], reported: str) -> None:
    """Wrong usage exits with 2, before anything is asked."""
    result = run("ask", "GET", "/", *arguments)
    assert result.exit_code == 2
    assert reported in result.stderr


def test_ask__a_missing_ca_is_reported(tmp_path: Path) -> None:
    """A TLS file that is not there is named."""
    result = run("ask", "GET", "/", "--ca", str(tmp_path / "ca.pem"))
    assert result.exit_code == 1
    assert "ca.pem cannot be read: No such file or directory" in result.stderr


def test_serve__demo_and_config_exclude_each_other(tmp_path: Path) -> None:
    """The demo brings its own configuration."""
    result = run("serve", "--demo", "--config", "x.yaml", "--demo-directory", str(tmp_path))
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])


def test_serve__a_demo_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    result = run("serve", "--demo", "--demo-directory", str(tmp_path / "file" / "demo"))
    assert result.exit_code == 1
    assert "the demo cannot be written" in result.stderr


def test_version__names_the_build() -> None:
    """One line."""
    reported = run("version").output
    assert re.fullmatch(r"sidecar \S+ \(Python 3\.\d+\.\d+\S*, (pure|compiled)\)\n", reported)
    assert run("--version").output == reported
    as_json = json.loads(run("version", "--json").output)
    assert reported == f"sidecar {as_json['version']} (Python {as_json['python']}, {as_json['build']})\n"


@pytest.mark.parametrize("arguments", [("logs", "--path"), ("ask", "GET"), ("serve", "--config")])
def test_cli__an_argument_that_is_not_text(arguments: tuple[str, ...]) -> None:
    """It is named and refused, before any command puts it into a request or a log line."""
    command = [sys.executable, "-m", "sidecar.cli", *arguments, b"/\xff"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sidecar: argument '/\\udcff' is not UTF-8")

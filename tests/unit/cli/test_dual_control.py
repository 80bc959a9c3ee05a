"""Dual control where there is one administrator, or none: what is reported and asked, and the way back in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sidecar.cli.root import app
from tests.redis_servers import shared

from .served import ServedApi
from .terminal import Terminal

NOBODY = "nobody can reactivate 'acme' after you suspend it"


def on_machine(config: Path, *arguments: str) -> Result:
    """A command that works on the registry of *config*, without a token and without a server."""
    env = {"SIDECAR_SERVER": "http://127.0.0.1:1", "SIDECAR_ADMIN_TOKEN": None}
    return CliRunner().invoke(app, [*arguments, "--config", str(config)], env=env)


@pytest.fixture
def alone(api: ServedApi, tmp_path: Path) -> ServedApi:
    """An API whose only administrator is ann, with the integration 'acme'."""
    api.output("admin", "remove", "bob", "--yes")
    api.output("integrations", "create", "acme", "--issue-credential")
    return api


@pytest.fixture
def config(api: ServedApi, tmp_path: Path) -> Path:
    """The configuration of the machine that holds the registry of *api*."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump({"registry": f"sqlite:{api.registry.path}"}))
    return path


def status_of(api: ServedApi, who: str = "ann") -> str:
    """Whether acme is suspended."""
    status: str = json.loads(api.output("integrations", "show", "acme", "--json", who=who))["status"]
    return status


def test_suspend__by_the_only_administrator_needs_yes(alone: ServedApi) -> None:
    """A script learns what it would lock, with the remedy, and does nothing without --yes."""
    result = alone.run("suspend", "acme", "--reason", "leak")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"warning: {NOBODY}" in result.stderr
    assert "sidecar admin create" in result.stderr
    assert "sidecar admin recover" in result.stderr
    assert "Pass --yes to confirm" in result.stderr
    assert status_of(alone) == "active"
    done = alone.run("suspend", "acme", "--reason", "leak", "--yes")
    assert done.exit_code == 0
    assert f"note: {NOBODY}" in done.stderr
    assert status_of(alone) == "suspended"


def test_suspend__by_the_only_administrator_in_a_dry_run(alone: ServedApi) -> None:
    """It says so, asks nothing and changes nothing; programs read the code."""
    tried = alone.run("suspend", "acme", "--reason", "leak", "--dry-run")
    assert (tried.exit_code, f"note: {NOBODY}" in tried.stderr) == (0, True)
    reported = json.loads(alone.output("suspend", "acme", "--reason", "leak", "--dry-run", "--json"))
    assert [notice["code"] for notice in reported["notices"]] == ["nobody_can_reactivate"]
    assert status_of(alone) == "active"


def test_suspend__by_the_only_administrator_at_a_terminal(alone: ServedApi) -> None:
    """The warning is above the question."""
    env = {"SIDECAR_SERVER": alone.url, "SIDECAR_ADMIN_TOKEN": alone.tokens["ann"]}
    screen = Terminal("suspend", "acme", "--reason", "leak", **env)
    screen.wait_for("permanently.")
    assert screen.plain.index("warning: nobody can reactivate") < screen.plain.index("Suspend acme?")
    screen.type("n")
    assert screen.end() == 1
    assert status_of(alone) == "active"


def test_suspend__by_one_of_two_asks_a_script_nothing(api: ServedApi) -> None:
    """Nothing is in the way of a suspension in an incident where somebody else can end it."""
    api.output("integrations", "create", "acme")
    result = api.run("suspend", "acme", "--reason", "leak")
    assert (result.exit_code, "nobody can" in result.output) == (0, False)


def test_apply__a_file_that_suspends_says_so(alone: ServedApi, config: Path, tmp_path: Path) -> None:
    """A declared suspension locks as well: the plan warns of it, by the API and on the registry itself."""
    file = tmp_path / "fleet.yaml"
    file.write_text("integrations:\n  - {id: acme, name: acme, status: suspended}\n")
    for arguments in (
        ("apply", "--file", str(file)),
        ("registry", "push", str(file), "--config", str(config)),
    ):
        planned = alone.run(*arguments, "--dry-run")
        assert "warning: this suspends acme, which nobody can reactivate" in planned.stderr, planned.output
    assert status_of(alone) == "active"


def test_suspend__by_an_operator_is_ended_by_the_administrator(alone: ServedApi) -> None:
    """The operator is not the only administrator."""
    result = alone.run("suspend", "acme", "--reason", "leak", who="olli")
    assert (result.exit_code, "nobody can" in result.output) == (0, False)


def test_recover__ends_what_the_only_administrator_suspended(alone: ServedApi, config: Path) -> None:
    """The whole way: locked, recovered on the machine, reactivated; and marked wherever somebody looks."""
    alone.output("suspend", "acme", "--reason", "leak", "--yes")
    alone.output("credentials", "issue", "acme")
    refused = alone.run("reactivate", "acme", "--reason", "keys replaced")
    assert "sidecar admin recover" in refused.stderr
    recovered = on_machine(config, "admin", "recover", "--id", "eve", "--reason", "ann is alone")
    assert recovered.exit_code == 0, recovered.output
    assert "single_person" in recovered.stderr
    alone.tokens["eve"] = recovered.stdout.strip()
    done = alone.run("reactivate", "acme", "--reason", "keys replaced", who="eve")
    assert done.exit_code == 0
    assert "may be the same person" in done.stderr
    trail = alone.output("audit", "list", "--limit", "2", "--oldest-first", "--action", "admin.recover")
    assert "machine:" in trail
    assert "ann is alone" in trail
    assert "; single_person" in alone.output("audit", "list", "--integration", "acme", "--limit", "1")
    flags = json.loads(alone.output("review", "--json", "--search", "acme"))["items"][0]["flags"]
    assert "single_person" in [flag["code"] for flag in flags]
    assert "single person" in alone.output("integrations", "show", "acme")
    assert "recovered" in alone.output("admin", "list")
    alone.output("audit", "verify")


def test_recover__needs_no_administrator_and_makes_no_second_first_one(tmp_path: Path) -> None:
    """On a registry without one it says what to run; an id in use and a missing reason are reported."""
    config = tmp_path / "sidecar.yaml"
    config.write_text("registry: sqlite:registry.sqlite\n")
    empty = on_machine(config, "admin", "recover", "--id", "eve", "--reason", "lost")
    assert (empty.exit_code, "sidecar admin bootstrap" in empty.stderr) == (1, True)
    assert on_machine(config, "admin", "bootstrap", "--id", "ann").exit_code == 0
    assert on_machine(config, "admin", "recover", "--id", "eve").exit_code == 2
    taken = on_machine(config, "admin", "recover", "--id", "ann", "--reason", "lost")
    assert (taken.exit_code, "already exists" in taken.stderr) == (1, True)
    reported = json.loads(
        on_machine(config, "admin", "recover", "--id", "eve", "--reason", "lost", "--json").stdout
    )
    assert reported["administrator"] == {"id": "eve", "name": "eve", "role": "admin"}


def test_suspend_offline__when_the_api_and_every_token_is_gone(alone: ServedApi, config: Path) -> None:
    """It works on the registry's file, is on record under the machine's user, and says what it means."""
    tried = on_machine(config, "suspend", "acme", "--reason", "leak", "--offline", "--dry-run")
    assert (tried.exit_code, "dry run, nothing was changed" in tried.stdout) == (0, True)
    result = on_machine(config, "suspend", "acme", "--reason", "leak", "--offline", "--wait")
    assert result.exit_code == 0, result.output
    assert "acme: suspended; 1 live credential was invalidated" in result.stdout
    assert "in force on 0 sidecars" in result.stdout
    assert "marked single_person" in result.stderr
    assert status_of(alone) == "suspended"
    assert "machine:" in alone.output("audit", "list", "--integration", "acme", "--limit", "1")
    alone.output("credentials", "issue", "acme")
    back = json.loads(alone.output("reactivate", "acme", "--reason", "keys replaced", "--json"))
    assert back["integration"]["single_person_at"] is not None


def test_suspend_offline__what_cannot_be_is_reported(alone: ServedApi, config: Path) -> None:
    """An unknown id, a generation that has passed, and an option that has no meaning here."""
    for arguments, code, text in (
        (("nobody",), 1, "no integration 'nobody'"),
        (("acme", "--expect", "9"), 1, "not at the expected generation 9"),
        (("acme", "--idempotency-key", "k"), 2, "leave it out with --offline"),
    ):
        result = on_machine(config, "suspend", *arguments, "--reason", "leak", "--offline")
        assert (result.exit_code, text in result.stderr) == (code, True), result.output
    assert status_of(alone) == "active"


def test_suspend_offline__in_redis(tmp_path: Path) -> None:
    """The owner of the store's credentials does the same there."""
    config = tmp_path / "sidecar.yaml"
    config.write_text(yaml.safe_dump({"store": f"{shared().standalone.url}?prefix=offline:{tmp_path.name}:"}))
    assert on_machine(config, "admin", "bootstrap", "--id", "ann").exit_code == 0
    file = tmp_path / "fleet.yaml"
    file.write_text("integrations:\n  - {id: acme, name: Acme}\n")
    recovered = on_machine(config, "admin", "recover", "--id", "eve", "--reason", "lost")
    pushed = CliRunner().invoke(
        app,
        ["registry", "push", str(file), "--yes", "--config", str(config)],
        env={"SIDECAR_ADMIN_TOKEN": recovered.stdout.strip()},
    )
    assert pushed.exit_code == 0, pushed.output
    result = on_machine(config, "suspend", "acme", "--reason", "leak", "--offline", "--json")
    reported = json.loads(result.stdout)
    assert (reported["integration"]["status"], reported["integration"]["suspensions"][0]["by"][:8]) == (
        "suspended",
        "machine:",
    )


def test_suspend_offline__a_file_is_edited_by_hand(tmp_path: Path) -> None:
    """It says what to write, below which line, how it comes into force, and changes nothing itself."""
    registry = tmp_path / "registry.yaml"
    registry.write_text("integrations:\n  - name: Acme\n    id: acme\n    scopes: []\n")
    config = tmp_path / "sidecar.yaml"
    config.write_text("registry: registry.yaml\n")
    result = on_machine(config, "suspend", "acme", "--reason", "leak", "--offline")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "below line 3 ('id: acme'), add the line: status: suspended" in result.stderr
    assert "without a restart" in result.stderr
    missing = on_machine(config, "suspend", "other", "--reason", "leak", "--offline")
    assert "no line 'id: other' was found" in missing.stderr
    assert "status" not in registry.read_text()

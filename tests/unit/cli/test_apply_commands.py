"""`sidecar registry push`, `sidecar registry pull` and `sidecar apply`, as they are typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sidecar.cli.admin_command import ask_first
from sidecar.cli.apply_flow import SHOWN_MAX, plan_lines
from sidecar.cli.exits import CommandError
from sidecar.cli.root import app
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.declared import ComparisonContext, Declaration, compare
from sidecar.domain.integrations import Integration
from sidecar.services.admin.apply.document import plan_view
from tests.administration import ANN, LIFECYCLE, NOW_US, digest
from tests.unit.cli.terminal import TerminalStream
from tests.unit.services.admin.apply.registries import fresh_store_url

from .served import ServedApi, served_api

FILE = f"""
integrations:
  - id: acme-erp
    name: Acme ERP
    scopes: [orders:read]
    rate_limit_rpm: 600
    credentials: [{{id: k1, digest: "{digest("k1")}"}}]
  - {{id: depot, name: Depot}}
"""


class Desk:
    """A folder with a configuration, and commands that are typed in it."""

    def __init__(self, folder: Path, configuration: str) -> None:
        """Write *configuration*."""
        self.folder = folder
        self.config = folder / "sidecar.yaml"
        self.config.write_text(configuration)
        self.token = ""

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> Result:
        """Type `sidecar` and *arguments*."""
        env = {"SIDECAR_CONFIG": str(self.config), "SIDECAR_ADMIN_TOKEN": self.token, **environment}
        return CliRunner().invoke(app, list(arguments), input=stdin, env=env)

    def bootstrap(self) -> None:
        """Make ann, and keep her token."""
        made = self.run("admin", "bootstrap", "--id", "ann")
        assert made.exit_code == 0, made.output
        self.token = made.stdout.strip()

    def file(self, text: str = FILE, name: str = "registry.yaml") -> str:
        """A file with *text*."""
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture(params=["sqlite", "redis"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    """A desk before a registry that nobody has touched."""
    kept = "registry: sqlite:registry.sqlite" if request.param == "sqlite" else f"store: {fresh_store_url()}"
    return Desk(tmp_path, kept + "\n")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    """The real admin API."""
    with served_api(tmp_path) as served:
        yield served


def test_push__shows_asks_and_changes(desk: Desk) -> None:
    """A dry run and a question that nobody answers change nothing; `--yes` does, once."""
    desk.bootstrap()
    file = desk.file()
    dry = desk.run("registry", "push", file, "--dry-run")
    assert (dry.exit_code, dry.stderr) == (0, "")
    assert dry.stdout.splitlines() == [
        "+ acme-erp   Acme ERP",
        "    + rate_limit_rpm       600",
        "    + scopes               orders:read",
        "    + credentials          k1",
        "+ depot   Depot",
        "",
        "2 to add, 0 to change, 0 to remove, 0 unchanged",
        "Dry run: nothing was changed.",
    ]
    unasked = desk.run("registry", "push", file)
    assert unasked.exit_code == 2
    assert "Make 2 changes? Pass --yes" in unasked.stderr
    pushed = desk.run("registry", "push", file, "--yes")
    assert (pushed.exit_code, pushed.stdout.splitlines()[-1].startswith("Made 2 changes in ")) == (0, True)
    again = desk.run("registry", "push", file, "--yes")
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (0, "Nothing to do.")


def test_pull__can_be_pushed_again(desk: Desk) -> None:
    """What was pulled, pushed with prune, changes nothing; the audit log names who pushed, and why."""
    desk.bootstrap()
    desk.run("registry", "push", desk.file(), "--yes", "--reason", "contract 7")
    pulled = desk.folder / "pulled.yaml"
    reported = desk.run("registry", "pull", str(pulled))
    assert (reported.exit_code, reported.stdout) == (0, "")
    assert reported.stderr == f"{pulled}: 2 integrations\n"
    assert desk.run("registry", "pull").stdout == pulled.read_text()
    as_json = json.loads(desk.run("registry", "pull", "--json").stdout)
    assert as_json == yaml.safe_load(pulled.read_text())
    reported = json.loads(desk.run("registry", "pull", str(pulled), "--json").stdout)
    assert reported == {"file": str(pulled), "integrations": 2}
    again = desk.run("registry", "push", str(pulled), "--prune", "--json", "--yes")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["difference"]["counts"] == {
        "add": 0, "change": 0, "remove": 0, "unchanged": 2, "refused": 0, "steps": 0,
    }  # fmt: skip


def test_pull__asks_before_it_replaces_what_differs(desk: Desk) -> None:
    """A file that holds something else stays, unless `--yes` is given; no other file is left behind."""
    desk.bootstrap()
    file = desk.folder / "mine.yaml"
    file.write_text("# a comment\nintegrations: []\n")
    file.chmod(0o600)
    refused = desk.run("registry", "pull", str(file))
    assert (refused.exit_code, "differs" in refused.stderr) == (2, True)
    assert file.read_text().startswith("# a comment")
    assert desk.run("registry", "pull", str(file), "--yes").exit_code == 0
    assert file.read_text() == "integrations: []\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert desk.run("registry", "pull", str(file)).exit_code == 0
    assert [path.name for path in desk.folder.glob(".*")] == []
    nowhere = desk.run("registry", "pull", str(desk.folder / "nowhere" / "file.yaml"))
    assert (nowhere.exit_code, "cannot be written: No such file" in nowhere.stderr) == (1, True)


def test_push__an_empty_registry_needs_its_first_administrator(desk: Desk) -> None:
    """The error names the command; where there are administrators it says that the token is nobody's."""
    stranger = generate_api_key("sca").api_key
    empty = desk.run("registry", "push", desk.file(), "--yes", "--token", stranger)
    assert (empty.exit_code, "sidecar admin bootstrap" in empty.stderr) == (1, True)
    desk.bootstrap()
    unknown = desk.run("registry", "push", desk.file(), "--yes", "--token", stranger)
    assert (unknown.exit_code, "ask an administrator for a new token" in unknown.stderr) == (1, True)
    none = desk.run("registry", "push", desk.file(), SIDECAR_ADMIN_TOKEN="")
    assert (none.exit_code, "no administrator's token" in none.stderr) == (2, True)
    assert desk.run("registry", "pull").stdout == "integrations: []\n"


def test_push__ends_with_1_when_something_cannot_be(desk: Desk) -> None:
    """Known beforehand or found by the registry alone: the rest is done, and the exit code says so."""
    desk.bootstrap()
    file = desk.file(FILE + "  - {id: gone, name: Gone, status: suspended}\n", "suspended.yaml")
    assert desk.run("registry", "push", file, "--yes").exit_code == 0
    active = desk.file(FILE.replace("600", "700") + "  - {id: gone, name: Gone, status: active}\n")
    refused = desk.run("registry", "push", active, "--yes")
    assert (refused.exit_code, "Made 1 change in" in refused.stdout) == (1, True)
    assert "! integration.reactivate: no live credential of 'gone'" in refused.stdout
    assert desk.run("registry", "push", desk.file(), "--prune", "--yes").exit_code == 0
    retired = desk.run("registry", "push", file, "--yes")
    assert retired.exit_code == 1
    assert "refused: gone: integration.create: 'gone' belonged to a deleted integration" in retired.stderr


def test_push__removes_only_with_prune(desk: Desk) -> None:
    """Without it what the file does not name is counted; with it the deletion is first in the diff."""
    desk.bootstrap()
    desk.run("registry", "push", desk.file(), "--yes")
    file = desk.file("integrations: [{id: depot, name: Depot Ltd}]", "less.yaml")
    kept = desk.run("registry", "push", file, "--dry-run").stdout
    assert "not in the file, and kept: 1 integration, 0 live credentials; --prune would remove" in kept
    pruned = desk.run("registry", "push", file, "--prune", "--yes").stdout.splitlines()
    assert pruned[0] == "- acme-erp   Acme ERP   permanently: its id cannot be reused"
    assert pruned[1:3] == ["~ depot   Depot Ltd", "    ~ name                 Depot → Depot Ltd"]


def test_push__a_mistake_in_the_file_changes_nothing(desk: Desk) -> None:
    """All mistakes are reported with their lines."""
    desk.bootstrap()
    wrong = desk.run("registry", "push", desk.file("integrations: [{id: A, nam: x}]"), "--yes")
    assert (wrong.exit_code, "nothing was started or changed" in wrong.stderr) == (1, True)
    assert desk.run("registry", "pull").stdout == "integrations: []\n"


def test_registry__store_goes_before_the_configuration(tmp_path: Path) -> None:
    """`--store` names a shared store, whatever registry the configuration has; a wrong one is reported."""
    url = fresh_store_url()
    fleet = Desk(tmp_path, f"store: {url}\n")
    fleet.bootstrap()
    fleet.run("registry", "push", fleet.file(), "--yes")
    fleet.config.write_text("registry: registry.yaml\n")
    assert fleet.run("registry", "pull", "--store", url).stdout.count("- id: ") == 3
    mine = fleet.run("registry", "pull")
    assert (mine.exit_code, "which is changed by editing it" in mine.stderr) == (1, True)
    wrong = fleet.run("registry", "pull", "--store", "http://host")
    assert (wrong.exit_code, "--store: store URL: scheme is 'http'" in wrong.stderr) == (2, True)


def test_apply__through_the_admin_api(api: ServedApi, tmp_path: Path) -> None:
    """The same difference, question, changes and second run; the API's audit log has the reason."""
    file = tmp_path / "integrations.yaml"
    file.write_text(FILE)
    unasked = api.run("apply", "-f", str(file))
    assert (unasked.exit_code, "Make 2 changes?" in unasked.stderr) == (2, True)
    assert "Made 2 changes in" in api.output("apply", "-f", str(file), "--yes")
    assert api.output("apply", "-f", str(file)).splitlines()[-1] == "Nothing to do."
    log = json.loads(api.output("audit", "list", "--integration", "depot", "--json"))
    assert [item["reason"] for item in log["items"]] == ["declared in integrations.yaml"]
    auditor = api.run("apply", "-f", str(file), "--prune", "--dry-run", who="audrey")
    assert auditor.exit_code == 0
    file.write_text("integrations: []")
    refused = api.run("apply", "-f", str(file), "--prune", "--yes", who="audrey")
    assert (refused.exit_code, refused.stdout.count("does not permit delete")) == (1, 2)
    stranger = generate_api_key("sca").api_key
    unknown = api.run("apply", "-f", str(file), SIDECAR_ADMIN_TOKEN=stranger)
    assert (unknown.exit_code, "token" in unknown.stderr) == (1, True), unknown.stderr


def test_apply__sends_a_file_of_many_integrations(api: ServedApi, tmp_path: Path) -> None:
    """A file of several MiB passes every bound between the command and the registry."""
    file = tmp_path / "integrations.yaml"
    file.write_text("# " + "x" * 5_000_000 + FILE)
    assert "Made 2 changes in" in api.output("apply", "-f", str(file), "--yes")


def test_apply__json_needs_its_yes_beforehand(api: ServedApi, tmp_path: Path) -> None:
    """A program gets the plan and what came of it as one document; it is never asked."""
    file = tmp_path / "integrations.yaml"
    file.write_text(FILE)
    unasked = api.run("apply", "-f", str(file), "--json")
    assert (unasked.exit_code, unasked.stdout) == (2, "")
    dry = json.loads(api.output("apply", "-f", str(file), "--json", "--dry-run"))
    assert (dry["difference"]["counts"]["add"], dry["report"], dry["is_dry_run"]) == (2, None, True)
    done = json.loads(api.output("apply", "-f", str(file), "--json", "--yes"))
    assert done["report"]["steps_made"] == 2
    assert done["difference"]["integrations"][0]["actions"] == ["integration.create"]


def test_plan_lines__are_bounded() -> None:
    """After `SHOWN_MAX` integrations the rest is counted; markup in a name is text."""
    declarations = [
        Declaration(Integration(f"i{n}", "N"), frozenset({"id", "name"})) for n in range(SHOWN_MAX + 7)
    ]
    plan = compare(declarations, [], ComparisonContext(LIFECYCLE, ANN, NOW_US, "x"))
    lines = [line.text for line in plan_lines(plan_view(plan))]
    assert len(lines) == SHOWN_MAX + 3
    assert lines[SHOWN_MAX] == "… and 7 more; --json prints all of them"
    terms = ComparisonContext(LIFECYCLE, ANN, NOW_US, "x", has_prune=True)
    removed = compare([], [Integration("evil", "[red]b")], terms)
    assert next(plan_lines(plan_view(removed))).text.startswith("- evil   [red]b")


def test_ask_first__goes_by_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal the answer decides; everything but yes is no."""
    monkeypatch.setattr(sys, "stdin", TerminalStream("y\nn\n"))
    monkeypatch.setattr(sys, "stderr", TerminalStream())
    ask_first("Make 1 change?")
    with pytest.raises(CommandError, match="nothing was changed"):
        ask_first("Make 1 change?")

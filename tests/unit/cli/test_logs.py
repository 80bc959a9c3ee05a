"""`sidecar logs` and `sidecar decisions`: find, follow, export and erase decisions."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sidecar.admin_client.client import Listing
from sidecar.admin_client.failures import AdminCallError, Failure
from sidecar.cli import following
from sidecar.cli.following import Follower
from sidecar.cli.logs import PIPED, print_new
from sidecar.stores.decisions.missing import MissingSpan, add_missing
from sidecar.stores.decisions.pages import NewestRows
from tests.decision_log import START_US, decision_row, write_segment
from tests.waiting import PATIENCE_S

from .served import ServedApi
from .test_cli import run

FIRST, SECOND, THIRD = (f"{n:022}" for n in (1, 2, 3))


@pytest.fixture
def logged(api: ServedApi) -> ServedApi:
    """An API with three decisions of two integrations."""
    rows = [
        decision_row(1, FIRST, request_id="request-1"),
        decision_row(2, SECOND, verdict="DENY_403", reason="ip_not_allowed", client_address="198.51.100.7"),
        decision_row(3, THIRD, integration="bolt", would_deny="scope_missing"),
    ]
    write_segment(api.decisions / "host-a", 1, rows)
    return api


def ids(api: ServedApi, *arguments: str) -> list[str]:
    """The ids that `sidecar logs` lists."""
    column = PIPED.index("decision_id")
    return [line.split("\t")[column] for line in api.output("logs", *arguments, who="olli").splitlines()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [THIRD, SECOND, FIRST]),
        (("--limit", "1"), [THIRD]),
        (("--integration", "acme", "--verdict", "deny_403"), [SECOND]),
        (("--address", "198.51.100.0/24", "--reason", "ip_not_allowed"), [SECOND]),
        (("--request-id", "request-1"), [FIRST]),
        (("--credential", "key1", "--scope", "orders:read", "--method", "GET", "--path", "/orders"), None),
        (("--since", "2025-11-24T16:00:02Z", "--until", "2025-11-24T16:00:03Z"), [SECOND]),
    ],
)
def test_logs__filters(logged: ServedApi, arguments: tuple[str, ...], expected: list[str] | None) -> None:
    """Each option narrows the list, newest first."""
    assert ids(logged, *arguments) == (expected or [THIRD, SECOND, FIRST])


def test_logs__say_what_is_not_there(logged: ServedApi) -> None:
    """Spans with missing rows are named, also when nothing matches; a mistake has its remedy."""
    for n in range(7):
        span = MissingSpan(START_US + n, START_US + n, -1, 4, -1, "disk")
        add_missing(logged.decisions / "host-a", [span])
    result = logged.run("logs", "--integration", "nobody")
    assert result.stdout == ""
    assert result.stderr.count("note: host-a lost decisions from 2025-11-24 16:00:00Z to") == 5
    assert "4 allowed (disk)" in result.stderr
    assert "missing in 2 other spans" in result.stderr
    wrong = logged.run("logs", "--reason", "rate_limitd")
    assert (wrong.exit_code, "did you mean 'rate_limited'?" in wrong.stderr) == (1, True)
    assert logged.run("logs", "--follow", "--until", "1h").exit_code == 2
    assert logged.run("logs", "--follow", "--export", "new.csv").exit_code == 2


def test_logs__json_is_the_answer(logged: ServedApi) -> None:
    """With --json the whole answer of the API is there."""
    answer = json.loads(logged.output("logs", "--json", "--limit", "2"))
    assert [item["decision_id"] for item in answer["items"]] == [THIRD, SECOND]
    assert answer["sidecars"] == ["host-a"]


@pytest.mark.parametrize(
    ("name", "arguments"), [("a.csv", ()), ("a.ndjson", ()), ("a", ("--format", "csv")), ("a.parquet", ())]
)
def test_logs__export_a_file(
    logged: ServedApi, tmp_path: Path, name: str, arguments: tuple[str, ...]
) -> None:
    """The suffix chooses the format; the file is new, and has every matching decision."""
    file = tmp_path / name
    result = logged.run("logs", "--integration", "acme", "--export", str(file), *arguments)
    assert result.exit_code == 0, result.output
    content = file.read_bytes()
    if "csv" in (*arguments, file.suffix[1:]):
        found = [row["decision_id"] for row in csv.DictReader(content.decode().splitlines())]
        assert found == [FIRST, SECOND]
    elif file.suffix == ".ndjson":
        assert [json.loads(line)["decision_id"] for line in content.splitlines()] == [FIRST, SECOND]
    else:
        assert content[:4] == content[-4:] == b"PAR1"
    again = logged.run("logs", "--export", str(file))
    assert (again.exit_code, file.read_bytes()) == (1, content)
    assert "decisions.export" in logged.output("audit", "list", "--limit", "1")


def test_decisions_show__one(logged: ServedApi) -> None:
    """Everything that is known; another id is not found."""
    fields = dict(line.split("\t") for line in logged.output("decisions", "show", FIRST).splitlines())
    assert (fields["request_id"], fields["sidecar"]) == ("request-1", "host-a")
    assert json.loads(logged.output("decisions", "show", FIRST, "--json"))["reset_at"] is None
    assert logged.run("decisions", "show", "0" * 22).exit_code == 1


def test_decisions_explain__then_and_now(logged: ServedApi) -> None:
    """The steps by the version that decided and by the record now; a note when there is none."""
    assert "was deleted" in logged.run("decisions", "explain", FIRST).stderr
    key = json.loads(logged.output("integrations", "create", "seen", "--issue-credential", "--json"))
    row = decision_row(9, "9" * 22, integration="seen", credential=key["credential_id"], generation=1)
    write_segment(logged.decisions / "host-c", 1, [row])
    logged.output("integrations", "edit", "seen", "--contact", "ops")
    text = logged.output("decisions", "explain", "9" * 22)
    assert "then, by version 1 of the record" in text
    assert "now, by version 2 of the record" in text
    assert "not reached" not in text
    assert text.count("suspension  passed  active") == 2
    shown = json.loads(logged.output("decisions", "explain", "9" * 22, "--json"))
    assert shown["now"]["generation"] == 2


def test_log_folder__is_read_without_a_server(tmp_path: Path) -> None:
    """With --log the files answer: list, filter, export and show, and the log's gaps are reported."""
    rows = [decision_row(1, FIRST), decision_row(2, SECOND, integration="bolt")]
    write_segment(tmp_path / "host-a", 1, rows)
    add_missing(tmp_path / "host-a", [MissingSpan(START_US, START_US, 0, 4, 0, "disk")])
    log = ("--log", str(tmp_path))
    column = PIPED.index("decision_id")

    def listed(*arguments: str) -> list[str]:
        result = run("logs", *log, *arguments)
        assert result.exit_code == 0, result.output
        return [line.split("\t")[column] for line in result.stdout.splitlines()]

    assert listed() == [SECOND, FIRST]
    assert listed("--limit", "1") == [SECOND]
    assert listed("--integration", "acme", "--until", "1h") == [FIRST]
    assert "4 allowed and 0 refused (disk)" in run("logs", *log).stderr
    assert json.loads(run("decisions", "show", *log, FIRST, "--json").stdout)["integration"] == "acme"
    export = tmp_path / "export.csv"
    assert run("logs", *log, "--export", str(export)).exit_code == 0
    found = [row["decision_id"] for row in csv.DictReader(export.read_text().splitlines())]
    assert found == [FIRST, SECOND]


@pytest.mark.parametrize(
    "command", [("logs",), ("logs", "--export", "new.csv"), ("decisions", "show", FIRST)]
)
def test_logs__without_a_token_name_the_files(command: tuple[str, ...]) -> None:
    """Beside a registry in YAML there is no token to get."""
    result = run(*command)
    assert (result.exit_code, "--log DIR" in result.stderr) == (2, True)


def test_logs__searched_partly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search could not read before its deadline is said, with the option that goes on."""
    write_segment(tmp_path / "host-a", 1, [decision_row(1, FIRST)])

    def ended(rows: NewestRows, ends_at: float) -> bool:
        return False

    monkeypatch.setattr(NewestRows, "search", ended)
    for command in (("logs",), ("decisions", "show", FIRST)):
        result = run(*command, "--log", str(tmp_path))
        assert "--until 2025-11-24T16:00:01.000001Z" in result.stderr
        assert "more than 0" not in result.stderr


def test_log_folder__of_one_sidecar_is_an_error(tmp_path: Path) -> None:
    """A sub-folder is no log: the error names the folder to pass."""
    write_segment(tmp_path / "host-a", 1, [decision_row(1, FIRST)])
    for command in (("logs",), ("decisions", "show", FIRST)):
        result = run(*command, "--log", str(tmp_path / "host-a"))
        assert (result.exit_code, f"above it, {tmp_path}\n" in result.stderr) == (1, True)


def test_logs__follow_ends_with_its_reader(tmp_path: Path) -> None:
    """As in `sidecar logs --follow | head -1`: no further row is needed to notice that nobody reads."""
    write_segment(tmp_path / "host-a", 1, [decision_row(1, FIRST)])
    command = [sys.executable, "-m", "sidecar.cli", "logs", "--follow", "--log", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        assert FIRST in follower.stdout.readline().decode()
        follower.stdout.close()
        follower.wait(PATIENCE_S)
        assert follower.stderr.read() == b""


def test_logs__follow_after_a_clock_was_set_back(logged: ServedApi) -> None:
    """New decisions are shown although their times are older than those of others."""
    follower = Follower(lambda asked: logged_listing(logged, asked))
    assert len(follower.poll().decisions) == 3
    write_segment(logged.decisions / "host-a", 2, [decision_row(-3600, "4" * 22)])
    assert [decision["decision_id"] for decision in follower.poll().decisions] == ["4" * 22]
    assert follower.poll().decisions == []


def logged_listing(api: ServedApi, asked: Mapping[str, str]) -> Listing:
    """What the API answers to one poll."""
    with api.client() as client:
        return client.listed("/v1/decisions", asked, 10)


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (("logs", "--log", "/nowhere"), "/nowhere"),
        (("logs", "--log", ".", "--reason", "rate_limitd"), "did you mean 'rate_limited'?"),
        (("logs", "--log", ".", "--since", "9999-01-01T00:00Z"), "since: must be a time from 1970"),
        (("logs", "--log", ".", "--address", "300.1.1.1"), "192.0.2.0/24"),
        (("decisions", "show", "--log", ".", "0" * 22), "0" * 22),
    ],
)
def test_log_folder__mistakes_have_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reported: str
) -> None:
    """One line on standard error and exit code 1."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert reported in result.stderr


@pytest.mark.parametrize(
    ("since", "until"),
    [("1h", "2h"), ("2026-12-01T00:00Z", "2026-12-01T01:00+01:00"), ("0s", "2020-01-01T00:00Z")],
)
@pytest.mark.parametrize("command", [("logs", "--log", "."), ("audit", "list"), ("decisions", "show", "x")])
def test_span__must_not_be_empty(command: tuple[str, ...], since: str, until: str) -> None:
    """Nothing can match, so an answer without matches would mislead."""
    result = run(*command, "--since", since, "--until", until)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--since {since} is not before --until {until}" in result.stderr


def test_decisions_erase__on_request(logged: ServedApi) -> None:
    """A dry run counts, a script must confirm, and then the decisions are erased."""
    erase = ("decisions", "erase", "--address", "192.0.2.1", "--reason", "asked by its owner")
    assert logged.output(*erase, "--dry-run") == "2 decisions would be erased\n"
    unconfirmed = logged.run(*erase)
    assert (unconfirmed.exit_code, "Erase 2 decisions" in unconfirmed.stderr) == (2, True)
    assert logged.output(*erase, "--yes") == "2 decisions erased\n"
    assert ids(logged) == [SECOND]
    assert json.loads(logged.output(*erase, "--yes", "--json"))["rows"] == 0
    assert logged.run("decisions", "erase", "--reason", "x").exit_code == 2
    forbidden = logged.run(*erase, "--yes", who="audrey")
    assert (forbidden.exit_code, "does not permit erase_decisions" in forbidden.stderr) == (1, True)


class ScriptedDecisions:
    """ScriptedDecisions of the API, one for each poll; ends the test when there is none."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        """Answer with decisions of these ids, or fail."""
        self._answers: Iterator[list[str] | Exception] = iter(answers)
        self.queries: list[Mapping[str, str]] = []

    def __call__(self, query: Mapping[str, str]) -> Listing:
        """The next answer; the time of a decision is its id in seconds."""
        self.queries.append(query)
        answer = next(self._answers, KeyboardInterrupt())
        if isinstance(answer, BaseException):
            raise answer
        items = [{"decision_id": id, "time": f"2026-12-01T00:0{id}:00Z"} for id in answer]
        rest = {"recorded": str(len(self.queries))}
        return Listing(items, "more" if len(items) == 2 else None, rest)


def test_follower__tells_each_decision_once() -> None:
    """Oldest first, also a decision that is written late; a call without news says so."""
    answers = ScriptedDecisions(["2", "1"], ["4", "2"], ["4", "3", "2"], [])
    follower = Follower(answers)
    reported = [[decision["decision_id"] for decision in follower.poll().decisions] for _ in range(4)]
    assert reported == [["1", "2"], ["4"], ["3"], []]
    assert answers.queries[0] == {}
    assert answers.queries[2] == {"recorded_after": "2"}


def test_follower__says_when_it_cannot_keep_up() -> None:
    """If a whole page is new, there may be more; the first page is the latest decisions, however many."""
    follower = Follower(ScriptedDecisions(["2", "1"], ["4", "3"]))
    assert [follower.poll().is_cut for _ in range(2)] == [False, True]


def test_follower__forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is bounded."""
    monkeypatch.setattr(following, "SEEN_MAX", 2)
    follower = Follower(ScriptedDecisions(["1"], ["2"], ["3"], ["1"]))
    assert [len(follower.poll().decisions) for _ in range(4)] == [1, 1, 1, 1]


def test_follow__reports_a_fault_while_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that restarts does not end the command, and one line says so; a refusal ends it."""
    down = AdminCallError(Failure.UNAVAILABLE, ["cannot reach 127.0.0.1"])
    answers = ScriptedDecisions(["1"], down, down, ["2"], AdminCallError(Failure.REFUSED, ["no"]))
    pauses: list[float] = []
    with pytest.raises(AdminCallError, match="no"):
        print_new(Follower(answers, pauses.append), lambda decision: str(decision["decision_id"]))
    printed = capsys.readouterr()
    assert printed.out.split() == ["1", "2"]
    assert printed.err == "note: cannot reach 127.0.0.1; trying again\n"
    assert pauses == [following.POLL_INTERVAL_S] * 4

"""Values in tables and CSV: shown, never obeyed."""

from __future__ import annotations

import csv
import io
import json

import pytest

from sidecar.cli.review import CSV_HEADS
from sidecar.cli.tables import plain, print_csv

from .served import ServedApi


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x1b[31mb", "a�[31mb"),
        ("a\tb\nc\r\x00\x9b\u202e", "a�b�c����"),
        (["a", "b c"], "a b c"),
        (None, ""),
        (True, "yes"),
        (7, "7"),
        ("Café 100 %", "Café 100 %"),
    ],
)
def test_plain__nothing_that_a_terminal_would_obey(value: object, shown: str) -> None:
    """Escapes, line ends, and characters that turn text round are made visible."""
    assert plain(value) == shown


def test_print_csv__no_value_is_a_formula() -> None:
    """A spreadsheet runs what begins with one of four signs; commas and quotes stay inside their value."""
    out = io.StringIO()
    print_csv(["a"], [["=1+1"], ["+x"], ["-x"], ["@x"], ['say "a, b"'], [-5], [["=a", "b"]]], out)
    rows = [row[0] for row in csv.reader(io.StringIO(out.getvalue()))]
    assert rows == ["a", "'=1+1", "'+x", "'-x", "'@x", 'say "a, b"', "'-5", "'=a b"]


def test_review__csv_has_a_line_for_each_credential(api: ServedApi) -> None:
    """Everything that a reviewer needs, with empty columns for who decided what; none left out."""
    api.output(
        "integrations", "create", "one", "--owner", "=cmd", "--scope", "crm:read", "--scope", "orders:read"
    )
    for _ in range(2):
        api.output("credentials", "issue", "one")
    api.output("integrations", "create", "two", "--allow", "192.0.2.0/24")
    api.output("suspend", "two", "--reason", "leak")
    rows = list(csv.DictReader(io.StringIO(api.output("review", "--csv", who="audrey"))))
    assert [row["integration"] for row in rows] == ["one", "one", "two"]
    first, second, third = rows
    assert list(first) == list(CSV_HEADS)
    assert (first["owner"], first["scopes"], first["sensitive_scopes"]) == (
        "'=cmd", "crm:read orders:read", "crm:read"
    )  # fmt: skip
    assert first["credential"] != second["credential"]
    assert (first["state"], first["age_days"], first["last_used_at"]) == ("active", "0", "")
    assert {"allowlist_off", "sensitive_scope", "credential_never_used"} <= set(first["flags"].split())
    assert (third["status"], third["credential"], third["allowlist"]) == ("suspended", "", "on")
    assert third["suspended_since"]
    assert {row[name] for row in rows for name in ("reviewer", "decision", "decided_on")} == {""}
    assert len({row["as_of"] for row in rows}) == 1


def test_review__for_programs_and_people(api: ServedApi) -> None:
    """Piped it prints the codes of what to decide; `--json` is the API's answer with its time."""
    api.output(
        "integrations", "create", "plain", "--allow", "192.0.2.0/24", "--issue-credential", "--expires", "1d"
    )
    api.output("integrations", "create", "wide", "--owner", "Ops")
    assert api.output("review").splitlines() == [
        "plain\t-\tnever\tcredential_never_used",
        "wide\tOps\tnever\tallowlist_off no_live_credential",
    ]
    assert api.output("review", "--search", "ops", "--flagged").startswith("wide\t")
    answer = json.loads(api.output("review", "--json"))
    assert (len(answer["items"]), answer["next_after"]) == (2, None)
    assert answer["as_of"].endswith("Z")


def test_review__half_a_population_is_no_review(api: ServedApi) -> None:
    """A CSV that --limit cut off says so and exits with 1; and it is CSV or JSON, not both."""
    for id in ("a", "b"):
        api.output("integrations", "create", id)
    result = api.run("review", "--csv", "--limit", "1")
    assert (result.exit_code, "raise --limit" in result.stderr) == (1, True)
    assert api.run("review", "--csv", "--json").exit_code == 2


def test_review__reads_page_by_page(api: ServedApi) -> None:
    """Also more integrations than a page of the review has."""
    names = [f"i{number:03}" for number in range(60)]
    changes = [{"action": "integration.create", "integration_id": name, "name": name} for name in names]
    with api.client() as client:
        client.change("POST", "/v1/changes", {"changes": changes}, idempotency_key="sixty")
    assert [line.split("\t")[0] for line in api.output("review").splitlines()] == names


def test_plain__an_id_of_a_foreign_registry_cannot_paint_the_screen(api: ServedApi) -> None:
    """Also errors that quote a server are shown without what a terminal obeys."""
    result = api.run("integrations", "show", "a\x1b[31m")
    assert result.exit_code == 1
    assert "\x1b" not in result.output

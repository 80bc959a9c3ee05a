"""Administrators' commands against the real admin API: what they do, print, refuse and exit with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain.changes import Revision
from sidecar.domain.cidr import parse_address
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.protocol import RefusedCaller
from tests.decision_log import START_US, decision_row, write_segment

from .scripted import SILENCE, Scripted
from .served import ServedApi

KEY = re.compile(r"sck_[0-9A-Za-z-]+_[0-9A-Za-z]{36}\n")


def record_of(api: ServedApi, id: str) -> dict[str, Any]:
    """An integration, as the API has it."""
    record: dict[str, Any] = json.loads(api.output("integrations", "show", id, "--json"))
    return record


def test_integrations__from_create_to_delete(shared_api: ServedApi) -> None:
    """Every detail that is named arrives; what is not named is the least."""
    shared_api.output(
        "integrations", "create", "whole", "--name", "Whole Ltd", "--contact", "ops@whole.example",
        "--owner", "Ops", "--third-party-manager", "Agency", "--scope", "orders:read", "--scope", "crm:read",
        "--rate-limit-rpm", "120", "--burst", "10", "--allow", "192.0.2.0/24", "--reason", "contract 7",
    )  # fmt: skip
    record = record_of(shared_api, "whole")
    assert (record["name"], record["owner"], record["third_party_manager"]) == ("Whole Ltd", "Ops", "Agency")
    assert (record["scopes"], record["rate_limit_rpm"], record["burst"]) == (
        ["crm:read", "orders:read"],
        120,
        10,
    )
    assert (record["ip_allowlist"], record["is_allowlist_enabled"]) == (["192.0.2.0/24"], True)
    assert shared_api.output("integrations", "edit", "whole", "--contact", "", "--name", "Whole") == (
        "whole: changed name, contact\n"
    )
    assert record_of(shared_api, "whole")["contact"] == ""
    assert shared_api.output("integrations", "delete", "whole", "--yes", "--reason", "contract ended") == (
        "whole: deleted 'Whole'\n"
    )
    gone = shared_api.run("integrations", "show", "whole")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "sidecar: integration_id: no integration 'whole'\n  list the integrations" in gone.stderr
    again = shared_api.run("integrations", "create", "whole")
    assert again.exit_code == 4
    assert "ids are never reused" in again.stderr


def test_integrations__a_new_one_may_do_nothing(shared_api: ServedApi) -> None:
    """Only an id: no scope, no key, the default limit, and the id for a name."""
    shared_api.output("integrations", "create", "least")
    record = record_of(shared_api, "least")
    assert (record["name"], record["scopes"], record["credentials"]) == ("least", [], [])
    assert (record["rate_limit_rpm"], record["is_allowlist_enabled"], record["ip_allowlist"]) == (
        60,
        False,
        [],
    )


def test_integrations__lists_for_programs(api: ServedApi) -> None:
    """Piped: a line each, tabs between, no heads; `--json`: what the API said; more than --limit: a note."""
    for id in ("alpha", "beta", "gamma"):
        api.output("integrations", "create", id, "--owner", "Ops")
    api.output("suspend", "beta", "--reason", "leak")
    lines = api.output("integrations", "list").splitlines()
    assert lines == [
        "alpha\talpha\tactive\t60\t0\t0\toff",
        "beta\tbeta\tsuspended\t60\t0\t0\toff",
        "gamma\tgamma\tactive\t60\t0\t0\toff",
    ]
    assert api.output("integrations", "list", "--search", "AMM", "--status", "active") == lines[2] + "\n"
    assert api.output("integrations", "list", "--status", "suspended") == lines[1] + "\n"
    some = api.run("integrations", "list", "--limit", "2", "--json")
    assert [item["id"] for item in json.loads(some.stdout)["items"]] == ["alpha", "beta"]
    assert "more than 2 match" in some.stderr and "--limit" in some.stderr
    nothing = api.run("integrations", "list", "--search", "nobody")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "no matching integrations\n")


def test_integrations__an_edit_of_nothing_is_wrong_usage(shared_api: ServedApi) -> None:
    """It names what could be changed."""
    result = shared_api.run("integrations", "edit", "any")
    assert (result.exit_code, "such as --contact" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (
            ("integrations", "create", "keyed", "--issue-credential", "--expires", "90d"),
            "keyed: created 'keyed'\n",
        ),
        (
            ("credentials", "issue", "prepared", "--expires", "2200-01-01T00:00Z"),
            "prepared: issued credential ",
        ),
    ],
)
def test_secrets__stand_alone_on_standard_output(
    shared_api: ServedApi, arguments: tuple[str, ...], reported: str
) -> None:
    """`KEY=$(sidecar credentials issue acme)` holds the key and nothing else; people read the rest."""
    shared_api.run("integrations", "create", "prepared")
    result = shared_api.run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert KEY.fullmatch(result.stdout)
    assert result.stderr.startswith(reported)
    assert "only once" in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_secrets__a_repeat_does_not_show_one_again(shared_api: ServedApi) -> None:
    """A repeat of a change is that change: its secret was shown then, and 1 says that there is none."""
    shared_api.output("integrations", "create", "twice")
    arguments = ("credentials", "issue", "twice", "--idempotency-key", "twice-1")
    assert KEY.fullmatch(shared_api.output(*arguments))
    again = shared_api.run(*arguments)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "by an earlier call" in again.stderr
    assert "was shown by an earlier call" in again.stderr
    assert len(record_of(shared_api, "twice")["credentials"]) == 1


def test_credentials__rotate_with_an_overlap_revoke_and_expire(shared_api: ServedApi) -> None:
    """The old key works on for the overlap, is shown, and ends on request."""
    shared_api.output("integrations", "create", "turning", "--issue-credential")
    old = record_of(shared_api, "turning")["credentials"][0]["id"]
    assert KEY.fullmatch(shared_api.output("credentials", "rotate", "turning", old, "--overlap", "1d"))
    rows = [line.split("\t") for line in shared_api.output("credentials", "list", "turning").splitlines()]
    new = rows[1][0]
    assert [row[:2] for row in rows] == [[old, "overlapping"], [new, "active"]]
    assert rows[0][3].endswith(f", then {new}")
    assert [row[4:] for row in rows] == [["never", "-"]] * 2
    reported = shared_api.output("credentials", "expire", "turning", new, "--at", "2200-01-01T00:00+01:00")
    assert reported == f"turning: changed when credential {new} expires\n"
    listed = json.loads(shared_api.output("credentials", "list", "turning", "--json"))["items"]
    assert listed[1]["expires_at"] == "2199-12-31T23:00:00.000000Z"
    shared_api.output("credentials", "expire", "turning", new, "--at", "never")
    revoked = shared_api.run("credentials", "revoke", "turning", old, "--yes")
    assert revoked.stdout == f"turning: revoked credential {old}\n"
    last = shared_api.run("credentials", "revoke", "turning", new, "--yes")
    assert "note: 'turning' has no live credential left" in last.stderr


def test_suspend__somebody_else_reactivates_with_new_keys(shared_api: ServedApi) -> None:
    """A step that comes too early, or from the wrong person, says what to do instead."""
    shared_api.output("integrations", "create", "leaky", "--issue-credential")
    assert shared_api.output("suspend", "leaky", "--reason", "key in a public repository", who="olli") == (
        "leaky: suspended; 1 live credential was invalidated\n"
    )
    early = shared_api.run("reactivate", "leaky", "--reason", "done", who="bob")
    assert early.exit_code == 4
    assert early.stderr == (
        "sidecar: no live credential of 'leaky' was issued since its latest suspension\n"
        "  issue a new credential first, then reactivate\n"
    )
    shared_api.output("suspend", "leaky", "--reason", "again, to be sure")
    shared_api.output("credentials", "issue", "leaky")
    same = shared_api.run("reactivate", "leaky", "--reason", "done")
    assert same.exit_code == 1
    assert "sidecar: 'ann' suspended 'leaky' and cannot reactivate it" in same.stderr
    assert shared_api.run("reactivate", "leaky", "--reason", "done", who="olli").exit_code == 1
    assert shared_api.output("reactivate", "leaky", "--reason", "keys replaced", who="bob").startswith(
        "leaky: reactivated; credentials: "
    )
    assert [credential["state"] for credential in record_of(shared_api, "leaky")["credentials"]] == ["active"]


def test_suspend__needs_a_reason(shared_api: ServedApi) -> None:
    """The option is required, and an empty one is refused by the API: the record must say why."""
    assert shared_api.run("suspend", "any").exit_code == 2
    shared_api.output("integrations", "create", "reasoned")
    empty = shared_api.run("suspend", "reasoned", "--reason", " ")
    assert (empty.exit_code, "reason is empty" in empty.stderr) == (1, True)


def test_wait__says_who_has_confirmed(api: ServedApi) -> None:
    """0 once every live sidecar decides by the change; 5 when one does not in time, though it is made."""
    api.output("integrations", "create", "waited")
    quick = api.run("suspend", "waited", "--reason", "leak", "--wait")
    assert quick.exit_code == 0
    assert re.search(r"^in force on 0 sidecars after \d+ ms$", quick.stdout, re.MULTILINE)
    api.announce("sidecar-1", Revision((1,)))
    slow = api.run("scopes", "add", "waited", "orders:read", "--wait-for", "1s")
    assert slow.exit_code == 5
    assert "by 1 of 1 sidecar: sidecar-1; 'sidecar sidecars'" in slow.stdout
    assert record_of(api, "waited")["scopes"] == ["orders:read"]
    assert api.output("sidecars").split("\t")[:3] == ["sidecar-1", "behind", "1"]
    api.announce("sidecar-1", Revision((99,)))
    assert api.output("sidecars").split("\t")[1] == "up to date"
    assert "in force on 1 sidecar after" in api.output("scopes", "remove", "waited", "orders:read", "--wait")


def test_scopes__add_remove_and_what_there_is(shared_api: ServedApi) -> None:
    """Scopes as words; what is unknown is named with its place."""
    shared_api.output("integrations", "create", "scoped")
    assert shared_api.output("scopes", "add", "scoped", "orders:read", "orders:write") == (
        "scoped: added orders:read, orders:write\n"
    )
    assert shared_api.output("scopes", "add", "scoped", "orders:read") == "scoped: no change needed\n"
    shared_api.output("scopes", "remove", "scoped", "orders:write")
    assert shared_api.output("scopes", "list", "scoped") == "orders:read\n"
    assert json.loads(shared_api.output("scopes", "list", "scoped", "--json")) == ["orders:read"]
    wrong = shared_api.run("scopes", "add", "scoped", "orders:read", "quality:write", "nothing")
    assert wrong.exit_code == 1
    assert "2 problems; nothing was changed" in wrong.stderr
    assert "  scopes[1]: scope 'quality:write' is not allowed: category Quality is read-only" in wrong.stderr
    catalogue = shared_api.output("scopes", "catalogue").splitlines()
    assert len(catalogue) == 15
    assert catalogue[9] == "quality\tQuality\toperational\tquality:read"
    assert len(json.loads(shared_api.output("scopes", "catalogue", "--json"))["items"]) == 15


def test_integrations__rules_in_shadow(shared_api: ServedApi) -> None:
    """A rule is put in shadow together with itself, or the whole set at once."""
    shared_api.output("integrations", "create", "shadowed", "--allow", "192.0.2.0/24")
    assert "in shadow" in shared_api.output("allowlist", "enable", "shadowed", "--shadow")
    assert "in shadow" in shared_api.run("allowlist", "show", "shadowed").stderr
    shared_api.output("limit", "set", "shadowed", "5", "--shadow")
    assert record_of(shared_api, "shadowed")["shadow"] == ["allowlist", "limit"]
    assert "\nin shadow\tyes" in shared_api.output("limit", "show", "shadowed")
    assert "limit" in json.loads(shared_api.output("limit", "show", "shadowed", "--json"))["shadow"]
    shared_api.output("allowlist", "enable", "shadowed", "--enforce")
    assert record_of(shared_api, "shadowed")["shadow"] == ["limit"]
    shared_api.output("integrations", "shadow", "shadowed", "scopes", "allowlist")
    assert record_of(shared_api, "shadowed")["shadow"] == ["allowlist", "scopes"]
    assert "in shadow" not in shared_api.output("limit", "show", "shadowed")
    shared_api.output("integrations", "shadow", "shadowed", "--enforce")
    assert record_of(shared_api, "shadowed")["shadow"] == []
    for wrong in ((), ("limit", "--enforce"), ("suspension",)):
        assert shared_api.run("integrations", "shadow", "shadowed", *wrong).exit_code == 2


def test_integrations__say_what_is_answered_while_the_store_is_away(shared_api: ServedApi) -> None:
    """One of the policies, or the configured one again."""
    shared_api.output("integrations", "create", "fallen", "--on-store-error", "allow")
    assert record_of(shared_api, "fallen")["on_store_error"] == "allow"
    shared_api.output("integrations", "on-store-error", "fallen", "local")
    assert record_of(shared_api, "fallen")["on_store_error"] == "local"
    shared_api.output("integrations", "on-store-error", "fallen", "default")
    assert record_of(shared_api, "fallen")["on_store_error"] is None
    assert shared_api.run("integrations", "on-store-error", "fallen", "open").exit_code == 2


def test_limit__set_raise_and_end(shared_api: ServedApi) -> None:
    """A raise shows until when it lasts and what comes then; by a moment or by a duration."""
    shared_api.output("integrations", "create", "limited")
    assert shared_api.output("limit", "set", "limited", "120", "--burst", "30") == (
        "limited: set the limit to 120 requests per minute\n"
    )
    shared_api.output(
        "limit", "raise", "limited", "600", "--until", "2h", "--burst", "100", "--reason", "backfill"
    )
    shown = dict(line.split("\t") for line in shared_api.output("limit", "show", "limited").splitlines())
    assert shown["limit per minute"] == "600"
    assert shown["then"] == "120 per minute, burst 30"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", shown["raised until"])
    assert json.loads(shared_api.output("limit", "show", "limited", "--json"))["limit_raise"]["burst"] == 100
    assert shared_api.output("limit", "end-raise", "limited") == "limited: ended the temporary raise\n"
    far = shared_api.run("limit", "raise", "limited", "600", "--until", "2200-01-01T00:00Z")
    assert (far.exit_code, "within 90 days" in far.stderr) == (1, True)
    wrong = shared_api.run("limit", "set", "limited", "99999")
    assert "it must be 1 to 10000" in wrong.stderr


def test_allowlist__entries_and_warnings(shared_api: ServedApi, tmp_path: Path) -> None:
    """Entries from arguments or a file; what adds nothing or is spelt oddly is reported, not passed over."""
    shared_api.output("integrations", "create", "listed", "--allow", "192.0.2.0/24")
    added = shared_api.run("allowlist", "add", "listed", "192.0.2.7", "2001:db8::/32")
    assert "note: 192.0.2.7/32 is already covered by 192.0.2.0/24: it has no effect" in added.stderr
    shared_api.output("allowlist", "remove", "listed", "192.0.2.7/32")
    file = tmp_path / "entries"
    file.write_text("# the depot\n198.51.100.0/24  # north\n\n203.0.113.0/24\n")
    shared_api.output("allowlist", "set", "listed", "--file", str(file))
    shown = shared_api.run("allowlist", "show", "listed")
    assert shown.stdout == "198.51.100.0/24\n203.0.113.0/24\n"
    assert shown.stderr == "The allowlist of listed is on: only these addresses may call.\n"
    assert (
        shared_api.output("allowlist", "disable", "listed", "--yes") == "listed: turned the allowlist off\n"
    )
    assert "is off: every address may call" in shared_api.run("allowlist", "show", "listed").stderr
    assert shared_api.output("allowlist", "enable", "listed") == "listed: turned the allowlist on\n"
    assert (
        json.loads(shared_api.output("allowlist", "show", "listed", "--json"))["is_allowlist_enabled"] is True
    )
    host_bits = shared_api.run("allowlist", "add", "listed", "10.0.0.7/8")
    assert (host_bits.exit_code, "10.0.0.0/8" in host_bits.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [(), ("10.0.0.0/8", "--file", "x"), ("--file", "/no/such/file")])
def test_allowlist__set_takes_entries_or_a_file(shared_api: ServedApi, arguments: tuple[str, ...]) -> None:
    """One of the two, and a file that is there."""
    assert shared_api.run("allowlist", "set", "any", *arguments).exit_code == 2


def test_allowlist__a_file_has_a_bound(shared_api: ServedApi, tmp_path: Path) -> None:
    """A file of another kind is not sent whole."""
    file = tmp_path / "entries"
    file.write_text("10.0.0.1\n" * 1_001)
    assert "has 1001 entries" in shared_api.run("allowlist", "set", "any", "--file", str(file)).stderr


def test_webhook_secret__generate_and_rotate(shared_api: ServedApi) -> None:
    """Each is alone on standard output; a second generation is a conflict."""
    shared_api.output("integrations", "create", "hooked")
    first = shared_api.output("webhook-secret", "generate", "hooked")
    assert re.fullmatch(r"whsec_[0-9A-Za-z+/=]{44}\n", first)
    assert shared_api.run("webhook-secret", "generate", "hooked").exit_code == 4
    assert shared_api.output("webhook-secret", "rotate", "hooked", "--overlap", "1h30m") != first
    assert len(record_of(shared_api, "hooked")["webhook_secrets"]) == 2


def test_changes__a_dry_run_changes_nothing(shared_api: ServedApi) -> None:
    """It says what would be done, draws no secret, asks nothing, and leaves the generation as it is."""
    shared_api.output("integrations", "create", "tried", "--allow", "192.0.2.0/24")
    for arguments in (
        ("integrations", "delete", "tried"),
        ("credentials", "issue", "tried"),
        ("suspend", "tried", "--reason", "test", "--wait"),
        ("allowlist", "disable", "tried"),
    ):
        result = shared_api.run(*arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        assert "tried: dry run, nothing was changed: " in result.output
        assert not KEY.search(result.stdout)
    assert record_of(shared_api, "tried")["generation"] == 1


def test_changes__expect_a_generation(shared_api: ServedApi) -> None:
    """A change of an older generation exits with 4, and nothing is changed."""
    shared_api.output("integrations", "create", "raced")
    shared_api.output("limit", "set", "raced", "100", "--expect", "1")
    late = shared_api.run("limit", "set", "raced", "200", "--expect", "1")
    assert late.exit_code == 4
    assert "'raced' is at generation 2, not at the expected generation 1" in late.stderr
    assert record_of(shared_api, "raced")["rate_limit_rpm"] == 100


def test_changes__print_the_answer_as_json(shared_api: ServedApi) -> None:
    """For programs: what the API said, whole; also the secret, and nothing on standard error."""
    created = shared_api.run("integrations", "create", "machine", "--issue-credential", "--json")
    answer = json.loads(created.stdout)
    assert (answer["integration"]["id"], answer["is_change"]) == ("machine", True)
    assert KEY.fullmatch(answer["api_key"] + "\n")
    assert created.stderr == ""
    changed = json.loads(shared_api.output("limit", "set", "machine", "10", "--json"))
    assert changed["summary"] == "set the limit to 10 requests per minute"


def test_changes__one_without_an_answer_can_be_repeated(shared_api: ServedApi) -> None:
    """Without an answer the error says that it may have happened, and how to repeat it as the same change."""
    with Scripted(SILENCE) as server:
        lost = shared_api.run("limit", "set", "any", "10", "--timeout", "1s", SIDECAR_SERVER=server.url)
    assert lost.exit_code == 1
    found = re.search(r"may have been made: .*--idempotency-key ([0-9a-f]{32}),", lost.stderr)
    assert found
    assert f"Idempotency-Key: {found[1]}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("integrations", "delete", "kept"),
        ("credentials", "revoke", "kept", "any"),
        ("allowlist", "disable", "kept"),
        ("admin", "remove", "audrey"),
        ("admin", "token", "revoke", "audrey", "any"),
    ],
    ids=" ".join,
)
def test_confirmation__without_a_terminal_needs_yes(
    shared_api: ServedApi, arguments: tuple[str, ...]
) -> None:
    """What takes something away is not done by a script that did not say so: exit 2, nothing sent."""
    result = shared_api.run(*arguments, SIDECAR_SERVER="http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("sidecar: not a terminal, so nothing was changed: ")
    assert result.stderr.rstrip().endswith("Pass --yes to confirm")


def test_admin__accounts_roles_and_tokens(api: ServedApi) -> None:
    """An account from its first token to its end."""
    token = api.output(
        "admin", "create", "carol", "--role", "auditor", "--name", "Carol C", "--expires", "30d"
    ).strip()
    api.tokens["carol"] = token
    me = dict(line.split("\t") for line in api.output("admin", "whoami", who="carol").splitlines())
    assert (me["administrator"], me["role"], me["token"]) == ("carol", "auditor", token.split("_")[1])
    assert json.loads(api.output("admin", "whoami", "--json", who="carol"))["administrator"] == "carol"
    assert (
        api.output("admin", "role", "carol", "operator") == "carol: changed the role of carol to operator\n"
    )
    second = api.output("admin", "token", "issue", "carol", "--expires", "2h").strip()
    listed = [line.split("\t") for line in api.output("admin", "list").splitlines()]
    ids = [token.split("_")[1], second.split("_")[1]]
    carol = [row for row in listed if row[0] == "carol"]
    assert [row[:4] for row in carol] == [["carol", "Carol C", "operator", token_id] for token_id in ids]
    assert [row[6] for row in carol] == ["127.0.0.1", "-"]
    assert carol[1][5] == "never"
    api.output("admin", "token", "revoke", "carol", ids[0], "--yes")
    ended = api.run("admin", "whoami", who="carol")
    assert (ended.exit_code, "it has expired, was revoked" in ended.stderr) == (1, True)
    assert (
        api.output("admin", "remove", "carol", "--yes", "--reason", "left")
        == "carol: removed administrator carol\n"
    )
    accounts = json.loads(api.output("admin", "list", "--json"))["items"]
    assert [account["removed_at"] is not None for account in accounts if account["id"] == "carol"] == [True]
    assert "carol\tCarol C\tremoved\t-\t-\t-\t-" in api.output("admin", "list").splitlines()


def test_admin__list_warns_before_the_last_token_ends(api: ServedApi) -> None:
    """Two weeks ahead, with the token, the days that are left and what to run; programs read a code."""
    api.output("admin", "remove", "bob", "--yes")
    assert "warning" not in api.run("admin", "list").stderr
    old = api.tokens["ann"].split("_")[1]
    api.tokens["ann"] = api.output("admin", "token", "issue", "ann", "--expires", "13d1h").strip()
    api.output("admin", "token", "revoke", "ann", old, "--yes")
    reported = api.run("admin", "list").stderr
    assert (
        f"warning: the last token with the role admin, {api.tokens['ann'].split('_')[1]} of ann, ex"
        in reported
    )
    assert "in 13 days; issue another one with 'sidecar admin token issue ann'" in reported
    listing = json.loads(api.output("admin", "list", "--json"))
    assert [notice["code"] for notice in listing["notices"]] == ["last_admin_token_expires"]
    assert listing["admin_access_ends_at"] == listing["items"][0]["tokens"][0]["expires_at"]


def test_allowlist__shows_whom_it_refused(api: ServedApi) -> None:
    """With the entries that admit the address; adding it is seen there. Standard output keeps to entries."""
    key = json.loads(
        api.output(
            "integrations", "create", "locked", "--allow", "192.0.2.0/24", "--issue-credential", "--json"
        )
    )["credential_id"]
    now_us = wall_clock_us()
    callers = [
        RefusedCaller("locked", key, parse_address("203.0.113.7"), now_us),
        RefusedCaller("locked", key, parse_address("2001:db8::7"), now_us - 1),
        RefusedCaller("locked", key, b"", now_us - 2),
    ]
    api.wait(api.registry.record_refusals(callers))
    shown = api.run("allowlist", "show", "locked")
    assert shown.stdout == "192.0.2.0/24\n"
    lines = [line.split("\t")[1:] for line in shown.stderr.splitlines() if "\t" in line]
    assert lines == [
        ["203.0.113.7", key, "203.0.113.7/32 203.0.113.0/24", "refused"],
        ["2001:db8::7", key, "2001:db8::7/128 2001:db8::/64", "refused"],
        ["unknown: check 'client_ip'", key, "-", "refused"],
    ]
    api.output("allowlist", "add", "locked", lines[0][2].split()[0])
    assert [
        refused_caller["is_admitted_now"] for refused_caller in record_of(api, "locked")["refused_callers"]
    ] == [True, False, False]
    assert "203.0.113.0/24\tadmitted" in api.output("integrations", "show", "locked")


def test_allowlist__shows_whom_it_refused_by_the_decision_log(api: ServedApi) -> None:
    """With a log every refusal counts, also those that a shadow let through."""
    api.output("integrations", "create", "locked", "--allow", "192.0.2.0/24")
    at_s = (wall_clock_us() - START_US) / 1_000_000 - 60
    rows = [
        decision_row(at_s, "1", integration="locked", reason="ip_not_allowed", client_address="203.0.113.7"),
        decision_row(
            at_s, "2", integration="locked", would_deny="ip_not_allowed", client_address="203.0.113.7"
        ),
    ]
    write_segment(api.decisions / "host-a", 1, rows)
    shown = api.run("allowlist", "show", "locked").stderr
    assert "203.0.113.7\tkey1\t203.0.113.7/32 203.0.113.0/24\trefused refusals: 1 in shadow: 1\n" in shown


def test_admin__the_last_one_stays(api: ServedApi) -> None:
    """Nobody can lock everybody out."""
    api.output("admin", "remove", "bob", "--yes")
    last = api.run("admin", "remove", "ann", "--yes")
    assert last.exit_code == 4
    assert "would leave no administrator with the role admin" in last.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("integrations", "show", "acme-wharehouse"), "acme-warehouse"),
        (("suspend", "acme-warehuose", "--reason", "leak"), "acme-warehouse"),
        (("limit", "set", "cme-warehouse", "5"), "acme-warehouse"),
        (("credentials", "list", "acme_warehouse"), "acme-warehouse"),
        (("scopes", "add", "acme-warehouse", "order:read"), "orders:read"),
        (("scopes", "add", "acme-warehouse", "orders:raed"), "orders:read"),
        (("admin", "role", "audry", "operator"), "audrey"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_mistyped__the_name_that_may_be_meant(
    shared_api: ServedApi, arguments: tuple[str, ...], meant: str
) -> None:
    """An unknown id or scope that is like an existing one is answered with the existing one."""
    if shared_api.run("integrations", "show", "acme-warehouse").exit_code:
        shared_api.output("integrations", "create", "acme-warehouse")
    result = shared_api.run(*arguments)
    assert result.exit_code == 1
    assert f"did you mean '{meant}'?" in result.stderr
    assert "did you mean" not in shared_api.run("integrations", "show", "quite-another").stderr


@pytest.mark.parametrize("who", ["audrey", "olli"])
def test_roles__what_a_role_does_not_permit_is_reported(shared_api: ServedApi, who: str) -> None:
    """The error names the role to ask."""
    result = shared_api.run("integrations", "create", "forbidden", who=who)
    assert result.exit_code == 1
    assert "does not permit create" in result.stderr
    assert "ask an administrator with the role admin" in result.stderr


def test_token__from_a_file_or_standard_input(shared_api: ServedApi, tmp_path: Path) -> None:
    """Both keep it out of arguments; a file goes before the variable."""
    file = tmp_path / "token"
    file.write_text(shared_api.tokens["bob"] + "\n")
    assert "bob" in shared_api.output("admin", "whoami", "--token-file", str(file))
    result = shared_api.run("admin", "whoami", "--token", "-", stdin=shared_api.tokens["audrey"] + "\n")
    assert "audrey" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "variable", "reported"),
    [
        ((), "", "no administrator's token: set SIDECAR_ADMIN_TOKEN"),
        (("--token", "-"), "", "standard input is empty"),
        (("--token-file", "/no/such/file"), "", "cannot be read: No such file or directory"),
        ((), "sck_q2R8mW0bTz_1234", "does not hold an administrator's token"),
        ((), "sca_q2R8mW0bTz_0000000000000000000000000000002C8Gjx", "check that it was"),
    ],
)
def test_token__one_that_is_none_is_not_sent(
    shared_api: ServedApi, arguments: tuple[str, ...], variable: str, reported: str
) -> None:
    """A slip is reported before anything leaves the machine, without a word of the token."""
    result = shared_api.run("admin", "whoami", *arguments, SIDECAR_ADMIN_TOKEN=variable)
    assert result.exit_code == 2
    assert reported in result.stderr
    assert not variable or variable not in result.output


@pytest.mark.parametrize(
    ("server", "code", "reported"),
    [
        ("http://10.0.0.1:9193", 2, "would be sent unencrypted"),
        ("http://127.0.0.1:1", 1, "is the sidecar running"),
        ("unix:/no/such.sock", 1, "cannot reach unix:/no/such.sock"),
    ],
)
def test_server__what_cannot_be_asked_is_reported(
    shared_api: ServedApi, server: str, code: int, reported: str
) -> None:
    """One line about what is wrong, one about what to look at; never a traceback."""
    result = shared_api.run("integrations", "list", "--server", server)
    assert (result.exit_code, result.stdout) == (code, "")
    assert reported in result.stderr
    assert isinstance(result.exception, SystemExit)

"""What somebody sees at a terminal of 80 columns: tables, questions, and colours that can be turned off."""

from __future__ import annotations

import json

import pytest

from tests.waiting import eventually

from .scripted import SILENCE, Scripted
from .served import ServedApi
from .terminal import COLUMNS, ESCAPE, Terminal


def at_terminal(api: ServedApi, *arguments: str, **environment: str) -> Terminal:
    """A command of ann at a terminal."""
    env = {"SIDECAR_SERVER": api.url, "SIDECAR_ADMIN_TOKEN": api.tokens["ann"], **environment}
    return Terminal(*arguments, **env)


@pytest.fixture(scope="module")
def populated(shared_api: ServedApi) -> ServedApi:
    """An API with two integrations that a terminal has to cope with."""
    shared_api.output(
        "integrations", "create", "zz-long-" + "x" * 50, "--name", "N" * 128, "--owner", "Depots, all",
        "--scope", "crm:read", "--allow", "192.0.2.0/24", "--allow", "2001:db8:1234:5678::/64",
    )  # fmt: skip
    shared_api.output(
        "integrations", "create", "zz-red", "--name", "[red]no markup[/red]", "--issue-credential"
    )
    shared_api.output("suspend", "zz-red", "--reason", "[bold]leak[/bold] :smile: " + "because " * 20)
    return shared_api


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("integrations", "list", "--search", "zz-"), ("limit/min", "[red]no", "markup[/red]", "suspended")),
        (("integrations", "show", "zz-red"), ("suspended by ann", "[bold]leak[/bold] :smile:")),
        (
            ("audit", "list", "--integration", "zz-red"),
            ("integration.suspend of integration:zz-red", "reason: [bold]"),
        ),
        (("review", "--search", "zz-"), ("crm:read opens", "to decide", "never")),
        (("credentials", "list", "zz-red"), ("credential", "last used", "invalidated")),
        (("admin", "list"), ("auditor", "last used")),
        (("scopes", "catalogue"), ("sensitivity", "consumables:read consumables:write")),
    ],
    ids=lambda value: " ".join(value[:2]),
)  # fmt: skip
def test_terminal__tables_fit_into_80_columns(
    populated: ServedApi, arguments: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    """No line is wider than the terminal, nothing is cut off, and what people wrote is shown as they did."""
    screen = at_terminal(populated, *arguments)
    assert screen.end() == 0
    assert max(len(line) for line in screen.plain.splitlines()) <= COLUMNS
    assert [text for text in wanted if text not in screen.plain] == [], screen.plain
    assert "…" not in screen.plain
    assert ESCAPE in screen.seen


def test_terminal__no_color_draws_without(populated: ServedApi) -> None:
    """NO_COLOR: no colour, whatever the terminal can do."""
    screen = at_terminal(populated, "integrations", "list", "--search", "zz-red", NO_COLOR="1")
    assert screen.end() == 0
    assert "suspended" in screen.plain
    assert "\x1b[3" not in screen.seen.replace("\x1b[3m", "")


def test_terminal__asks_before_a_step_that_takes_something_away(shared_api: ServedApi) -> None:
    """No leaves all as it is, with 1; yes goes ahead."""
    shared_api.output("integrations", "create", "asked")
    first = at_terminal(shared_api, "integrations", "delete", "asked")
    first.wait_for("Delete asked permanently?")
    first.type("n")
    assert (first.end(), "sidecar: nothing was changed" in first.plain) == (1, True)
    assert json.loads(shared_api.output("integrations", "show", "asked", "--json"))["generation"] == 1
    second = at_terminal(shared_api, "integrations", "delete", "asked")
    second.wait_for("[y/N]:")
    second.type("y")
    assert (second.end(), "asked: deleted 'asked'" in second.plain) == (0, True)


def test_terminal__an_interrupted_change_can_be_repeated(shared_api: ServedApi) -> None:
    """Ctrl-C while the server works: no traceback, and the key with which a repeat is the same change."""
    with Scripted(SILENCE) as server:
        screen = at_terminal(shared_api, "limit", "set", "any", "10", SIDECAR_SERVER=server.url)
        eventually(lambda: server.requests, what="the change was sent")
        screen.interrupt()
        assert screen.end() == 1
    assert "sidecar: interrupted" in screen.plain
    assert "--idempotency-key" in screen.plain
    assert "Traceback" not in screen.plain


def test_terminal__a_suspension_asks_only_a_person(shared_api: ServedApi) -> None:
    """At a terminal it asks, with --yes or in a script it does not: an incident is no time for questions."""
    shared_api.output("integrations", "create", "urgent")
    screen = at_terminal(shared_api, "suspend", "urgent", "--reason", "leak")
    screen.wait_for("Suspend urgent? Its requests are refused at once")
    screen.type("n")
    assert screen.end() == 1
    hasty = at_terminal(shared_api, "suspend", "urgent", "--reason", "leak", "--yes")
    assert (hasty.end(), "[y/N]" in hasty.plain) == (0, False)

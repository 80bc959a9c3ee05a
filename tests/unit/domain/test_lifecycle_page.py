"""docs/administer/lifecycle.md says what the state machine does: nothing else, nothing less."""

from __future__ import annotations

import re

import pytest

from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.states import TRANSITIONS, State
from sidecar.domain.refusals import Code
from tests.house.source import text_of

from .lifecycle_text import DRAWN, marked, parts

PAGE = "docs/administer/lifecycle.md"


@pytest.mark.parametrize("name", ["diagram", "states", "commands"])
def test_lifecycle_page__is_the_machine(name: str) -> None:
    """Diagram and tables are on the page as the machine makes them: none can change without the other."""
    wanted = marked(name, parts()[name])
    assert wanted in text_of(PAGE), "run: python -m tests.unit.domain.lifecycle_text"


def test_lifecycle_page__draws_every_arrow() -> None:
    """A command that leads to another state is in the diagram, so a new way out of a state must be drawn."""
    moving = {
        kind
        for kind, transitions in TRANSITIONS.items()
        if any(after is not state for state, following in transitions.items() for after in following)
    }
    assert moving == set(DRAWN)


def test_lifecycle_page__every_command_and_state_has_its_place() -> None:
    """The table has a row for each command, in each a cell for each state, and no empty one."""
    rows = re.findall(r"^\| `[a-z_]+\.[a-z_]+` \|.*$", text_of(PAGE), re.MULTILINE)
    assert len(rows) == len(c.COMMANDS)
    assert {len([cell for cell in row.split("|") if cell.strip()]) for row in rows} == {len(State) + 2}


def test_lifecycle_page__explains_every_refusal_that_it_names() -> None:
    """Each refusal of the table has a line below it that says what to do, and is one of the closed list."""
    page = text_of(PAGE)
    named = set(re.findall(r"refused: `([a-z_]+)`", page))
    assert named <= {code.text for code in Code}
    assert named == set(re.findall(r"^\* `([a-z_]+)`: ", page, re.MULTILINE)) - {
        "same_administrator",
        "granted_by_suspender",
    }

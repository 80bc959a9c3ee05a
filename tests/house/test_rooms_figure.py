"""The figure of the rooms is drawn from the imports as they are now, and each room says what it is for."""

from __future__ import annotations

import ast

from tests.house.rooms import PAGE, figure, replaced
from tests.house.source import python_sources
from tests.house.test_import_order import BELOW


def test_rooms_figure__is_what_the_imports_say() -> None:
    """Repair: python -m tests.house.rooms."""
    page = PAGE.read_text()
    assert replaced(page) == page
    assert all(f"    {room}\n" in figure() for room in BELOW)


def test_rooms_figure__every_room_is_described() -> None:
    """The page has a row for each room, and the room's own file says in a few lines what lives there."""
    page = PAGE.read_text()
    assert [room for room in BELOW if f"| `sidecar/{room}/` |" not in page] == []
    described = {
        source.module[1]: ast.get_docstring(source.tree) or ""
        for source in python_sources()
        if len(source.module) == 2 and source.path.endswith("/__init__.py") and source.module[0] == "sidecar"
    }
    assert [room for room, text in described.items() if not 1 <= len(text.splitlines()) <= 5] == []

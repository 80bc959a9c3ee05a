"""What the tests of the admin API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.services.admin.admin_api import AdminApi, People, founded, opened


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    """The accounts that every api begins with."""
    return founded(tmp_path_factory.mktemp("people") / "registry.sqlite")


@pytest.fixture
def api(people: People, tmp_path: Path) -> Iterator[AdminApi]:
    """A separate control plane for each test."""
    with opened(people, tmp_path) as api:
        yield api

"""What the tests of the admin API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.services.admin.world import World, opened


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A control plane of its own for each test."""
    with opened(tmp_path) as world:
        yield world

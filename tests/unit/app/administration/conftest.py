"""What the tests of the administrators' command line share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .served import Served, served_api


@pytest.fixture(scope="package")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One API for all tests that name integrations of their own."""
    with served_api(tmp_path_factory.mktemp("registry")) as served:
        yield served


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An API with a registry that no other test has touched."""
    with served_api(tmp_path_factory.mktemp("registry")) as served:
        yield served

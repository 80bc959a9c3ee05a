"""What the tests of the administrators' command line share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import typer.main
import typer.testing

from .served import ServedApi, served_api


@pytest.fixture(scope="package", autouse=True)
def commands_built_once() -> Iterator[None]:
    """Typer's runner builds all sixty commands for each one that it runs; here it keeps them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="package")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    """One API for all tests that name integrations of their own."""
    with served_api(tmp_path_factory.mktemp("registry")) as served:
        yield served


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    """An API with a registry that no other test has touched."""
    with served_api(tmp_path_factory.mktemp("registry")) as served:
        yield served

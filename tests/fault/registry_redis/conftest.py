"""Fixtures of the trials: a shelf of registries in a real Redis, and one event loop a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from .kept import Shelf


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """Places in the shared server, cleared afterwards."""
    made = Shelf()
    yield made
    made.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for a test."""
    with asyncio.Runner() as runner:
        yield runner

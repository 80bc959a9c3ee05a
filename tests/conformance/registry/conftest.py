"""Fixtures of the registry's contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.building import ManualClock
from tests.conformance.registry.registry_harness import BACKENDS, RegistryHarness


@pytest.fixture
def clock() -> ManualClock:
    """The registry's clock."""
    return ManualClock()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for a whole test."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=sorted(BACKENDS))
def harness(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, runner: asyncio.Runner
) -> Iterator[RegistryHarness]:
    """A founded registry in each store in turn."""
    made = RegistryHarness(BACKENDS[request.param](tmp_path, clock), clock, runner)
    yield made
    made.run(made.registry.aclose())

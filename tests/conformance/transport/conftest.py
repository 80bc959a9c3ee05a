"""Fixtures of the suite: a background loop, servers of each transport, keys for TLS."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.waiting import PATIENCE_S

from .background import BackgroundLoop
from .served import TRANSPORTS, Served, Servers, quiet_grpc

Result = TypeVar("Result")


H2SPEC = shutil.which("h2spec")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say whether h2spec took part."""
    if H2SPEC is None:
        terminalreporter.write_line("h2spec is not on PATH: its 146 cases, an extra, were not run")


def run(coroutine: Coroutine[Any, Any, Result], patience_s: float = PATIENCE_S) -> Result:
    """Run *coroutine* in a fresh event loop, with a deadline."""

    async def bounded() -> Result:
        return await asyncio.wait_for(coroutine, patience_s)

    return asyncio.run(bounded())


@pytest.fixture(scope="session")
def background() -> Iterator[BackgroundLoop]:
    """The event loop that every server under test runs on."""
    quiet_grpc()
    loop = BackgroundLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="session", params=sorted(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport in turn."""
    return str(request.param)


@pytest.fixture
def servers(transport: str, background: BackgroundLoop, tmp_path: Path) -> Iterator[Servers]:
    """Starts servers of this transport, for one test."""
    started = Servers(transport, background, tmp_path)
    yield started
    started.close()


@pytest.fixture(scope="module")
def module_servers(
    transport: str, background: BackgroundLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Starts servers that the tests of a module share."""
    started = Servers(transport, background, tmp_path_factory.mktemp(transport))
    yield started
    started.close()


@pytest.fixture(scope="module")
def served(module_servers: Servers) -> Served:
    """One server with the default limits, shared by a module."""
    return module_servers.start()

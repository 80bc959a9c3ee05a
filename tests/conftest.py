"""What holds for all tests."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sidecar.stores.registry.redis import nodes, registry
from tests.waiting import PATIENCE_S, run

# No test judges speed: a busy machine must not turn a property into a failure. Failures print how to
# run the same example again.
settings.register_profile(
    "sidecar", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("sidecar")

LONG_FOLDERS = frozenset({"e2e", "fault"})
"""Tests that start processes, and wait for them."""
SHARED_STACKS = frozenset({"stacks", "proxy_stacks"})
"""Fixtures that start a proxy and a sidecar of each kind, once in each process that runs a test of theirs."""
TEST_TIMEOUT_S = 120.0
"""Deadline of a whole test that is a coroutine function."""


@pytest.fixture(scope="session", autouse=True)
def patient_registry() -> Iterator[None]:
    """Wait longer for replies of a registry in Redis; a test of a silent Redis sets its own timeout."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (nodes, registry):
            patch.setattr(module, "REPLY_TIMEOUT_S", PATIENCE_S)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """
    Let each process of pytest-xdist begin to collect a whole run at another module.

    Most of the work is to compile modules, and each finds what the others have compiled by then.
    """
    process = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes == 1 or session.config.args != ["tests"]:
        return
    modules = sorted(str(module) for module in Path("tests").rglob("test_*.py"))
    start = len(modules) * int(process) // processes
    session.config.args = modules[start:] + modules[:start]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Let each process of pytest-xdist begin with whole modules of long tests.

    It gets an equal part of the list, and takes tests over from others when it is done: short tests at the
    end of each part let all processes end together. One process looks at the code, so that one parses it;
    one has the tests of `SHARED_STACKS`, so that one starts them.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    house = [item for item in items if "house" in item.path.parts]
    stacks = [item for item in items if not SHARED_STACKS.isdisjoint(getattr(item, "fixturenames", ()))]
    on_stacks = frozenset(stacks)
    others = (item for item in items if item not in on_stacks)
    modules = [list(tests) for _, tests in groupby(others, key=lambda item: item.path)]
    long = [house, stacks, *(tests for tests in modules if not LONG_FOLDERS.isdisjoint(tests[0].path.parts))]
    short = [item for item in items if {*LONG_FOLDERS, "house"}.isdisjoint(item.path.parts)]
    ordered: list[pytest.Item] = []
    for process in range(processes):
        ordered += chain.from_iterable(long[process::processes])
        fill = max(0, len(items) * (process + 1) // processes - len(ordered))
        ordered += short[:fill]
        del short[:fill]
    items[:] = ordered


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on an event loop, see `run`; None = another kind of test."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    run(test(**given), TEST_TIMEOUT_S)
    return True

"""Connections that break or stall at any command of a write: whole or absent, reported correctly, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.registry.protocol import RegistryError, RegistryTimeoutError, RegistryUnavailableError
from sidecar.stores.registry.redis import nodes
from sidecar.stores.registry.redis.nodes import LIMITS
from tests.fault.redis.proxy import Fault, FaultProxy
from tests.fault.registry.writes import WRITES
from tests.waiting import PATIENCE_S

from .kept import Content, Place, Shelf, is_whole_or_absent, opened, repeated, verified, with_registry

COMMANDS_MAX = 80
"""A write with more commands than this is not what it was."""
PATIENT = replace(
    LIMITS,
    connect_timeout_s=PATIENCE_S,
    discovery_timeout_s=PATIENCE_S,
    backoff_first_s=0.001,
    backoff_max_s=0.002,
)
QUICK = replace(PATIENT, connect_timeout_s=0.15, discovery_timeout_s=0.15)
"""For faults after which nothing answers, so that only a timeout ends the wait."""
BREAKS = (Fault.CUT, Fault.CUT_AFTER, Fault.HALF_REPLY, Fault.GARBAGE)
"""Faults after which a new connection works."""


class Trial:
    """One write that is tried again and again, each time with another command spoilt."""

    def __init__(
        self, name: str, shelf: Shelf, runner: asyncio.Runner, limits: StoreLimits = PATIENT
    ) -> None:
        """Prepare a registry, and learn what the write makes of it; spoilt writes use *limits*."""
        self._limits = limits
        self._shelf = shelf
        self._runner = runner
        self._name = name
        self._prepared, written = shelf.place(name), shelf.place(name)
        prepare, self.write = WRITES[name]
        self.run(with_registry(self._prepared.url(shelf.port), prepare))
        self.before = self._prepared.content()
        self._prepared.copy_to(written)
        self.run(with_registry(written.url(shelf.port), self.write))
        assert self.run(with_registry(written.url(shelf.port), verified))
        self.after = written.content()

    def run(self, work: Coroutine[Any, Any, object]) -> object:
        """Run *work* to its end, within a deadline."""

        async def bounded() -> object:
            return await asyncio.wait_for(work, PATIENCE_S)

        return self._runner.run(bounded())

    def spoil(
        self, fault: Fault, number: int, timeout_s: float
    ) -> tuple[bool, RegistryError | None, Content]:
        """
        Write with command *number* spoilt; then let somebody else repeat it, which must make it once.

        Returns:
            Whether there was such a command, the error that the caller got, and what was left.
        """
        place = self._prepared.copy_to(self._shelf.place(self._name))
        was_spoilt, error = False, None

        async def scenario() -> None:
            nonlocal was_spoilt, error
            proxy = FaultProxy(self._shelf.port, fault, number)
            await proxy.start()
            registry = opened(place.url(proxy.port), self._limits, timeout_s)
            try:
                await self.write(registry)
            except RegistryError as failure:
                error = failure
            was_spoilt = proxy.tripped.is_set()
            await registry.aclose()
            await proxy.close()
            assert proxy.connections == 0

        self.run(scenario())
        left = place.content()
        self._repeat(place)
        place.clear()
        return was_spoilt, error, left

    def _repeat(self, place: Place) -> None:
        self.run(with_registry(place.url(self._shelf.port), partial(repeated, write=self.write)))
        assert place.content() == self.after

    def every(
        self, fault: Fault, timeout_s: float, check: Callable[[RegistryError | None, Content], None]
    ) -> int:
        """Spoil each command in turn, and *check* what came of it; how many there were."""
        for number in range(1, COMMANDS_MAX):
            was_spoilt, error, left = self.spoil(fault, number, timeout_s)
            if error is not None and not was_spoilt:
                # Nothing was spoilt: the machine itself took longer than so short a time. Again with more.
                was_spoilt, error, left = self.spoil(fault, number, PATIENCE_S)
            if not was_spoilt:
                assert (error, left) == (None, self.after)
                return number - 1
            assert is_whole_or_absent(left, self.before, self.after)
            check(error, left)
        pytest.fail("the write never ended")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(("credential.issue", fault) for fault in BREAKS),
        ("admin.create", Fault.CUT_AFTER),
        ("apply_many", Fault.CUT_AFTER),
    ],
)
def test_write__survives_a_break_at_any_command(
    name: str, fault: Fault, shelf: Shelf, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Before or after the script ran: the caller gets the right answer, and the change is there once.

    Each break for one write; for the others the one that leaves open whether the script ran.
    """
    monkeypatch.setattr(nodes, "PATIENCE_S", PATIENCE_S)
    trial = Trial(name, shelf, runner)

    def check(error: RegistryError | None, left: Content) -> None:
        assert (error, left) == (None, trial.after)

    assert trial.every(fault, PATIENCE_S, check) > 10


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("credential.issue", Fault.STALL),
        ("credential.issue", Fault.BLACK_HOLE),
        ("admin.create", Fault.BLACK_HOLE),
    ],
)
def test_write__silence_at_any_command_is_reported_truly(
    name: str, fault: Fault, shelf: Shelf, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One silent connection is replaced; a silent server ends the call by its deadline, with the truth."""
    monkeypatch.setattr(nodes, "REPLY_TIMEOUT_S", 0.05)
    trial = Trial(name, shelf, runner, QUICK)

    def check(error: RegistryError | None, left: Content) -> None:
        if error is None:
            assert left == trial.after
        else:
            assert isinstance(error, RegistryTimeoutError | RegistryUnavailableError)
            assert error.may_have_happened or left == trial.before

    timeout_s = 0.1 if fault is Fault.BLACK_HOLE else PATIENCE_S
    assert trial.every(fault, timeout_s, check) > 10


@pytest.mark.parametrize("name", ["credential.issue", "admin.create"])
def test_write__an_error_of_the_server_is_reported_and_changes_nothing(
    name: str, shelf: Shelf, runner: asyncio.Runner
) -> None:
    """What the server refuses was not carried out: the caller learns it, or the change is there."""
    trial = Trial(name, shelf, runner)

    def check(error: RegistryError | None, left: Content) -> None:
        if error is None or error.may_have_happened:
            assert left == trial.after  # of administrators: the change is there, and not all partitions know
        else:
            assert left == trial.before

    assert trial.every(Fault.ERROR, PATIENCE_S, check) > 10

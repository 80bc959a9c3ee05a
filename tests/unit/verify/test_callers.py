"""Callers go on through lost connections, give up silent ones, and keep to their pace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.verify import callers as module
from sidecar.verify.callers import Call, Caller, ask
from sidecar.verify.check_link import DATA, END_HEADERS, END_STREAM, HEADERS, FrameReader, frame
from tests.waiting import PATIENCE_S

OPENING_BYTES = 24


class Answering:
    """A server that answers every call with one byte; `calls_max` closes the connection after that many."""

    def __init__(self, calls_max: int = 0, is_silent: bool = False) -> None:
        """*is_silent* = answers nothing."""
        self.connections = 0
        self._calls_max = calls_max
        self._is_silent = is_silent
        self._tasks: list[asyncio.Task[object] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        self.connections += 1
        self._tasks.append(asyncio.current_task())
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served, frames = 0, FrameReader()
        await reader.readexactly(OPENING_BYTES)
        while data := await reader.read(65_536):
            for received in frames.feed(data):
                if received.kind != DATA or self._is_silent:
                    continue
                served += 1
                if self._calls_max and served > self._calls_max:
                    return
                writer.write(frame(HEADERS, END_HEADERS, received.stream, b"\x88"))
                writer.write(frame(DATA, END_STREAM, received.stream, b"\0\0\0\0\x01A"))

    @asynccontextmanager
    async def listening(self, folder: Path) -> AsyncIterator[str]:
        """Serve on a socket in *folder*; at the end wait for all connections to be over."""
        path = folder / "server.sock"
        server = await asyncio.start_unix_server(self.serve, str(path))
        try:
            yield f"unix:{path}"
        finally:
            server.close()
            path.unlink(missing_ok=True)
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(task for task in self._tasks if task is not None))


class Listening:
    """Sends requests until *goal* results of a kind have come."""

    def __init__(self, answered_goal: int = 0, lost_goal: int = 0) -> None:
        """Wait for that many."""
        self.answered = 0
        self.lost = 0
        self.reached = asyncio.Event()
        self._goals = (answered_goal, lost_goal)

    def next_call(self, caller: int) -> Call:
        """Always the same."""
        return Call(b"m", 0)

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count it."""
        self.answered += message == b"A"
        self.lost += message == b""
        if self.answered >= self._goals[0] and self.lost >= self._goals[1]:
            self.reached.set()

    async def wait(self) -> None:
        """Until the goals are reached."""
        async with asyncio.timeout(PATIENCE_S):
            await self.reached.wait()


async def test_caller__connects_again_and_tells_what_was_lost(tmp_path: Path) -> None:
    """A server that ends its connections again and again is called again and again."""
    server, listening = Answering(calls_max=5), Listening(answered_goal=20, lost_goal=3)
    async with server.listening(tmp_path) as target:
        caller = Caller(0, target, listening, depth=3)
        caller.start()
        await listening.wait()
        await caller.stop()
    assert server.connections >= 4
    assert (caller.hung, caller.in_flight) == (0, 0)


async def test_caller__waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    """It tries until somebody listens."""
    listening = Listening(answered_goal=1)
    caller = Caller(0, f"unix:{tmp_path / 'server.sock'}", listening, depth=1)
    caller.start()
    await asyncio.sleep(0)
    async with Answering().listening(tmp_path):
        await listening.wait()
        await caller.stop()


async def test_caller__gives_up_a_connection_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that nobody answers are counted as hung, and reported as lost."""
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.05)

    listening = Listening(lost_goal=4)
    async with Answering(is_silent=True).listening(tmp_path) as target:
        caller = Caller(0, target, listening, depth=2)
        caller.start()
        await listening.wait()
        monkeypatch.setattr(module, "DRAIN_TIMEOUT_S", 0.05)
        await caller.stop()
    assert caller.hung >= 4


def test_caller__keeps_its_pace() -> None:
    """It earns calls with time, and a hold-up gives no flood: time is moved by hand."""
    now_ns = [0]
    caller = Caller(0, "unix:/nobody", Listening(), depth=1_000, calls_per_s=1_000.0)
    begun = []
    for step_ns in (5_000_000, 5_000_000, 10_000_000_000):
        now_ns[0] += step_ns
        begun.append(caller.earned(now_ns[0]))
    assert begun == [5, 10, 101]


async def test_ask__one_call(tmp_path: Path) -> None:
    """The answer's message; a server that is silent is reported in time."""
    async with Answering().listening(tmp_path) as target:
        assert await ask(target, b"m", PATIENCE_S) == b"A"
    async with Answering(is_silent=True).listening(tmp_path) as target:
        with pytest.raises(TimeoutError):
            await ask(target, b"m", 0.05)

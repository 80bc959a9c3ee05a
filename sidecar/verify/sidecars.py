"""Real sidecar processes for a run: started on Unix sockets, killed, restarted, and stopped at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import yaml

from sidecar.process.settings import EMBEDDED_STORE
from sidecar.stores.redis.urls import parse_store_url

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
ASK_TIMEOUT_S = 2.0
LOOK_INTERVAL_S = 0.02
LOG_TAIL_BYTES = 2_000
SIDECARS_MAX = 64

_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, prctl(2); it outlasts exec
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Executes the program in its arguments, which the kernel ends when the parent process ends."""


class SidecarsError(Exception):
    """A sidecar of the run did not start, or ended by itself; the message includes the end of its log."""


class SidecarProcess:
    """
    One `sidecar serve` on Unix sockets: `target` for calls, another for /readyz and /metrics.

    It ends when the process that started it ends.
    """

    def __init__(
        self, folder: Path, number: int, settings: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        """Write the configuration into *folder*; start nothing yet."""
        self.number = number
        self.kills = 0
        self.target = f"unix:{folder}/sidecar-{number}.sock"
        self._admin = f"{folder}/admin-{number}.sock"
        self._log = folder / f"sidecar-{number}.log"
        self._config = folder / f"sidecar-{number}.yaml"
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        listen = {"grpc": self.target, "admin": f"unix:{self._admin}"}
        log = {"format": "json", "level": "warning"}
        self._config.write_text(yaml.safe_dump({"listen": listen, "log": log, **settings}))

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def begin(self) -> None:
        """Start the process; see `ready`."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-c", _BOUND_TO_PARENT, str(os.getpid())),
                    *(sys.executable, "-m", "sidecar.cli", "serve", "--config", str(self._config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for us; we end it
            )

    async def ready(self) -> None:
        """
        Wait until the sidecar is ready.

        Raises:
            SidecarsError: the process ended, or is not ready within `START_TIMEOUT_S`.
        """
        deadline_s = monotonic() + START_TIMEOUT_S
        while not await self._is_ready():
            assert self._process is not None
            if self._process.poll() is not None or monotonic() > deadline_s:
                raise SidecarsError(
                    f"sidecar {self.number} did not become ready (exit code {self._process.poll()}):"
                    f" {self._printed()}"
                )
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def get(self, path: str) -> tuple[int, str]:
        """
        GET *path* from the admin listener; return the status and the body.

        Raises:
            OSError: no answer within `ASK_TIMEOUT_S`.
        """
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(self._admin)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        return int(head.split(b" ", 2)[1] if head else 0), body.decode(errors="replace")

    async def kill(self) -> None:
        """Kill the process (SIGKILL), and wait for its end."""
        self.kills += 1
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Drain and end the process; kill it after `STOP_TIMEOUT_S`."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def _is_ready(self) -> bool:
        try:
            return (await self.get("/readyz"))[0] == 200
        except OSError:
            return False

    def _printed(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL_BYTES:] if self._log.exists() else ""


class Fleet:
    """
    Sidecars that run while the `async with` block is open.
    """

    def __init__(
        self, folder: Path, count: int, settings: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        """Prepare *count* sidecars with *settings*, the keys of their configuration file."""
        if not 1 <= count <= SIDECARS_MAX:
            raise SidecarsError(f"the number of sidecars must be 1..{SIDECARS_MAX}, not {count}")
        self.sidecars = [SidecarProcess(folder, number, settings, environment) for number in range(count)]

    @property
    def targets(self) -> Sequence[str]:
        """The gRPC addresses of the sidecars."""
        return [sidecar.target for sidecar in self.sidecars]

    @property
    def kills(self) -> int:
        """The number of kills."""
        return sum(sidecar.kills for sidecar in self.sidecars)

    async def __aenter__(self) -> Self:
        """
        Start all sidecars, and wait until they are ready.

        Raises:
            SidecarsError: a sidecar did not become ready.
        """
        try:
            for sidecar in self.sidecars:
                sidecar.begin()
            await asyncio.gather(*(sidecar.ready() for sidecar in self.sidecars))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all sidecars."""
        await self._stop()

    async def kill_every(self, interval_s: float) -> None:
        """
        Until cancelled, kill and restart one sidecar after another, each after *interval_s*.

        Raises:
            SidecarsError: a restarted sidecar did not become ready.
        """
        turn = 0
        while True:
            await asyncio.sleep(interval_s)
            sidecar = self.sidecars[turn % len(self.sidecars)]
            turn += 1
            await sidecar.kill()
            sidecar.begin()
            await sidecar.ready()

    async def _stop(self) -> None:
        await asyncio.gather(*(asyncio.shield(sidecar.stop()) for sidecar in self.sidecars))


def child_environment(store: str) -> dict[str, str]:
    """
    The environment of sidecars on *store*: ours without settings of a sidecar.

    The store's URL may hold a password, so it is passed in the environment instead of a file; variables that
    the URL refers to are kept.
    """
    url = None if store == EMBEDDED_STORE else parse_store_url(store)
    kept = () if url is None else (url.login.password_env, url.sentinel_login.password_env)
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_") or name in kept
    }
    return {**ours, "SIDECAR_STORE": store}

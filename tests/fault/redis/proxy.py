"""A TCP proxy before Redis that knows commands, and spoils the n-th one in a chosen way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum

import hiredis

from sidecar.stores.redis.resp import pack
from tests.redis_servers import LOOPBACK


class Fault(Enum):
    """What happens at the chosen command."""

    CUT = "the connection is closed before the command is carried out"
    CUT_AFTER = "the command is carried out, and the connection closed before its reply"
    STALL = "the connection stays open, and nothing passes any more"
    BLACK_HOLE = "nor does anything on new connections"
    HALF_REPLY = "half of the reply comes, and then the end"
    HOLD = "replies are held back until the proxy heals"
    ERROR = "the server refuses the command"
    GARBAGE = "something answers that is no Redis"


class _Connection:
    """One client and its upstream."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.is_stalled = False
        self.halves_next = False
        self.cuts_next = False

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class FaultProxy:
    """
    Passes commands on until number `at` (from 1, over all connections), which meets `fault`.

    `commands` are the names of those that came; 0 = nothing is ever spoilt.
    """

    def __init__(self, upstream_port: int, fault: Fault = Fault.CUT, at: int = 0) -> None:
        """Before the server on *upstream_port*."""
        self.fault = fault
        self.at = at
        self.commands: list[str] = []
        self.port = 0
        self.tripped = asyncio.Event()
        self._upstream_port = upstream_port
        self._healed = asyncio.Event()
        self._is_dark = False
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def arm(self, fault: Fault, after: int = 1) -> None:
        """Spoil the command that comes as number *after* from now, in the way of *fault*."""
        self.fault = fault
        self.at = len(self.commands) + after
        self.tripped = asyncio.Event()
        self._healed = asyncio.Event()

    def cut(self) -> None:
        """End every connection; new ones are served."""
        for connection in tuple(self._connections):
            connection.abort()

    def go_dark(self) -> None:
        """Let nothing pass any more, on any connection."""
        self._is_dark = True
        for connection in self._connections:
            connection.is_stalled = True

    def heal(self) -> None:
        """Spoil nothing from now on; what is stalled stays so, what is held is let go."""
        self.at = 0
        self._is_dark = False
        self._healed.set()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def close(self) -> None:
        """End everything."""
        self.heal()
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server = await asyncio.open_connection(LOOPBACK, self._upstream_port)
        connection = _Connection(client, server)
        connection.is_stalled = self._is_dark
        self._connections.add(connection)
        ways = [
            asyncio.ensure_future(self._pump(client_reader, connection, self._commands_of(connection))),
            asyncio.ensure_future(self._pump(server_reader, connection, self._replies_of(connection))),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connection.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        connection: _Connection,
        pass_on: Callable[[bytes], Awaitable[None]],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if not connection.is_stalled:
                    await pass_on(data)

    def _commands_of(self, connection: _Connection) -> Callable[[bytes], Awaitable[None]]:
        reader = hiredis.Reader()

        async def pass_on(data: bytes) -> None:
            reader.feed(data)
            while (command := reader.gets()) is not False and not connection.is_stalled:
                self.commands.append(command[0].decode())
                if len(self.commands) == self.at:
                    self.tripped.set()
                    if not self._spoil(connection):
                        continue
                connection.server.write(pack(*command))

        return pass_on

    def _spoil(self, connection: _Connection) -> bool:
        """Let the fault happen; True = the command is passed on nevertheless."""
        fault = self.fault
        if fault is Fault.CUT:
            connection.abort()
        elif fault in (Fault.STALL, Fault.BLACK_HOLE):
            connection.is_stalled = True
            self._is_dark = fault is Fault.BLACK_HOLE
        elif fault is Fault.ERROR:
            connection.client.write(b"-ERR spoilt\r\n")
        elif fault is Fault.GARBAGE:
            connection.client.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.halves_next = fault is Fault.HALF_REPLY
        connection.cuts_next = fault is Fault.CUT_AFTER
        return fault in (Fault.CUT_AFTER, Fault.HALF_REPLY, Fault.HOLD)

    def _replies_of(self, connection: _Connection) -> Callable[[bytes], Awaitable[None]]:
        async def pass_on(data: bytes) -> None:
            if self.fault is Fault.HOLD and self.tripped.is_set():
                await self._healed.wait()
            if connection.cuts_next:
                connection.abort()
            elif connection.halves_next:
                connection.client.write(data[: len(data) // 2])
                await connection.client.drain()
                connection.client.close()
            else:
                connection.client.write(data)

        return pass_on

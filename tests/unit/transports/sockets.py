"""The fast server on a loop in a thread, and a blocking HTTP/2 client for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import ngh2

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.observe.transport_metrics import CLOSE_REASONS
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import Endpoint, TransportLimits
from tests.unit.transports.rig import KeptCalls, message
from tests.waiting import PATIENCE_S, eventually

LOCALHOST = Endpoint(host="127.0.0.1")

Value = TypeVar("Value")


class LoopThread:
    """An event loop that runs in its own thread."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """Start it."""
        self.loop = factory()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Run *coroutine*; its result is asked for later."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run *coroutine* to its end."""
        return self.start(coroutine).result(PATIENCE_S)

    def call(self, function: Callable[[], Value]) -> Value:
        """Call *function* in the loop's thread."""

        async def body() -> Value:
            return function()

        return self.run(body())

    def close(self) -> None:
        """Stop it; no task may be left."""
        eventually(lambda: self.call(lambda: len(asyncio.all_tasks()) == 1), what="no task is left")
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


def _echo(request: bytes, call: UnaryCall) -> bytes:
    return request


class RunningServer:
    """A running server with its counts; '/t/Keep' keeps its calls in `kept`, '/t/Echo' answers."""

    def __init__(
        self, thread: LoopThread, *endpoints: Endpoint, limits: TransportLimits | None = None
    ) -> None:
        """Start it, on a free port of localhost unless told otherwise."""
        self._thread = thread
        self.kept = KeptCalls()
        self.metrics = Metrics(TABLE)
        methods = [UnaryMethod("/t/Echo", _echo), UnaryMethod("/t/Keep", self.kept)]
        self.server = FastGrpcServer(
            methods, endpoints or (LOCALHOST,), limits or TransportLimits(), self.metrics
        )
        self.endpoints = thread.run(self.server.start())
        self.endpoint = self.endpoints[0]

    def drain(self, timeout_s: float = 5.0) -> bool:
        """Drain and wait for it."""
        return self._thread.run(self.server.drain(timeout_s))

    def start_drain(self, timeout_s: float = 5.0) -> Future[bool]:
        """Drain meanwhile."""
        return self._thread.start(self.server.drain(timeout_s))

    def reply_all(self, answer: bytes = b"late") -> None:
        """Answer every kept call."""
        self._thread.call(lambda: self.kept.reply_all(answer))

    def counts(self, name: str, *labels: str) -> int:
        """One counter or gauge."""
        return self.metrics.value(f"sidecar_{name}", *labels)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return self.counts("connections_open")

    def await_closed(self, reason: str, count: int = 1) -> None:
        """Wait until *count* connections have closed for *reason*."""
        eventually(lambda: self.counts("connections_closed_total", reason) == count, what=f"closed: {reason}")

    def close(self) -> None:
        """End all; what was accepted must have closed, each for one reason."""
        self.reply_all()
        self.drain(0.1)
        eventually(lambda: self.open == 0, what="every connection has closed")
        closed = sum(self.counts("connections_closed_total", reason) for reason in CLOSE_REASONS)
        assert self.counts("connections_accepted_total") == closed


def dial(endpoint: Endpoint) -> socket.socket:
    """A connected socket."""
    client = socket.socket(
        socket.AF_UNIX if endpoint.path else socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    )
    client.settimeout(PATIENCE_S)
    try:
        client.connect(endpoint.path or (endpoint.host, endpoint.port))
    except BaseException:
        client.close()
        raise
    return client


class GrpcClient:
    """
    An HTTP/2 client that makes gRPC calls, by ngh2.

    Python's h2 would be a more independent one, but takes the first GOAWAY of a drain for the last.
    """

    def __init__(self, client: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Shake hands and say the preface."""
        self.socket = client if tls is None else tls.wrap_socket(client, server_hostname="localhost")
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._h2.initiate_connection()
        self._statuses: dict[int, str] = {}
        self.goaways = 0
        self._flush()

    def __enter__(self) -> GrpcClient:
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.socket.close()

    def send(self, path: str = "/t/Echo") -> int:
        """Send a call; returns its stream id."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        stream_id = self._h2.send_request(
            [(name.encode(), value.encode()) for name, value in headers.items()]
        )
        self._h2.send_data(stream_id, message(), end_stream=True)
        self._flush()
        return stream_id

    def status(self, stream_id: int) -> str | None:
        """The grpc-status of a call; None = the connection closed first."""
        while stream_id not in self._statuses:
            if not self._read():
                return None
        return self._statuses[stream_id]

    def call(self, path: str = "/t/Echo") -> str | None:
        """Make a call and return its status."""
        return self.status(self.send(path))

    def read_until_goaway(self) -> None:
        """Read until the server has announced its end."""
        while not self.goaways:
            assert self._read(), "closed without a GOAWAY"

    def read_to_end(self) -> None:
        """Read until the server closes."""
        while self._read():
            pass

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # the server has closed: found out when reading
            self.socket.sendall(self._h2.data_to_send())

    def _read(self) -> bool:
        try:
            data = self.socket.recv(65_536)
        except (ConnectionResetError, ssl.SSLError):
            return False
        if data and self._h2.want_read:
            self._h2.receive_data(data)
        for event in self._h2.events():
            if isinstance(event, ngh2.TrailersReceived | ngh2.ResponseReceived):
                status = dict(event.headers).get(b"grpc-status")
                if status is not None:
                    self._statuses[event.stream_id] = status.decode()
            elif isinstance(event, ngh2.GoAwayReceived):
                self.goaways += 1
        self._flush()
        return bool(data)


def connect(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> GrpcClient:
    """A client of *endpoint*."""
    return GrpcClient(dial(endpoint), tls)

"""
Compares the transports without decisions: a handler that returns its request, on both transports.

`python -m loadtest.bench.transport_null` prints the table; `decisions` measures complete decisions.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import uvloop

from loadtest.bench.processes import (
    RUN_TIMEOUT_S,
    SERVER_CORE,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    BenchError,
    RunningSidecar,
    h2load,
)
from loadtest.bench.report import Row, Section, to_markdown
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.reference import ReferenceGrpcServer
from sidecar.transports.server import Endpoint, ListeningServer, TransportLimits

PATH = "/bench.Null/Echo"
BODY = b"x" * 400  # about the size of Envoy's CheckRequest
CALLS = {"fast": 300_000, "grpcio": 20_000}
CONNECTIONS, STREAMS = 4, 32
ROUNDS = 3
TRANSPORTS: dict[str, type[ListeningServer]] = {"fast": FastGrpcServer, "grpcio": ReferenceGrpcServer}


def run() -> list[Section]:
    """Measure both transports in turn."""
    rates, costs = zip(*(_measure(transport) for transport in ("fast", "grpcio")), strict=True)
    return [
        Section(
            "The transport alone, unary calls per second, one process on one core",
            f"The handler returns its request of {len(BODY)} bytes. h2load on the other core, {CONNECTIONS}"
            f" connections × {STREAMS} streams, median of {ROUNDS} rounds. Beside it: grpc.aio.",
            [
                Row(
                    "calls", f"{rates[0]:,.0f}/s", f"{rates[1]:,.0f}/s", f"{rates[0] / rates[1]:.1f} × faster"
                ),
                Row(
                    "CPU per call",
                    f"{costs[0]:.1f} µs",
                    f"{costs[1]:.1f} µs",
                    f"{costs[1] / costs[0]:.1f} × less",
                ),
            ],
        )
    ]


def _measure(transport: str) -> tuple[float, float]:
    """Return calls per second and µs of processor time per call."""
    rates, costs = [], []
    calls = CALLS[transport]
    with _running(transport) as server:
        h2load(server.grpc, PATH, BODY, calls // 10, CONNECTIONS, STREAMS)
        for _ in range(ROUNDS):
            before_s = server.cpu_s()
            rates.append(h2load(server.grpc, PATH, BODY, calls, CONNECTIONS, STREAMS).calls_per_s)
            costs.append((server.cpu_s() - before_s) / calls * 1e6)
    return median(rates), median(costs)


@contextmanager
def _running(transport: str) -> Iterator[RunningSidecar]:
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", __spec__.name, transport]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            where = process.stdout.readline().strip()
            if not where:
                raise BenchError(f"the {transport} server did not start within {START_TIMEOUT_S:g} s")
            yield RunningSidecar(process.pid, where, "")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_TIMEOUT_S)


def _echo(request: bytes, call: UnaryCall) -> bytes:
    return request


async def _serve(transport: str) -> None:
    server = TRANSPORTS[transport](  # type: ignore[call-arg]  # a protocol has no constructor
        [UnaryMethod(PATH, _echo)], [Endpoint(host="127.0.0.1")], TransportLimits(), Metrics(TABLE)
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(*await server.start(), flush=True)
    async with asyncio.timeout(2 * ROUNDS * RUN_TIMEOUT_S):
        await stop.wait()
    await server.drain(1.0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(_serve(sys.argv[1]))
    else:
        print(to_markdown(run(), "python -m loadtest.bench.transport_null"))

"""Complete decisions by the real server: the fast transport against grpc.aio, same handlers, same core."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from loadtest.bench.processes import BenchError, Load, RunningSidecar, free_port, h2load, running_sidecar
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import CHECK, Place, check_request, write_place

CONNECTIONS, STREAMS = 4, 32
CALLS = {"fast": 150_000, "grpcio": 15_000}
LATENCY_CALLS = {"fast": 10_000, "grpcio": 3_000}
ROUNDS = 3


def run() -> list[Section]:
    """Measure throughput and latency of both transports, over TCP and over a Unix socket."""
    throughput: list[Row] = []
    latency: list[Row] = []
    for kind in ("TCP", "Unix socket"):
        measured = {transport: _measure(transport, kind) for transport in ("fast", "grpcio")}
        throughput += _throughput_rows(kind, measured["fast"], measured["grpcio"])
        latency += _latency_rows(kind, measured["fast"], measured["grpcio"])
    return [
        Section(
            "Full ext_authz decisions per second, one process on one core",
            "Key, allowlist of 50 entries, scope, bucket, headers, metrics; embedded store. h2load on the"
            f" other core, {CONNECTIONS} connections × {STREAMS} streams, median of {ROUNDS} rounds."
            " Beside it: the same service on `transport: grpcio`. Processor time is the server's own,"
            " user and system, so other programs on the machine disturb it least.",
            throughput,
        ),
        Section(
            "Latency of one call at a time",
            "The same, 1 connection × 1 stream, median of the rounds, as h2load sees it.",
            latency,
        ),
    ]


class _Measured:
    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.latencies: list[Load] = []
        self.cpus_us: list[float] = []

    @property
    def calls_per_s(self) -> float:
        return median(load.calls_per_s for load in self.loads)

    @property
    def cpu_us(self) -> float:
        return median(self.cpus_us)

    def latency_us(self, share: float) -> float:
        return median(load.percentile_us(share) for load in self.latencies)


def _measure(transport: str, kind: str) -> _Measured:
    measured = _Measured()
    with tempfile.TemporaryDirectory() as folder:
        grpc_at = f"127.0.0.1:{free_port()}" if kind == "TCP" else f"unix:{folder}/grpc.sock"
        place = write_place(Path(folder), grpc_at, f"127.0.0.1:{free_port()}", transport)
        body = check_request(place.keys[0].api_key)
        with running_sidecar(place.config, place.grpc, place.admin) as sidecar:
            confirm_allowed(place, body)
            for _ in range(ROUNDS):
                before, cpu_before_s = allowed(sidecar), sidecar.cpu_s()
                measured.loads.append(h2load(place.grpc, CHECK, body, CALLS[transport], CONNECTIONS, STREAMS))
                measured.cpus_us.append((sidecar.cpu_s() - cpu_before_s) * 1e6 / CALLS[transport])
                if allowed(sidecar) - before != CALLS[transport]:
                    raise BenchError("not every call was allowed, so the results are not comparable")
                measured.latencies.append(
                    h2load(place.grpc, CHECK, body, LATENCY_CALLS[transport], 1, 1, keep_latencies=True)
                )
    return measured


def allowed(sidecar: RunningSidecar) -> float:
    """Return the number of decisions with the verdict ALLOW."""
    return sidecar.metric('sidecar_decisions_total{reason="ok",verdict="ALLOW"}') or sidecar.metric(
        'sidecar_decisions_total{verdict="ALLOW",reason="ok"}'
    )


def confirm_allowed(place: Place, body: bytes) -> None:
    """
    Send one Check with a real gRPC client, and check that the answer is an allow with limits.

    Raises:
        BenchError: the answer is different.
    """
    with grpc.insecure_channel(place.grpc) as channel:
        response = CheckResponse.FromString(channel.unary_unary(CHECK, None, None)(body, timeout=5))
    if response.status.code != 0 or len(response.ok_response.response_headers_to_add) < 3:
        raise BenchError(f"the benchmark's request is not allowed: {response}")


def _throughput_rows(kind: str, fast: _Measured, reference: _Measured) -> list[Row]:
    ratio = fast.calls_per_s / reference.calls_per_s
    cpu_ratio = reference.cpu_us / fast.cpu_us
    rate = Row(kind, f"{fast.calls_per_s:,.0f}/s", f"{reference.calls_per_s:,.0f}/s", f"{ratio:.1f} × faster")
    cpu = Row(
        f"{kind}, processor time per call",
        f"{fast.cpu_us:.1f} µs",
        f"{reference.cpu_us:.0f} µs",
        f"{cpu_ratio:.1f} × less",
    )
    return [rate, cpu]


def _latency_rows(kind: str, fast: _Measured, reference: _Measured) -> list[Row]:
    rows = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = fast.latency_us(share), reference.latency_us(share)
        rows.append(
            Row(f"{kind}, {name}", f"{ours:,.0f} µs", f"{theirs:,.0f} µs", f"{theirs / ours:.1f} × lower")
        )
    return rows

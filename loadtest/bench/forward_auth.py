"""Forward auth for nginx: `/auth/nginx` against a FastAPI dependency that does the same, one core each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.bench.processes import (
    Load,
    RunningSidecar,
    free_port,
    h1load,
    running_sidecar,
)
from loadtest.bench.redis_sides import running_baseline, standalone
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import CLIENT_ADDRESS, Place, beside, write_place

CONNECTIONS = 64
CALLS = {"ours": 60_000, "baseline": 8_000}
LATENCY_CALLS = {"ours": 10_000, "baseline": 2_000}
ROUNDS = 3


@dataclass
class _Side:
    """A server, and what each round came to."""

    process: RunningSidecar
    url: str
    calls: int
    latency_calls: int
    loads: list[Load] = field(default_factory=list)
    latencies: list[Load] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)

    def play(self, headers: dict[str, str]) -> None:
        """One round: as fast as it answers, then one call at a time."""
        before_s = self.process.cpu_s()
        self.loads.append(h1load(self.url, headers, self.calls, CONNECTIONS))
        self.cpus_us.append((self.process.cpu_s() - before_s) * 1e6 / self.calls)
        self.latencies.append(h1load(self.url, headers, self.latency_calls, 1, keep_latencies=True))

    @property
    def calls_per_s(self) -> float:
        return median(load.calls_per_s for load in self.loads)

    @property
    def cpu_us(self) -> float:
        return median(self.cpus_us)

    def latency_us(self, share: float) -> float:
        return median(load.percentile_us(share) for load in self.latencies)


def run() -> list[Section]:
    """Measure requests per second and the latency of one call at a time, round by round in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = write_place(folder, "127.0.0.1:0", "127.0.0.1:0", "fast")
        headers = {
            "x-api-key": place.keys[0].api_key,
            "x-client-ip": CLIENT_ADDRESS,
            "x-original-method": "GET",
            "x-original-uri": "/v1/orders/42?expand=lines",
            "x-real-ip": CLIENT_ADDRESS,
            "user-agent": "bench/1",
            "accept": "*/*",
        }
        with (
            standalone(folder / "redis") as redis,
            _sidecar(place, "redis", store=redis.url) as ours,
            _sidecar(place, "embedded") as embedded,
            _baseline(place, redis.url) as baseline,
        ):
            for _ in range(ROUNDS):
                for side in (ours, baseline, embedded):
                    redis.client.flushall()
                    side.play(headers)
            return [_section(ours, embedded, baseline)]


@contextmanager
def _sidecar(place: Place, name: str, **settings: object) -> Iterator[_Side]:
    addresses = {kind: f"127.0.0.1:{free_port()}" for kind in ("grpc", "http", "admin")}
    here = beside(
        place, f"{name}.yaml", addresses["grpc"], addresses["admin"], **{**settings, "listen": addresses}
    )
    with running_sidecar(here.config, addresses["grpc"], addresses["admin"]) as process:
        yield _Side(process, f"http://{addresses['http']}/auth/nginx", CALLS["ours"], LATENCY_CALLS["ours"])


@contextmanager
def _baseline(place: Place, redis_url: str) -> Iterator[_Side]:
    with running_baseline("fastapi_sidecar", place, redis_url) as process:
        url = f"http://{process.grpc}/auth/nginx"
        yield _Side(process, url, CALLS["baseline"], LATENCY_CALLS["baseline"])


def _section(ours: _Side, embedded: _Side, baseline: _Side) -> Section:
    rows = [
        _rate("with Redis", ours, baseline),
        _rate("embedded store", embedded, baseline),
        Row(
            "processor time of a request, with Redis",
            f"{ours.cpu_us:.1f} µs",
            f"{baseline.cpu_us:.0f} µs",
            f"{baseline.cpu_us / ours.cpu_us:.1f} × less",
        ),
    ]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        one, other = ours.latency_us(share), baseline.latency_us(share)
        rows.append(
            Row(
                f"one call at a time, {name}",
                f"{one:,.0f} µs",
                f"{other:,.0f} µs",
                f"{other / one:.1f} × lower",
            )
        )
        alone = embedded.latency_us(share)
        rows.append(Row(f"one call at a time, embedded, {name}", f"{alone:,.0f} µs", "", ""))
    return Section(
        "Forward auth for nginx: requests per second, one process on one core",
        "`/auth/nginx`: key, allowlist of 50 entries, scope, bucket, headers, metrics. Beside it:"
        " `loadtest/baselines/fastapi_sidecar.py`, a FastAPI dependency on uvicorn with uvloop and httptools"
        " that makes the same decision with redis-py and one EVALSHA. h2load and Redis share the other core;"
        f" {CONNECTIONS} connections, median of {ROUNDS} rounds in turn.",
        rows,
    )


def _rate(name: str, side: _Side, baseline: _Side) -> Row:
    ratio = side.calls_per_s / baseline.calls_per_s
    return Row(name, f"{side.calls_per_s:,.0f}/s", f"{baseline.calls_per_s:,.0f}/s", f"{ratio:.1f} × faster")

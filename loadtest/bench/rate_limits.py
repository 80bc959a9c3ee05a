"""Envoy's rate-limit service: ShouldRateLimit beside ext_authz on the same server, and on grpc.aio."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from loadtest.bench.processes import free_port, h2load, running_sidecar
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import CHECK, beside, check_request, write_place

SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
CONNECTIONS, STREAMS = 4, 32
CALLS = {"fast": 100_000, "grpcio": 12_000}
ROUNDS = 3
FILE = """\
domain: shop
descriptors:
  - key: plan
    value: gold
    descriptors:
      - key: user
        rate_limit: {unit: hour, requests_per_unit: 4000000000}
"""


def run() -> list[Section]:
    """Measure calls per second and processor time, round by round in turn."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "limits").mkdir()
        (folder / "limits" / "shop.yaml").write_text(FILE)
        place = write_place(folder, "127.0.0.1:0", "127.0.0.1:0", "fast")
        check = check_request(place.keys[0].api_key)
        rates: dict[tuple[str, str], list[float]] = {}
        cpus_us: dict[tuple[str, str], list[float]] = {}
        sidecars = {}
        for transport in CALLS:
            grpc, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
            here = beside(place, f"{transport}.yaml", grpc, admin, transport=transport, rate_limits="limits")
            sidecars[transport] = stack.enter_context(running_sidecar(here.config, grpc, admin))
        for _ in range(ROUNDS):
            for transport, sidecar in sidecars.items():
                for method, body in ((SHOULD_RATE_LIMIT, limit_request()), (CHECK, check)):
                    calls, before_s = CALLS[transport], sidecar.cpu_s()
                    load = h2load(sidecar.grpc, method, body, calls, CONNECTIONS, STREAMS)
                    key = transport, method
                    rates.setdefault(key, []).append(load.calls_per_s)
                    cpus_us.setdefault(key, []).append((sidecar.cpu_s() - before_s) * 1e6 / calls)
    ours = "fast", SHOULD_RATE_LIMIT
    rows = []
    for text, other in (
        ("beside ext_authz on the same server", ("fast", CHECK)),
        ("beside `transport: grpcio`", ("grpcio", SHOULD_RATE_LIMIT)),
    ):
        one, two = median(rates[ours]), median(rates[other])
        rows.append(Row(text, f"{one:,.0f}/s", f"{two:,.0f}/s", f"{one / two:.1f} ×"))
        cpu, other_cpu = median(cpus_us[ours]), median(cpus_us[other])
        rows.append(
            Row(
                f"processor time, {text}",
                f"{cpu:.1f} µs",
                f"{other_cpu:.1f} µs",
                f"{other_cpu / cpu:.1f} × less",
            )
        )
    return [
        Section(
            "Envoy's rate-limit service: ShouldRateLimit calls per second, one process on one core",
            "One descriptor of two entries, a fixed window of an hour, embedded store;"
            f" h2load on the other core, {CONNECTIONS} connections × {STREAMS} streams,"
            f" median of {ROUNDS} rounds in turn.",
            rows,
        )
    ]


def limit_request() -> bytes:
    """A ShouldRateLimit as Envoy sends it."""
    request = RateLimitRequest(domain="shop", hits_addend=1)
    descriptor = request.descriptors.add()
    for key, value in (("plan", "gold"), ("user", "4711")):
        descriptor.entries.add(key=key, value=value)
    message: bytes = request.SerializeToString()
    return message

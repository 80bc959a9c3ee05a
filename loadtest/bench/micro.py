"""
The processor time of each step of a decision: parse, evaluate, take, render; in-process, without sockets.

`python -m loadtest.bench.micro` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time_ns

from loadtest.bench.report import Row, Section
from loadtest.bench.workload import BURST, CLIENT_ADDRESS, check_request
from sidecar.domain.answers import AnswerStyle, Decision
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.cidr import parse_cidr
from sidecar.domain.client_address import ClientHeader
from sidecar.domain.credential_sources import CredentialSources
from sidecar.domain.integrations import Credential, Integration
from sidecar.domain.policy import Policy, Route
from sidecar.domain.route_readings import RouteReadings
from sidecar.domain.routes import parse_route_path
from sidecar.domain.scopes import Scope, ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.services.decider import Decider
from sidecar.services.ext_authz import ExtAuthzService
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.embedded import EmbeddedBucketStore

REPEATS = 20_000
ROUNDS = 7


class _NoCall:
    """A call with only the attributes that the service reads."""

    deadline_s = None


def run() -> list[Section]:
    """Measure each step of an allowed decision, and its share of the total."""
    key = generate_api_key()
    store = EmbeddedBucketStore()
    snapshot = Snapshot.compile([_integration(key.credential_id, key.digest)])
    policy = _policy()
    decider = Decider(policy, snapshot, store, Metrics(TABLE))
    service = ExtAuthzService(decider, AnswerStyle())
    message = check_request(key.api_key)
    request = service.read(message)
    buckets = snapshot.integrations["bench"].buckets
    decision = decider.decide(request, None, lambda decision, context: None, None)
    assert isinstance(decision, Decision)
    assert decision.reason.label == "ok"
    steps: list[tuple[str, Callable[[], object]]] = [
        (
            "parse: CheckRequest to AccessRequest",
            lambda: service.read(message),
        ),
        (
            "evaluate: key, allowlist, path, scope",
            lambda: policy.evaluate(request, snapshot, wall_clock_us()),
        ),
        ("take: embedded bucket", lambda: store.take_now(buckets, 1)),
        ("render: Decision to CheckResponse", lambda: service.render(decision, request)),
    ]
    call = _NoCall()
    whole = _time_us(lambda: service.check(message, call))  # type: ignore[arg-type]
    rows = [Row("whole Check, bytes to bytes", f"{whole:.2f} µs", ratio="100 %")]
    timed = [(name, _time_us(step)) for name, step in steps]
    rows += [Row(name, f"{cost:.2f} µs", ratio=f"{cost / whole:.0%}") for name, cost in timed]
    rest = whole - sum(cost for _, cost in timed)
    rows.append(Row("rest: metrics, decision id, glue", f"{rest:.2f} µs", ratio=f"{rest / whole:.0%}"))
    return [
        Section(
            "Steps of one decision",
            f"An allowed Check with a 50-entry allowlist; processor time, median of {ROUNDS} × {REPEATS:,}"
            " repeats, loop overhead subtracted. Shares are of the whole Check without its transport.",
            rows,
        )
    ]


def _time_us(step: Callable[[], object]) -> float:
    empty = median(_round_ns(_nothing) for _ in range(ROUNDS))
    return (median(_round_ns(step) for _ in range(ROUNDS)) - empty) / REPEATS / 1_000


def _round_ns(step: Callable[[], object]) -> int:
    started = process_time_ns()
    for _ in range(REPEATS):
        step()
    return process_time_ns() - started


def _nothing() -> None:
    return None


def _integration(credential_id: str, digest: str) -> Integration:
    networks = [f"10.{number}.{number * 3}.0/24" for number in range(49)]
    return Integration(
        id="bench",
        name="Benchmark",
        scopes=frozenset({Scope("orders", "read")}),
        rate_limit_rpm=10_000,
        burst=BURST,
        ip_allowlist=tuple(parse_cidr(text) for text in [*networks, f"{CLIENT_ADDRESS}/32"]),
        credentials=(Credential(credential_id, digest),),
    )


def _policy() -> Policy:
    catalogue = ScopeCatalogue()
    routes = [
        (frozenset({"GET"}), parse_route_path("/v1/orders/{id}"), Route(catalogue.parse("orders:read"))),
        (frozenset({"GET"}), parse_route_path("/v1/inventory/**"), Route(catalogue.parse("inventory:read"))),
    ]
    return Policy(CredentialSources(), ClientHeader("x-client-ip"), RouteReadings(routes), catalogue)


if __name__ == "__main__":
    for row in run()[0].rows:
        print(f"{row.what:42} {row.figure:>10} {row.ratio:>6}")

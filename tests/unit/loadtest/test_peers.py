"""Peers: a program that reads what envoyproxy/ratelimit reads is started, driven and measured."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic_ns

import pytest

from loadtest.harness.drivers import Job, carry_out
from loadtest.harness.peers import FIGURES, PEERS, RATE, REDIS_CPU, Rounds, find_programs, staged_peer, table
from loadtest.harness.results import Collected
from loadtest.harness.run import rules_of
from loadtest.harness.scenario import ScenarioError, load_scenario

STUB = f"""#!{sys.executable}
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import grpc
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

files = Path(os.environ["RUNTIME_ROOT"], os.environ["RUNTIME_SUBDIRECTORY"], "config")
assert "requests_per_unit" in next(files.glob("*.yaml")).read_text()
assert ":" in os.environ["REDIS_URL"]

class Service(rls_pb2_grpc.RateLimitServiceServicer):
    def ShouldRateLimit(self, request, context):
        return rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OK)

server = grpc.server(ThreadPoolExecutor(2))
rls_pb2_grpc.add_RateLimitServiceServicer_to_server(Service(), server)
server.add_insecure_port(f"{{os.environ['GRPC_HOST']}}:{{os.environ['GRPC_PORT']}}")
server.start()
server.wait_for_termination()
"""


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """A program in the place of a peer."""
    path = tmp_path / "ratelimit"
    path.write_text(STUB)
    path.chmod(0o755)
    return str(path)


def test_peers__what_is_missing_is_said(stub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is given, or on PATH, or missing; a wrong name or path is refused."""
    monkeypatch.setenv("PATH", str(Path(stub).parent))
    assert find_programs([])[0] == {"ratelimit": stub}
    [missing] = find_programs([])[1]
    assert "--peer limitador-server=PATH" in missing
    assert find_programs([f"limitador-server={stub}"])[1] == []
    for wrong in ("other=/bin/true", "ratelimit=/nowhere", "ratelimit"):
        with pytest.raises(ScenarioError, match="must be NAME=PATH"):
            find_programs([wrong])


def test_peers__a_peer_is_driven_by_the_scenario(stub: str, tmp_path: Path) -> None:
    """It is started with its settings and a Redis of its own, and its processes are measured."""
    scenario = load_scenario("peers", ["load.duration_s=0.3", "oracle={headers=false, exclusive=false}"])
    collected = Collected(0.0)
    with staged_peer(PEERS[0], stub, scenario, tmp_path) as stage:
        job = Job(scenario, stage.keys, stage.targets, rules_of(scenario), 0, 1, ())
        tally = carry_out(job, collected.add, monotonic_ns)
        assert set(stage.groups()) == {"server", "redis"}
    assert set(collected.totals) == {(0, 200)}
    assert tally.admitted[0] == collected.totals.total() > 0


def test_peers__the_table_has_medians_and_gaps() -> None:
    """A server without Redis has no figure for it."""
    rounds: Rounds = {figure: {} for figure in FIGURES}
    rounds[RATE] = {"a": [900.0, 1.0, 1_000.0], "b": [5.0]}
    rounds[REDIS_CPU] = {"a": [2.0]}
    head, first, second = table(rounds)
    assert dict(zip(head, first, strict=True))[RATE] == "900"
    assert dict(zip(head, second, strict=True))[REDIS_CPU] == "–"

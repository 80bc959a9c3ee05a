"""The oracle: a real load on a server that breaks one promise fails the run, and an honest one passes."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic_ns, time
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from loadtest.bench.workload import CHECK
from loadtest.driver.targets import parse_target
from loadtest.harness.drivers import Job, carry_out
from loadtest.harness.oracle import (
    Admission,
    Verdict,
    admissions,
    growth_faults,
    judge,
    normal_again_s,
    outages_of,
)
from loadtest.harness.results import Collected
from loadtest.harness.run import rules_of
from loadtest.harness.scenario import Scenario
from loadtest.harness.suspensions import Suspension, Suspensions, judge_suspensions
from loadtest.harness.tally import SECOND_NS, UNAVAILABLE_NS, Tally
from loadtest.harness.usage import Sample
from loadtest.harness.workload import make_keys
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import Endpoint, TransportLimits
from tests.building import make_metrics
from tests.conformance.transport.background import BackgroundLoop

RPM, BURST = 600, 5
SCENARIO = Scenario(
    load={"rate_per_s": 400, "duration_s": 0.6, "warm_up_s": 0},
    connections={"connections": 2, "answer_timeout_s": 0.3},
    traffic={"integrations": 4, "unknown_keys": 5, "mix": {"valid": 0.9, "unknown": 0.1}},
    limits={"rpm": RPM, "burst": BURST},
    target={"address": "127.0.0.1:1", "keys": "unused"},
)
KEYS = make_keys(SCENARIO)


class FakeServer:
    """An ext_authz server with one token bucket for each key, which breaks the promise *fault*."""

    def __init__(self, fault: str) -> None:
        """Start with full buckets."""
        self._fault = fault
        self._full_s: dict[str, float] = {}

    def check(self, message: bytes, call: UnaryCall) -> bytes | None:
        """Answer one Check."""
        fault, interval_s, now_s = self._fault, 60 / RPM, time()
        if fault == "silent":
            return None
        key = CheckRequest.FromString(message).attributes.request.http.headers["x-api-key"]
        response = CheckResponse()
        if key in KEYS.unknown and fault != "lets anyone in":
            response.status.code = 16
            response.denied_response.status.code = 403
            return bytes(response.SerializeToString())
        full_s = max(self._full_s.get(key, 0.0), now_s)
        is_admitted = full_s + interval_s - now_s <= BURST * interval_s
        if fault == "admits too many":
            is_admitted = True
        elif fault == "refuses everyone":
            is_admitted = False
        if is_admitted:
            full_s = self._full_s[key] = min(full_s + interval_s, now_s + BURST * interval_s)
            headers = response.ok_response.response_headers_to_add
            response.ok_response.SetInParent()
        else:
            response.status.code = 8
            response.denied_response.status.code = 429
            headers = response.denied_response.headers
        reset_s = math.ceil(full_s) - (60 if fault == "reset lies" else 0)
        values = {"limit": RPM, "remaining": int((BURST * interval_s - full_s + now_s) / interval_s)}
        for name, value in {**values, "reset": reset_s}.items():
            if not (fault == "omits headers" and name == "reset"):
                option = headers.add()
                option.header.key, option.header.value = f"x-ratelimit-{name}", str(max(0, value))
        return bytes(response.SerializeToString())


@contextmanager
def serving(check: Callable[[bytes, UnaryCall], bytes | None]) -> Iterator[str]:
    """The address of a server that answers with *check*."""
    loop = BackgroundLoop()
    methods, metrics = [UnaryMethod(CHECK, check)], make_metrics()
    server = loop.call(
        lambda: FastGrpcServer(methods, [Endpoint(host="127.0.0.1")], TransportLimits(), metrics)
    )
    try:
        [endpoint] = loop.run(server.start())
        yield str(endpoint)
    finally:
        loop.run(server.drain(0.1))
        loop.close()


def judged(fault: str, scenario: Scenario = SCENARIO) -> Verdict:
    """The verdict on a run against a server with *fault*."""
    collected = Collected(0.0)
    with serving(FakeServer(fault).check) as address:
        job = Job(scenario, KEYS, [parse_target(address)], rules_of(scenario), 0, 1, ())
        tally = carry_out(job, collected.add, monotonic_ns)
    admitted = admissions(scenario, tally, time() - monotonic_ns() / 1e9)
    return judge(scenario, tally, collected.totals, admitted, Suspensions(), [])


def test_oracle__an_honest_server_passes() -> None:
    """Each integration asks for ten times its limit, and gets exactly that."""
    assert judged("").faults == []


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("admits too many", "more requests were admitted than the limit allows"),
        ("refuses everyone", "requests were refused although tokens were left"),
        ("omits headers", "missing header"),
        ("reset lies", "reset in the past"),
        ("lets anyone in", "a request of kind unknown got status 200"),
        ("silent", "no call was answered"),
    ],
)
def test_oracle__a_broken_promise_fails_the_run(fault: str, what: str) -> None:
    """The fault is named."""
    found = [fault.what for fault in judged(fault).faults]
    assert any(what in text for text in found), found


def changed(**sections: Any) -> Scenario:
    """The scenario without a target, and with other sections."""
    return Scenario(**{**SCENARIO.model_dump(), "target": None, **sections})


def tally_of(admitted: int, refused: int = 0, span_s: float = 60.0) -> Tally:
    """The tally of one integration."""
    tally = Tally.empty(1)
    tally.admitted[0], tally.refused[0] = admitted, refused
    tally.first_ns[0], tally.last_ns[0] = 10**9, int((1 + span_s) * 1e9)
    return tally


def faults_of(scenario: Scenario, tally: Tally, totals: Counter[tuple[int, int]]) -> list[str]:
    """What the oracle says."""
    verdict = judge(
        scenario, tally, totals, admissions(scenario, tally, 0.0), Suspensions(), outages_of(scenario)
    )
    return [fault.what for fault in verdict.faults]


@pytest.mark.parametrize(("admitted", "is_right"), [(RPM + BURST, True), (RPM + BURST + 1, False)])
def test_oracle__one_request_too_many_is_too_many(admitted: int, is_right: bool) -> None:
    """In 60 s a bucket of 600 per minute and a burst of 5 admits 605."""
    totals = Counter({(0, 200): admitted})
    assert (faults_of(changed(), tally_of(admitted), totals) == []) == is_right


@pytest.mark.parametrize(("first_s", "windows"), [(0.0, 2), (30.0, 2), (59.5, 3)])
def test_oracle__fixed_windows_begin_on_the_time_of_day(first_s: float, windows: int) -> None:
    """A run of a minute touches two windows, or three."""
    limits = {"rpm": 100, "algorithm": "fixed_window", "unit": "minute"}
    scenario = changed(protocol="rls", limits=limits, traffic={"integrations": 1})
    [found] = admissions(scenario, tally_of(1, span_s=61.0 if windows == 3 else 60.0), first_s - 1)
    assert found == Admission(0, 1, 1, 0, 100.0 * windows, 100.0 * windows)


def test_oracle__a_store_that_is_gone_explains_503_only_then() -> None:
    """Before the outage, and after the time to recover, 503 is a fault."""
    events = [{"at_s": 10, "do": "pause-redis"}, {"at_s": 15, "do": "resume-redis"}]
    scenario = changed(sidecar={"store": "redis"}, events=events)
    assert outages_of(scenario) == [(10, 18)]
    totals = Counter({(0, 200): 100, (0, 503): 50})
    for second, is_right in ((5, False), (12, True), (17, True), (25, False)):
        tally = tally_of(100)
        tally.unavailable[second * SECOND_NS // UNAVAILABLE_NS] = 50
        assert (faults_of(scenario, tally, totals) == []) == is_right, second
    assert any(
        "did not happen" in text for text in faults_of(scenario, tally_of(100), Counter({(0, 200): 100}))
    )


def test_oracle__a_successor_may_give_one_burst_again() -> None:
    """For each failover a bucket may admit its burst once more; for what is refused, no failover counts."""
    scenario = changed(sidecar={"store": "sentinel"})
    tally = tally_of(RPM + 2 * BURST)
    [without], [once] = (admissions(scenario, tally, 0.0, failovers) for failovers in (0, 1))
    assert (without.most, once.most, once.nominal) == (RPM + BURST, RPM + 2 * BURST, RPM + BURST)
    for admitted, is_right in ((without, False), (once, True)):
        verdict = judge(scenario, tally, Counter({(0, 200): 1}), [admitted], Suspensions(), [])
        assert verdict.is_right == is_right


def test_oracle__an_outage_ends_with_its_last_503() -> None:
    """A store that is late once more, seconds later, does not prolong it."""
    tally = tally_of(1)
    for at_s in (3.0, 10.2, 10.6, 11.0, 14.0):
        tally.unavailable[int(at_s * SECOND_NS // UNAVAILABLE_NS)] += 1
    assert normal_again_s(tally, 10.0) == 11.0
    assert normal_again_s(tally, 5.0) == 5.0


CALLED_NS, COMMITTED_NS = 1_000, 2_000
LATER_NS = 2_000_000_000


def suspended(*calls: tuple[int, int, int, int], **changes: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """The judgment on integration 7 with *calls*: target, when sent and read, status."""
    watched = array("q", (value for call in calls for value in (7, *call)))
    made = Suspension(**{"integration": 7, "called_ns": CALLED_NS, "committed_ns": COMMITTED_NS, **changes})
    return judge_suspensions(Suspensions([made]), watched, targets=2)


def test_suspensions__only_what_is_sent_after_the_commit_is_judged() -> None:
    """A request that was sent before may be admitted; of later ones, each that is let in is counted."""
    before = [(0, 900, 3_000, 200), (1, 1_990, 2_500, 403)]
    figures, wrong = suspended(*before, (0, 2_001, 2_100, 403), (1, LATER_NS, LATER_NS + 9, 403))
    assert (wrong, figures["sent_after"], figures["admitted_after"]) == ({}, 2, 0)
    assert figures["commit_ms"]["max"] == 0.001
    assert figures["denial_ms"]["max"] == round(500 / 1e6, 3), "the later one of the first denials"
    for status in (200, 429):
        figures, wrong = suspended(*before, (0, 2_001, 2_100, status), (1, LATER_NS, LATER_NS + 9, 403))
        assert (list(wrong.values()), figures["admitted_after"]) == ([1], 1)


@pytest.mark.parametrize(
    ("calls", "changes", "what"),
    [
        ([(0, 900, 950, 403), (0, 2_001, 2_100, 403)], {}, "denied before"),
        ([(0, 900, 950, 200), (0, 1_500, LATER_NS, 200)], {}, "sent nothing"),
        ([(0, 2_001, 2_100, 200)], {"lacks_replicas": True}, "no suspension was made"),
        ([(0, 2_001, 2_100, 403)], {}, ""),
    ],
)
def test_suspensions__a_run_that_proves_nothing_fails(
    calls: list[tuple[int, int, int, int]], changes: dict[str, Any], what: str
) -> None:
    """Denied too early, not called after the commit, or not promised to last."""
    wrong = suspended(*calls, **changes)[1]
    assert [what in text for text in wrong] == [True] * bool(what)


FLAT_MB = [50.0, 60.0, 60.5, 60.1, 60.4, 60.2, 60.3, 60.1, 60.2]
FDS = [20, 24, 21, 21, 22, 21, 21, 21, 21]


@pytest.mark.parametrize(
    ("rss_mb", "fds", "what"),
    [
        (FLAT_MB, FDS, []),
        ([50.0 + number for number in range(9)], FDS, ["memory of sidecar grew by 6.0 MB"]),
        (FLAT_MB, list(range(20, 29)), ["descriptors of sidecar grew by 6.0"]),
        ([50.0], [20], []),
    ],
    ids=["flat", "memory", "descriptors", "one moment"],
)
def test_oracle__a_leak_is_found(rss_mb: list[float], fds: list[int], what: list[str]) -> None:
    """What rises during the warm-up, and what jumps up and down, is no leak; what rises steadily is."""
    pairs = enumerate(zip(rss_mb, fds, strict=True))
    samples = [Sample(float(at_s), 0.0, 0.0, int(rss * 1e6), count) for at_s, (rss, count) in pairs]
    found = [fault.what for fault in growth_faults(SCENARIO, {"sidecar": samples})]
    assert [text.removesuffix(" after the warm-up") for text in found] == what

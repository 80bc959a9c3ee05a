"""The load generator against the real transport: it sends what it was told to and counts what comes back."""

from __future__ import annotations

import gc
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from loadtest.bench.replay import Manner, Run, WireError, carry_out, is_allow, typical_latencies_us
from loadtest.bench.workload import zipf_picks
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import Endpoint, TransportLimits
from tests.building import make_metrics
from tests.conformance.transport.background import BackgroundLoop

METHOD = "/bench.Service/Call"


def allow() -> bytes:
    """An answer that allows."""
    response = CheckResponse()
    response.status.code = 0
    response.ok_response.SetInParent()
    return bytes(response.SerializeToString())


def denial() -> bytes:
    """An answer that denies."""
    response = CheckResponse()
    response.status.code = 7
    response.denied_response.SetInParent()
    return bytes(response.SerializeToString())


@contextmanager
def serving(answers: dict[bytes, bytes]) -> Iterator[tuple[str, Counter[bytes]]]:
    """A server that answers each message by *answers*; where it listens, and what it was asked how often."""
    asked: Counter[bytes] = Counter()

    def handle(message: bytes, call: UnaryCall) -> bytes:
        asked[message] += 1
        return answers[message]

    loop = BackgroundLoop()
    server = loop.call(
        lambda: FastGrpcServer(
            [UnaryMethod(METHOD, handle)], [Endpoint(host="127.0.0.1")], TransportLimits(), make_metrics()
        )
    )
    try:
        [endpoint] = loop.run(server.start())
        yield str(endpoint), asked
    finally:
        loop.run(server.drain(5.0))
        loop.close()


def test_replay__closed_loop_sends_each_message_as_often_as_it_is_picked() -> None:
    """Every call is answered, over all connections, and the picks are followed round and round."""
    messages = [b"a", b"bb", b"ccc"]
    with serving(dict.fromkeys(messages, allow())) as (target, asked):
        replayed = carry_out(Run(target, METHOD, 1_000, 3, 8), messages, array("I", [0, 1, 0, 2]))
    assert asked == {b"a": 500, b"bb": 250, b"ccc": 250}
    assert (replayed.calls, replayed.latencies_us, replayed.typical_us) == (1_000, {}, {})
    assert replayed.calls_per_s > 0


def test_replay__open_loop_measures_every_call_from_its_due_moment() -> None:
    """All calls are answered, and the percentiles are in order."""
    with serving({b"a": allow()}) as (target, asked):
        replayed = carry_out(Run(target, METHOD, 300, 2, 1, 3_000.0), [b"a"], array("I", [0]))
    assert asked == {b"a": 300}
    for figures_us in (replayed.latencies_us, replayed.typical_us):
        p50, p99, p999 = (figures_us[share] for share in ("0.5", "0.99", "0.999"))
        assert 0 < p50 <= p99 <= p999


def test_replay__what_is_typical_is_the_median_over_tenths_of_a_second() -> None:
    """A tenth in which all stood still is one of many."""
    tenth_ns, us = 100_000_000, 1_000
    calls = [
        *((0, 10 * us), (1, 20 * us)),
        *((tenth_ns, 9_000 * us), (tenth_ns + 1, 9_000 * us)),
        *((2 * tenth_ns, 30 * us), (2 * tenth_ns + 1, 40 * us)),
    ]
    assert typical_latencies_us(calls) == {"0.5": 40.0, "0.99": 40.0, "0.999": 40.0}


def test_replay__open_loop_keeps_no_latency_of_the_warm_up() -> None:
    """Calls due in the warm-up are made and answered, but only later ones count."""
    with serving({b"a": allow()}) as (target, asked):
        run = Run(target, METHOD, 300, 2, 1, 3_000.0, warm_up_s=60.0)
        replayed = carry_out(run, [b"a"], array("I", [0]))
    assert asked == {b"a": 300}
    assert (replayed.latencies_us, replayed.typical_us) == ({}, {})


def timer_slack_ns() -> int:
    """How late timers of this process may fire."""
    return int(Path("/proc/self/timerslack_ns").read_text())


@pytest.mark.parametrize("manner", Manner)
def test_replay__every_manner_makes_all_calls_and_leaves_the_process_as_it_was(manner: Manner) -> None:
    """Priority, timers and garbage collection are those from before, however the core was shared."""
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), timer_slack_ns()
    with serving({b"a": allow()}) as (target, asked):
        run = Run(target, METHOD, 50, 1, 1, 5_000.0, manner=manner)
        replayed = carry_out(run, [b"a"], array("I", [0]))
    assert asked == {b"a": 50}
    assert replayed.latencies_us["0.5"] > 0
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), timer_slack_ns()) == before
    assert gc.isenabled()


@pytest.mark.parametrize("rate_per_s", [0.0, 5_000.0])
def test_replay__one_denial_fails_the_load(rate_per_s: float) -> None:
    """A single answer that is no allow among hundreds is not passed over."""
    answers = {b"good": allow(), b"bad": denial()}
    picks = array("I", [0] * 199 + [1])
    with (
        serving(answers) as (target, _),
        pytest.raises(WireError, match="an answer is not what this load must get"),
    ):
        carry_out(Run(target, METHOD, 400, 2, 4, rate_per_s), list(answers), picks)


@pytest.mark.parametrize(("late", "calls"), [(1, 100), (2, 200)])
def test_replay__a_store_that_was_late_now_and_then_is_counted(late: int, calls: int) -> None:
    """A machine can hold up any program for 50 ms: up to one call in a hundred is told, not hidden."""
    answers = {b"good": allow(), b"late": denial() + b"store_unavailable"}
    picks = array("I", [0] * (calls // late - 1) + [1])
    with serving(answers) as (target, _):
        replayed = carry_out(Run(target, METHOD, calls, 1, 4), list(answers), picks)
    assert (replayed.calls, replayed.late) == (calls, late)


def test_replay__a_store_that_was_late_often_fails_the_load() -> None:
    """Then the figures would be those of an overloaded machine."""
    answers = {b"good": allow(), b"late": denial() + b"store_unavailable"}
    picks = array("I", [0] * 49 + [1])
    with serving(answers) as (target, _), pytest.raises(WireError, match="late for 4 of 200 calls"):
        carry_out(Run(target, METHOD, 200, 2, 4), list(answers), picks)


def test_is_allow__reads_a_check_response() -> None:
    """Status 0 with an ok_response; anything that Envoy would not let through is no allow."""
    assert is_allow(allow())
    assert not is_allow(denial())
    assert not is_allow(CheckResponse().SerializeToString())


def test_zipf__draws_by_rank() -> None:
    """Number k is drawn in proportion to 1 / (k + 1), the same draws every time."""
    picks = zipf_picks(100, 50_000)
    counts = Counter(picks)
    assert picks == zipf_picks(100, 50_000)
    assert set(counts) <= set(range(100))
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)

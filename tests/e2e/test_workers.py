"""Several worker processes behind one address: crashes, rolling restarts and drains under load."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.demo.envoy import TCP_CONFIG, UNIX_CONFIG, Document, cluster, running_envoy
from deploy.demo.sidecar import ReservedPort, write_registry
from deploy.demo.upstream import running_upstream
from sidecar.cli.exits import EXIT_REFUSED, EXIT_USAGE
from tests.e2e.conftest import GRPCIO
from tests.e2e.stack import wait_long
from tests.e2e.steady_load import SteadyLoad
from tests.e2e.workers import (
    CALLERS,
    CRASHED,
    DECISIONS,
    NOT_ROLLED,
    WORKERS,
    Callers,
    Scraper,
    Supervised,
    is_gone,
    make_owner,
    send_signal,
)
from tests.redis_servers import free_port
from tests.waiting import eventually

CALLS = 40
KILLS = 2
REQUESTS = 150


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="sidecar-workers-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def port() -> Iterator[int]:
    """A TCP port that the workers of one test have for themselves."""
    reserved = ReservedPort()
    yield reserved.number
    reserved.close()


@pytest.fixture
def supervised(folder: Path, port: int) -> Iterator[Supervised]:
    """Two workers on one TCP port."""
    with Supervised(folder, f"127.0.0.1:{port}", make_owner(), drain_timeout_s=5.0) as running:
        yield running


@pytest.fixture
def unix_supervised(folder: Path) -> Iterator[Supervised]:
    """Two workers, each on a separate Unix socket."""
    with Supervised(folder, f"unix:{folder}/grpc.sock", make_owner(), drain_timeout_s=5.0) as running:
        yield running


def unix_addresses(folder: Path) -> list[str]:
    """Where each worker listens when the configuration says grpc.sock."""
    return [f"unix:{folder}/grpc.{index}.sock" for index in range(WORKERS)]


def test_crash__costs_the_calls_under_way_and_no_count(supervised: Supervised, port: int) -> None:
    """
    kill -9 a worker under load, each worker in turn.

    The others go on, it is replaced, and no counter ever falls. A caller has one call under way, so a
    kill costs it at most that one; such a call may have been counted although its answer was lost:
    decisions are between the answers and the answers + the calls without one.
    """
    with Callers([f"127.0.0.1:{port}"], supervised.owner, is_patient=True) as callers:
        callers.await_more(CALLS)
        with Scraper(supervised) as scraper:
            for kill in range(KILLS):
                supervised.kill_worker(kill % WORKERS)
                callers.await_more(CALLS)
    assert len(callers.faults) <= KILLS * CALLERS
    assert callers.answered <= supervised.metric(DECISIONS) <= callers.answered + len(callers.faults)
    assert (scraper.fallen, supervised.metric(CRASHED)) == ([], KILLS)
    assert scraper.scrapes > KILLS


def test_crash__the_neighbors_notice_nothing(unix_supervised: Supervised) -> None:
    """
    On sockets of their own it shows exactly whose calls a crash costs.

    Callers of the other worker lose no call, and those of the killed one at most the one under way;
    they are served again as soon as the socket is back, under the same name.
    """
    with Callers(unix_addresses(unix_supervised.folder), unix_supervised.owner, is_patient=True) as callers:
        callers.await_more(CALLS)
        before = unix_supervised.pids()
        unix_supervised.kill_worker(0)
        callers.await_more(CALLS)
    after = unix_supervised.pids()
    assert (after[0] != before[0], after[1]) == (True, before[1])
    lost = [caller for caller, _ in callers.faults]
    assert all(caller % WORKERS == 0 for caller in lost), callers.faults
    assert len(lost) == len(set(lost))
    assert callers.answered <= unix_supervised.metric(DECISIONS) <= callers.answered + len(lost)


def test_crash__a_worker_that_cannot_start_does_not_take_the_others_along(supervised: Supervised) -> None:
    """
    A crash that meets a broken registry: degraded, tried again with back-off, whole again by itself.

    The workers that run keep the registry that they have.
    """
    good = supervised.registry.read_text()
    supervised.registry.write_text("integrations: [")
    send_signal(supervised.pids()[0], signal.SIGKILL)
    series = 'sidecar_worker_restarts_total{reason="start_failed"}'
    eventually(lambda: supervised.metric(series) >= 2, what="starts that failed")
    assert supervised.status() == "degraded"
    states = supervised.admin("/readyz").json()["components"]
    assert states["worker 1"] == {"is_ready": True, "state": "ready"}
    assert not states["worker 0"]["is_ready"]
    supervised.registry.write_text(good)
    eventually(lambda: supervised.status() == "ready", what="the worker starts at last")
    assert supervised.metric("sidecar_workers_running") == WORKERS


def test_crash__a_standing_event_loop_counts_as_one(folder: Path, port: int) -> None:
    """A worker that is stopped keeps its connections and answers none: it is ended and replaced."""
    with Supervised(folder, f"127.0.0.1:{port}", make_owner(), beats_missed_max=3) as supervised:
        stopped = supervised.pids()[0]
        send_signal(stopped, signal.SIGSTOP)
        series = 'sidecar_worker_restarts_total{reason="unresponsive"}'
        eventually(lambda: supervised.metric(series) >= 1, what="the stopped worker is ended")
        assert is_gone(stopped)
        eventually(lambda: supervised.status() == "ready", what="a new one is ready")


@pytest.mark.parametrize("is_unix", [False, True], ids=["tcp", "unix"])
def test_roll__loses_no_call_and_no_count(folder: Path, port: int, is_unix: bool) -> None:
    """
    SIGHUP under load: every worker is a new process, every call was answered and counted once.

    The callers do not wait for connections: a moment without a worker that listens would fail a call.
    """
    address = f"unix:{folder}/grpc.sock" if is_unix else f"127.0.0.1:{port}"
    with Supervised(folder, address, make_owner(), drain_timeout_s=5.0) as supervised:
        before = supervised.pids()
        addresses = unix_addresses(folder) if is_unix else [address]
        with Callers(addresses, supervised.owner) as callers, Scraper(supervised) as scraper:
            callers.await_more(CALLS)
            supervised.roll()
            callers.await_more(CALLS)
        assert callers.faults == []
        assert supervised.metric(DECISIONS) == callers.answered
        assert (scraper.fallen, scraper.least_ready) == ([], WORKERS)
        assert not set(supervised.pids()) & set(before)
        assert supervised.metric('sidecar_worker_restarts_total{reason="rolling"}') == WORKERS


def test_roll__of_the_reference_transport_loses_no_count(folder: Path, port: int) -> None:
    """grpc-core may cancel a call that arrives while it drains; counts stay exact."""
    address = f"127.0.0.1:{port}"
    with Supervised(folder, address, make_owner(), drain_timeout_s=5.0, **dict(GRPCIO)) as supervised:
        with Callers([address], supervised.owner, is_patient=True) as callers, Scraper(supervised) as scraper:
            callers.await_more(CALLS)
            supervised.roll()
            callers.await_more(CALLS)
        assert callers.answered <= supervised.metric(DECISIONS) <= callers.answered + len(callers.faults)
        assert (scraper.fallen, scraper.least_ready) == ([], WORKERS)


def _both_sockets(document: Document, folder: Path) -> None:
    """Envoy knows each worker's socket as an endpoint."""
    endpoints = cluster(document, "sidecar")["load_assignment"]["endpoints"]
    endpoints[0]["lb_endpoints"] = [
        {"endpoint": {"address": {"pipe": {"path": address.removeprefix("unix:")}}}}
        for address in unix_addresses(folder)
    ]


@pytest.mark.parametrize("is_unix", [False, True], ids=["tcp", "unix"])
def test_roll__loses_no_request_through_envoy(folder: Path, port: int, is_unix: bool) -> None:
    """A real Envoy in front: a rolling restart under load, and every request is allowed."""
    address = f"unix:{folder}/grpc.sock" if is_unix else f"127.0.0.1:{port}"
    config, owner = UNIX_CONFIG if is_unix else TCP_CONFIG, make_owner()

    def edit(document: Document) -> None:
        wait_long(document)
        if is_unix:
            _both_sockets(document, folder)

    with (
        Supervised(folder, address, owner) as supervised,
        running_upstream() as app_port,
        running_envoy(config, app_port, address, folder, edit) as envoy,
    ):
        with SteadyLoad(envoy.port, owner) as load:
            load.await_more(REQUESTS)
            supervised.roll()
            load.await_more(REQUESTS)
        assert load.faults == []
        assert supervised.metric(DECISIONS) == load.answered


def test_roll__takes_up_what_has_changed(supervised: Supervised, folder: Path, port: int) -> None:
    """New workers read configuration and registry afresh: another address, another rule, another owner."""
    newcomer = make_owner()
    write_registry(supervised.registry, [newcomer])
    second = f"unix:{folder}/second.sock"
    supervised.configure([f"127.0.0.1:{port}", second], workers=7)
    supervised.roll()
    addresses = [f"127.0.0.1:{port}", *(f"unix:{folder}/second.{index}.sock" for index in range(WORKERS))]
    with Callers(addresses, newcomer) as callers:
        callers.await_more(1)
    assert callers.faults == []
    (line,) = supervised.lines("changed settings need a restart; SIGHUP is not enough")
    assert line["keys"] == ["workers"]
    assert supervised.metric('sidecar_decisions_total{reason="ok",verdict="ALLOW"}') == callers.answered


def test_roll__a_mistake_changes_nothing(supervised: Supervised, port: int) -> None:
    """A configuration, registry or address that cannot be used leaves every worker as it was."""
    before, registry = supervised.pids(), supervised.registry.read_text()
    with socket.socket() as taken, Callers([f"127.0.0.1:{port}"], supervised.owner) as callers:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        supervised.configure(f"127.0.0.1:{taken.getsockname()[1]}")
        supervised.roll(NOT_ROLLED)
        supervised.configure(f"127.0.0.1:{port}", transport="fats")
        supervised.roll(NOT_ROLLED)
        supervised.configure(f"127.0.0.1:{port}")
        supervised.registry.write_text("integrations: [")
        supervised.roll(NOT_ROLLED)
        callers.await_more(1)
    supervised.registry.write_text(registry)
    assert callers.faults == []
    assert not any(map(is_gone, before))
    assert supervised.status() == "ready"
    refused = supervised.lines(
        "rolling restart failed; the remaining workers keep the previous configuration"
    )
    assert [line["replaced"] for line in refused] == [0, 0, 0]
    for line, reason in zip(refused, ("in use", "fats", "registry.yaml"), strict=True):
        assert reason in line["why"]


def test_roll__a_successor_that_is_not_ready_takes_nothing(folder: Path) -> None:
    """
    Without its store it never listens: every worker keeps its socket, also after the failed roll.

    Here the successor is killed; that it must be ready in time is proved with the slots' timers.
    """
    address, owner = f"unix:{folder}/grpc.sock", make_owner()
    with Supervised(folder, address, owner) as supervised:
        before = supervised.pids()
        supervised.configure(address, store=f"redis://127.0.0.1:{free_port()}")
        with Callers(unix_addresses(folder), owner) as callers:
            supervised.signal(signal.SIGHUP)
            eventually(lambda: supervised.lines("store unreachable"), what="the successor lacks its store")
            callers.await_more(1)
            send_signal(supervised.pids()[0], signal.SIGKILL)
            eventually(lambda: supervised.metric(NOT_ROLLED) == 1, what="the roll has failed")
            callers.await_more(1)
        with Callers(unix_addresses(folder), owner) as fresh:
            fresh.await_more(1)
        assert (callers.faults, fresh.faults) == ([], [])
        assert supervised.pids()[1:] == before[1:]
        assert not any(map(is_gone, before))


def test_stop__drains_every_worker(supervised: Supervised, port: int) -> None:
    """On SIGINT, as on SIGTERM: watchers of all workers are notified; the exit code is 0 after all ended."""
    pids = supervised.pids()
    health = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health.SERVING
        supervised.signal(signal.SIGINT)
        assert next(watch).status == health.NOT_SERVING
    assert supervised.wait() == 0
    assert all(map(is_gone, pids))
    assert len(supervised.lines("draining")) == WORKERS


def test_stop__kills_what_does_not_drain_in_time(folder: Path, port: int) -> None:
    """A worker that hangs is ended at the bound, and the exit code says so."""
    with Supervised(folder, f"127.0.0.1:{port}", make_owner(), drain_timeout_s=0.1) as supervised:
        stuck = supervised.pids()[1]
        send_signal(stuck, signal.SIGSTOP)
        assert supervised.stop() == 1
        assert is_gone(stuck)
        (line,) = supervised.lines("worker killed")
        assert (line["worker"], line["why"]) == (1, "end_timeout")


def test_stop__a_later_signal_ends_at_once(folder: Path, port: int) -> None:
    """Signals within a second are one; anyone who cannot wait an hour for the drain signals again."""
    with Supervised(folder, f"127.0.0.1:{port}", make_owner(), drain_timeout_s=3600) as supervised:
        pids = supervised.pids()
        send_signal(pids[0], signal.SIGSTOP)
        supervised.signal(signal.SIGTERM)
        supervised.signal(signal.SIGTERM)
        eventually(lambda: supervised.lines("draining the workers"), what="the drain begins")
        requests = supervised.lines("shutdown requested")
        assert len([line for line in requests if "worker" not in line]) == 1
        assert supervised.stop_at_once() == 1
        assert all(map(is_gone, pids))


def test_stop__a_dead_supervisor_leaves_no_worker_behind(supervised: Supervised, port: int) -> None:
    """kill -9 the supervisor: its workers drain and end by themselves, and the port is free again."""
    pids = supervised.pids()
    supervised.signal(signal.SIGKILL)
    supervised.wait()
    eventually(lambda: all(map(is_gone, pids)), what="the workers end")
    assert len(supervised.lines("the supervisor has ended: draining")) == WORKERS
    assert len(supervised.lines("stopped")) == WORKERS


def test_start__a_mistake_ends_it_with_the_command_s_own_words(folder: Path, port: int) -> None:
    """Broken registry: exit code 1, the mistake with its place, and no worker left."""
    (folder / "registry.yaml").write_text("integrations: [{id: 7}]")
    with Supervised(folder, f"127.0.0.1:{port}", make_owner(), is_awaited=False) as supervised:
        assert supervised.wait() == EXIT_REFUSED
        assert f"  {folder}/registry.yaml:1: " in supervised.printed()
        assert "nothing was started or changed" in supervised.printed()
        assert all(is_gone(line["pid"]) for line in supervised.lines("worker started"))


def test_start__an_address_in_use_ends_it(folder: Path) -> None:
    """Exit code 2, the address by name, and no worker was started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Supervised(folder, address, make_owner(), is_awaited=False) as supervised:
            assert supervised.wait() == EXIT_USAGE
            assert f"cannot listen on {address}: it is in use" in supervised.printed()
            assert supervised.lines("worker started") == []


def test_start__any_port_is_the_same_for_all(folder: Path) -> None:
    """Port 0 is resolved once; a worker that is started later gets the same port."""
    with Supervised(folder, "127.0.0.1:0", make_owner()) as supervised:
        supervised.kill_worker(1)
        addresses = {tuple(line["grpc"]) for line in supervised.lines("serving")}
        assert len(addresses) == 1
        ((address,),) = addresses
        with Callers([address], supervised.owner) as callers:
            callers.await_more(1)
        assert callers.faults == []


def test_metrics__tell_of_all_workers_as_one(supervised: Supervised, port: int) -> None:
    """One series for all: connections add up, the registry's size does not, and the workers are counted."""
    with Callers([f"127.0.0.1:{port}"], supervised.owner) as callers:
        callers.await_more(CALLS)
        assert supervised.metric("sidecar_connections_open") == CALLERS
    metrics = supervised.metrics()
    assert metrics["sidecar_ready"] == 1
    assert metrics["sidecar_registry_integrations"] == 1
    assert [metrics[f"sidecar_workers_{word}"] for word in ("wanted", "running", "ready")] == [WORKERS] * 3
    assert metrics[DECISIONS + '{reason="ok",verdict="ALLOW"}'] == callers.answered
    assert metrics["sidecar_decision_duration_seconds_count"] == callers.answered
    assert metrics["sidecar_workers_cpu_seconds_total"] > 0
    assert supervised.admin("/healthz").status == 200

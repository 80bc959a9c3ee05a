"""What a worker says arrives whole."""

from __future__ import annotations

import socket

import pytest

from sidecar.process.readiness import Component
from sidecar.process.supervisor.messages import PACKET_BYTES_MAX, PROBLEM_CHARS_MAX, Report, read_report
from sidecar.sources.file_faults import FAULTS_SHOWN_MAX, FileFault, FileFaultsError
from sidecar.transports.listeners import parse_endpoint
from sidecar.transports.server import ListenError

SERVED = {
    "grpc": (parse_endpoint("127.0.0.1:9191"), parse_endpoint("[::1]:1"), parse_endpoint("unix:@a")),
    "another": (parse_endpoint("127.0.0.1:9194"),),
}


@pytest.mark.parametrize(
    ("report", "is_ready", "unready"),
    [
        (Report(), False, ""),
        (Report(SERVED), True, ""),
        (Report({}, {"grpc": Component(True, "serving")}), True, ""),
        (Report(None, {"grpc": Component(True, "serving")}), False, ""),
        (Report(SERVED, {"a": Component(False, "off"), "b": Component(True, "on")}), False, "a: off"),
        (Report(SERVED, {"a": Component(False, "x"), "b": Component(False, "y")}), False, "a: x, b: y"),
    ],
)
def test_report__comes_back_as_it_was(report: Report, is_ready: bool, unready: str) -> None:
    """Ready = it serves, and so is every component; the others are named."""
    got = read_report(report.packed())
    assert got == report
    assert (got.is_ready, got.unready) == (is_ready, unready)


@pytest.mark.parametrize(
    ("components", "state"),
    [
        ({"registry": Component(True, "loaded"), "store": Component(True, "connected")}, "ready"),
        (
            {"registry": Component(True, "loaded, but not followed: x")},
            "ready; registry: loaded, but not followed: x",
        ),
        ({"store": Component(True, "x cannot be used")}, "ready; store: x cannot be used"),
        ({"registry": Component(False, "loading"), "store": Component(True, "x")}, "registry: loading"),
    ],
)
def test_report__tells_what_is_wrong_with_a_ready_worker(
    components: dict[str, Component], state: str
) -> None:
    """A worker decides on by its last snapshot when its registry or its store is gone; /readyz names it."""
    assert Report(SERVED, components).state == state


def test_report__carries_mistakes_with_their_places() -> None:
    """The supervisor can tell them as if it had found them itself."""
    faults = [FileFault("a.yaml", 3, "x.y", "is wrong"), FileFault("b.yaml", None, "", "is gone")]
    got = read_report(Report(fault=FileFaultsError(faults, 7)).packed()).fault
    assert isinstance(got, FileFaultsError)
    assert (got.faults, got.total) == (tuple(faults), 7)


def test_report__carries_an_address_that_cannot_be_bound() -> None:
    """It keeps its kind, and with it the exit code."""
    got = read_report(Report(fault=ListenError("cannot listen on x: y")).packed()).fault
    assert isinstance(got, ListenError)
    assert str(got) == "cannot listen on x: y"


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\x01", "\udc80"])
def test_report__the_worst_list_of_mistakes_fits_a_packet(character: str) -> None:
    """As many as are shown, each as long as can be, sent without waiting through a fresh socket."""
    long = character * 10_000
    report = Report(fault=FileFaultsError([FileFault(long, 1, long, long)] * FAULTS_SHOWN_MAX, 99))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.send(report.packed())
        got = read_report(ours.recv(PACKET_BYTES_MAX)).fault
    assert isinstance(got, FileFaultsError)
    assert len(got.faults[-1].problem) == PROBLEM_CHARS_MAX

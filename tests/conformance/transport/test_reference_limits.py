"""The bounds of the reference transport: every limit is kept or listed as a difference."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import cast

import pytest

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.transports.reference import ReferenceGrpcServer
from sidecar.transports.reference_calls import RunningCalls
from sidecar.transports.server import Endpoint, TransportLimits

from .background import BackgroundLoop
from .differences import LIMITS_NOT_KEPT
from .probe import ProbeService, path
from .served import channel


class RecordedLimits:
    """Hands out *limits*, and keeps which of them were read: no subclass, as the class may be compiled."""

    def __init__(self, limits: TransportLimits) -> None:
        """Record the reads of *limits*."""
        self.limits = limits
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.read.add(name)
        return getattr(self.limits, name)


def test_reference__keeps_every_limit_that_it_can(background: BackgroundLoop) -> None:
    """A limit is read by the reference transport, or it is in the table with the reason why not."""
    limits = RecordedLimits(TransportLimits(connection_age_max_s=60.0))
    server = background.call(
        ReferenceGrpcServer,
        ProbeService(background).methods(),
        (Endpoint("127.0.0.1", 0),),
        cast(TransportLimits, limits),
        Metrics(TABLE),
    )
    (endpoint,) = background.run(server.start())
    with channel(endpoint) as client:
        assert client.unary_unary(path("Echo"))(b"x", timeout=60) == b"x"
        assert list(client.unary_stream(path("Count"))(b"1", timeout=60)) == [b"0"]
    assert background.run(server.drain(5.0))
    every = {field.name for field in fields(TransportLimits)}
    left_to_the_app = {"drain_timeout_s"}
    assert every - limits.read - left_to_the_app == set(LIMITS_NOT_KEPT)


def test_reference__faults_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """However many handlers fail, the log grows by one fault a second."""
    tenths = itertools.count()
    running = RunningCalls(1, Metrics(TABLE), clock_s=lambda: next(tenths) / 10)
    for _ in range(25):
        running.log_fault("the handler of /a.B/C", ValueError("why"))
    assert [record.getMessage() for record in caplog.records] == ["the handler of /a.B/C failed"] * 3
    assert all(record.exc_info for record in caplog.records)

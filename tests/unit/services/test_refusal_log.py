"""The sampled log of refused requests."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sidecar.domain.answers import Decision
from sidecar.domain.bucket import Taken
from sidecar.domain.policy import AccessRequest
from sidecar.services.refusal_log import LINES_BURST, PATH_CHARS_MAX, RefusalLog
from tests.building import (
    NOW_US,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_request,
)


def fields_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of each line."""
    return [record.event_fields for record in caplog.records if record.name == "sidecar.decisions"]  # type: ignore[attr-defined]


def ignore(decision: Decision, context: None) -> None:
    """Take a late decision."""


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sidecar.decisions")


def test_refusal_log__has_what_a_caller_quotes(caplog: pytest.LogCaptureFixture) -> None:
    """A line for a refusal, with its decision id; none for an allowed request."""
    key = make_key()
    decider = make_decider(make_integration(key))
    decider.on_refused = RefusalLog().note
    assert decider.decide(make_request(key.api_key), None, ignore, None) is not None
    headers = {"x-request-id": "req-1"}
    request = make_request(key.api_key, path="/v1/nowhere?secret=1", headers=headers)
    decision = decider.decide(request, None, ignore, None)
    assert decision is not None
    [fields] = fields_of(caplog)
    assert fields["decision_id"] == decision.id
    expected = {
        "reason": "route_unknown",
        "integration": "acme",
        "path": "/v1/nowhere",
        "request_id": "req-1",
    }
    assert expected.items() <= fields.items()
    assert key.api_key not in str(fields)


def test_refusal_log__also_when_the_store_decides(caplog: pytest.LogCaptureFixture) -> None:
    """An empty bucket in the shared store is known only after its answer."""
    key, store = make_key(), RecordingStore()
    decider = make_decider(make_integration(key), store=store)
    decider.on_refused = RefusalLog().note
    assert decider.decide(make_request(key.api_key), None, ignore, None) is None
    store.answer(Taken(0, 0, 1_000_000, NOW_US))
    assert [fields["reason"] for fields in fields_of(caplog)] == ["rate_limited"]


def test_refusal_log__is_a_sample(caplog: pytest.LogCaptureFixture) -> None:
    """Of a flood some lines are written, and the next one says how many were not."""
    clock = ManualClock()
    log = RefusalLog(clock)
    decider = make_decider()
    decider.on_refused = log.note
    request = AccessRequest("GET", "/" + "x" * 2_000, {}.get, "203.0.113.9")
    for _ in range(LINES_BURST + 25):
        decider.decide(request, None, ignore, None)
    clock.advance(seconds=1)
    decider.decide(request, None, ignore, None)
    lines = fields_of(caplog)
    assert len(lines) == LINES_BURST + 1
    assert [fields["omitted"] for fields in lines[-2:]] == [0, 25]
    assert len(lines[0]["path"]) == PATH_CHARS_MAX

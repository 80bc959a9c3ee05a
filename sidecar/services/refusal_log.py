"""A sample of refused requests in the log, so that a decision id can be found without a decision log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic_ns

from sidecar.domain.answers import Decision
from sidecar.domain.bucket import Level, Quota, draw
from sidecar.domain.cidr import format_address
from sidecar.domain.policy import AccessRequest
from sidecar.observe.logs import log_event

LINES_PER_MINUTE_MAX = 300
LINES_BURST = 50
PATH_CHARS_MAX = 512
REQUEST_ID_HEADER = "x-request-id"

_log = logging.getLogger("sidecar.decisions")


class RefusalLog:
    """Logs refused requests up to a rate, and with each line how many were left out since the line before."""

    __slots__ = ("_clock_us", "_level", "_omitted", "_quota")

    def __init__(self, clock_us: Callable[[], int] = lambda: monotonic_ns() // 1_000) -> None:
        """Measure the rate by *clock_us*."""
        self._clock_us = clock_us
        self._quota = Quota.per_minute(LINES_PER_MINUTE_MAX, LINES_BURST)
        self._level: Level | None = None
        self._omitted = 0

    def note(self, request: AccessRequest, decision: Decision) -> None:
        """Log *decision* about *request*, unless too many lines were written just now."""
        taken, level = draw(self._level, self._quota, 1, self._clock_us())
        self._level = level or self._level
        if not taken.admitted:
            self._omitted += 1
            return
        omitted, self._omitted = self._omitted, 0
        evaluation = decision.evaluation
        integration, credential = evaluation.integration, evaluation.credential
        address = evaluation.client_address
        log_event(
            _log,
            logging.INFO,
            "request refused" if decision.would_deny is None else "request allowed by a rule in shadow",
            decision_id=decision.id,
            reason=(decision.would_deny or decision.reason).label,
            integration=integration.id if integration else "",
            credential=credential.id if credential else "",
            method=request.method[:32],
            path=request.path.partition("?")[0][:PATH_CHARS_MAX],
            scope=str(evaluation.scope or ""),
            client_address=format_address(address) if address else "",
            request_id=(request.header(REQUEST_ID_HEADER) or "")[:128],
            fallback=decision.fallback.policy.value if decision.fallback else "",
            omitted=omitted,
        )

"""
Hands each decision of a worker to the process that writes the decision log, without ever waiting.

A decision costs its tuple; `FRAME_ROWS` of them are sent with one system call. While the socket is full, a
bounded number of rows waits here; beyond it, the oldest allowed requests are dropped, refusals last, and
every dropped row is counted in the next frame.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from itertools import islice
from random import random
from time import monotonic, time_ns
from typing import Protocol

from sidecar.domain.answers import Decision
from sidecar.domain.decision_ids import DecisionIds
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest, Policy
from sidecar.domain.rate_limits.decisions import LimitAnswer
from sidecar.services.rate_limiter import PlannedCall
from sidecar.stores.decisions.frames import (
    FRAME_BYTES_MAX,
    PATH_CHARS_MAX,
    TEXT_CHARS_MAX,
    Counts,
    Frame,
    Kind,
    RawRow,
    is_allowed,
)

FRAME_ROWS = 64
"""Rows of a frame: a system call costs as much as three rows, and packing so many takes about 60 µs."""
SEND_INTERVAL_S = 0.1
"""A row waits at most this long before it is sent, and is lost if the worker is killed meanwhile."""
WAITING_ROWS_MAX = 20_000
"""
Rows that wait for a full socket: 0.6 s of a core that does nothing but decide, in 10 to 20 MB. A writer that
is restarted is back within that time.
"""
FRAMES_PER_TURN_MAX = 8
"""Frames that are sent at once after the socket was full, so that decisions go on in between."""
END_TIMEOUT_S = 1.0
END_PAUSE_S = 0.005
"""How long the end of a worker waits for room in the socket, and how often it tries."""

_RATE_LIMIT_DIALECT = "rls"


class Loop(Protocol):
    """The part of an event loop that the recorder uses."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        """Call *callback* in *delay* seconds."""


class DecisionRecorder:
    """Records the decisions of one worker process."""

    def __init__(
        self,
        send: Callable[[bytes], bool],
        worker: int,
        process: str,
        loop: Loop,
        sample_allowed: float = 1.0,
        clock_ns: Callable[[], int] = time_ns,
        chance: Callable[[], float] = random,
    ) -> None:
        """
        Send frames with *send*, which returns False if there is no room now, and raises OSError if never.

        Args:
            worker: the number of this process.
            process: its unique name.
            sample_allowed: the share of allowed requests that are recorded, 0.0 ... 1.0.
            chance: returns 0 to 1; decides which of them.
        """
        self.policy: Policy | None = None
        """Finds the address of refused callers that the decision did not need; None = those have none."""
        self._send = send
        self._worker = worker
        self._loop = loop
        self._sample_allowed = sample_allowed
        self._clock_ns = clock_ns
        self._chance = chance
        self._process = process
        self._ids = DecisionIds()  # of answers of the rate-limit service, which have no other id
        self._rows: list[RawRow] = []
        self._is_due = False
        self._allowed_waiting: deque[RawRow] = deque()
        self._refused_waiting: deque[RawRow] = deque()
        self._allowed = 0
        self._refused = 0
        self._dropped_allowed = 0
        self._dropped_refused = 0
        self._sampled = 0
        self._counts_sent = Counts()

    @property
    def counts(self) -> Counts:
        """The decisions that were sent, dropped and left out so far."""
        return Counts(
            self._allowed, self._refused, self._dropped_allowed, self._dropped_refused, self._sampled
        )

    @property
    def waiting(self) -> int:
        """Rows that are not sent yet."""
        return len(self._rows) + len(self._allowed_waiting) + len(self._refused_waiting)

    def note(self, request: AccessRequest | None, decision: Decision, elapsed_ns: int) -> None:
        """Record *decision*; see `Decider.on_decided`."""
        reason, would_deny = decision.reason, decision.would_deny
        if (
            self._sample_allowed < 1.0
            and reason is Reason.OK
            and would_deny is None
            and self._chance() >= self._sample_allowed
        ):
            self._sampled += 1
            self._send_soon()
            return
        evaluation = decision.evaluation
        credential, route, taken = evaluation.credential, evaluation.route, decision.taken
        address, fallback = evaluation.client_address, decision.fallback
        request_id = traceparent = None
        method = path = dialect = ""
        if request is not None:
            if address is None and self.policy is not None:
                address = self.policy.address_of(request)
            header, path, method, dialect = request.header, request.path, request.method, request.dialect
            request_id, traceparent = header("x-request-id"), header("traceparent")
            if len(path) > PATH_CHARS_MAX:
                path = path[:PATH_CHARS_MAX]
        if taken is None:
            remaining, reset_at_us, at_us, wait_us = -1, 0, 0, 0
        else:
            remaining, reset_at_us = taken.remaining, taken.reset_at_us
            at_us, wait_us = taken.at_us, taken.retry_after_us
        self._put(
            (
                self._clock_ns(),
                decision.id,
                request_id,
                traceparent,
                None if credential is None else credential.log_fields,
                reason.label,
                "" if would_deny is None else would_deny.label,
                method,
                path,
                None if route is None else route.log_fields,
                address,
                remaining,
                reset_at_us,
                at_us,
                wait_us,
                "" if fallback is None else fallback.policy.value,
                -1 if fallback is None else fallback.limit_rpm,
                dialect,
                elapsed_ns,
            )
        )

    def note_limits(self, planned: PlannedCall, answer: LimitAnswer | None, elapsed_ns: int) -> None:
        """
        Record an answer of the rate-limit service; None = its store was not available.

        The row's path is the domain, its route the first rule that refused, or else the first rule.
        """
        reason = Reason.OK
        if answer is None:
            reason = Reason.STORE_UNAVAILABLE
        elif answer.is_over:
            reason = Reason.RATE_LIMITED
        if reason is Reason.OK and self._sample_allowed < 1.0 and self._chance() >= self._sample_allowed:
            self._sampled += 1
            self._send_soon()
            return
        plan, remaining, rule = planned.plan, -1, ""
        if answer is not None and plan.limited:
            statuses = [answer.statuses[limited.index] for limited in plan.limited]
            remaining = min(status.remaining for status in statuses)
            over = [status.is_over for status in statuses]
            limited = plan.limited[over.index(True) if True in over else 0]
            rule = "" if limited.rule is None else limited.rule.path
        self._put(
            (
                self._clock_ns(), self._ids(), None, None, None, reason.label, "", "",
                plan.request.domain[:TEXT_CHARS_MAX], ("", rule), None, remaining, 0, 0, 0, "", -1,
                _RATE_LIMIT_DIALECT, elapsed_ns,
            )
        )  # fmt: skip

    async def end(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Send everything within *timeout_s*; afterwards the supervisor's count shows what is lost."""
        ends_s = monotonic() + timeout_s
        self.flush()
        while self.waiting and monotonic() < ends_s:
            await asyncio.sleep(END_PAUSE_S)
            self.flush()
        if not self.waiting:
            now_us = self._clock_ns() // 1_000
            last = Frame(self._worker, self._process, now_us, now_us, self.counts, [], Kind.LAST)
            with contextlib.suppress(OSError):
                self._send(last.packed())

    def flush(self) -> None:
        """Send what is recorded, as far as there is room; keep or drop the rest."""
        rows, self._rows = self._rows, []
        is_behind = self._allowed_waiting or self._refused_waiting
        if not is_behind and self._send_rows(rows):
            return
        self._wait(rows)
        for _ in range(FRAMES_PER_TURN_MAX):
            # Refusals first: the writer sorts the rows anyway.
            waiting = self._refused_waiting or self._allowed_waiting
            if not waiting:
                return
            rows = list(islice(waiting, FRAME_ROWS))
            if not self._send_rows(rows):
                break
            for _ in rows:
                waiting.popleft()
        self._send_soon()

    def _put(self, row: RawRow) -> None:
        rows = self._rows
        rows.append(row)
        if len(rows) >= FRAME_ROWS:
            self.flush()
        elif not self._is_due:
            self._send_soon()

    def _send_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(SEND_INTERVAL_S, self._send_due)

    def _send_due(self) -> None:
        self._is_due = False
        self.flush()

    def _wait(self, rows: list[RawRow]) -> None:
        """Keep *rows* for later, within WAITING_ROWS_MAX."""
        allowed, refused = self._allowed_waiting, self._refused_waiting
        for row in rows:
            (allowed if is_allowed(row) else refused).append(row)
        for _ in range(len(allowed) + len(refused) - WAITING_ROWS_MAX):
            if allowed:
                allowed.popleft()
                self._dropped_allowed += 1
            else:
                refused.popleft()
                self._dropped_refused += 1

    def _send_rows(self, rows: list[RawRow]) -> bool:
        """Send one frame of *rows*, in two halves if they are too long; False = no room."""
        allowed = sum(map(is_allowed, rows))
        refused = len(rows) - allowed
        counts = self.counts
        counts = counts._replace(allowed=counts.allowed + allowed, refused=counts.refused + refused)
        if counts == self._counts_sent:
            return True
        now_us = self._clock_ns() // 1_000
        frame = Frame(self._worker, self._process, now_us, self._settled_us(rows, now_us), counts, rows)
        message = frame.packed()
        if len(message) > FRAME_BYTES_MAX:
            return self._send_long(rows)
        try:
            if not self._send(message):
                return False
        except OSError:
            # The supervisor has ended and nobody reads: these rows are counted, and nothing else is lost.
            return self._drop(rows)
        self._allowed, self._refused, self._counts_sent = counts.allowed, counts.refused, counts
        return True

    def _settled_us(self, sent: list[RawRow], now_us: int) -> int:
        """The time of the oldest row that is kept after *sent*; *now_us* = none is."""
        settled_us = now_us
        for waiting in (self._allowed_waiting, self._refused_waiting):
            if waiting:
                kept = len(sent) if waiting[0] is sent[0] else 0
                if kept < len(waiting):
                    settled_us = min(settled_us, waiting[kept][0] // 1_000)
        return settled_us

    def _send_long(self, rows: list[RawRow]) -> bool:
        if len(rows) == 1:
            return self._drop(rows)
        half = len(rows) // 2
        if not self._send_rows(rows[:half]):
            return False
        if not self._send_rows(rows[half:]):
            self._wait(rows[half:])
        return True

    def _drop(self, rows: list[RawRow]) -> bool:
        allowed = sum(map(is_allowed, rows))
        self._dropped_allowed += allowed
        self._dropped_refused += len(rows) - allowed
        return True

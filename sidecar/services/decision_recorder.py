"""
Hands each decision of a worker to the process that writes the decision log, without ever waiting.

A decision adds its texts and numbers to lists; `FRAME_ROWS` decisions are packed and sent at once. While the
socket is full, a bounded number of rows waits here; beyond it, the oldest allowed requests are dropped,
refusals last, and every dropped row is counted in the next frame.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from random import random
from time import monotonic, time_ns
from typing import Protocol

from sidecar.domain.answers import Decision
from sidecar.domain.cidr import format_address
from sidecar.domain.decision_ids import DecisionIds
from sidecar.domain.decision_rows import joined
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest, Policy
from sidecar.domain.rate_limits.decisions import LimitAnswer
from sidecar.services.rate_limiter import PlannedCall
from sidecar.stores.decisions.frames import Counts, Frame, Kind
from sidecar.stores.decisions.lines import END, PIECES, Lines, pack_lines

FRAME_ROWS = 64
"""Rows of a frame: packing and sending so many takes about 20 µs."""
SEND_INTERVAL_S = 0.1
"""A row waits at most this long before it is sent, and is lost if the worker is killed meanwhile."""
TEXT_CHARS_MAX = 256
"""Characters of ids and methods that are recorded."""
PATH_CHARS_MAX = 2_048
"""Characters of a path, query included, that are handed over."""
ADDRESSES_MAX = 4_096
"""Clients whose address is kept as text: making it takes longer than all else of a row."""
WAITING_ROWS_MAX = 20_000
"""
Rows that wait for a full socket: 0.6 s of a core that does nothing but decide, in about 5 MB. A writer that
is restarted is back within that time.
"""
FRAMES_PER_TURN_MAX = 8
"""Frames that are sent at once after the socket was full, so that decisions go on in between."""
END_TIMEOUT_S = 1.0
END_PAUSE_S = 0.005
"""How long the end of a worker waits for room in the socket, and how often it tries."""

_RATE_LIMIT_DIALECT = "rls"
_TEXTS_MAX = FRAME_ROWS * len(PIECES)
_UNKNOWN_CALLER = joined("", "", 0)
_UNKNOWN_ROUTE = joined("", "")
_OK = Reason.OK
_address_text = lru_cache(ADDRESSES_MAX)(format_address)


class Loop(Protocol):
    """The part of an event loop that the recorder uses."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        """Call *callback* in *delay* seconds."""


class _Rows:
    """Rows that are not packed yet; see `pack_lines`."""

    __slots__ = ("numbers", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.texts) // len(PIECES)

    def take(self) -> Iterator[Lines]:
        """Yield the rows packed, and forget them."""
        if self.texts:
            texts, numbers = self.texts, self.numbers
            self.texts, self.numbers = [], []
            yield from pack_lines(texts, numbers)


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
        self._is_sampled = sample_allowed < 1.0
        self._clock_ns = clock_ns
        self._chance = chance
        self._process = process
        self._ids = DecisionIds()  # of answers of the rate-limit service, which have no other id
        self._allowed_rows, self._refused_rows = _Rows(), _Rows()
        self._is_due = False
        self._allowed_waiting: deque[Lines] = deque()
        self._refused_waiting: deque[Lines] = deque()
        self._packed_rows = 0  # in both
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
        return len(self._allowed_rows) + len(self._refused_rows) + self._packed_rows

    def note(self, request: AccessRequest | None, decision: Decision, elapsed_ns: int) -> None:
        """Record *decision*; see `Decider.on_decided`."""
        reason, would_deny = decision.reason, decision.would_deny
        if self._is_sampled and reason is _OK and would_deny is None and self._leaves_out():
            return
        evaluation = decision.evaluation
        credential, route, taken = evaluation.credential, evaluation.route, decision.taken
        address, fallback = evaluation.client_address, decision.fallback
        traceparent = None
        request_id = method = path = dialect = ""
        if request is not None:
            if address is None and self.policy is not None:
                address = self.policy.address_of(request)
            header, path, method, dialect = request.header, request.path, request.method, request.dialect
            stated_id, traceparent = header("x-request-id"), header("traceparent")
            if len(path) > PATH_CHARS_MAX:
                path = path[:PATH_CHARS_MAX]
            if len(method) > TEXT_CHARS_MAX:
                method = method[:TEXT_CHARS_MAX]
            if stated_id is not None:
                request_id = stated_id if len(stated_id) <= TEXT_CHARS_MAX else stated_id[:TEXT_CHARS_MAX]
        if taken is None or credential is None:
            remaining, reset_at_us, at_us, wait_us, limit_rpm = -1, 0, 0, 0, 0
        else:
            remaining, reset_at_us = taken.remaining, taken.reset_at_us
            at_us, wait_us = taken.at_us, taken.retry_after_us
            limit_rpm = credential.integration.limit_rpm if fallback is None else fallback.limit_rpm
        rows = self._allowed_rows if reason is _OK else self._refused_rows
        # The order of lines.PIECES and lines.NUMBERS.
        rows.texts += (
            decision.id,
            request_id,
            "" if traceparent is None else trace_id(traceparent),
            _UNKNOWN_CALLER if credential is None else credential.log_text,
            reason.log_text,
            "" if would_deny is None else would_deny.label,
            method,
            path,
            _UNKNOWN_ROUTE if route is None else route.log_text,
            _address_text(address) if address else "",
            dialect,
            END if fallback is None else f"{fallback.policy.value}{END}",
        )
        rows.numbers += (
            self._clock_ns(),
            remaining,
            limit_rpm,
            reset_at_us,
            at_us,
            wait_us,
            elapsed_ns,
            self._worker,
        )
        if len(rows.texts) >= _TEXTS_MAX:
            self.flush()
        elif not self._is_due:
            self._send_soon()

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
        if self._is_sampled and reason is _OK and self._leaves_out():
            return
        plan, remaining, rule = planned.plan, -1, ""
        if answer is not None and plan.limited:
            statuses = [answer.statuses[limited.index] for limited in plan.limited]
            remaining = min(status.remaining for status in statuses)
            over = [status.is_over for status in statuses]
            limited = plan.limited[over.index(True) if True in over else 0]
            rule = "" if limited.rule is None else limited.rule.path
        rows = self._allowed_rows if reason is _OK else self._refused_rows
        rows.texts += (
            self._ids(), "", "", _UNKNOWN_CALLER, reason.log_text, "", "",
            plan.request.domain[:TEXT_CHARS_MAX], joined("", rule), "", _RATE_LIMIT_DIALECT, END,
        )  # fmt: skip
        rows.numbers += (self._clock_ns(), remaining, 0, 0, 0, 0, elapsed_ns, self._worker)
        if len(rows.texts) >= _TEXTS_MAX:
            self.flush()
        else:
            self._send_soon()

    async def end(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Send everything within *timeout_s*; afterwards the supervisor's count shows what is lost."""
        ends_s = monotonic() + timeout_s
        self.flush()
        while self.waiting and monotonic() < ends_s:
            await asyncio.sleep(END_PAUSE_S)
            self.flush()
        if not self.waiting:
            now_us = self._clock_ns() // 1_000
            last = Frame(self._worker, self._process, now_us, now_us, self.counts, kind=Kind.LAST)
            with contextlib.suppress(OSError):
                self._send(last.packed())

    def flush(self) -> None:
        """Send what is recorded, as far as there is room; keep or drop the rest."""
        self._pack()
        for _ in range(FRAMES_PER_TURN_MAX):
            if not self._send_frame():
                break
            if not self._packed_rows:
                return
        self._send_soon()

    def _send_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(SEND_INTERVAL_S, self._send_due)

    def _send_due(self) -> None:
        self._is_due = False
        self.flush()

    def _leaves_out(self) -> bool:
        """Whether the sample does not have an allowed request; then it is counted."""
        if self._chance() < self._sample_allowed:
            return False
        self._sampled += 1
        self._send_soon()
        return True

    def _pack(self) -> None:
        """Pack all rows; keep within WAITING_ROWS_MAX, and drop the oldest allowed rows first."""
        allowed, refused = self._allowed_waiting, self._refused_waiting
        for rows, waiting in ((self._allowed_rows, allowed), (self._refused_rows, refused)):
            for lines in rows.take():
                waiting.append(lines)
                self._packed_rows += lines.rows
        while self._packed_rows > WAITING_ROWS_MAX:
            self._drop(bool(allowed))

    def _drop(self, is_allowed: bool) -> None:
        rows = (self._allowed_waiting if is_allowed else self._refused_waiting).popleft().rows
        self._packed_rows -= rows
        if is_allowed:
            self._dropped_allowed += rows
        else:
            self._dropped_refused += rows

    def _send_frame(self) -> bool:
        """Send one frame, refused rows first, as the writer sorts anyway; False = no room."""
        is_allowed = not self._refused_waiting
        waiting = self._allowed_waiting if is_allowed else self._refused_waiting
        lines = waiting[0] if waiting else Lines()
        allowed, refused = (lines.rows, 0) if is_allowed else (0, lines.rows)
        counts = Counts(
            self._allowed + allowed,
            self._refused + refused,
            self._dropped_allowed,
            self._dropped_refused,
            self._sampled,
        )
        if counts == self._counts_sent:
            return True
        now_us = self._clock_ns() // 1_000
        settled_us = self._settled_us(waiting, now_us)
        frame = Frame(self._worker, self._process, now_us, settled_us, counts, lines, is_allowed)
        try:
            if not self._send(frame.packed()):
                return False
        except OSError:
            # The supervisor has ended and nobody reads: these rows are counted, and nothing else is lost.
            if waiting:
                self._drop(is_allowed)
            return True
        if waiting:
            waiting.popleft()
            self._packed_rows -= lines.rows
        self._allowed, self._refused, self._counts_sent = counts.allowed, counts.refused, counts
        return True

    def _settled_us(self, sending: deque[Lines], now_us: int) -> int:
        """The time of the oldest row that waits behind the first lines of *sending*; *now_us* = none does."""
        settled_us = now_us
        for waiting in (self._allowed_waiting, self._refused_waiting):
            next_one = 1 if waiting is sending else 0
            if len(waiting) > next_one:
                settled_us = min(settled_us, waiting[next_one].first_us)
        return settled_us


def trace_id(traceparent: str) -> str:
    """
    Return the trace id of a traceparent header, '' = none (W3C Trace Context, 3.2).

    >>> trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    parts = traceparent.split("-", 3)
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""

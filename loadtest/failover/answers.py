"""The answers of a failover run, and their evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, NamedTuple

from loadtest.proving import percentile
from sidecar.services.ext_authz_client import read_status
from sidecar.verify.accuracy import most_admitted
from sidecar.verify.callers import Call
from sidecar.verify.subjects import Subject

DRAINING, DRY = 0, 1
"""The buckets of a run: one that is being emptied when the primary fails, and one that is already empty."""
NORMAL = (200, 429)
ANSWERS_MAX = 5_000_000


class Answer(NamedTuple):
    """One answer: its sidecar, its bucket, its HTTP status (0 = no answer) and its times."""

    sidecar: int
    bucket: int
    status: int
    sent_ns: int
    received_ns: int


class AnswerLog:
    """Records every answer, and requests both buckets in turn. Implements `callers.CallHandler`."""

    def __init__(self, subjects: Sequence[Subject], connections: int) -> None:
        """Assign *connections* consecutive callers to each sidecar."""
        self.answers: list[Answer] = []
        self.admitted = [0] * len(subjects)
        self.refused_at_ns: dict[int, int] = {}
        """When each sidecar last refused a request of the draining bucket."""
        self._calls = [Call(subject.message, number) for number, subject in enumerate(subjects)]
        self._connections = connections
        self._turn = 0

    def next_call(self, caller: int) -> Call | None:
        """Return a call of the next bucket."""
        if len(self.answers) >= ANSWERS_MAX:
            return None
        self._turn = (self._turn + 1) % len(self._calls)
        return self._calls[self._turn]

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Record the answer."""
        status = read_status(message) if message else 0
        sidecar, now_ns = caller // self._connections, monotonic_ns()
        self.answers.append(Answer(sidecar, tag, status, sent_ns, now_ns))
        if status == 200:
            self.admitted[tag] += 1
        elif status == 429 and tag == DRAINING:
            self.refused_at_ns[sidecar] = now_ns


@dataclass(frozen=True, slots=True)
class Failover:
    """
    The result of one run. Times are on the monotonic clock, except `window_us`, which is on the servers'
    clock.

    `promoted_ns` is when the promotion of the successor was observed; `failovers` is the number of
    promotions, 1 unless the machine stalled so long that a healthy primary was replaced.
    """

    subjects: tuple[Subject, ...]
    sidecars: int
    answers: Sequence[Answer] = field(repr=False)
    killed_ns: int
    promoted_ns: int
    window_us: int
    hung: int
    failovers: int

    def over_admitted(self, bucket: int) -> int:
        """Return the number of requests admitted beyond B + L·T/60."""
        admitted = sum(answer.status == 200 for answer in self.answers if answer.bucket == bucket)
        return max(0, admitted - most_admitted(self.subjects[bucket].terms, self.window_us))

    @property
    def normal_ns(self) -> int:
        """When the last sidecar had recovered; 0 = a sidecar has not recovered."""
        recovered = [self.recovered_ns(sidecar) for sidecar in range(self.sidecars)]
        return max(recovered) if all(recovered) else 0

    def during(self) -> list[Answer]:
        """Return the answers from the failure until all sidecars had recovered, or to the end."""
        last_ns = self.normal_ns or max(answer.received_ns for answer in self.answers)
        return [answer for answer in self.answers if self.killed_ns <= answer.received_ns <= last_ns]

    def recovered_ns(self, sidecar: int) -> int:
        """
        Return when *sidecar* first answered from the draining bucket after answers by policy; 0 = never.

        The bucket was not empty at the failure, so refusals do not come from the sidecar's memory.
        """
        own = [answer for answer in self.answers if answer.sidecar == sidecar and answer.bucket == DRAINING]
        failed_ns = min(
            (
                answer.received_ns
                for answer in own
                if answer.status == 503 and answer.received_ns >= self.killed_ns
            ),
            default=0,
        )
        normal = (
            answer.received_ns for answer in own if answer.status in NORMAL and answer.sent_ns > failed_ns
        )
        return min(normal, default=0) if failed_ns else 0

    def slowest_ms(self) -> float:
        """Return the longest wait for an answer in the whole run."""
        return max(answer.received_ns - answer.sent_ns for answer in self.answers) / 1e6

    @property
    def is_kept(self) -> bool:
        """
        Whether every request got a defined answer, every sidecar recovered, and no bucket admitted more than
        one additional burst per failover, which is the maximum that a successor can have missed.
        """
        statuses = {answer.status for answer in self.answers}
        return (
            not self.hung
            and statuses <= {*NORMAL, 503}
            and self.normal_ns > 0
            and all(
                self.over_admitted(bucket) <= subject.terms.burst * max(1, self.failovers)
                for bucket, subject in enumerate(self.subjects)
            )
        )

    def as_json(self) -> dict[str, Any]:
        """Return all measurements."""
        during = self.during()
        waits_ms = sorted((answer.received_ns - answer.sent_ns) / 1e6 for answer in during)
        normal_ns, is_normal = self.normal_ns, self.normal_ns > 0
        later = sum(answer.status == 503 and answer.received_ns > normal_ns for answer in self.answers)
        return {
            "verdict": "kept" if self.is_kept else "broken",
            "requests": len(self.answers),
            "answers_during": {str(key): n for key, n in sorted(Counter(a.status for a in during).items())},
            "wait_during_ms": {
                "p50": round(percentile(waits_ms, 0.5), 1),
                "p99": round(percentile(waits_ms, 0.99), 1),
                "max": round(waits_ms[-1], 1),
            },
            "slowest_answer_ms": round(self.slowest_ms(), 1),
            "hung": self.hung,
            "failovers": self.failovers,
            "kill_to_promoted_ms": round((self.promoted_ns - self.killed_ns) / 1e6),
            "kill_to_normal_ms": round((normal_ns - self.killed_ns) / 1e6) if is_normal else None,
            "promoted_to_normal_ms": round((normal_ns - self.promoted_ns) / 1e6) if is_normal else None,
            "answers_503_later": later if is_normal else None,
            "over_admitted": {"draining": self.over_admitted(DRAINING), "dry": self.over_admitted(DRY)},
        }

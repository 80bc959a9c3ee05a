"""What a client returns for one request: the sidecar's decision, or what the failure policy says instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import grpc

from sidecar.v1 import decision_pb2 as pb

Verdict = Literal["ALLOW", "DENY_403", "DENY_429"]
FailurePolicy = Literal["closed", "open", "raise"]
"""What happens to a request that the sidecar did not decide: refuse it, let it pass, or raise an error."""

UNAVAILABLE = "decision_unavailable"
"""The reason of an answer that the failure policy gave."""

_VERDICTS: Mapping[int, Verdict] = {
    pb.VERDICT_ALLOW: "ALLOW",
    pb.VERDICT_DENY_403: "DENY_403",
    pb.VERDICT_DENY_429: "DENY_429",
}
_REASONS = {number: name.removeprefix("REASON_").lower() for name, number in pb.Reason.items()}
_NO_ANSWER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class NoDecisionError(Exception):
    """
    The sidecar did not decide the request.

    `code` is the gRPC status. `is_no_answer` = the sidecar could not be reached or did not answer in time;
    every other status may be the request's own fault, such as a header larger than the sidecar accepts.
    """

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        """Keep *code* and the sidecar's or gRPC's *detail*."""
        super().__init__(f"no decision: {code.name}: {detail}")
        self.code = code
        self.detail = detail

    @property
    def is_no_answer(self) -> bool:
        """Whether the policy `open` lets the request pass."""
        return self.code in _NO_ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDecision:
    """
    Whether a request may go on, and the HTTP answer if it may not.

    Attributes:
        verdict: anything but "ALLOW" is a denial.
        reason: the exact reason, for logs: 'ok', 'rate_limited', ...; `body` gives end clients less detail.
        status: the HTTP status of the answer to a denied request; 200 for an allowed one.
        headers: for the answer to the end client, by lower-case name; those of an allow are X-RateLimit-*.
        body: of the answer to a denied request, a problem document (RFC 9457).
        upstream_headers: the headers about the caller for the application of an allowed request; empty, as is
            `removed_headers`, when the key was stated by itself.
        removed_headers: names of the request headers that carried the API key.
        decision_id: names this decision in all logs; '' when the sidecar did not decide.
        integration_id: '' while the caller is not known, as is `credential_id`.
        limit: requests per minute; 0 = no bucket was looked at, and the next three say nothing.
        remaining: requests that would pass right now.
        reset_at: when the whole burst is available again.
        retry_after: how long to wait for the next token; None = one is left.
        error: why the sidecar did not decide and the failure policy did; None = the sidecar decided.
    """

    verdict: Verdict
    reason: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    upstream_headers: Mapping[str, str] = field(default_factory=dict)
    removed_headers: tuple[str, ...] = ()
    decision_id: str = ""
    integration_id: str = ""
    credential_id: str = ""
    limit: int = 0
    remaining: int = 0
    reset_at: datetime | None = None
    retry_after: timedelta | None = None
    error: NoDecisionError | None = None

    @property
    def is_allowed(self) -> bool:
        """Whether the request may go on."""
        return self.verdict == "ALLOW"


def decision_from(response: pb.DecideResponse) -> ClientDecision:
    """The decision in *response*; a verdict that this client does not know is a denial."""
    verdict = _VERDICTS.get(response.verdict, "DENY_403")
    return ClientDecision(
        verdict=verdict,
        reason=_REASONS.get(response.reason, f"reason_{response.reason}"),
        status=200 if verdict == "ALLOW" else response.http_status or 403,
        headers=dict(response.headers),
        body=response.body.encode(),
        upstream_headers=dict(response.upstream_headers),
        removed_headers=tuple(response.removed_headers),
        decision_id=response.decision_id,
        integration_id=response.integration_id,
        credential_id=response.credential_id,
        limit=response.limit,
        remaining=response.remaining,
        reset_at=response.reset_at.ToDatetime(UTC) if response.HasField("reset_at") else None,
        retry_after=response.retry_after.ToTimedelta() if response.HasField("retry_after") else None,
    )


def decision_without(error: NoDecisionError, policy: FailurePolicy) -> ClientDecision:
    """
    What *policy* decides when the sidecar has not.

    `open` lets only requests pass that the sidecar did not answer: else a caller could choose to be let in,
    with a request that the sidecar cannot accept.

    Raises:
        NoDecisionError: *policy* is `raise`.
    """
    if policy == "raise":
        raise error
    if policy == "open" and error.is_no_answer:
        return ClientDecision(verdict="ALLOW", reason=UNAVAILABLE, status=200, error=error)
    problem = {
        "type": f"urn:sidecar:problem:{UNAVAILABLE}",
        "title": "Decision unavailable",
        "status": 503,
        "detail": "The request could not be checked. Retry in a second.",
        "reason": UNAVAILABLE,
    }
    headers = {"content-type": "application/problem+json", "cache-control": "no-store", "retry-after": "1"}
    return ClientDecision(
        verdict="DENY_403",
        reason=UNAVAILABLE,
        status=503,
        headers=headers,
        body=json.dumps(problem).encode(),
        error=error,
    )

"""Decisions: the closed lists of verdicts and reasons. Not compiled: mypyc cannot compile these enums."""

from __future__ import annotations

from enum import Enum

from sidecar.domain.decision_rows import joined


class Verdict(Enum):
    """The three answers."""

    ALLOW = "ALLOW"
    DENY_403 = "DENY_403"
    DENY_429 = "DENY_429"


class Reason(Enum):
    """
    The reason of a decision; headers, logs, metrics and bodies name it by `label`.

    `OK` is the reason of an allow; the others are the deny reasons of docs/integrate/behavior.md. The reason
    determines `verdict`, `http_status` and `grpc_code` (of CheckResponse.status), so that no denial can have
    the code 0.
    """

    OK = ("ok", Verdict.ALLOW, 200, 0)
    MISSING_CREDENTIAL = ("missing_credential", Verdict.DENY_403, 403, 16)
    MALFORMED_CREDENTIAL = ("malformed_credential", Verdict.DENY_403, 403, 16)
    UNKNOWN_CREDENTIAL = ("unknown_credential", Verdict.DENY_403, 403, 16)
    EXPIRED_CREDENTIAL = ("expired_credential", Verdict.DENY_403, 403, 16)
    INTEGRATION_SUSPENDED = ("integration_suspended", Verdict.DENY_403, 403, 7)
    IP_NOT_ALLOWED = ("ip_not_allowed", Verdict.DENY_403, 403, 7)
    PATH_REFUSED = ("path_refused", Verdict.DENY_403, 403, 7)
    SCOPE_MISSING = ("scope_missing", Verdict.DENY_403, 403, 7)
    RATE_LIMITED = ("rate_limited", Verdict.DENY_429, 429, 8)
    STORE_UNAVAILABLE = ("store_unavailable", Verdict.DENY_403, 503, 14)
    OVERLOADED = ("overloaded", Verdict.DENY_403, 503, 14)
    URI_TOO_LONG = ("uri_too_long", Verdict.DENY_403, 414, 7)
    ROUTE_UNKNOWN = ("route_unknown", Verdict.DENY_403, 403, 7)
    METHOD_NOT_ALLOWED = ("method_not_allowed", Verdict.DENY_403, 403, 7)
    ROUTE_MISCONFIGURED = ("route_misconfigured", Verdict.DENY_403, 403, 7)
    KEY_FLOOD = ("key_flood", Verdict.DENY_429, 429, 8)

    def __init__(self, label: str, verdict: Verdict, http_status: int, grpc_code: int) -> None:
        """Spread the row over named attributes."""
        self.label = label
        self.verdict = verdict
        self.http_status = http_status
        self.grpc_code = grpc_code
        self.log_text = joined(verdict.value, label)  # the verdict and the reason in the decision log

    # Members are single objects, so identity will do; Enum's own hash runs Python code at each look-up.
    __hash__ = object.__hash__

    @property
    def is_credential_fault(self) -> bool:
        """Whether the caller is unknown: `unauthenticated_status` applies, and limits are not shown."""
        return self.grpc_code == 16

    @property
    def public_label(self) -> str:
        """
        The reason that callers see.

        It is the same for malformed, unknown, revoked and expired keys, so that keys cannot be probed.
        """
        if self.is_credential_fault and self is not Reason.MISSING_CREDENTIAL:
            return Reason.UNKNOWN_CREDENTIAL.label
        return self.label

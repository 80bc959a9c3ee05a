"""Decisions: the closed lists of verdicts and reasons, and decision ids."""

from __future__ import annotations

import itertools
import re
import secrets
from enum import Enum

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
DECISION_ID_LENGTH = 22
_PROCESS_ID = re.compile("[0-9a-z]{10}")


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


class DecisionIds:
    """
    Generates unique decision ids, each `DECISION_ID_LENGTH` characters of [0-9a-z].

    Ten random characters of the process (50 bits) and a counter of twelve hexadecimal digits: unique in the
    fleet, and ordered within a process.
    """

    __slots__ = ("_head", "_next")

    def __init__(self, process_id: str | None = None) -> None:
        """
        Start at 0; *process_id* replaces the random part in tests.

        Raises:
            ValueError: *process_id* has another form.
        """
        if process_id is not None and not _PROCESS_ID.fullmatch(process_id):
            raise ValueError(f"process id is {process_id!r}; it must be ten characters of 0-9 and a-z")
        self._head = process_id or "".join(secrets.choice(_ALPHABET) for _ in range(10))
        self._next = itertools.count().__next__

    def __call__(self) -> str:
        """Return the next id."""
        return f"{self._head}{self._next():012x}"


def seconds_up(duration_us: int) -> int:
    """Convert microseconds to whole seconds, rounded up."""
    return -(-duration_us // 1_000_000)


def retry_after_s(retry_after_us: int) -> int:
    """Return `Retry-After` for a wait: whole seconds, rounded up, at least 1 (RFC 9110 10.2.3)."""
    return max(1, seconds_up(retry_after_us))

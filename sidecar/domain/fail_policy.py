"""The policies of `on_store_error`, which decide while the bucket store is unavailable."""

from __future__ import annotations

from enum import Enum
from typing import Final, final

from sidecar.domain.decisions import Verdict
from sidecar.domain.values import Value


class FailPolicy(Enum):
    """
    How to decide a request that the registry allows while its bucket is unavailable.

    `DENY` fails closed (503), `ALLOW` fails open (without a limit), `LOCAL` takes from a bucket in the
    sidecar's memory with the sidecar's share of the limit.
    """

    DENY = "deny"
    ALLOW = "allow"
    LOCAL = "local"

    # Members are single objects, so identity will do; Enum's own hash runs Python code at each look-up.
    __hash__ = object.__hash__


FAIL_POLICIES: Final = tuple(policy.value for policy in FailPolicy)
"""The names of the policies in configurations and records."""


FALLBACK_VERDICTS: Final = (
    (FailPolicy.DENY, Verdict.DENY_403),
    (FailPolicy.ALLOW, Verdict.ALLOW),
    (FailPolicy.LOCAL, Verdict.ALLOW),
    (FailPolicy.LOCAL, Verdict.DENY_429),
    (FailPolicy.LOCAL, Verdict.DENY_403),
)
"""The possible verdicts of each policy; `LOCAL` denies with 503 if there is no memory for another bucket."""


@final
class Fallback(Value):
    """
    The policy and the limit of a decision without the store.

    `limit_rpm` is this sidecar's share of the limit in requests per minute, rounded down but at least 1;
    0 = no limit applied.
    """

    __slots__ = ("limit_rpm", "policy")

    def __init__(self, policy: FailPolicy, limit_rpm: int = 0) -> None:
        """See the class."""
        self.policy = policy
        self.limit_rpm = limit_rpm

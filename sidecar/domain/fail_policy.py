"""What answers when the store of the buckets cannot: the policies of `on_store_error`."""

from __future__ import annotations

from enum import Enum
from typing import final

from sidecar.domain.decisions import Verdict
from sidecar.domain.values import Value


class FailPolicy(Enum):
    """
    What is done with a request that the registry allows while its bucket cannot be asked.

    `DENY` fails closed (503), `ALLOW` fails open (no limit at all), `LOCAL` takes from a bucket in the
    memory of the sidecar with its share of the limit.
    """

    DENY = "deny"
    ALLOW = "allow"
    LOCAL = "local"

    # Members are single objects, so identity will do; Enum's own hash runs Python code at each look-up.
    __hash__ = object.__hash__


FAIL_POLICIES = tuple(policy.value for policy in FailPolicy)
"""The words of the policies, as configurations and records write them."""


FALLBACK_VERDICTS = (
    (FailPolicy.DENY, Verdict.DENY_403),
    (FailPolicy.ALLOW, Verdict.ALLOW),
    (FailPolicy.LOCAL, Verdict.ALLOW),
    (FailPolicy.LOCAL, Verdict.DENY_429),
    (FailPolicy.LOCAL, Verdict.DENY_403),
)
"""What can come of each policy; `LOCAL` refuses with 503 when there is no room for one more bucket."""


@final
class Fallback(Value):
    """
    That a decision was made without the store: by which policy, and in terms of which limit.

    `limit_rpm` is this sidecar's share of the limit in requests per minute, rounded down but at least 1;
    0 = no limit was looked at.
    """

    __slots__ = ("limit_rpm", "policy")

    def __init__(self, policy: FailPolicy, limit_rpm: int = 0) -> None:
        """See the class."""
        self.policy = policy
        self.limit_rpm = limit_rpm

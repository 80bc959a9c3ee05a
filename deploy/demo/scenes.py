"""The scenes of the demo: requests, and the expected answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.demo.sidecar import Owner

LIMIT_RPM = 12
BURST = 4
FOREIGN_NETWORK = "198.51.100.0/24"


class Cast:
    """The integrations of the demo."""

    def __init__(self) -> None:
        """Generate keys for all."""
        self.warehouse = _owner("warehouse", "Warehouse sync", scopes=["inventory:read", "orders:read"])
        self.headquarters = _owner(
            "headquarters", "Headquarters", scopes=["inventory:read"], ip_allowlist=[FOREIGN_NETWORK]
        )
        self.reports = _owner(
            "reports", "Nightly reports", scopes=["inventory:read"], rate_limit_rpm=LIMIT_RPM, burst=BURST
        )
        self.former = Owner("former", "A key of another system")

    @property
    def registered(self) -> list[Owner]:
        """The integrations in the registry."""
        return [self.warehouse, self.headquarters, self.reports]


def _owner(id: str, name: str, **fields: Any) -> Owner:
    return Owner(id, name, **{"rate_limit_rpm": 60, **fields})


@dataclass(frozen=True)
class Scene:
    """
    One or more equal requests; the demo shows the last answer.

    `reason` is the expected `x-auth-reason`, '' = allowed; `headers` are the answer's headers to show,
    `upstream` are the API's received headers to show.
    """

    title: str
    story: str
    owner: Owner
    path: str
    status: int
    reason: str = ""
    headers: tuple[str, ...] = ("x-auth-reason", "x-decision-id")
    method: str = "GET"
    times: int = 1
    upstream: tuple[str, ...] = ()


LIMITS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


def scenes(cast: Cast) -> tuple[Scene, ...]:
    """Return all scenes, in order."""
    return (
        Scene(
            "A known key with the right scope",
            "warehouse has the scope inventory:read, so the request is allowed. The answer has the limits.",
            cast.warehouse, "/v1/inventory/42", 200, headers=LIMITS,
            upstream=("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id"),
        ),
        Scene(
            "A wrong key",
            "The key has the right form, but no integration owns it. Unknown, revoked and expired keys"
            " get the same answer, so that keys cannot be probed.",
            cast.former, "/v1/inventory/42", 403, "unknown_credential",
        ),
        Scene(
            "A foreign address",
            f"headquarters may only call from {FOREIGN_NETWORK}; this request came from 127.0.0.1.",
            cast.headquarters, "/v1/inventory/42", 403, "ip_not_allowed",
        ),
        Scene(
            "A missing scope",
            "The route /v1/finance/** requires finance:write, which warehouse does not have.",
            cast.warehouse, "/v1/finance/invoices", 403, "scope_missing",
        ),
        Scene(
            "An ambiguous path",
            "'%252e' is an encoded '%2e', which is an encoded '.': some servers would serve /v1/finance"
            " here. The sidecar denies ambiguous paths.",
            cast.warehouse, "/v1/inventory/%252e%252e/finance", 403, "path_refused",
        ),
        Scene(
            "One request too many",
            f"reports may send {LIMIT_RPM} requests per minute, in bursts of {BURST};"
            f" here it sends {BURST + 1} at once.",
            cast.reports, "/v1/inventory/42", 429, "rate_limited", times=BURST + 1,
            headers=(*LIMITS, "retry-after", "x-auth-reason", "x-decision-id"),
        ),
    )  # fmt: skip

"""The scenes of the demo: who asks for what, and the answer that the configuration promises."""

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
        """Make fresh keys for everybody."""
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
        """Those whom the registry knows."""
        return [self.warehouse, self.headquarters, self.reports]


def _owner(id: str, name: str, **fields: Any) -> Owner:
    return Owner(id, name, **{"rate_limit_rpm": 60, **fields})


@dataclass(frozen=True)
class Scene:
    """
    One or more equal requests, of which the last is shown.

    `reason` is the word of `x-auth-reason`, '' = allowed; `headers` are those of the answer to show,
    `upstream` those that the API received.
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
    """The whole tour, in order."""
    return (
        Scene(
            "A known key with the right scope",
            "warehouse holds inventory:read, so the request passes, with the limits on the answer.",
            cast.warehouse, "/v1/inventory/42", 200, headers=LIMITS,
            upstream=("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id"),
        ),
        Scene(
            "A wrong key",
            "The key has the right shape, but no integration owns it. Unknown, revoked and expired keys"
            " all get this answer, so that nobody can probe for keys.",
            cast.former, "/v1/inventory/42", 403, "unknown_credential",
        ),
        Scene(
            "A foreign address",
            f"headquarters may call from {FOREIGN_NETWORK} only; the proxy saw this one come from 127.0.0.1.",
            cast.headquarters, "/v1/inventory/42", 403, "ip_not_allowed",
        ),
        Scene(
            "A missing scope",
            "The route below /v1/finance asks for finance:write, which warehouse does not have.",
            cast.warehouse, "/v1/finance/invoices", 403, "scope_missing",
        ),
        Scene(
            "A path with a trick in it",
            "'%252e' is an encoded '%2e', which is an encoded '.': some servers would go up to"
            " /v1/finance here. The sidecar refuses what can be read in two ways.",
            cast.warehouse, "/v1/inventory/%252e%252e/finance", 403, "path_refused",
        ),
        Scene(
            "One request too many",
            f"reports may send {LIMIT_RPM} requests a minute, in bursts of {BURST};"
            f" here come {BURST + 1} at once.",
            cast.reports, "/v1/inventory/42", 429, "rate_limited", times=BURST + 1,
            headers=(*LIMITS, "retry-after", "x-auth-reason", "x-decision-id"),
        ),
    )  # fmt: skip

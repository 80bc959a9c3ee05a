"""Judges suspensions under load: no call is let in that was sent after its commit."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

RATE_TOO_LOW: Final = "suspended integrations sent nothing after the commit: raise the rate"
"""This fault leaves the promise unproven, and does not break it."""

UNSEEN_SHARE_MAX = 0.1
LAST_NS = 500_000_000
"""A suspension this shortly before the last call may meet none."""
PERCENTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}

WatchedCalls = array
"""
The calls of integrations that are suspended during the run, five numbers for each.

Integration, target, when it was sent and answered (CLOCK_MONOTONIC), and status.
"""


@dataclass(frozen=True)
class Suspension:
    """
    One suspension: when it was requested first, and when the answer came that it is committed.

    Times are of CLOCK_MONOTONIC. One that `lacks_replicas` may be lost with the primary, as its answer says.
    """

    integration: int
    called_ns: int
    committed_ns: int
    lacks_replicas: bool = False


@dataclass
class Suspensions:
    """All suspensions of a run; `errors` are calls of the admin API that failed and were repeated."""

    made: list[Suspension] = field(default_factory=list)
    errors: int = 0


@dataclass
class _Found:
    """What the calls of one suspended integration came to; `denied_ns` has the first denial by target."""

    sent_after: int = 0
    admitted_after: int = 0
    denied_early: int = 0
    denied_ns: dict[int, int] = field(default_factory=dict)


def judge_suspensions(
    suspensions: Suspensions, calls: WatchedCalls[int], targets: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """
    Return the figures of *suspensions*, and what was wrong with its count.

    Only calls that were sent after a commit are judged, and a suspension that lacks replicas binds nobody.
    """
    found = {item.integration: _Found() for item in suspensions.made}
    by_integration = {item.integration: item for item in suspensions.made}
    last_ns = 0
    for owner, target, sent_ns, read_ns, status in zip(*[iter(calls)] * 5, strict=True):
        last_ns = max(last_ns, sent_ns)
        item = by_integration.get(owner)
        if item is None:
            continue
        mine = found[owner]
        if status == 403:
            mine.denied_ns.setdefault(target, read_ns)
            mine.denied_early += read_ns < item.called_ns
        if sent_ns > item.committed_ns and not item.lacks_replicas:
            mine.sent_after += 1
            mine.admitted_after += status in (200, 429)
    judged = [item for item in suspensions.made if not item.lacks_replicas]
    in_time = [item for item in judged if item.committed_ns < last_ns - LAST_NS]
    unseen = sum(not found[item.integration].sent_after for item in in_time or judged)
    flips_ms = [
        (max(found[item.integration].denied_ns.values()) - item.committed_ns) / 1e6
        for item in judged
        if len(found[item.integration].denied_ns) == targets
    ]
    totals = {
        name: sum(getattr(mine, name) for mine in found.values()) for name in ("sent_after", "admitted_after")
    }
    figures = {
        "made": len(suspensions.made),
        "lacking_replicas": len(suspensions.made) - len(judged),
        "errors": suspensions.errors,
        **totals,
        "seen_by_every_target": len(flips_ms),
        "commit_ms": _spread([(item.committed_ns - item.called_ns) / 1e6 for item in suspensions.made]),
        "denial_ms": _spread(flips_ms),
    }
    wrong = {
        "a suspended integration was let in after the commit": totals["admitted_after"],
        "an integration was denied before it was suspended": sum(m.denied_early for m in found.values()),
        RATE_TOO_LOW: unseen if unseen > UNSEEN_SHARE_MAX * len(judged) else 0,
        "no suspension was made": int(not judged),
    }
    return figures, {what: count for what, count in wrong.items() if count}


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    """Return percentiles by the nearest rank; empty without values."""
    ordered = sorted(values)
    return {
        name: round(ordered[max(0, -int(-share * len(ordered) // 1) - 1)], 3)
        for name, share in PERCENTILES.items()
        if ordered
    }

"""Applies `on_store_error`, of the integration or of the configuration, while the store is unavailable."""

from __future__ import annotations

from sidecar.domain.bucket import Taken
from sidecar.domain.decisions import Reason
from sidecar.domain.fail_policy import FALLBACK_VERDICTS, FailPolicy, Fallback
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.observe.metrics import Metrics
from sidecar.stores.local_share import LocalShare
from sidecar.stores.protocols import StoreFault


class StoreFallback:
    """
    Decides requests that the registry allows while the shared store is unavailable.

    An integration whose record is outdated is denied whatever its policy: the newer record may suspend it,
    or be stricter.
    """

    def __init__(self, metrics: Metrics, policy: FailPolicy, local: LocalShare) -> None:
        """Apply *policy* to integrations without a policy; *local* holds the buckets for LOCAL."""
        self.local = local
        self._policy = policy
        self._values = metrics.values
        self._slots = {
            (policy, verdict): metrics.slot("sidecar_store_fallbacks_total", policy.value, verdict.value)
            for policy, verdict in FALLBACK_VERDICTS
        }

    def answer(
        self, integration: CompiledIntegration, fault: StoreFault
    ) -> tuple[Reason, Taken | None, Fallback]:
        """
        Decide one request of *integration* after *fault*.

        Returns:
            The reason, the outcome of the local bucket (None = no bucket was used), and the fallback.
        """
        policy = self._policy if integration.on_store_error is None else integration.on_store_error
        taken = None
        share_rpm = 0
        if policy is FailPolicy.DENY or integration.is_outdated:
            reason, policy = fault_reason(fault), FailPolicy.DENY
        elif policy is FailPolicy.ALLOW:
            reason = Reason.OK
        else:
            reason, taken = self._take(integration)
            share_rpm = max(1, integration.limit_rpm // self.local.live_sidecars)
        self._values[self._slots[policy, reason.verdict]] += 1
        return reason, taken, Fallback(policy, share_rpm)

    def _take(self, integration: CompiledIntegration) -> tuple[Reason, Taken | None]:
        """Take from this sidecar's share; fails if there is no memory for another bucket."""
        outcome = self.local.take_now(integration.buckets, 1)
        if not isinstance(outcome, Taken):
            return fault_reason(outcome), None
        return Reason.OK if outcome.admitted else Reason.RATE_LIMITED, outcome


def fault_reason(fault: StoreFault) -> Reason:
    """Return the reason of a denial after *fault*."""
    return Reason.OVERLOADED if fault is StoreFault.OVERLOADED else Reason.STORE_UNAVAILABLE

"""Whether the workers together should get traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidecar.observe.metrics import Metrics
from sidecar.process.readiness import Component, Readiness
from sidecar.process.supervisor.slot import Slot


class WorkersReadiness(Readiness):
    """
    Ready = at least one worker is; each worker is a component.

    One is enough because a worker that starts, drains or is dead gets no new connections anyway.
    `/readyz` says 'degraded' then, and names the workers that are missing.
    """

    def __init__(self, metrics: Metrics, slots: Sequence[Slot]) -> None:
        """Look at *slots* whenever asked."""
        super().__init__(metrics, ())
        self._slots = slots

    @property
    def is_ready(self) -> bool:
        """Whether any worker is ready."""
        return any(slot.component.is_ready for slot in self._slots)

    @property
    def status(self) -> str:
        """'ready', 'degraded' or 'not ready'."""
        ready = sum(slot.component.is_ready for slot in self._slots)
        return "not ready" if not ready else "ready" if ready == len(self._slots) else "degraded"

    @property
    def components(self) -> Mapping[str, Component]:
        """How each worker is: 'worker 0', 'worker 1' ..."""
        return {f"worker {slot.index}": slot.component for slot in self._slots} | self.files

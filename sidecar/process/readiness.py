"""Whether this process should get traffic, by named components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sidecar.observe.file_reading import unreadable_kinds
from sidecar.observe.metrics import Metrics
from sidecar.process.settings import DECIDING_KINDS


class Component(NamedTuple):
    """A part of the process that must be ready, and its state as text."""

    is_ready: bool
    state: str


def describe_unready(components: Mapping[str, Component]) -> str:
    """
    Return the components that are not ready, as text.

    >>> describe_unready({"grpc": Component(True, "serving"), "store": Component(False, "unreachable")})
    'store: unreachable'
    """
    return ", ".join(f"{name}: {each.state}" for name, each in components.items() if not each.is_ready)


SOUND_STATES = frozenset({"serving", "loaded", "none", "connected", "ready"})


def describe_degraded(components: Mapping[str, Component]) -> str:
    """
    Return the components that are ready but have a problem, as text.

    >>> describe_degraded({"registry": Component(True, "loaded, but not followed")})
    'registry: loaded, but not followed'
    """
    return ", ".join(
        f"{name}: {each.state}"
        for name, each in components.items()
        if each.is_ready and each.state not in SOUND_STATES
    )


class Readiness:
    """Whether every component is ready; shown by `/readyz` and the gauge `sidecar_ready`."""

    def __init__(self, metrics: Metrics, components: tuple[str, ...]) -> None:
        """Start with *components*, each of them 'starting'."""
        self._metrics = metrics
        self._components = {name: Component(False, "starting") for name in components}
        self._metrics.set("sidecar_ready", to=0)
        self.on_change: Callable[[], None] = lambda: None
        """Called after each `set`."""

    @property
    def is_ready(self) -> bool:
        """True when every component is ready."""
        return all(component.is_ready for component in self._components.values())

    @property
    def status(self) -> str:
        """'ready' or 'not ready'."""
        return "ready" if self.is_ready else "not ready"

    @property
    def components(self) -> Mapping[str, Component]:
        """The components by name, with 'files' while a file cannot be read."""
        return {**self._components, **self.files}

    @property
    def files(self) -> dict[str, Component]:
        """
        The kinds of files that cannot be read now, as the component 'files'; empty = all can be read.

        The last content stays in force, so the process is still ready.
        """
        kinds = unreadable_kinds(self._metrics)
        if not kinds:
            return {}
        return {"files": Component(True, f"cannot be read, the last content is in force: {', '.join(kinds)}")}

    @property
    def unready_before_serving(self) -> str:
        """The components other than listeners that are not ready, as text; '' = none."""
        return describe_unready(
            {name: each for name, each in self.components.items() if name not in DECIDING_KINDS}
        )

    def set(self, name: str, is_ready: bool, state: str) -> None:
        """Set the state of the component *name*."""
        self._components[name] = Component(is_ready, state)
        self._metrics.set("sidecar_ready", to=int(self.is_ready))
        self.on_change()


class WorkersReadiness(Readiness):
    """
    The readiness of several workers: ready = at least one worker is; each worker is a component.

    One is enough because a worker that starts, drains or has ended gets no new connections. `/readyz`
    then says 'degraded' and names the workers that are not ready.
    """

    def __init__(self, metrics: Metrics, workers: Callable[[], Mapping[str, Component]]) -> None:
        """Call *workers* for the component of each worker, by name, at every question."""
        super().__init__(metrics, ())
        self._workers = workers

    @property
    def is_ready(self) -> bool:
        """Whether any worker is ready."""
        return any(worker.is_ready for worker in self._workers().values())

    @property
    def status(self) -> str:
        """'ready', 'degraded' (some workers are) or 'not ready'."""
        are_ready = [worker.is_ready for worker in self._workers().values()]
        return "not ready" if not any(are_ready) else "ready" if all(are_ready) else "degraded"

    @property
    def components(self) -> Mapping[str, Component]:
        """The workers by name: 'worker 0', 'worker 1' ..."""
        return {**self._workers(), **self.files}

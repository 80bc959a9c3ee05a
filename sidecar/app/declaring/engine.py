"""Plans against a target, and applies a plan: bounded batches, guarded by generations, one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

from sidecar.app.declaring.target import STEPS_MAX, ChangeTarget, Declined, Made, TargetError
from sidecar.domain.declared import Declaration, Difference, Plan, Step, Terms, compare
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.stores.embedded import wall_clock_us


@dataclass(slots=True)
class Progress:
    """How far the steps of one integration have come; `declined` ends them."""

    difference: Difference
    made: int = 0
    declined: Declined | None = None

    @property
    def next_step(self) -> Step | None:
        """The step to make now; None = there is none, or one was declined."""
        steps = self.difference.steps
        return steps[self.made] if self.declined is None and self.made < len(steps) else None


@dataclass(frozen=True, slots=True)
class Report:
    """
    What came of a plan.

    `error` tells why it was broken off, None = it came to its end. `took_s` is how long it took.
    """

    progress: tuple[Progress, ...]
    took_s: float
    error: TargetError | None = None

    @property
    def made(self) -> int:
        """Steps that were made."""
        return sum(one.made for one in self.progress)

    @property
    def declined(self) -> tuple[Progress, ...]:
        """Integrations with a step that the target refused."""
        return tuple(one for one in self.progress if one.declined is not None)

    @property
    def unfinished(self) -> int:
        """Steps that were not tried, because one before them was refused, or all was broken off."""
        steps = sum(len(one.difference.steps) for one in self.progress)
        return steps - self.made - len(self.declined)


@dataclass(frozen=True, slots=True)
class Wish:
    """
    What is wanted of a registry: what a file declares, and how to go about what it does not name.

    `reason` goes on record with each change. `has_prune`: end what is not declared.
    """

    declarations: Sequence[Declaration]
    reason: str
    has_prune: bool = False
    clock_us: Callable[[], int] = field(default=wall_clock_us)


def make_plan(target: ChangeTarget, wish: Wish) -> Plan:
    """
    Compare *wish* with what *target* holds now.

    Raises:
        TargetError: the target could not be read.
    """
    terms = Terms(
        Lifecycle(target.catalogue()),
        target.identify(),
        wish.clock_us(),
        wish.reason,
        wish.has_prune,
        target.knows_digests,
    )
    return compare(wish.declarations, target.load(), terms)


def apply_plan(target: ChangeTarget, plan: Plan) -> Report:
    """
    Make the steps of *plan*: the first one of every integration, then the second one, and so on.

    So a step is sent only after the one before it was made, and each names the generation that it expects:
    where somebody else has changed an integration meanwhile, nothing more is done to it. A target that
    fails ends the whole; the report tells how far it came.
    """
    started_s = monotonic()
    progress = tuple(Progress(difference) for difference in plan.differences if difference.steps)
    error = None
    try:
        waiting = progress
        while waiting := tuple(one for one in waiting if one.next_step is not None):
            for batch in _batches(waiting):
                _apply_batch(target, batch)
    except TargetError as failure:
        error = failure
    return Report(progress, monotonic() - started_s, error)


def _apply_batch(target: ChangeTarget, batch: Sequence[Progress]) -> None:
    steps = [step for one in batch if (step := one.next_step) is not None]
    for one, result in zip(batch, target.apply(steps), strict=True):
        if isinstance(result, Made):
            one.made += 1
        else:
            one.declined = result


def _batches(waiting: Sequence[Progress]) -> Iterator[Sequence[Progress]]:
    for first in range(0, len(waiting), STEPS_MAX):
        yield waiting[first : first + STEPS_MAX]

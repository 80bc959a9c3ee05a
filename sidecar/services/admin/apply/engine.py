"""Compares a file with a registry, and applies the differences in batches that check generations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from sidecar.domain.changes import ChangeContext, ChangeRequest, Position
from sidecar.domain.declared import (
    ApplyPlan,
    ComparisonContext,
    Declaration,
    Difference,
    PlannedCommand,
    compare,
)
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Actor
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.texts import REASON_LENGTH_MAX
from sidecar.stores.registry.protocol import Registry, RegistryError

STEPS_MAX = 1_000
"""Steps per call of the registry, which accepts at most `REQUESTS_MAX`."""


class Declined(NamedTuple):
    """A step that the registry refused; `code` is the domain's code."""

    code: str
    message: str


@dataclass(slots=True)
class Progress:
    """The progress of one integration; `declined` stops it."""

    difference: Difference
    made: int = 0
    declined: Declined | None = None

    @property
    def next_step(self) -> PlannedCommand | None:
        """The next step; None = finished, or declined."""
        steps = self.difference.steps
        return steps[self.made] if self.declined is None and self.made < len(steps) else None


@dataclass(frozen=True, slots=True)
class Report:
    """
    The result of applying a plan.

    `error` is the registry's failure that stopped it, None = finished. `positions` are the positions of the
    changes in the registry's history, `is_durable` = all of them are durable. `took_s` is the duration.
    """

    progress: tuple[Progress, ...]
    took_s: float
    error: RegistryError | None = None
    positions: tuple[Position, ...] = ()
    is_durable: bool = True

    @property
    def made(self) -> int:
        """The number of steps made."""
        return sum(progress.made for progress in self.progress)

    @property
    def declined(self) -> tuple[Progress, ...]:
        """The integrations with a step that the registry refused."""
        return tuple(progress for progress in self.progress if progress.declined is not None)

    @property
    def unfinished(self) -> int:
        """The number of steps not tried, because an earlier one was refused or the registry failed."""
        steps = sum(len(progress.difference.steps) for progress in self.progress)
        return steps - self.made - len(self.declined)


@dataclass(frozen=True, slots=True)
class ApplyRequest:
    """
    The declared content of a registry, its author, and how to treat what the file does not name.

    `reason` is recorded with each change. `has_prune`: delete what is not declared. `context` is recorded as
    the origin of every change. `expected_plan` is the digest of the only plan to apply, None = any.
    """

    declarations: Sequence[Declaration]
    reason: str
    actor: Actor
    context: ChangeContext
    now_us: int
    has_prune: bool = False
    expected_plan: str | None = None
    is_dry_run: bool = False


class PlanChangedError(Exception):
    """The plan differs from `ApplyRequest.expected_plan`: the file or the registry has changed."""


def default_reason(file_name: str) -> str:
    """Return the reason to record if none was given."""
    return f"declared in {file_name}"[:REASON_LENGTH_MAX]


async def make_plan(registry: Registry, catalogue: ScopeCatalogue, request: ApplyRequest) -> ApplyPlan:
    """
    Compare *request* with the content of *registry*.

    Raises:
        RegistryError: the registry could not be read.
    """
    context = ComparisonContext(
        Lifecycle(catalogue), request.actor, request.now_us, request.reason, request.has_prune
    )
    held = (await registry.load_all()).records
    # In a thread: the comparison of 10,000 integrations takes a second of processor time.
    return await asyncio.to_thread(compare, request.declarations, held, context)


async def apply_plan(registry: Registry, plan: ApplyPlan, request: ApplyRequest) -> Report:
    """
    Make the steps of *plan*: the first step of every integration, then the second, and so on.

    A step is sent only after the previous one was made, with the generation that it expects: an integration
    that somebody else has changed since gets no further steps. A failure of the registry stops the run; the
    report has the progress.
    """
    run = _Run(registry, request)
    started_s = monotonic()
    progress = tuple(Progress(difference) for difference in plan.differences if difference.steps)
    error = None
    try:
        waiting = progress
        while waiting := tuple(member for member in waiting if member.next_step is not None):
            for first in range(0, len(waiting), STEPS_MAX):
                await run.apply(waiting[first : first + STEPS_MAX])
    except RegistryError as failure:
        error = failure
    return Report(progress, monotonic() - started_s, error, tuple(run.positions), run.is_durable)


@dataclass(slots=True)
class _Run:
    """One run of `apply_plan`; collects the `positions` of its changes, and whether all are durable."""

    registry: Registry
    request: ApplyRequest
    positions: list[Position] = field(default_factory=list)
    is_durable: bool = True

    async def apply(self, batch: Sequence[Progress]) -> None:
        """Make the next step of each member of *batch*, and record the results."""
        results = await self.registry.apply_many(list(self._requests(batch)))
        for progress, result in zip(batch, results, strict=True):
            if isinstance(result, RefusedError):
                progress.declined = Declined(result.code.text, str(result))
                continue
            progress.made += 1
            self.is_durable = self.is_durable and result.is_durable
            if result.position is not None:
                self.positions.append(result.position)

    def _requests(self, batch: Sequence[Progress]) -> Iterator[ChangeRequest]:
        for progress in batch:
            step = progress.next_step
            assert step is not None  # `apply_plan` filters them
            yield ChangeRequest(
                step.command, self.request.actor, self.request.context, step.expected_generation
            )

"""Where declared changes go: what the engine asks of a registry, or of the admin API before one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from sidecar.domain.declared import Step
from sidecar.domain.integrations import Integration
from sidecar.domain.roles import Actor
from sidecar.domain.scopes import ScopeCatalogue

STEPS_MAX = 1_000
"""Steps of one `ChangeTarget.apply`."""


class TargetError(Exception):
    """
    The target did not do its part; the message says what to do.

    `may_have_happened` True = steps that were under way may have been made all the same. Running the
    whole again is always safe: what was made is then no longer a difference.
    """

    def __init__(self, message: str, *, may_have_happened: bool = False) -> None:
        """Say what to do, and whether what was under way may be in force."""
        super().__init__(message)
        self.may_have_happened = may_have_happened


class Made(NamedTuple):
    """A step that was made; `generation` is that of the record afterwards."""

    generation: int


class Declined(NamedTuple):
    """A step that was refused, so nothing was changed: `code` is the domain's word for why."""

    code: str
    message: str


Result: TypeAlias = Made | Declined


class ChangeTarget(Protocol):
    """A registry under the rights of one administrator. Any method may raise `TargetError`."""

    @property
    def knows_digests(self) -> bool:
        """Whether `load` tells digests; without them credentials with equal ids are taken for equal."""

    def identify(self) -> Actor:
        """Who makes the changes."""

    def catalogue(self) -> ScopeCatalogue:
        """The categories of scopes in force."""

    def load(self) -> tuple[Integration, ...]:
        """Every integration there is now."""

    def apply(self, steps: Sequence[Step]) -> tuple[Result, ...]:
        """
        Make up to `STEPS_MAX` steps, each whole or absent on its own, and only on the generation it names.

        A refused step does not stop the others; the results are in the order of the steps.
        """
